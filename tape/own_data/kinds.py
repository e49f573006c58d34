"""Four kinds of label: what a cell says, as numbers and as text; and which kind a column holds.

  regression      a number a protein
  classification  one class a protein, by name
  multilabel      any number of classes a protein: names in one cell (A;B, A|B or A,B), or a column a class (0/1)
  per_residue     a letter a residue

What must hold: a label that does not parse is an InputError with its line; one that is missing (MISSING, or among
--ignore) is left out and counted. `to_text` and `from_text` are each other's inverse.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from proteinlm.errors import InputError
from tape.metrics import IGNORE

KINDS = ("regression", "classification", "multilabel", "per_residue")
MISSING = frozenset({"", "NA", "N/A", "n/a", "nan", "NaN", "NAN", "null", "NULL"})
SEPARATORS = (";", "|", ",")
YES_NO = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "true": 1, "false": 0, "yes": 1, "no": 0}
LARGEST = float(np.finfo(np.float32).max)  # of a number to learn
FEW = 20  # whole numbers with at most so many different values are taken for classes
UNSCORED = " "  # of a residue, in text; no class is white space
Target = float | int | np.ndarray  # [C] of 1, 0, -1 (multilabel); [L] of classes, -1 not scored (per_residue)


def is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell)) and "_" not in cell
    except ValueError:
        return False


def separator(cells: Sequence[str]) -> str | None:
    """What separates several labels in a cell: a sign that splits some cells into labels which come again."""
    for sign in SEPARATORS:
        pieces = Counter(piece.strip() for cell in set(cells) for piece in cell.split(sign))
        if any(sign in cell for cell in cells) and len(pieces) < len(set(cells)):
            return sign
    return None


def infer_kind(where: str, cells: Sequence[str], sequences: Sequence[str], columns: int) -> tuple[str, str]:
    """(kind, why) of the labels of a column (missing ones left out), each with its sequence.

    columns: how many target columns there are; where: file and column, for messages.
    """
    if columns > 1:
        return "multilabel", f"{columns} target columns"
    values = set(cells)
    if all(map(is_number, values)):
        whole = all(float(value).is_integer() for value in values)
        if whole and len(values) <= min(FEW, len(cells) / 3):
            return "classification", f"{len(values)} different whole numbers"
        return "regression", "every label is a number"
    if all(len(cell) == len(sequence) for cell, sequence in zip(cells, sequences, strict=True)):
        return "per_residue", "every label is as long as its sequence"
    if sign := separator(cells):
        return "multilabel", f"several labels in a cell, separated by {sign!r}"
    numbers = sum(map(is_number, cells))
    if numbers > len(cells) / 2:
        odd = next(cell for cell in cells if not is_number(cell))
        raise InputError(f"{where}: {numbers} labels are numbers but {odd[:40]!r} is none; --kind says what they are")
    if len(values) > max(10, len(cells) / 2):
        odd = [cell for cell, sequence in zip(cells, sequences, strict=True) if len(cell) != len(sequence)]
        if len(odd) < len(cells) / 2:
            sizes = f"{len(cells) - len(odd)} labels are as long as their sequences but {odd[0][:40]!r} is not"
            raise InputError(f"{where}: {sizes}; a letter a residue is needed")
        raise InputError(
            f"{where}: {len(values)} different texts among {len(cells)} proteins fit no kind of label; "
            "--target names another column, --kind says what they are"
        )
    return "classification", f"{len(values)} different texts"


def read_number(cell: str, where: str) -> float:
    if is_number(cell) and abs(float(cell)) > LARGEST:
        raise InputError(f"{where}: {cell[:40]!r} is too large a number to learn")
    if not is_number(cell):
        hint = "; a decimal point is needed" if is_number(cell.replace(",", ".")) else ""
        raise InputError(f"{where}: {cell[:40]!r} is not a finite number{hint}")
    return float(cell)


def read_yes_no(cell: str, where: str) -> int:
    """1 or 0 of a cell of one class; -1 where it is missing."""
    if cell in MISSING:
        return IGNORE
    if cell.lower() not in YES_NO:
        raise InputError(f"{where}: {cell[:40]!r} should be 1 or 0 (true or false); a target column is one class here")
    return YES_NO[cell.lower()]


def class_index(name: str, classes: Sequence[str], where: str) -> int:
    if name not in classes:
        known = ", ".join(classes[:12]) + (" ..." if len(classes) > 12 else "")
        raise InputError(
            f"{where}: {name[:40]!r} is none of the run's classes ({known}); --ignore {name[:40]!r} leaves it out"
        )
    return classes.index(name)


def read_residues(
    labels: str, residues: str, mask: str, classes: Sequence[str], ignore: Sequence[str], where: str
) -> np.ndarray:
    """[L]: class of each residue, -1 where its letter is among `ignore` or the mask has a 0."""
    for name, text in (("label", labels), ("MASK", mask)):
        if len(text) != len(residues) and (text or name == "label"):
            sizes = f"a {name} of {len(text)} letters for {len(residues)} residues"
            raise InputError(f"{where}: {sizes}; one for each is needed")
    places = {letter: place for place, letter in enumerate(classes)} | dict.fromkeys((*ignore, UNSCORED), IGNORE)
    odd = next((letter for letter in labels if letter not in places), None)
    if odd is not None:
        class_index(odd, classes, where)
    numbers = np.array([places[letter] for letter in labels], np.int64)
    return np.where(np.array(list(mask)) == "0", IGNORE, numbers) if mask else numbers


def to_text(kind: str, target: Target, classes: Sequence[str]) -> str:
    """A target as the run's copy of the table has it: a number, a class, 1/0/? a class, or a letter a residue."""
    if kind == "regression":
        return repr(target)
    if kind == "classification":
        return classes[target]
    letters = (*classes, UNSCORED) if kind == "per_residue" else ("0", "1", "?")
    return "".join(letters[value] for value in target)


def from_text(kind: str, text: str, classes: Sequence[str], where: str | Path) -> Target:
    """The opposite of `to_text`."""
    if kind == "regression":
        return read_number(text, str(where))
    if kind == "classification":
        return class_index(text, classes, str(where))
    letters = (*classes, UNSCORED) if kind == "per_residue" else ("0", "1", "?")
    numbers = {letter: place for place, letter in enumerate(letters)} | {letters[-1]: IGNORE}
    return np.array([numbers[letter] for letter in text], np.int64)
