"""A part of train held out for early stopping, so that valid is read once, at the end. Pure numpy.

Relatives must not sit on both sides, so proteins are clustered first and whole clusters move. Two proteins are related
when they share at least `MIN_SHARED` of the distinct 5-mers of the one that has fewer (about 72% identity along it);
clusters are the connected components. Candidate pairs come from minhash: `ROUNDS` random hashes of the 5-mers, and
proteins with the same minimum are neighbours; every pair is then checked on its real 5-mers before it joins anything.

Where one cluster holds more than half of the data (a mutational landscape of one protein), no split by cluster exists:
distinct sequences are then held out at random, and the result says so. With class labels a cluster is held out only
if each of its classes stays in train too (and where that leaves none, again at random over sequences).
What must hold: the split is a function of (sequences, labels, fraction, seed).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from proteinlm.errors import InputError

KMER = 5
MIN_SHARED = 0.2
ROUNDS = 48


@dataclass(frozen=True)
class Holdout:
    """Indices of the two sides (sorted, disjoint, together everything), and how they were chosen."""

    train: np.ndarray  # int64
    held_out: np.ndarray  # int64
    method: str  # "whole clusters", or "distinct sequences at random, since ..."
    num_clusters: int
    largest_cluster: int

    def summary(self) -> dict[str, object]:
        """What a result file records."""
        return {
            "method": self.method,
            "train": len(self.train),
            "held_out": len(self.held_out),
            "clusters": self.num_clusters,
            "largest_cluster": self.largest_cluster,
        }

    def describe(self) -> str:
        """One line for the log."""
        return (
            f"held out {len(self.held_out):,} of {len(self.train) + len(self.held_out):,} proteins of train by "
            f"{self.method} ({self.num_clusters:,} clusters of sequences, the largest of {self.largest_cluster:,})"
        )


def distinct_kmers(sequences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(k-mer codes int64[M], owners int64[M]), sorted by owner then code, each k-mer of a protein once."""
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    residues = np.frombuffer("".join(sequences).upper().encode("ascii", "replace"), dtype=np.uint8).astype(np.int64)
    if len(residues) < KMER:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    codes = np.zeros(len(residues) - KMER + 1, dtype=np.int64)
    for place in range(KMER):
        codes = codes * 32 + (residues[place : place + len(codes)] & 31)
    owners = np.repeat(np.arange(len(sequences)), lengths)
    inside = owners[: len(codes)] == owners[KMER - 1 :]  # a window that crosses into the next protein is not a k-mer
    packed = np.sort((owners[: len(codes)][inside] << 5 * KMER) | codes[inside])  # np.unique's hashing is slower
    packed = packed[np.append(True, packed[1:] != packed[:-1])[: len(packed)]]
    return packed & ((1 << 5 * KMER) - 1), packed >> 5 * KMER


def _roots(parent: np.ndarray) -> np.ndarray:
    """Every node's root, by pointer jumping."""
    while True:
        above = parent[parent]
        if np.array_equal(above, parent):
            return parent
        parent = above


