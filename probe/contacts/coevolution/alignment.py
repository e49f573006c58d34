"""Members of a family aligned to one protein of it, each by itself: the alignment that co-evolution is counted on.

    rows, scores = align(codes_of(sequence), [codes_of(member) for member in members])    # uint8 [N, L], int64 [N]
    expectation(scores, L, lengths)                                                       # E-values [N]

The best local alignment with affine gaps (Smith and Waterman 1981, Gotoh 1982) under BLOSUM62, a gap of k residues
costs 11 + k, as in BLAST. A row has a column a residue of the protein; what a member has between two of them is left
out, and what it lacks is a gap. What must hold: a row's pairs have the score that is told, and none has a higher one.

Legend: N members, L residues of the protein, B members at a time, M residues of the longest of these.
"""

from collections.abc import Sequence

import numpy as np

from probe.arms import COLUMN
from probe.names import AMINO_ACIDS
from probe.variants.floors import BLOSUM62

GAP = len(AMINO_ACIDS)  # a row's letter for none, and for one that is no amino acid
OPEN, EXTEND = 11, 1
# Of gapped alignments under these scores (Altschul and Gish 1996), as BLAST has them; bits: (LAMBDA S - ln K) / ln 2.
LAMBDA, K = 0.267, 0.041
CELLS = 1 << 15  # B * M: a row of the matrices stays in the processor's cache
NEVER = -1000  # no score; small enough that int16 holds it and what is added to it
LARGEST_16 = 2_000  # residues up to which int16 holds every score
# Of a cell: which of them its score is, whether it ends an alignment, and where a gap that ends there may begin.
PAIRED, DELETED, STOP, DELETION_OPENS, INSERTION_OPENS = 1, 2, 4, 8, 16
INSERTED = 32  # a gap's kind beside DELETED


def codes_of(sequence: str) -> np.ndarray:
    """uint8 [L]: places in AMINO_ACIDS, GAP for another letter."""
    return COLUMN[np.frombuffer(sequence.upper().encode("latin-1", "replace"), np.uint8)].astype(np.uint8)


def _substitution() -> np.ndarray:
    """int16 [21, 22]: of two codes; another letter scores -1 as BLAST's X does, the filling behind a member NEVER."""
    scores = np.full((GAP + 1, GAP + 2), -1, np.int16)
    for (a, b), score in BLOSUM62.items():
        scores[AMINO_ACIDS.index(a), AMINO_ACIDS.index(b)] = score
    scores[:, GAP + 1] = NEVER
    return scores


SUBSTITUTION = _substitution()


