"""`python -m probe.tables.fluorescence DATA OUT`: TAPE's fluorescence as an assay that `proteinlm variants` reads.

OUT.fasta has the wild type (the record without mutations), OUT.csv ProteinGym's columns mutated_sequence and DMS_score:
the proteins of every split that is there, each once, that are as long as the wild type (deletions have no score).
"""

import csv
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from proteinlm import errors
from proteinlm.errors import InputError
from proteinlm.files import atomic_path, write_text
from tape.data.records import LMDBRecords, find_data_file, number_of
from tape.runs.names import FOLDERS


def read_proteins(data_dir: str | Path) -> tuple[str, dict[str, float]]:
    """(the wild type, log fluorescence by sequence). InputError without any split, or without a wild type."""
    folder, values, wild = FOLDERS["fluorescence"], {}, None
    for split in ("train", "valid", "test"):
        try:
            path = find_data_file(data_dir, folder, folder, split)
        except InputError:
            continue
        records = LMDBRecords(path)
        for number in range(len(records)):
            record = records[number]
            value = number_of(record, "log_fluorescence", f"{path} record {number}")
            values.setdefault(record["primary"], value)
            if record.get("num_mutations") == 0:
                wild = record["primary"]
    if not values:
        raise InputError(f"{data_dir}: no {folder}/{folder}_<split>.lmdb; should be TAPE's data directory")
    if wild is None:
        raise InputError(f"{data_dir}/{folder}: no record with num_mutations 0, which is the wild type")
    return wild, values


def main(argv: Sequence[str] | None = None) -> int:
    description = "TAPE's fluorescence as an assay."
    parser = errors.ArgumentParser("python -m probe.tables.fluorescence", description=description)
    parser.add_argument("data", metavar="DATA", help="TAPE's data directory")
    parser.add_argument("output", metavar="OUT", help="OUT.fasta and OUT.csv are written")
    args = parser.parse_args(argv)
    wild, values = read_proteins(args.data)
    same = {sequence: value for sequence, value in values.items() if len(sequence) == len(wild)}
    path = Path(f"{args.output}.csv")
    write_text(f"{args.output}.fasta", f">{Path(args.output).name}\n{wild}\n")
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["mutated_sequence", "DMS_score"])
        writer.writerows([sequence, f"{value:.6f}"] for sequence, value in same.items())
    rest = f"{len(values) - len(same):,} of another length than the wild type left out"
    print(f"wrote {path}: {len(same):,} proteins; {rest}")
    return 0


cli = partial(errors.run, main)


if __name__ == "__main__":
    sys.exit(cli())