def _union(parent: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Join each left[i] with right[i]; the smallest index of a component is its root."""
    while True:
        a, b = parent[left], parent[right]
        apart = a != b
        if not apart.any():
            return parent
        left, right, a, b = left[apart], right[apart], a[apart], b[apart]
        parent = parent.copy()
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
        parent = _roots(parent)


def _related(
    left: np.ndarray, right: np.ndarray, codes: np.ndarray, starts: np.ndarray, keys: np.ndarray
) -> np.ndarray:
    """bool per pair: do they share MIN_SHARED of the k-mers of the one with fewer? keys: (owner, code) of each k-mer.

    keys are sorted, so membership is one binary search over all proteins at once; pairs are taken in the order of the
    larger one, so that neighbouring searches end near each other.
    """
    sizes = np.diff(starts)
    smaller = np.where(sizes[left] <= sizes[right], left, right)
    larger = left + right - smaller
    order, related = np.argsort(larger, kind="stable"), np.zeros(len(left), dtype=bool)
    for begin in range(0, len(left), 1 << 14):
        some = order[begin : begin + (1 << 14)]
        counts = sizes[smaller[some]]
        firsts = np.repeat(starts[smaller[some]] - (np.cumsum(counts) - counts), counts)
        keys_of_smaller = (np.repeat(larger[some], counts) << 5 * KMER) | codes[firsts + np.arange(counts.sum())]
        place = np.minimum(np.searchsorted(keys, keys_of_smaller), len(keys) - 1)
        pair = np.repeat(np.arange(len(counts)), counts)
        shared = np.bincount(pair, weights=keys[place] == keys_of_smaller, minlength=len(counts))
        related[some] = shared >= np.maximum(2, MIN_SHARED * counts)
    return related


def cluster_sequences(sequences: Sequence[str], rounds: int = ROUNDS) -> np.ndarray:
    """Cluster number of each protein, int64[N], numbered 0... by first appearance. Identical sequences share one."""
    upper = [sequence.upper() for sequence in sequences]
    number = {sequence: i for i, sequence in enumerate(sorted(set(upper)))}  # an array would be as wide as the longest
    same = np.array([number[sequence] for sequence in upper], np.int64)
    distinct = np.unique(same, return_index=True)[1]  # one protein per distinct sequence
    codes, owners = distinct_kmers([sequences[i] for i in distinct])
    starts = np.searchsorted(owners, np.arange(len(distinct) + 1))
    has_kmers = np.flatnonzero(np.diff(starts) > 0)
    keys, parent = (owners << 5 * KMER) | codes, np.arange(len(distinct))
    rng = np.random.default_rng(0)  # the hashes are part of the method, not of the user's seed
    previous = np.zeros(len(has_kmers), dtype=np.uint64)
    for _ in range(rounds if len(has_kmers) > 1 else 0):
        factor = np.uint64(rng.integers(1 << 62) * 2 + 1)
        hashed = codes.astype(np.uint64) * factor
        hashed ^= hashed >> np.uint64(31)
        hashed *= np.uint64(0x9E3779B97F4A7C15)
        minima = np.minimum.reduceat(hashed, starts[has_kmers])
        order = np.lexsort((previous, minima))  # inside a bucket, neighbours agree on the last round too
        first, second = has_kmers[order[:-1]], has_kmers[order[1:]]
        candidates = (minima[order[:-1]] == minima[order[1:]]) & (parent[first] != parent[second])
        first, second = first[candidates], second[candidates]
        good = _related(first, second, codes, starts, keys)
        parent = _union(parent, first[good], second[good])
        previous = minima
    _, first_seen, cluster = np.unique(parent[same], return_index=True, return_inverse=True)
    renumber = np.empty(len(first_seen), dtype=np.int64)
    renumber[np.argsort(first_seen)] = np.arange(len(first_seen))
    return renumber[cluster]


def _take(order: np.ndarray, groups: np.ndarray, labels: np.ndarray | None, number: int, room: int) -> np.ndarray:
    """bool[N]: whole groups in this order until `number` proteins are out; never above `room`, never all of a class."""
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    left_in_class = np.bincount(labels) if labels is not None else None
    out = np.zeros(len(groups), dtype=bool)
    count = 0
    for group in order:
        if count + len(members[group]) > room:
            continue
        if left_in_class is not None:
            taken = np.bincount(labels[members[group]], minlength=len(left_in_class))
            if np.any((taken > 0) & (left_in_class == taken)):
                continue
            left_in_class = left_in_class - taken
        out[members[group]] = True
        count += len(members[group])
        if count >= number:
            break
    return out


def _choose(groups: np.ndarray, number: int, seed: int, labels: np.ndarray | None) -> np.ndarray:
    """bool[N]: about `number` proteins in whole groups, small groups before large ones so that no family dominates.

    Where every group is larger than that, the smallest one. All False where each group is the last of some class.
    """
    sizes = np.bincount(groups)
    visits = np.random.default_rng(seed).permutation(len(sizes))
    small_first = visits[np.argsort(sizes[visits] > max(1, number // 4), kind="stable")]
    out = _take(small_first, groups, labels, number, number + max(1, number // 20))
    if out.any():
        return out
    return _take(visits[np.argsort(sizes[visits], kind="stable")], groups, labels, 1, len(groups) // 2)


def check_holdout(fraction: float, sequences: Sequence[str], where: str = "") -> None:
    """InputError where no such fraction of train can be held out. where: the file, for the message."""
    train = f"train of {where}" if where else "train"
    if not 0 < fraction < 0.5:
        raise InputError(f"--holdout {fraction}: should lie between 0 and 0.5, for instance 0.1")
    if len(sequences) < 4:
        raise InputError(f"--holdout {fraction}: {train} has {len(sequences)} proteins, at least 4 are needed")
    if len(set(sequences)) < 2:
        raise InputError(f"--holdout {fraction}: {train} has one distinct sequence, of which no part can be held out")


def hold_out(
    sequences: Sequence[str],
    fraction: float = 0.1,
    seed: int = 0,
    labels: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
) -> Holdout:
    """Hold `fraction` of train out by whole clusters. `labels`: int[N], classes that must stay known to train.

    clusters: int[N], of `cluster_sequences` (of more proteins than these, where they are a part), if known already.
    """
    check_holdout(fraction, sequences)
    clusters = cluster_sequences(sequences) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    sizes = np.bincount(clusters)
    number = max(1, round(fraction * len(sequences)))
    out, method = np.zeros(len(sequences), dtype=bool), "whole clusters"
    if sizes.max() <= len(sequences) / 2:
        out = _choose(clusters, number, seed, labels)
    if not out.any():
        distinct = np.unique(np.asarray(sequences), return_inverse=True)[1]
        out = _choose(distinct, number, seed, labels)
        reason = "one cluster exceeds half of the data"
        if sizes.max() <= len(sequences) / 2:
            reason = "each cluster is the only one of some class"
        method = f"distinct sequences at random, since {reason}"
    if not out.any() and labels is not None:
        out = _choose(clusters, number, seed, None)
        method = "whole clusters, some with classes that train then lacks, since each class has one sequence"
    if not out.any():
        raise InputError(f"--holdout {fraction}: train has too few distinct sequences for a part to be held out")
    return Holdout(np.flatnonzero(~out), np.flatnonzero(out), method, len(sizes), int(sizes.max()))
