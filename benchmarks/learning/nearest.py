"""How near a training FASTA is to the proteins that an encoder is judged by, as identity over real alignments.

    python benchmarks/learning/nearest.py TRAIN.fasta JUDGED ... [--proteins 300] [--json F]

JUDGED is a FASTA, a table or an LMDB; of each a fixed draw of --proteins is looked at. The training FASTA is read once.
Where a training protein shares 4-mers with a judged one that cover six letters or more of one diagonal (place in one
minus place in the other), the diagonal is scored as BLAST does before it allows gaps; the CANDIDATES training proteins
with the highest scores are aligned (probe/contacts/coevolution/alignment.py: best local alignment, BLOSUM62). An
alignment counts that covers at least half of the shorter protein; its identity is the share of equal letters among its
columns.

    aligned       share of the proteins that have an alignment that counts with any training protein
    median, largest   over these, of the highest identity that each has
    above         share of all proteins with a training protein above 30%, 50%, 90%
    related       the same of alignments alone that chance makes in this whole FASTA once in 1,000 times
    reversed      all of it for every third of the proteins read backwards: what chance and composition give
    shared_8mers  the most that a protein has in common with one candidate (benchmarks/balanced_corpus.py leaves out
                  what has three in common with all judged proteins together)

Chance alone makes 30% of two short stretches and more of shorter ones; that is in `aligned` and in `reversed`, not in
`related`. What is not seen: a relative without such 4-mers (or with words of one or two letters alone, which are left
out as of low complexity), and one behind CANDIDATES others. Of judged proteins of 80 residues or more that were put
into a corpus of 367,545 with residues replaced at random, with gaps and without, 91-99% were among the candidates at
50% identity, 61-83% at 40%, 15-31% at 30%; of proteins of 50 residues 35-45%, 8-12%, 0-2%. A relative that evolved
keeps its letters in stretches and is seen more often; remote ones are not.

What must hold: the result is a function of the files, the order of the training FASTA's records included.
"""

import argparse
import heapq
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from balanced_corpus import sequences_of
from heldout_families import words

from benchmarks.comparison import machine
from probe.contacts.coevolution.alignment import GAP, SUBSTITUTION, align, codes_of, expectation
from proteinlm.files import write_json
from proteinlm.progress import Progress
from proteinlm.sequences import read_fasta

WORD, SEED = 4, 6  # letters: of a word, of a diagonal's words together
LETTERS = GAP + 1  # GAP between proteins, and for what is no amino acid
CANDIDATES, THIRD = 20, 3
SCORES = SUBSTITUTION[:, :LETTERS].astype(np.int64).ravel()
FALL = 1 << 32  # more than any sum of scores in a block
BLOCK = 1 << 12  # training residues compared at a time: what a processor's cache holds
COVERED, ABOVE, EXPECTED = 0.5, (0.3, 0.5, 0.9), 1e-3


class Joined:
    """Proteins in a row, each with a gap behind it. codes, words, owners int64 [R]: a residue's own code, the word that
    begins there, whose it is."""

    def __init__(self, proteins: Sequence[str]):
        gap = np.full(1, GAP, np.uint8)
        self.lengths = np.array([len(protein) for protein in proteins])
        self.begins = np.cumsum(self.lengths + 1) - self.lengths - 1
        codes = np.concatenate([part for protein in proteins for part in (codes_of(protein), gap)] + [gap] * WORD)
        codes = codes.astype(np.int64)
        self.codes = codes[:-WORD]
        self.words = sum(codes[k : k + len(self.codes)] * LETTERS ** (WORD - 1 - k) for k in range(WORD))
        self.owners = np.repeat(np.arange(len(proteins)), self.lengths + 1)


def _counted() -> np.ndarray:
    """bool: of each word, whether it is of amino acids, at least three of them."""
    letters = np.indices((LETTERS,) * WORD).reshape(WORD, -1)
    ordered = np.sort(letters, 0)
    return (letters != GAP).all(0) & (1 + (ordered[1:] != ordered[:-1]).sum(0) >= 3)


