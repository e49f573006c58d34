"""A table of proteins with labels -> OwnData: every cell read once, and refused, left out or taken.

What must hold: what stops a run is found here, before a model is loaded; rows that are left out (labels that are
missing or ignored) are counted.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from proteinlm.errors import InputError
from proteinlm.sequences import residues_of
from proteinlm.tables import Table, check_name, fasta_records, is_fasta, read_table
from proteinlm.tokenizer import RESIDUES
from tape.own_data import kinds
from tape.own_data.columns import MASK, NONE, VALIDATION, Columns, choose_columns
from tape.own_data.data import Choice, OwnData, OwnProtein, task_name
from tape.own_data.kinds import MISSING
from tape.own_data.splits import LEFT_OUT, read_split
from tape.runs.results import file_sha256

NUCLEOTIDES = frozenset("ACGTUN")
AMBIGUOUS = "J"  # Leu or Ile: a letter of proteins that no vocabulary here has; it becomes the unknown token


@dataclass(frozen=True)
class Row:
    """A row that may become a protein."""

    number: int  # in the table, from 0
    id: str
    sequence: str
    cells: tuple[str, ...]  # of the target columns
    split: str
    mask: str


def read_own_data(path: str, choice: Choice, like: OwnData | None = None) -> OwnData:
    """The table as `choice` says. like: a run's data, whose kind, classes, scale, columns hold here too."""
    table = read_table(path)
    if choice.labels:
        table = with_residue_labels(table, choice.labels)
    if like:
        choice = replace(choice, kind=like.kind, ignore=(*like.ignore, *choice.ignore))
        columns = columns_like(table, choice, like.columns)
    else:
        columns = choose_columns(table, choice.sequence, choice.target, choice.id, choice.split)
    notices: Counter[str] = Counter()
    rows = list(_rows(table, columns, choice, notices))
    if not rows:
        raise InputError(f"{path}: none of its {len(table)} proteins has a label in {', '.join(columns.target)}")
    kind, why = choice.kind, "as asked for"
    if kind is None:
        where, cells = f"{path}, column {columns.target[0]}", [row.cells[0] for row in rows]
        kind, why = kinds.infer_kind(where, cells, [row.sequence for row in rows], len(columns.target))
        why += "; --kind says otherwise"
    if len(columns.target) > 1 and kind != "multilabel":
        raise InputError(f"--kind {kind}: has one column of labels, but --target names {len(columns.target)}")
    rows = _without_repeats(table, rows, notices)
    classes, targets = _targets(kind, table, columns, rows, choice.ignore, like.classes if like else None)
    _notice_sequences(rows, targets, kind, notices)
    proteins = [
        OwnProtein(row.id, row.sequence, target, row.split, table.lines[row.number])
        for row, target in zip(rows, targets, strict=True)
    ]
    noticed = tuple(f"{count:,} {what}" for what, count in notices.items())
    digest = {file: file_sha256(file) for file in (path, choice.labels) if file}
    name = like.name if like else task_name(path, columns.target)
    scale = (like.mean, like.std) if like else (0.0, 1.0)
    return OwnData(name, kind, why, columns, classes, choice.ignore, path, digest, proteins, noticed, *scale)


def columns_like(table: Table, choice: Choice, columns: Columns) -> Columns:
    """Of another table: the user's words, else the names that the run's table had."""
    name = choice.id or (columns.id if columns.id in table.columns else None)
    return choose_columns(table, choice.sequence or columns.sequence, choice.target or columns.target, name, NONE)


def with_residue_labels(table: Table, path: str) -> Table:
    """A FASTA of sequences and one of labels (a letter a residue; biotrainer's pair of files) as one table."""
    if not is_fasta(table.path):
        raise InputError(f"--labels {path}: belongs to a FASTA of sequences; a table has its labels in a column")
    labels = {name: (line, keys, letters) for line, name, keys, letters in fasta_records(path)}
    ids = table.column("id")
    absent = next((name for name in ids if name not in labels), None)
    if absent is not None:
        raise InputError(f"{path}: no labels for {absent} of {table.path}")
    extra = tuple(dict.fromkeys(key for _, keys, _ in labels.values() for key in keys))
    columns = ("id", "sequence", "TARGET", *extra)
    rows = [
        [name, sequence, labels[name][2], *(labels[name][1].get(key, "") for key in extra)]
        for name, sequence in zip(ids, table.column("sequence"), strict=True)
    ]
    return Table(table.path, columns, rows, table.lines)


