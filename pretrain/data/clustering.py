"""Clusters of alike proteins, found by the k-mers they share, for corpora of which no families are known.

    groups = cluster(residues, lengths)      # int32 [N]: proteins of one number are alike

As in Linclust (Steinegger & Söding 2018): k-mers are hashed, a fixed fraction of the hashes is looked at, and each
protein is compared with the longest of those that share one with it, so the time is linear in the residues. A cluster
is a protein and those that share at least `SHARED` hashes with it. A protein that shares nothing is a cluster of its
own. What must hold: the clusters are a pure function of the proteins. numpy only.
"""

import numpy as np

WORD = 8  # residues of a k-mer
ONE_IN = 8  # hashes are looked at
SHARED = 2
BITS = 5  # of a letter
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Fibonacci hashing
BLOCK = 1 << 22  # residues hashed at a time


def cluster(residues: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """residues: uint8 [T], upper-case letters of all proteins, joined; lengths: int [N]. Returns int32 [N]."""
    centres = stars(*links(*sketches(residues, lengths), lengths), lengths)
    return np.unique(centres, return_inverse=True)[1].astype(np.int32)


def sketches(residues: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(uint64, int64) [E]: the hashes looked at and the protein of each, without repetition, in order."""
    ends = np.cumsum(lengths, dtype=np.int64)
    parts = [_block(residues, ends, start) for start in range(0, len(residues) - WORD + 1, BLOCK)]
    hashes = np.concatenate([part[0] for part in parts]) if parts else np.empty(0, np.uint64)
    proteins = np.concatenate([part[1] for part in parts]) if parts else np.empty(0, np.int64)
    order = np.lexsort((proteins, hashes))
    hashes, proteins = hashes[order], proteins[order]
    new = np.ones(len(order), bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (proteins[1:] != proteins[:-1])
    return hashes[new], proteins[new]


def _block(residues: np.ndarray, ends: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
    """The hashes looked at of the k-mers that begin in a block, and their proteins."""
    codes = residues[start : start + BLOCK + WORD - 1].astype(np.uint64) % np.uint64(1 << BITS)
    count = len(codes) - WORD + 1
    words = np.zeros(count, np.uint64)
    for offset in range(WORD):
        words <<= np.uint64(BITS)
        words |= codes[offset : offset + count]
    words *= FACTOR
    words ^= words >> np.uint64(29)
    words *= FACTOR
    places = np.flatnonzero(words < np.uint64(2**64 // ONE_IN))
    proteins = np.searchsorted(ends, start + places, side="right")
    whole = start + places + WORD <= ends[proteins]
    return words[places[whole]], proteins[whole]


def links(hashes: np.ndarray, proteins: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of proteins: every one with the longest of those that share a hash, where they share `SHARED` so."""
    starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(hashes)), bool), hashes[1:] != hashes[:-1]]))
    counts = np.diff(starts, append=len(hashes))
    # The longest, and of equally long ones the first: the largest of length and -number in one integer.
    n = len(lengths)
    keys = np.asarray(lengths, np.int64)[proteins] * n + (n - 1 - proteins)
    longest = n - 1 - np.maximum.reduceat(keys, starts) % n if len(starts) else np.empty(0, np.int64)
    pairs = np.repeat(longest, counts) * n + proteins
    pairs = np.sort(pairs[np.repeat(longest, counts) != proteins])
    firsts = np.flatnonzero(np.concatenate([np.ones(min(1, len(pairs)), bool), pairs[1:] != pairs[:-1]]))
    shared = pairs[firsts[np.diff(firsts, append=len(pairs)) >= SHARED]]
    return shared // n, shared % n


def stars(centres: np.ndarray, members: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64 [N]: the centre of every protein, by links sorted by centre.

    From the longest protein to the shortest: one that is in no cluster yet takes those that are linked to it. What only
    a chain of links connects stays apart; else half of a corpus is one cluster.
    """
    count = len(lengths)
    centre_of = np.full(count, -1, np.int64)
    names, starts = np.unique(centres, return_index=True)
    ends = np.append(starts[1:], len(centres))
    for number in np.lexsort((names, -np.asarray(lengths, np.int64)[names])).tolist():
        if centre_of[names[number]] < 0:
            own = members[starts[number] : ends[number]]
            centre_of[own[centre_of[own] < 0]] = centre_of[names[number]] = names[number]
    return np.where(centre_of < 0, np.arange(count), centre_of)
