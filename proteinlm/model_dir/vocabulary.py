"""Embedding rows are moved by token name, never by position: each format numbers its tokens differently.

    files = to_tokenizer(files, "tape")         # an ESM-2 on TAPE's 30 tokens

What must hold: letters are the same in every vocabulary and special tokens go by their role, so `<eos>`, `<sep>` and
`[SEP]` are one; a token that the source does not have has a row of zeros, and a note.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from proteinlm.errors import InputError
from proteinlm.model_dir.files import ModelFiles
from proteinlm.network.config import ModelConfig
from proteinlm.tokenizer import ESM_SPECIALS, PRETRAIN_SPECIALS, TAPE_SPECIALS, Tokenizer, build_tokenizer

# The tensors whose first dimension is the (padded) vocabulary.
VOCABULARY_TENSORS = ("word_embeddings.weight", "lm_head.bias", "lm_head.decoder.weight")
# Special tokens by role. [unused1] is the pretraining vocabulary's alone; gaps and <null_1> are ESM's.
SPECIAL_TOKENS = dict(zip((*TAPE_SPECIALS, *ESM_SPECIALS), 2 * PRETRAIN_SPECIALS, strict=True))


def canonical(tokens: Sequence[str]) -> list[str]:
    """The tokens with the pretraining vocabulary's spelling of the special ones."""
    return [SPECIAL_TOKENS.get(token, token) for token in tokens]


def remap_rows(tensor: Tensor, source: Sequence[str], target: Sequence[str], rows: int) -> Tensor:
    """Rows of `tensor` ([>= len(source), ...], row r belongs to token source[r]) in `target`'s order, padded to `rows`.

    A token that the source does not have, and every padding row, becomes zeros.
    """
    row_of = {token: row for row, token in enumerate(source)}
    result = torch.zeros((rows, *tensor.shape[1:]), dtype=tensor.dtype)
    for row, token in enumerate(target):
        if token in row_of:
            result[row] = tensor[row_of[token]]
    return result


def take_rows(
    tensors: Mapping[str, Tensor], tokens: Sequence[str], tokenizer: Tokenizer, divisible_by: int, origin: str
) -> tuple[dict[str, Tensor], list[str]]:
    """`tensors` with their vocabulary rows (row r: tokens[r]) in `tokenizer`'s order, padded with zeros to a multiple
    of `divisible_by`; and notes of what was dropped or came out as zeros."""
    source, target = canonical(tokens), canonical(tokenizer.tokens)
    rows = -(-len(target) // divisible_by) * divisible_by
    tensors, notes = dict(tensors), []
    for name in VOCABULARY_TENSORS:
        if name in tensors:
            whole = tensors[name]
            if whole.dim() == 0 or len(whole) < len(source):
                shape = tuple(whole.shape)
                raise InputError(f"{origin}: {name} has shape {shape}; its vocabulary has {len(source)} tokens")
            tensors[name] = remap_rows(whole, source, target, rows)
            if name == VOCABULARY_TENSORS[0] and whole[len(source) :].any():
                count = len(whole) - len(source)
                notes.append(f"{count} padding rows of the vocabulary dropped (they stand for no token)")
    left_out = [token for token in source if token not in target]
    absent = [token for token in target if token not in source]
    if left_out:
        notes.append(f"rows of {_listed(left_out)} left out: no such token in the {tokenizer.name} vocabulary")
    if absent:
        notes.append(f"rows of {_listed(absent)} are zeros: the source's vocabulary does not have them")
    return tensors, notes


def _listed(tokens: Sequence[str]) -> str:
    return ", ".join(tokens if len(tokens) < 8 else [*tokens[:3], f"{tokens[3]} ... {tokens[-1]}"])


def on_vocabulary(config: ModelConfig, tokenizer: Tokenizer, divisible_by: int = 1) -> ModelConfig:
    """The configuration of the same network on `tokenizer`'s ids."""
    ids = {"vocab_size": tokenizer.vocab_size, "make_vocab_size_divisible_by": divisible_by}
    return replace(config, **ids, mask_token_id=None if config.mask_token_id is None else tokenizer.mask_id)


def to_tokenizer(files: ModelFiles, name: str, divisible_by: int = 1, origin: str = "the model") -> ModelFiles:
    """The model on the vocabulary `name` (iupac, tape, esm or esmc), its own being one to one. origin: for messages."""
    tokenizer = build_tokenizer(name)
    state, notes = take_rows(files.state, files.tokenizer.tokens, tokenizer, divisible_by, origin)
    config = on_vocabulary(files.config, tokenizer, divisible_by)
    return replace(files, config=config, tokenizer=tokenizer, state=state, notes=(*files.notes, *notes))
