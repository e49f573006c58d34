"""Windows over long proteins: where they lie, and means worked by hand."""

import itertools

import pytest
import torch

from tape.inference.windows import in_windows, mean_over_windows, spans


@pytest.mark.parametrize(
    ("length", "width", "windows"),
    [
        (3, 3, [(0, 3)]),
        (4, 3, [(0, 3), (1, 4)]),
        (5, 3, [(0, 3), (1, 4), (2, 5)]),
        (100, 62, [(0, 62), (19, 81), (38, 100)]),
        (3, 1, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_where_windows_lie(length, width, windows):
    assert spans(length, width) == windows


def test_windows_cover_a_protein_and_overlap_by_half():
    for length in range(1, 90):
        for width in (1, 2, 3, 7, 30):
            windows = spans(length, width)
            assert windows[0][0] == 0 and windows[-1][1] == length
            assert all(end - begin == min(width, length) for begin, end in windows)
            steps = [second[0] - first[0] for first, second in itertools.pairwise(windows)]
            assert all(1 <= step <= max(1, width // 2) for step in steps)


def places(pieces):
    """A model whose states are a token's place in its window, twice that, and whose pooling is the window's length."""
    tokens = torch.cat([torch.arange(len(piece) + 2.0) for piece in pieces])[:, None]
    return [tokens, 2 * tokens], [torch.tensor([[float(len(piece)), ord(piece[0])] for piece in pieces])]


@pytest.mark.parametrize("room", [1, 9, 100])
def test_the_mean_over_windows_by_hand(room):
    """ABCDE in windows ABC, BCD, CDE: C is their third, second and first residue."""
    (tokens, twice), (pooled,) = in_windows(places, ["AC", "ABCDE", "M"], 3, room)
    assert tokens[:, 0].tolist() == [0, 1, 2, 3, 0, 1, 1.5, 2, 2.5, 3, 4, 0, 1, 2]
    assert torch.equal(twice, 2 * tokens)
    assert pooled.tolist() == [[2, ord("A")], [3, ord("B")], [1, ord("M")]]
    # the negative control: one window's word alone is another
    assert tokens[5:10, 0].tolist() != [1, 2, 3, 2, 3]


def test_a_protein_that_fits_is_left_as_it_is():
    proteins = ["AC", "MKV", "ACDEF"]
    assert all(map(torch.equal, in_windows(places, proteins, 5, 6)[0], places(proteins)[0]))
    assert not torch.equal(in_windows(places, proteins, 4, 6)[0][0], places(proteins)[0][0])


def test_rows_are_averaged_where_windows_overlap():
    parts = [torch.tensor([[1.0], [2.0]]), torch.tensor([[4.0], [8.0]])]
    assert mean_over_windows(parts, [(0, 2), (1, 3)], 3).tolist() == [[1.0], [3.0], [8.0]]
