"""Proteins longer than a model reads, in overlapping windows: a residue gets the mean of what the windows make of it.

    spans(100, 62)                                        # [(0, 62), (19, 81), (38, 100)]
    tokens, pooled = in_windows(compute, proteins, 62, 2048)

A window is a protein of its own to the model, with <cls> and <sep> around it. Windows are spread evenly, and each
begins half a width or less after the one before, so that nearly every residue is seen with context on both sides. A
protein that fits is one window. What must hold: of that one the numbers are exactly those without windows.

Legend: B proteins, T tokens of them (residues + 2 each), h, p sizes.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Parts = tuple[Sequence[Tensor], Sequence[Tensor]]  # each [T, h], a row a token; each [B, p], a row a protein


def spans(length: int, width: int) -> list[tuple[int, int]]:
    """(begin, end) of the windows of at most `width` residues, in order."""
    if length <= width:
        return [(0, length)]
    steps = -(-(length - width) // max(1, width // 2))
    begins = [number * (length - width) // steps for number in range(steps + 1)]
    return [(begin, begin + width) for begin in begins]


def mean_over_windows(parts: Sequence[Tensor], where: Sequence[tuple[int, int]], length: int) -> Tensor:
    """[length, k] of windows' rows, parts[i] [end - begin, k] of where[i]."""
    total = parts[0].new_zeros(length, *parts[0].shape[1:])
    count = parts[0].new_zeros(length)
    for part, (begin, end) in zip(parts, where, strict=True):
        total[begin:end] += part
        count[begin:end] += 1
    return total / count[:, None]


def in_windows(compute: Callable[[list[str]], Parts], proteins: Sequence[str], width: int, room: int) -> Parts:
    """`compute` of proteins of any length. <cls>, <sep> and what is a row a protein are the means over its windows.

    width: residues of a window; room: tokens of the windows that are computed together, or of one.
    """
    of_protein: list[list[Parts]] = [[] for _ in proteins]
    for batch in _batches(proteins, width, room):
        tokens, pooled = compute([proteins[i][begin:end] for i, begin, end in batch])
        at = 0
        for row, (i, begin, end) in enumerate(batch):
            size = end - begin + 2
            of_protein[i].append(([own[at : at + size] for own in tokens], [own[row] for own in pooled]))
            at += size
    merged = [_merged(parts, len(p), width) for parts, p in zip(of_protein, proteins, strict=True)]
    tokens = [torch.cat(own) for own in zip(*(one[0] for one in merged), strict=True)]
    return tokens, [torch.stack(own) for own in zip(*(one[1] for one in merged), strict=True)]


def _batches(proteins: Sequence[str], width: int, room: int) -> Iterator[list[tuple[int, int, int]]]:
    """(protein, begin, end) of every window, those of at most `room` tokens together."""
    batch, used = [], 0
    for i, protein in enumerate(proteins):
        for begin, end in spans(len(protein), width):
            if batch and used + end - begin + 2 > room:
                yield batch
                batch, used = [], 0
            batch.append((i, begin, end))
            used += end - begin + 2
    yield batch


def _merged(parts: Sequence[Parts], length: int, width: int) -> Parts:
    """Of one protein's windows."""
    if len(parts) == 1:
        return parts[0]
    where, tokens = spans(length, width), []
    for own in zip(*(part[0] for part in parts), strict=True):
        residues = mean_over_windows([rows[1:-1] for rows in own], where, length)
        first, last = (torch.stack([rows[place] for rows in own]).mean(0, keepdim=True) for place in (0, -1))
        tokens.append(torch.cat((first, residues, last)))
    return tokens, [torch.stack(own).mean(0) for own in zip(*(part[1] for part in parts), strict=True)]