def align(query: np.ndarray, members: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [N, L] letters of each member at the residues of `query`, int64 [N] scores); all are codes.

    A member without a pair that scores above 0 has a row of gaps and score 0.
    """
    lengths = np.array([len(member) for member in members], np.int64)
    rows, scores = np.full((len(members), len(query)), GAP, np.uint8), np.zeros(len(members), np.int64)
    order, begin = np.argsort(lengths, kind="stable"), 0
    while begin < len(order):
        some = order[begin : begin + max(1, CELLS // max(1, lengths[order[begin]]))]
        some = some[: max(1, CELLS // max(1, lengths[some[-1]]))]
        block = np.full((max(1, lengths[some[-1]]), len(some)), GAP + 1, np.uint8)
        for place, number in enumerate(some):
            block[: lengths[number], place] = members[number]
        moves, ends, scores[some] = _fill(query, block)
        rows[some] = _trace(moves, ends, block)
        begin += len(some)
    return rows, scores


def _fill(query: np.ndarray, block: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(uint8 [L, M, B] what is known of each cell, int64 [2, B] the best cell's place, int64 [B] its score).

    Every array is made once and is whole where it is shifted: that is six times as fast.
    """
    width, number = block.shape
    kind = np.int16 if max(len(query), width) <= LARGEST_16 else np.int32
    pairs = SUBSTITUTION.astype(kind)[:, block]  # [21, M, B]
    steps = np.repeat(EXTEND * np.arange(width, dtype=kind), number).reshape(width, number)
    first, behind = kind(OPEN + EXTEND), steps[1:] + kind(OPEN)
    best = np.zeros((width + 1, number), kind)  # of the row above, with zeros before it
    opened, deleted, paired, closed, reach, spare, inserted = np.full((7, width, number), NEVER, kind)
    same, moves = np.zeros((width, number), bool), np.zeros((len(query), width, number), np.uint8)
    ends, scores = np.zeros((2, number), np.int64), np.zeros(number, np.int64)
    for i, letter in enumerate(query):
        np.subtract(best[1:], first, out=opened)
        np.subtract(deleted, kind(EXTEND), out=deleted)
        np.maximum(opened, deleted, out=deleted)
        np.add(best[:-1], pairs[letter], out=paired)
        np.maximum(paired, deleted, out=closed)
        np.maximum(closed, kind(0), out=closed)  # all but an insertion
        # The best insertion that ends at j began behind a cell k < j: closed[k] - OPEN - (j - k) EXTEND.
        np.add(closed, steps, out=reach)
        reach, spare = _running_maximum(reach, spare)
        np.subtract(reach[:-1], behind, out=inserted[1:])
        here = best[1:]
        np.maximum(closed, inserted, out=here)
        np.subtract(closed[:-1], first, out=spare[1:])
        known = moves[i]
        for flag, left, right in (
            (PAIRED, here, paired), (DELETED, here, deleted), (STOP, here, kind(0)), (DELETION_OPENS, deleted, opened),
            (INSERTION_OPENS, inserted, spare),
        ):  # fmt: skip
            np.equal(left, right, out=same)
            np.multiply(same.view(np.uint8), np.uint8(flag), out=same.view(np.uint8))
            np.bitwise_or(known, same.view(np.uint8), out=known)
        tops = here.max(0)
        better = np.flatnonzero(tops > scores)
        scores[better], ends[0, better], ends[1, better] = tops[better], i, here[:, better].argmax(0)
    return moves, ends, scores


def _running_maximum(values: np.ndarray, spare: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the running maximum down each column, the other array). By doubling: numpy's own goes cell by cell."""
    step = 1
    while step < len(values):
        np.maximum(values[step:], values[:-step], out=spare[step:])
        spare[:step] = values[:step]
        values, spare, step = spare, values, 2 * step
    return values, spare


def _trace(moves: np.ndarray, ends: np.ndarray, block: np.ndarray) -> np.ndarray:
    """uint8 [B, L]: the letters paired with the query's residues on the way back from `ends`."""
    number = block.shape[1]
    rows = np.full((number, len(moves)), GAP, np.uint8)
    i, j = ends.copy()
    gap, going = np.zeros(number, np.uint8), np.arange(number)  # gap: the kind that a member is within
    while len(going):
        known, within = moves[i[going], j[going], going], gap[going]
        going, known, within = (part[(within != 0) | (known & STOP == 0)] for part in (going, known, within))
        paired = (within == 0) & (known & PAIRED != 0)
        deletes = (within == DELETED) | ((within == 0) & ~paired & (known & DELETED != 0))
        rows[going[paired], i[going[paired]]] = block[j[going[paired]], going[paired]]
        opens = np.where(deletes, known & DELETION_OPENS, known & INSERTION_OPENS) != 0
        gap[going] = np.where(paired | opens, 0, np.where(deletes, DELETED, INSERTED))
        i[going] -= paired | deletes
        j[going] -= ~deletes
        going = going[(i[going] >= 0) & (j[going] >= 0)]
    return rows


def expectation(scores: np.ndarray, length: int, lengths: np.ndarray) -> np.ndarray:
    """float64 [N]: how many alignments of such a score chance makes of two proteins of these lengths."""
    return K * length * np.asarray(lengths, np.float64) * np.exp(-LAMBDA * np.asarray(scores, np.float64))