class Index:
    """The places of each word in some proteins."""

    def __init__(self, proteins: Sequence[str]):
        self.own, counted = Joined(proteins), _counted()
        places = np.flatnonzero(counted[self.own.words])
        self.places = places[np.argsort(self.own.words[places], kind="stable")]
        self.many = np.bincount(self.own.words[places], minlength=len(counted))
        self.first = np.cumsum(self.many) - self.many

    def near(self, block: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of pairs with enough words on a diagonal, int64 [pairs] each: (ours, the block's, the best score of any)."""
        own, other = self.own, Joined(block)
        many = self.many[other.words]
        there = np.repeat(np.arange(len(many)), many)
        here = self.places[np.arange(len(there)) + np.repeat(self.first[other.words] - (np.cumsum(many) - many), many)]
        owners, others = own.owners[here], other.owners[there]
        here, there = here - own.begins[owners], there - other.begins[others]
        longest, other_longest = own.lengths.max(), other.lengths.max()
        diagonals, room = longest + other_longest + 1, longest + WORD
        assert float(len(own.lengths)) * len(other.lengths) * diagonals * room < 2**63, "fewer proteins or residues"
        keys = np.sort(((others * len(own.lengths) + owners) * diagonals + here - there + other_longest) * room + here)
        # A word covers WORD letters but those that the word before it has in common with it.
        keys, covered = _grouped(np.add, keys // room, np.minimum(np.diff(keys, prepend=-WORD), WORD))
        pairs, shifts = np.divmod(keys[covered >= SEED], diagonals)
        others, owners = np.divmod(pairs, len(own.lengths))
        scores = self._scores(other, owners, others, shifts - other_longest)
        pairs, scores = _grouped(np.maximum, pairs, scores)
        return pairs % len(own.lengths), pairs // len(own.lengths), scores

    def _scores(self, other: Joined, owners: np.ndarray, others: np.ndarray, shifts: np.ndarray) -> np.ndarray:
        """int64: of each diagonal (place of ours - place of the other) the best alignment without gaps."""
        first = np.maximum(0, shifts)
        lengths = np.minimum(self.own.lengths[owners], other.lengths[others] + shifts) - first
        behind = self.own.begins[owners] - other.begins[others] + shifts  # how far apart two are in their rows
        starts = np.cumsum(lengths) - lengths
        here = np.arange(lengths.sum()) + np.repeat(self.own.begins[owners] + first - starts, lengths)
        there = here - np.repeat(behind, lengths)
        pairs = SCORES.take(self.own.codes.take(here) * LETTERS + other.codes.take(there))
        # In front of each diagonal the sum falls below all that was: so the lowest so far is the diagonal's own.
        falling = pairs.copy()
        falling[starts] -= FALL
        sums = np.cumsum(falling)
        return np.maximum.reduceat(sums - np.minimum.accumulate(sums - pairs), starts) if len(starts) else lengths


def _grouped(reduce: np.ufunc, ordered: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the different keys, the values of each reduced to one)."""
    begins = np.flatnonzero(np.diff(ordered, prepend=-1))
    return ordered[begins], reduce.reduceat(values, begins) if len(begins) else values


def blocks(proteins: Iterable[str], residues: int) -> Iterator[list[str]]:
    block, size = [], 0
    for protein in proteins:
        block.append(protein)
        size += len(protein)
        if size >= residues:
            yield block
            block, size = [], 0
    if block:
        yield block


def find_candidates(
    judged: Sequence[str], training: Iterable[str], residues: int = BLOCK
) -> tuple[list[list[str]], int]:
    """(of each judged protein its CANDIDATES, best first, how many residues there are). Of equals the earlier one.

    residues: of a block of `training`, which changes nothing but the time.
    """
    index, total, number = Index(judged), 0, 0
    best, least = [[] for _ in judged], np.zeros(len(judged), np.int64)
    with Progress("training proteins") as progress:
        for block in blocks(training, residues):
            own, other, scores = index.near(block)
            better = np.flatnonzero(scores > least[own])
            for query, place, count in zip(*(part[better].tolist() for part in (own, other, scores)), strict=True):
                entry = (count, -(number + place), block[place])
                if len(best[query]) < CANDIDATES:
                    heapq.heappush(best[query], entry)
                else:
                    least[query] = max(least[query], heapq.heappushpop(best[query], entry)[0])
            size = sum(map(len, block))
            number, total = number + len(block), total + size
            progress.add(len(block), size)
    return [[protein for _, _, protein in sorted(entries, reverse=True)] for entries in best], total


def compare(protein: str, candidates: Sequence[str], residues: int) -> tuple[float, float]:
    """The highest identity of an alignment that counts, and of one that is too good for chance too; 0 without one."""
    if not candidates:
        return 0.0, 0.0
    query, members = codes_of(protein), [codes_of(candidate) for candidate in candidates]
    rows, scores = align(query, members)
    aligned = rows != GAP
    columns = aligned.sum(1)
    shorter = np.array([min(len(query), len(member)) for member in members])
    identity = ((rows == query) & aligned).sum(1) / np.maximum(1, columns)
    identity[columns < COVERED * shorter] = 0
    related = expectation(scores, len(query), np.full(len(members), residues)) <= EXPECTED
    return float(identity.max()), float(identity[related].max(initial=0))


def summary(proteins: Sequence[str], candidates: Sequence[Sequence[str]], residues: int) -> dict:
    """Of the highest identities, and of those too good for chance."""
    identities = np.array([compare(*pair, residues) for pair in zip(proteins, candidates, strict=True)])
    return {"all": shares(identities[:, 0]), "related": shares(identities[:, 1])}


def shares(identity: np.ndarray) -> dict:
    some = identity[identity > 0]
    return {
        "aligned": len(some) / len(identity),
        "median": float(np.median(some)) if len(some) else None,
        "largest": float(some.max()) if len(some) else None,
        "above": {f"{share:.0%}": float((identity > share).mean()) for share in ABOVE},
    }


def draw(path: str, number: int, column: str) -> tuple[list[str], int]:
    """(`number` proteins of a file or all, always the same ones; how many it has)."""
    proteins = [protein for protein in sequences_of(path, column) if protein]
    if not proteins:
        raise SystemExit(f"{path}: holds no protein")
    order = np.random.default_rng(0).permutation(len(proteins))[:number]
    return [proteins[place] for place in order], len(proteins)


def measure(train: str, judged: Sequence[str], number: int, column: str = "sequence") -> tuple[list[dict], dict]:
    """(of each judged file its row, what the training FASTA is)."""
    draws = [draw(path, number, column) for path in judged]
    headers = 0

    def training() -> Iterator[str]:
        nonlocal headers
        for _, residues in read_fasta(train):
            headers += 1
            yield residues

    reverses = [[protein[::-1] for protein in proteins[::THIRD]] for proteins, _ in draws]
    everything = itertools.chain(*(proteins for proteins, _ in draws), *reverses)
    candidates, residues = find_candidates(list(everything), training())
    forward = iter(candidates)
    backward = itertools.islice(candidates, sum(len(proteins) for proteins, _ in draws), None)
    rows = []
    with Progress("judged files", len(judged)) as progress:
        for path, (proteins, size), reverse in zip(judged, draws, reverses, strict=True):
            near = list(itertools.islice(forward, len(proteins)))
            shared = [len(words(a) & words(b)) for a, some in zip(proteins, near, strict=True) for b in some]
            row = {"file": Path(path).name, "proteins": size, "drawn": len(proteins)}
            row |= summary(proteins, near, residues) | {"shared_8mers": max(shared, default=0)}
            near = list(itertools.islice(backward, len(reverse)))
            rows.append(row | {"reversed": {"drawn": len(reverse)} | summary(reverse, near, residues)})
            progress.add(1)
    return rows, {"file": Path(train).name, "proteins": headers, "residues": residues}


def table(rows: Iterable[dict]) -> str:
    """Markdown."""
    lines = ["| file, proteins | alignments | aligned | median | largest | >30% | >50% | >90% | 8-mers |"]
    lines.append("|---" * (lines[0].count("|") - 1) + "|")
    for row in rows:
        for name, part in ((row["file"], row), ("reversed", row["reversed"])):
            for kind in ("all", "related"):
                *numbers, above = part[kind].values()
                cells = ["" if share is None else f"{share:.1%}" for share in (*numbers, *above.values())]
                cells = [f"{name}, {part['drawn']}", kind, *cells, str(part.get("shared_8mers", ""))]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train_fasta")
    parser.add_argument("judged", nargs="+")
    parser.add_argument("--proteins", type=int, default=300, help="of each judged file (300)")
    parser.add_argument("--column", default="sequence", help="of a table: where the proteins are")
    parser.add_argument("--json", type=Path, help="where the numbers go too")
    args = parser.parse_args()
    rows, training = measure(args.train_fasta, args.judged, args.proteins, args.column)
    print(table(rows))
    if args.json:
        origin = machine("benchmarks/learning/nearest.py", torch.device("cpu"))
        write_json(args.json, origin | {"training": training, "judged": rows})


if __name__ == "__main__":
    main()
