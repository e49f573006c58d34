"""Packing: whole proteins, each once, in full rows, the same way every time."""

import numpy as np
import pytest

from pretrain.data.packing import best_fit, pack, utilisation
from proteinlm.errors import InputError


def protein_lengths(count: int, seed: int = 0) -> np.ndarray:
    """Lengths like a protein family database's: median 155, a tenth beyond 400, a few beyond 2,000."""
    return np.clip(np.random.default_rng(seed).lognormal(np.log(155), 0.8, count), 20, 30000).astype(np.int32)


def next_fit_rows(lengths: np.ndarray, row_length: int) -> int:
    """The peer: first come, first served, a new row whenever the next protein does not fit."""
    rows, used = 1, 0
    for length in np.minimum(lengths, row_length).tolist():
        if used + length > row_length:
            rows, used = rows + 1, 0
        used += length
    return rows


def loads(index, lengths, row_length):
    return np.add.reduceat(np.minimum(lengths, row_length)[index.order], index.row_start[:-1])


@pytest.mark.parametrize("row_length", [512, 1024, 2176])
def test_every_protein_lies_whole_in_one_row_and_the_rows_are_full(row_length):
    lengths = protein_lengths(50_000)
    index = pack(lengths, row_length, seed=1)
    assert np.array_equal(np.sort(index.order), np.arange(len(lengths)))
    assert index.row_start[0] == 0 and index.row_start[-1] == len(lengths) and (np.diff(index.row_start) > 0).all()
    assert loads(index, lengths, row_length).max() <= row_length
    share = utilisation(index, lengths, row_length)
    assert share == pytest.approx(loads(index, lengths, row_length).sum() / (index.num_rows * row_length))
    assert share >= 0.98
    assert next_fit_rows(lengths, row_length) > index.num_rows * (1.2 if row_length == 512 else 1.05)


def test_best_fit_by_hand():
    # Rows of 10. 6 -> row 0 (4 left); 7 -> row 1 (3 left); 3 fits both and goes where least room is left: row 1, now
    # full; 5 -> row 2; 4 -> row 0, full; 5 -> row 2, full; 10 -> row 3.
    rows, count = best_fit(np.array([6, 7, 3, 5, 4, 5, 10]), 10)
    assert rows.tolist() == [0, 1, 1, 2, 0, 2, 3] and count == 4


def test_the_result_is_a_pure_function_of_its_arguments():
    lengths = protein_lengths(5_000)
    index, again = (pack(lengths, 1024, seed=7, window=512) for _ in range(2))
    assert np.array_equal(index.order, again.order) and np.array_equal(index.row_start, again.row_start)
    assert not np.array_equal(index.order, pack(lengths, 1024, seed=8, window=512).order)
    assert not np.array_equal(index.order, pack(lengths, 1024, seed=7, window=1024).order)


def test_the_order_is_the_one_it_has_always_been():
    """A resumed run must see its old rows whatever the numpy release: these numbers must never change."""
    index = pack(np.arange(1, 13), 16, seed=3)
    assert index.order.tolist() == [9, 5, 7, 4, 0, 8, 6, 10, 2, 1, 11, 3] and index.row_start.tolist() == [
        0,
        2,
        5,
        7,
        10,
        12,
    ]


def test_windows_share_their_open_rows():
    lengths = protein_lengths(20_000)
    assert utilisation(pack(lengths, 2176, seed=1, window=64), lengths, 2176) >= 0.98
    parts = [pack(part, 2176, seed=1).num_rows for part in np.split(lengths[:19_968], 312)]  # what closing them costs
    assert sum(parts) > 1.02 * pack(lengths[:19_968], 2176, seed=1, window=64).num_rows


def test_companions_are_strangers():
    """Members of a family have one length. By decreasing length they share rows; here hardly more than by chance."""
    rng = np.random.default_rng(0)
    family = rng.integers(0, 200, 20_000)
    lengths = rng.integers(60, 450, 200)[family]

    def share_of_family_pairs(order, row_start):
        pairs = same = 0
        for row in np.split(family[order], row_start[1:-1]):
            counts = np.bincount(row)
            pairs += len(row) * (len(row) - 1)
            same += (counts * (counts - 1)).sum()
        return same / pairs

    index = pack(lengths, 1024, seed=1)
    decreasing = np.argsort(-lengths, kind="stable")
    rows, count = best_fit(lengths[decreasing], 1024)
    by_row = decreasing[np.argsort(rows, kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))])
    assert share_of_family_pairs(index.order, index.row_start) < 0.03  # 0.005 by chance
    assert share_of_family_pairs(by_row, starts) > 0.3


def test_a_protein_longer_than_the_row_takes_a_row_of_its_own():
    index = pack(np.array([5, 100, 3]), 10, seed=0)
    rows = sorted(sorted(index.row(row).tolist()) for row in range(index.num_rows))
    assert rows == [[0, 2], [1]]


def test_no_proteins_make_no_rows():
    index = pack(np.zeros(0, np.int32), 16, seed=0)
    assert index.num_rows == 0 and len(index.order) == 0
    assert utilisation(index, np.zeros(0, np.int32), 16) == 0.0


@pytest.mark.parametrize(("lengths", "row_length", "window"), [([3, 0], 16, 8), ([3], 0, 8), ([3], 16, 0)])
def test_impossible_numbers_are_refused(lengths, row_length, window):
    with pytest.raises(InputError, match="at least 1"):
        pack(np.array(lengths), row_length, seed=0, window=window)
