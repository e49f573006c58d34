"""Parts of two tasks' train splits, by which recipes are compared: valid is not read for that.

    python benchmarks/learning/choosing.py TAPE DEEPLOC_TRAIN.csv.gz OUT    (writes structure.csv, location.csv)

A fixed draw of PROTEINS of each, of at most LONGEST residues; a share of SCORED, in whole clusters, is for scoring.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from proteinlm.files import atomic_path
from proteinlm.tables import read_table
from proteinlm.untrusted.lmdb_files import LMDB
from tape.data.holdout import hold_out

PROTEINS, LONGEST = {"structure": 800, "location": 2_000}, 400
SCORED = 0.45
STATES = "HEC"


def structures(tape: Path) -> Iterator[tuple[str, str]]:
    with LMDB(tape / "secondary_structure" / "secondary_structure_train.lmdb") as file:
        for index in range(len(file)):
            record = file.record(index)
            residues = record["primary"]
            residues = residues.decode() if isinstance(residues, bytes) else residues
            yield residues, "".join(STATES[int(state)] for state in record["ss3"])


def locations(table: Path) -> Iterator[tuple[str, str]]:
    rows = read_table(table)
    yield from zip(rows.column("sequence"), rows.column("location"), strict=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tape", type=Path)
    parser.add_argument("deeploc", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    for name, records in (("structure", structures(args.tape)), ("location", locations(args.deeploc))):
        short = [record for record in records if len(record[0]) <= LONGEST]
        chosen = [short[i] for i in np.random.default_rng(0).permutation(len(short))[: PROTEINS[name]]]
        scored = set(hold_out([residues for residues, _ in chosen], SCORED).held_out.tolist())
        with atomic_path(args.out / f"{name}.csv") as path, open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("sequence", "label", "split"))
            writer.writerows((*record, "test" if i in scored else "train") for i, record in enumerate(chosen))


if __name__ == "__main__":
    main()
