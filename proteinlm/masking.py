"""Which residues a row hides, and what stands in their place: BERT's 80/10/10 rule, as a pure function of its numbers.

    rng = sample_rng(seed, MASK_STREAM, sample_number)
    masked, positions, labels = mask_tokens(tokens, maskable, tokenizer, rng)

Must hold: a row hides exactly round(mask_prob x real tokens) residues (real tokens: all but padding), never a special
token, and the random replacements are residues only, since a drawn [CLS] would cut a protein in two. Everything is
drawn from `sample_rng`, so it does not depend on workers, ranks, micro-batches or restarts. numpy only.
"""

from typing import Protocol

import numpy as np

MASK_SHARE = 0.8  # of the hidden residues: shown as [MASK]
RANDOM_SHARE = 0.1  # shown as a random residue; the rest is shown as it is

# The second word of a generator's key says what it is for, so that two uses of one seed never share numbers.
PACK_STREAM, EPOCH_STREAM, CROP_STREAM, MASK_STREAM, BLEND_STREAM, COMPONENT_STREAM = range(1, 7)
GROUP_STREAM, STAGE_STREAM = range(7, 9)


class MaskVocabulary(Protocol):
    """What masking asks of a tokenizer (proteinlm.tokenizer.Tokenizer has it)."""

    pad_id: int
    mask_id: int
    residue_ids: np.ndarray


def sample_rng(seed: int, *numbers: int) -> np.random.Generator:
    """A generator that is a pure function of (seed, numbers): at most four numbers >= 0, the first one naming its use.

    Philox is a counter-based generator: seed and use are its key, the other numbers the high words of its counter, each
    in a 64-bit word of its own, so different numbers can never meet; the counter's low word counts the draws.
    """
    assert 1 <= len(numbers) <= 4 and min(numbers) >= 0, numbers
    stream, *rest = numbers
    counter = [0, *rest, *[0] * (3 - len(rest))]
    key = np.array([seed % 2**64, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array(counter, dtype=np.uint64)))


def permutation(count: int, seed: int, *numbers: int) -> np.ndarray:
    """A random order of `count` things, int64 [count], from `sample_rng(seed, *numbers)`.

    Sorts raw 64-bit draws: numpy promises those never change between its versions, which it does not promise for
    `Generator.permutation`, and a resumed run must see the same order.
    """
    draws = sample_rng(seed, *numbers).bit_generator.random_raw(count)
    return np.argsort(draws, kind="stable")


def num_to_mask(mask_prob: float, num_real_tokens: int) -> int:
    """How many residues a row of `num_real_tokens` (with [CLS], no padding) hides: Python's round, as Megatron does."""
    return round(mask_prob * num_real_tokens)


def mask_tokens(
    tokens: np.ndarray,
    maskable: np.ndarray,
    tokenizer: MaskVocabulary,
    rng: np.random.Generator,
    mask_prob: float = 0.15,
    count: int | None = None,
    mask_only: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hide residues of `tokens` int [s] where `maskable` bool [s] allows it.

    Returns (masked tokens [s], a copy; positions int64 [m], ascending; labels int64 [m], the true ids there).
    m = min(count, maskable tokens), where `count` is round(mask_prob x tokens that are not padding) unless given.
    mask_only: all of them are shown as [MASK], the same ones as without it.
    """
    assert tokens.shape == maskable.shape and tokens.ndim == 1, (tokens.shape, maskable.shape)
    if count is None:
        count = num_to_mask(mask_prob, np.count_nonzero(tokens != tokenizer.pad_id))
    candidates = np.flatnonzero(maskable)
    count = min(count, len(candidates))
    masked = tokens.copy()
    if count == 0:
        return masked, np.empty(0, np.int64), np.empty(0, np.int64)
    keys = rng.random(len(candidates))
    chosen = np.argpartition(keys, count - 1)[:count]  # the `count` smallest of independent keys: a uniform choice
    positions = np.sort(candidates[chosen])
    labels = tokens[positions].astype(np.int64)
    action = rng.random(count)
    residues = np.asarray(tokenizer.residue_ids)
    drawn = residues[(rng.random(count) * len(residues)).astype(np.int64)]
    visible = np.where(action < MASK_SHARE + RANDOM_SHARE, drawn, labels)
    masked[positions] = np.where(mask_only | (action < MASK_SHARE), tokenizer.mask_id, visible)
    return masked, positions, labels
