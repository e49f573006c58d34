"""Which column of a table is what: the sequence, the label, the protein's name, the part that it belongs to.

What must hold: a column that the user names is taken or refused by name; one that is guessed has a name that leaves no
doubt, and is printed.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from proteinlm.errors import InputError
from proteinlm.tables import Table

# Names as people write them, in lower case without "_", "-" and spaces.
SEQUENCE = ("sequence", "seq", "proteinsequence", "aasequence", "aaseq", "aminoacidsequence", "protein", "primary")
SEQUENCE += ("mutatedsequence", "input")
TARGET = ("target", "targets", "label", "labels", "class", "y", "value", "score")
ID = ("id", "ids", "proteinid", "identifier", "accession", "entry", "uniprotid", "uniprot", "name", "acc")
SPLIT = ("split", "set", "stage", "subset", "partition")
NONE = "none"  # --id none, --split_column none: there is no such column, whatever the names
VALIDATION, MASK = "VALIDATION", "MASK"  # biotrainer's, in FASTA headers


@dataclass(frozen=True)
class Columns:
    """Names of columns; None where the table has none."""

    sequence: str
    target: tuple[str, ...]
    id: str | None
    split: str | None

    def describe(self) -> str:
        """One line for the log."""
        parts = {"sequence": self.sequence, "target": ", ".join(self.target), "id": self.id, "split": self.split}
        return "columns: " + ", ".join(f"{part} {name or 'none'}" for part, name in parts.items())

    def as_before(self, args: argparse.Namespace, columns: Sequence[str]) -> None:
        """Where the flags --sequence and --id say nothing, a new table's columns are those of the run's, if it has
        them."""
        args.sequence = args.sequence or (self.sequence if self.sequence in columns else None)
        args.id = args.id or (self.id if self.id in columns else None)


def _plain(name: str) -> str:
    return name.lower().translate(str.maketrans("", "", "_- "))


def _find(table: Table, flag: str | None, known: Sequence[str]) -> list[str]:
    """Columns that may be it: the one asked for, else those with a known name."""
    if flag == NONE:
        return []
    if flag is not None:
        table.column(flag)  # InputError where there is none
        return [flag]
    return [name for name in table.columns if _plain(name) in known]


def find_sequence(table: Table, flag: str | None) -> str:
    names = _find(table, flag, SEQUENCE)
    if len(names) != 1:
        found = f"columns {', '.join(names)} could be it" if names else f"there are {', '.join(table.columns)}"
        raise InputError(f"{table.path}: which column holds the sequences? {found}; --sequence COLUMN says it")
    return names[0]


def find_id(table: Table, flag: str | None) -> str | None:
    """The column of names; of several that could be it, the first."""
    return next(iter(_find(table, flag, ID)), None)


def choose_columns(
    table: Table, sequence: str | None, target: Sequence[str] | None, name: str | None, split: str | None
) -> Columns:
    """The columns of a table with labels; each argument is the user's word, None where there was none."""
    sequence = find_sequence(table, sequence)
    name = find_id(table, name)
    split = next(iter(_find(table, split, SPLIT)), None)
    for column in target or ():
        table.column(column)
    if target and sequence in target:
        raise InputError(f"{table.path}: --target {sequence} is the column of the sequences; should be another")
    return Columns(sequence, tuple(target or _find_target(table, {sequence, name, split})), name, split)


def _find_target(table: Table, taken: set[str | None]) -> list[str]:
    rest = [column for column in table.columns if column not in taken and column not in (VALIDATION, MASK)]
    named = [column for column in rest if _plain(column) in TARGET]
    if len(named) == 1 or len(rest) == 1:
        return named if len(named) == 1 else rest
    if not rest:
        raise InputError(f"{table.path}: no column of labels beside {', '.join(sorted(filter(None, taken)))}")
    raise InputError(f"{table.path}: which column holds the labels? --target says it; there are {', '.join(rest)}")
