"""A FASTA in which no family drowns the others, and none of whose proteins is near a protein that models are judged by.

    python benchmarks/balanced_corpus.py TRAIN.fasta OUT.fasta --away-from valid.csv task_valid.lmdb wildtype.fasta

At most --per-family proteins of each Pfam accession (the second word of a header), drawn with a fixed seed, and every
protein without one. A protein that shares three or more 8-mers with those of --away-from (FASTA, a table, TAPE's LMDB)
is left out: a common stretch of ten residues is enough, so all close relatives go, and distant ones stay.
"""

import argparse
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from heldout_families import WORD, accession, words

from proteinlm.sequences import read_fasta
from proteinlm.tables import is_fasta, is_table, read_table
from proteinlm.untrusted.lmdb_files import LMDB

SHARED_WORDS = 3


def sequences_of(path: str, column: str) -> Iterator[str]:
    """The proteins of a FASTA, a table or an LMDB."""
    if is_fasta(path):
        yield from (residues for _, residues in read_fasta(path))
    elif is_table(path):
        yield from read_table(path).column(column)
    else:
        with LMDB(path) as file:
            for index in range(len(file)):
                residues = file.record(index)["primary"]
                yield residues.decode() if isinstance(residues, bytes) else residues


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train_fasta")
    parser.add_argument("out", type=Path)
    parser.add_argument("--per-family", type=int, default=400)
    parser.add_argument("--away-from", nargs="*", default=[])
    parser.add_argument("--column", default="sequence", help="of a table: where the proteins are")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    judged = set()
    for path in args.away_from:
        for residues in sequences_of(path, args.column):
            judged |= words(residues)
    records = list(read_fasta(args.train_fasta))
    random.Random(args.seed).shuffle(records)
    family_sizes, written, near, residues_written = Counter(), 0, 0, 0
    with args.out.open("w") as out:
        for header, residues in records:
            family = accession(header)
            family_sizes[family] += 1
            if family and family_sizes[family] > args.per_family:
                continue
            if sum(residues[i : i + WORD] in judged for i in range(len(residues) - WORD + 1)) >= SHARED_WORDS:
                near += 1
                continue
            out.write(f">{header}\n{residues}\n")
            written, residues_written = written + 1, residues_written + len(residues)
    print(f"{written:,} proteins of {residues_written:,} residues; {near:,} left out for being near judged ones")


if __name__ == "__main__":
    main()
