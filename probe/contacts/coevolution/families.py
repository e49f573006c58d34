"""Which chains belong to a large family of a FASTA whose headers name families, and the members aligned to each.

    near, sizes = find_near(sequences, "corpus.fasta")       # of each sequence: family -> members near to it
    members = Members("corpus.fasta", sizes)
    family = align_family(sequence, members["PF00155"], least=200)      # None where it is no relative

A header names its family by a Pfam accession (PF and five digits). Near is a member that shares SHARED 5-mers with the
chain; the family with most of these is looked at, where they are NEAR of it or more. Many are near by chance or
composition, so an alignment decides: members whose alignment has an
E-value of 1e-3 or less and has at least half of their residues are relatives. The stretch of the chain between the
first and the last column in which half of them have a residue is its domain; a relative that covers less than half of
it is left out. A chain with fewer than `least` relatives, or a domain below SHORTEST residues, is of no family.

What must hold: all is a function of the files.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from probe.contacts.coevolution.alignment import GAP, align, codes_of, expectation
from proteinlm.errors import InputError
from proteinlm.progress import Progress
from proteinlm.sequences import read_fasta
from tape.data.holdout import distinct_kmers

ACCESSION = re.compile(r"\bPF\d{5}\b")
SHARED = 3  # 5-mers
NEAR, FEWEST = 0.005, 5  # share and number of a family's members
MOST = 4_000  # members aligned to a chain
BATCH = 1 << 21  # residues searched at a time
PROBE = 256  # members, drawn at random, that tell whether more are worth the time
EXPECTED = 1e-3
COVERED = 0.5
SHORTEST = 50


def labelled(path: str) -> Iterator[tuple[str, str]]:
    """(family, residues) of the records whose header names one."""
    for header, residues in read_fasta(path):
        match = ACCESSION.search(header)
        if match and residues:
            yield match[0], residues


def find_near(sequences: Sequence[str], path: str, quiet: bool = False) -> tuple[list[Counter], Counter]:
    """(of each sequence: family -> how many of its members are near, family -> how many members it has)."""
    codes, owners = distinct_kmers(sequences)
    order = np.argsort(codes, kind="stable")
    codes, owners = codes[order], owners[order]
    near, sizes = [Counter() for _ in sequences], Counter()
    names, batch, residues = [], [], 0

    def count() -> None:
        words, members = distinct_kmers(batch)
        first, last = np.searchsorted(codes, words, "left"), np.searchsorted(codes, words, "right")
        many = last - first
        places = np.repeat(first - (np.cumsum(many) - many), many) + np.arange(many.sum())
        pairs, shared = np.unique(np.repeat(members, many) * len(sequences) + owners[places], return_counts=True)
        for pair in pairs[shared >= SHARED].tolist():
            near[pair % len(sequences)][names[pair // len(sequences)]] += 1

    with Progress("members searched", quiet=quiet) as progress:
        for name, member in labelled(path):
            names.append(name), batch.append(member)
            sizes[name] += 1
            residues += len(member)
            if residues > BATCH:
                count()
                progress.add(len(batch), residues)
                names, batch, residues = [], [], 0
        count()
    if not sizes:
        raise InputError(f"{path}: no header names a Pfam family, as in '>P12345 PF00155'")
    return near, sizes


def choose_family(near: Counter, sizes: Mapping[str, int], least: int) -> str | None:
    """Of a chain, the family of at least `least` members with most of them near; None where these are too few."""
    large = [(count, name) for name, count in near.items() if sizes[name] >= least]
    count, name = max(large, default=(0, None))
    return name if name is not None and count >= max(FEWEST, NEAR * sizes[name]) else None


class Members(Mapping):
    """Name of a family -> codes of its members, at random MOST of them (always the same ones), in random order.

    sizes: how many there are of each that may be asked for. The file is read when the first one is.
    """

    def __init__(self, path: str, sizes: Mapping[str, int]):
        self.path, self.sizes = path, sizes

    def __iter__(self) -> Iterator[str]:
        return iter(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, name: str) -> list[np.ndarray]:
        return self._families[name]

    @cached_property
    def _families(self) -> dict[str, list[np.ndarray]]:
        orders = {name: np.random.default_rng(0).permutation(size)[:MOST] for name, size in self.sizes.items()}
        ranks = {name: {int(number): rank for rank, number in enumerate(order)} for name, order in orders.items()}
        families = {name: [None] * len(order) for name, order in orders.items()}
        seen = Counter()
        for name, residues in labelled(self.path):
            if name in ranks:
                rank = ranks[name].get(seen[name])
                seen[name] += 1
                if rank is not None:
                    families[name][rank] = codes_of(residues)
        return families


@dataclass(frozen=True, eq=False)
class Alignment:
    """rows uint8 [1 + members, end - begin]: the chain's own letters and those of its relatives, in its domain."""

    begin: int
    end: int
    rows: np.ndarray


def align_family(sequence: str, members: Sequence[np.ndarray], least: int) -> Alignment | None:
    """None where fewer than `least` members are relatives of the chain."""
    query = codes_of(sequence)
    rows, related = _relatives(query, members[:PROBE])
    if related.mean() * len(members) < least / 2:
        return None
    more, others = _relatives(query, members[PROBE:])
    rows = np.concatenate([rows[related], more[others]])
    covered = np.flatnonzero((rows != GAP).sum(0) >= max(1, COVERED * len(rows)))
    begin, end = (int(covered[0]), int(covered[-1]) + 1) if len(covered) else (0, 0)
    if end - begin < SHORTEST:
        return None
    rows = rows[:, begin:end]
    rows = rows[(rows != GAP).mean(1) >= COVERED]
    return Alignment(begin, end, np.concatenate([query[None, begin:end], rows])) if len(rows) >= least else None


def _relatives(query: np.ndarray, members: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(rows, bool: which are relatives)."""
    rows, scores = align(query, members)
    lengths = np.array([len(member) for member in members], np.int64)
    whole = (rows != GAP).sum(1) >= COVERED * lengths
    return rows, whole & (expectation(scores, len(query), lengths) <= EXPECTED)