def _rows(table: Table, columns: Columns, choice: Choice, notices: Counter) -> Iterator[Row]:
    """The rows with a label, their sequences checked."""
    place = {name: i for i, name in enumerate(table.columns)}
    letters: set[str] = set()
    for number, row in enumerate(table.rows):
        cells = tuple(row[place[name]] for name in columns.target)
        sequence = read_sequence(table, number, columns.sequence, row[place[columns.sequence]])
        split = ""
        if columns.split:
            validation = row[place[VALIDATION]] if VALIDATION in place else ""
            split = read_split(row[place[columns.split]], validation, table.where(number, columns.split))
        if all(cell in MISSING for cell in cells):
            notices["proteins without a label left out"] += 1
        elif split == LEFT_OUT:
            notices[f"proteins of split {LEFT_OUT} left out"] += 1
        elif len(cells) == 1 and cells[0] in choice.ignore and choice.kind != "per_residue":
            notices[f"proteins labelled {cells[0]} left out (--ignore)"] += 1
        else:
            letters |= set(sequence)
            notices["sequences with J, which is read as unknown"] += AMBIGUOUS in sequence
            name = row[place[columns.id]] if columns.id else f"line{table.lines[number]}"
            if not name:
                raise InputError(f"{table.where(number, columns.id)}: empty; each protein needs a name (or --id none)")
            check_name(name, table.where(number, columns.id))
            yield Row(number, name, sequence, cells, split, row[place[MASK]] if MASK in place else "")
    if letters and letters <= NUCLEOTIDES:
        notices[f"letters alone ({', '.join(sorted(letters))}) in all sequences; are they nucleotides?"] = len(letters)
    for what in [what for what, count in notices.items() if not count]:
        del notices[what]


def read_sequence(table: Table, number: int, column: str, cell: str) -> str:
    """The residues in a cell; InputError for none, and for what is no residue."""
    sequence = residues_of(cell)
    if not sequence:
        raise InputError(f"{table.where(number, column)}: no residues; every protein needs a sequence")
    odd = re.search(f"[^{RESIDUES}{AMBIGUOUS}]", sequence)
    if odd:
        raise InputError(
            f"{table.where(number, column)}: {odd[0]!r} is no residue (in {cell[:30]!r}); --sequence names the column"
        )
    return sequence


def _without_repeats(table: Table, rows: list[Row], notices: Counter) -> list[Row]:
    """Rows that repeat an earlier one in all that matters are left out; two proteins of one name are refused."""
    first: dict[str, Row] = {}
    for row in rows:
        before = first.setdefault(row.id, row)
        if before is row:
            continue
        if (before.sequence, before.cells, before.split) != (row.sequence, row.cells, row.split):
            what = "sequences" if before.sequence != row.sequence else "labels or splits"
            raise InputError(
                f"{table.where(row.number)}: {row.id} is on line {table.lines[before.number]} too, with other {what}; "
                "names should differ (--id none: the table has none)"
            )
        notices["rows that repeat an earlier one left out"] += 1
    return list(first.values())


def _notice_sequences(rows: Sequence[Row], targets: Sequence, kind: str, notices: Counter) -> None:
    labels: dict[str, set] = {}
    for row, target in zip(rows, targets, strict=True):
        labels.setdefault(row.sequence, set()).add(target.tobytes() if isinstance(target, np.ndarray) else target)
    if repeated := len(rows) - len(labels):
        notices["proteins with a sequence that an earlier one has (kept)"] += repeated
    if kind != "regression" and (differ := sum(len(values) > 1 for values in labels.values())):
        notices["sequences with several different labels (kept)"] += differ


def _targets(
    kind: str,
    table: Table,
    columns: Columns,
    rows: Sequence[Row],
    ignore: Sequence[str],
    classes: tuple[str, ...] | None,
) -> tuple[tuple[str, ...], list]:
    """(classes, a target for each row). classes: those that must hold, None: all that occur."""
    names = _names(kind, columns, rows, ignore)
    if classes is None and kind != "regression":
        occurring = {name for own in names for name in own}
        classes = columns.target if len(columns.target) > 1 else tuple(_sorted(occurring))
        for name in occurring:
            check_name(name, f"{table.path}, column {columns.target[0]}")
        if len(occurring) < 2 and kind != "multilabel":
            raise InputError(f"{table.path}, column {columns.target[0]}: one class only ({', '.join(classes)})")
    targets = []
    for row, own in zip(rows, names, strict=True):
        where = table.where(row.number, columns.target[0])
        if kind == "regression":
            targets.append(kinds.read_number(row.cells[0], where))
        elif kind == "classification":
            targets.append(kinds.class_index(own[0], classes, where))
        elif kind == "per_residue":
            targets.append(kinds.read_residues(row.cells[0], row.sequence, row.mask, classes, ignore, where))
        elif len(columns.target) > 1:
            places = zip(row.cells, columns.target, strict=True)
            values = [kinds.read_yes_no(cell, table.where(row.number, column)) for cell, column in places]
            targets.append(np.array(values, np.int64))
        else:
            target = np.zeros(len(classes), np.int64)
            target[[kinds.class_index(name, classes, where) for name in own]] = 1
            targets.append(target)
    return classes or (), targets


def _names(kind: str, columns: Columns, rows: Sequence[Row], ignore: Sequence[str]) -> list[Sequence[str]]:
    """The classes that each row names."""
    if kind == "regression" or len(columns.target) > 1:
        return [()] * len(rows)
    if kind == "classification":
        return [row.cells for row in rows]
    if kind == "per_residue":
        return [sorted(set(row.cells[0]) - set(ignore)) for row in rows]
    sign = kinds.separator([row.cells[0] for row in rows]) or ";"
    parts = ([piece.strip() for piece in row.cells[0].split(sign)] for row in rows)
    return [[piece for piece in pieces if piece and piece not in ignore] for pieces in parts]


def _sorted(names: set[str]) -> list[str]:
    return sorted(names, key=lambda name: (float(name), name)) if all(map(kinds.is_number, names)) else sorted(names)
