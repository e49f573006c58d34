"""Masking: how many residues, which ones, what stands in their place."""

import numpy as np
import pytest

from proteinlm.masking import mask_tokens, num_to_mask, permutation, sample_rng
from proteinlm.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer("iupac")


def row(length: int, padding: int = 0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, maskable): [CLS], residues with an [UNK] every 50, padding."""
    tokens = np.random.default_rng(seed).choice(TOKENIZER.encode("ACDEFGHIKLMNPQRSTVWY"), length).astype(np.int64)
    tokens[::50] = TOKENIZER.unk_id
    tokens[0] = TOKENIZER.cls_id
    tokens = np.concatenate([tokens, np.full(padding, TOKENIZER.pad_id)])
    return tokens, np.isin(tokens, TOKENIZER.residue_ids)


@pytest.mark.parametrize(
    ("length", "padding", "expected"),
    [(2176, 0, 326), (512, 0, 77), (100, 412, 15), (30, 2, 4), (10, 0, 2), (3, 61, 0)],  # 4.5 -> 4, 1.5 -> 2: to even
)
def test_as_many_as_the_rule_says(length, padding, expected):
    tokens, maskable = row(length, padding)
    masked, positions, labels = mask_tokens(tokens, maskable, TOKENIZER, sample_rng(1, 4, 0))
    assert len(positions) == len(labels) == expected == num_to_mask(0.15, length)
    assert (np.diff(positions) > 0).all() and maskable[positions].all()
    assert np.array_equal(labels, tokens[positions])
    untouched = np.setdiff1d(np.arange(len(tokens)), positions)
    assert np.array_equal(masked[untouched], tokens[untouched])


def test_the_row_given_is_not_changed():
    tokens, maskable = row(512)
    before = tokens.copy()
    masked, *_ = mask_tokens(tokens, maskable, TOKENIZER, sample_rng(1, 4, 0))
    assert np.array_equal(tokens, before) and not np.array_equal(masked, before)


def test_no_more_than_there_are_residues():
    tokens = np.array([TOKENIZER.cls_id, 6, TOKENIZER.unk_id, 7])
    _, positions, _ = mask_tokens(tokens, np.isin(tokens, [6, 7]), TOKENIZER, sample_rng(0, 4, 0), count=4)
    assert positions.tolist() == [1, 3]
    _, positions, _ = mask_tokens(tokens, np.zeros(4, bool), TOKENIZER, sample_rng(0, 4, 0), count=4)
    assert len(positions) == 0


def within(count: int, trials: int, share: float) -> bool:
    """Five standard deviations of a binomial: a false alarm in two million."""
    return abs(count - trials * share) <= 5 * np.sqrt(trials * share * (1 - share))


def test_eighty_ten_ten():
    tokens, maskable = row(2176)
    total = mask = unchanged = 0
    drawn = []
    for sample in range(400):
        masked, positions, labels = mask_tokens(tokens, maskable, TOKENIZER, sample_rng(5, 4, sample))
        inputs = masked[positions]
        total += len(inputs)
        mask += np.count_nonzero(inputs == TOKENIZER.mask_id)
        unchanged += np.count_nonzero(inputs == labels)
        drawn.append(inputs[(inputs != TOKENIZER.mask_id) & (inputs != labels)])
    residues = len(TOKENIZER.residue_ids)
    drawn = np.concatenate(drawn)
    assert within(mask, total, 0.8)
    assert within(unchanged, total, 0.1 + 0.1 / residues)  # a drawn residue may be the true one
    assert within(len(drawn), total, 0.1 * (1 - 1 / residues))
    assert set(drawn.tolist()) == set(TOKENIZER.residue_ids.tolist())  # every letter, and nothing but letters
    assert not within(mask, total, 0.79)  # this many draws would show a share one per cent off


def test_every_residue_is_hidden_equally_often():
    tokens, maskable = row(200)
    hidden = np.zeros(200)
    samples = 3000
    for sample in range(samples):
        hidden[mask_tokens(tokens, maskable, TOKENIZER, sample_rng(5, 4, sample))[1]] += 1
    share = 30 / maskable.sum()
    assert all(within(count, samples, share) for count in hidden[maskable])
    assert hidden[~maskable].sum() == 0


def test_generators_are_pure_functions_of_their_numbers():
    def draws(*numbers):
        return sample_rng(*numbers).bit_generator.random_raw(4).tolist()

    assert draws(1, 4, 7) == draws(1, 4, 7)
    # Other seed, use, number, order, more numbers, beyond 32 bits, a negative seed: all differ.
    keys = [(1, 4, 7), (2, 4, 7), (1, 3, 7), (1, 4, 8), (1, 7, 4), (4, 1, 7), (1, 4, 7, 1), (1, 4, 2**40), (-1, 4, 7)]
    assert len({tuple(draws(*key)) for key in keys}) == len(keys)


def test_draws_are_those_they_have_always_been():
    """A resumed run must hide what the uninterrupted one hid: these numbers must never change."""
    assert permutation(8, 1, 2, 3).tolist() == [5, 0, 1, 2, 7, 6, 4, 3]
    tokens, maskable = np.arange(6, 26), np.ones(20, bool)
    masked, positions, _ = mask_tokens(tokens, maskable, TOKENIZER, sample_rng(1, 4, 0), mask_prob=0.5)
    assert positions.tolist() == [3, 4, 5, 8, 9, 13, 15, 16, 17, 18] and masked[positions].tolist() == [
        9,
        1,
        11,
        1,
        1,
        1,
        1,
        14,
        24,
        1,
    ]


def test_a_permutation_holds_everything_once():
    order = permutation(1000, 0, 2, 0)
    assert np.array_equal(np.sort(order), np.arange(1000)) and not np.array_equal(order, np.arange(1000))
