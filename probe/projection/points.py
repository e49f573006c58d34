"""What a map shows: proteins of a table with their columns, or the 20 amino acids with their properties.

What must hold: every id once; a column has classes or numbers, never both; a missing cell stays missing.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from probe.names import AMINO_ACIDS
from proteinlm.errors import InputError
from proteinlm.tables import Table, check_name, read_table
from tape.own_data.columns import find_id, find_sequence
from tape.own_data.kinds import MISSING
from tape.own_data.read import read_sequence

MOST_CLASSES = 24  # of a column that is coloured without being asked for
FEWEST = 4  # points of a map
# IMGT's classes of the amino acids (Pommie et al. 2004, J. Mol. Recognit. 17:17-32); its volumes, in cubic angstrom,
# are 60-90, 108-117, 138-154, 162-174, 189-228. Of its chemical classes only these two have a name here.
PROPERTIES = {
    "charge": {"positive": "RHK", "negative": "DE", "uncharged": "ACFGILMNPQSTVWY"},
    "polarity": {"polar": "RNDQEHKSTY", "nonpolar": "ACGILMFPWV"},
    "size": {"very small": "AGS", "small": "NDCPT", "medium": "QEHV", "large": "RILKM", "very large": "FWY"},
    "hydrophobicity": {"hydrophobic": "ACILMFWV", "neutral": "GHPSTY", "hydrophilic": "RNDQEK"},
    "side chain": {"aliphatic": "AILV", "aromatic": "FWY", "neither": "CDEGHKMNPQRST"},
}


@dataclass(frozen=True)
class Column:
    """One label a point. values: int64 [N], of `classes` (most frequent first), -1 for missing; or, without classes,
    float64 [N], NaN for missing."""

    name: str
    classes: tuple[str, ...]
    values: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """bool [N]"""
        return self.values >= 0 if self.classes else np.isfinite(self.values)

    @property
    def counts(self) -> list[int]:
        return np.bincount(self.values[self.known], minlength=len(self.classes)).tolist() if self.classes else []

    def texts(self) -> list[str]:
        """The cells again; "" for missing."""
        if self.classes:
            return [self.classes[value] if value >= 0 else "" for value in self.values]
        return [f"{value:g}" if np.isfinite(value) else "" for value in self.values]


@dataclass(frozen=True)
class Points:
    """N proteins (or amino acids); where[i]: the file and the line of one, for messages."""

    source: str
    ids: list[str]
    sequences: list[str]
    where: list[str]
    columns: tuple[Column, ...]

    def __len__(self) -> int:
        return len(self.ids)


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def make_column(name: str, cells: Sequence[str], ignore: Collection[str] = ()) -> Column:
    """Numbers where every known cell is one and there are too many different ones for classes; else classes."""
    if all(cell in MISSING or cell in ignore for cell in cells):
        return Column(name, (), np.full(len(cells), np.nan))
    known = [cell for cell in cells if cell not in MISSING and cell not in ignore]
    numbers = [_number(cell) for cell in known]
    if len(set(known)) > MOST_CLASSES and None not in numbers:
        rest = iter(numbers)
        absent = MISSING.union(ignore)
        return Column(name, (), np.array([np.nan if cell in absent else next(rest) for cell in cells]))
    classes = sorted(Counter(known).items(), key=lambda item: (-item[1], item[0]))
    place = {cell: i for i, (cell, _) in enumerate(classes)}
    return Column(name, tuple(place), np.array([place.get(cell, -1) for cell in cells], np.int64))


def read_points(
    path: str | Path,
    columns: Sequence[str] | None = None,
    ignore: Collection[str] = (),
    *,
    sequence: str | None = None,
    name: str | None = None,
    limit: int | None = None,
) -> Points:
    """The proteins of a CSV, TSV or FASTA file. columns: that are shown; None: those of 2 ... MOST_CLASSES classes,
    and where there is none the length.

    ignore: cells that are no label, beside MISSING; sequence, name: columns where their names leave a doubt; limit:
    only so many proteins, drawn once, in their order.
    """
    table = read_table(path)
    if limit is not None and limit < len(table):
        rows = np.sort(np.random.default_rng(0).permutation(len(table))[:limit])
        table = replace(table, rows=[table.rows[i] for i in rows], lines=[table.lines[i] for i in rows])
    sequence, name = find_sequence(table, sequence), find_id(table, name)
    ids = table.column(name) if name else [f"line {line}" for line in table.lines]
    _check_ids(table, ids, name)
    sequences = [read_sequence(table, row, sequence, cell) for row, cell in enumerate(table.column(sequence))]
    if columns is None:
        rest = [column for column in table.columns if column not in (sequence, name)]
        made = [make_column(column, table.column(column), ignore) for column in rest]
        made = [column for column in made if 2 <= len(column.classes) <= MOST_CLASSES and max(column.counts) > 1]
        made = made or [Column("length", (), np.array([len(sequence) for sequence in sequences], np.float64))]
    else:
        made = [make_column(column, table.column(column), ignore) for column in dict.fromkeys(columns)]
        for column in made:
            _check_column(table, column)
    where = [f"{table.where(i)} ({ids[i]})" for i in range(len(table))]
    return Points(table.path, ids, sequences, where, tuple(made))


def _check_ids(table: Table, ids: Sequence[str], name: str | None) -> None:
    first: dict[str, int] = {}
    for row, own in enumerate(ids):
        if not own:
            raise InputError(f"{table.where(row, name)}: no name; every protein needs one")
        check_name(own, table.where(row, name))
        if first.setdefault(own, row) != row:
            raise InputError(f"{table.where(row, name)}: {own} again, as on line {table.lines[first[own]]}; once each")


def _check_column(table: Table, column: Column) -> None:
    for name in column.classes:
        check_name(name, f"{table.path}, column {column.name}")
    if len(column.classes) == 1 or not column.known.any():
        only = f"only {column.classes[0]!r}" if column.classes else "no values"
        raise InputError(f"{table.path}, column {column.name}: {only} in it; should have two classes, or numbers")
    if column.classes and max(column.counts) == 1:
        raise InputError(
            f"{table.path}, column {column.name}: each cell is another; should be labels that points share"
        )


def amino_acids(columns: Sequence[str] | None = None) -> Points:
    """The 20 standard ones, each its own name and sequence, with these of PROPERTIES (None: all)."""
    for name in columns or ():
        if name not in PROPERTIES:
            raise InputError(f"column {name!r} of amino acids: should be one of {', '.join(PROPERTIES)}")
    made = []
    for name in columns or PROPERTIES:
        classes = PROPERTIES[name]
        own = {letter: kind for kind, letters in classes.items() for letter in letters}
        made.append(make_column(name, [own[letter] for letter in AMINO_ACIDS]))
    letters = list(AMINO_ACIDS)
    return Points("20 amino acids", letters, letters, letters, tuple(made))
