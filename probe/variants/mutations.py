"""Wild types and their mutants, as people have them: FASTA and CSV files in ProteinGym's columns.

    wild = read_wild_type("wt.fasta")
    assay = read_assay("mutations.csv", wild)               # assay.mutants[0] == (Mutation(23, "H", "C"),)

A mutant is written `H24C`, several mutations of one protein `H24C:P25A`, none at all `WT`. What must hold: every letter
that a mutant replaces is the wild type's, so that no score is of another protein; whatever is wrong is an InputError
with the file and the line.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from probe.names import AMINO_ACIDS
from proteinlm.errors import InputError
from proteinlm.tables import Table, fasta_records, is_fasta, read_table
from proteinlm.tokenizer import RESIDUES

MUTATION = re.compile(r"([A-Za-z])(-?\d{1,9})([A-Za-z*])")
MUTANT_COLUMNS = ("mutant", "mutation", "mutations", "variant")
SEQUENCE_COLUMN = "mutated_sequence"
SCORE_COLUMNS = ("DMS_score", "score")
LONGEST = 100_000  # residues of a wild type; twice the longest protein known, PKZILLA-1
UNMUTATED = ("WT", "WILDTYPE", "WILD_TYPE")


class Mutation(NamedTuple):
    """`wild` at `site`, counted from 0, replaced by `letter`."""

    site: int
    wild: str
    letter: str


Mutant = tuple[Mutation, ...]


@dataclass(frozen=True)
class WildType:
    """A protein and the number of its first residue in the names of its mutants."""

    name: str
    sequence: str
    offset: int = 1


@dataclass(frozen=True)
class Assay:
    """The rows of a file of mutants. measured [N]: NaN where a row has no value; None without such a column."""

    table: Table
    mutants: list[Mutant]
    measured: np.ndarray | None
    measured_column: str | None


def check_protein(sequence: str, where: str) -> str:
    """Upper-cased, without a stop at its end; InputError for what is no protein."""
    sequence = sequence.upper().removesuffix("*")
    if not sequence:
        raise InputError(f"{where}: no residues; a wild type needs one or more")
    if len(sequence) > LONGEST:
        raise InputError(f"{where}: {len(sequence):,} residues, more than {LONGEST:,}; is this a protein?")
    bad = next((i for i, letter in enumerate(sequence) if letter not in RESIDUES), None)
    if bad is not None:
        raise InputError(f"{where}: {sequence[bad]!r} at position {bad + 1} is no residue; should be a letter but J")
    return sequence


def read_wild_type(path: str | Path, offset: int | None = None, assay: str | Path | None = None) -> WildType:
    """The one protein of a FASTA file; or of ProteinGym's reference file (columns DMS_id, DMS_filename, target_seq and
    perhaps start_idx) the row of the file `assay`. offset: instead of 1, or of start_idx."""
    if not is_fasta(path):
        return _from_reference(read_table(path), offset, assay)
    records = list(fasta_records(str(path)))
    if len(records) != 1:
        names = ", ".join(name for _, name, _, _ in records[:3])
        raise InputError(f"{path}: {len(records)} proteins ({names}); a wild type is a file of one")
    line, name, _, letters = records[0]
    return WildType(name, check_protein(letters, f"{path}, line {line}"), 1 if offset is None else offset)


def _from_reference(table: Table, offset: int | None, assay: str | Path | None) -> WildType:
    names, sequences = table.column("DMS_id"), table.column("target_seq")
    files = table.column("DMS_filename") if "DMS_filename" in table.columns else names
    wanted = "" if assay is None else Path(assay).name
    rows = [i for i in range(len(table)) if wanted in (files[i], f"{names[i]}.csv")]
    if len(rows) != 1:
        raise InputError(f"{table.path}: {len(rows)} rows for {wanted or 'no file of mutants'}; should be one")
    (row,) = rows
    first = table.column("start_idx")[row] if "start_idx" in table.columns else ""
    if offset is None:
        offset = _whole(first, table.where(row, "start_idx")) if first else 1
    return WildType(names[row], check_protein(sequences[row], table.where(row, "target_seq")), offset)


def _whole(text: str, where: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if value != value or value % 1:
        raise InputError(f"{where}: {text!r} is no whole number")
    return int(value)


def parse_mutant(text: str, wild: WildType, where: str) -> Mutant:
    """The mutations of `A1B:C2D`, by site. where: for the InputError."""
    if text.upper() in UNMUTATED:
        return ()
    mutations = [_parse_one(part.strip(), wild, where) for part in text.split(":")]
    sites = [mutation.site for mutation in mutations]
    if len(set(sites)) != len(sites):
        raise InputError(f"{where}: {text} changes one position twice")
    return tuple(sorted(mutations))


def _parse_one(text: str, wild: WildType, where: str) -> Mutation:
    match = MUTATION.fullmatch(text)
    if match is None:
        raise InputError(f"{where}: {text!r} is no mutation; should be as A24C, several as A24C:D30E")
    before, number, after = match[1].upper(), int(match[2]), match[3].upper()
    site, size = number - wild.offset, len(wild.sequence)
    if not 0 <= site < size:
        bounds = f"{wild.offset} to {wild.offset + size - 1}"
        raise InputError(f"{where}: {text} is at position {number}; the {size} residues of {wild.name} are {bounds}")
    if wild.sequence[site] != before:
        raise InputError(f"{where}: {text} replaces {before}, but {wild.name} has {wild.sequence[site]} at {number}")
    if after not in AMINO_ACIDS:
        raise InputError(f"{where}: {text} puts in {after!r}; should be one of the 20 amino acids ({AMINO_ACIDS})")
    return Mutation(site, before, after)


def from_sequence(sequence: str, wild: WildType, where: str) -> Mutant:
    """What differs in a whole mutated protein; InputError for insertions and deletions."""
    sequence, original = sequence.upper(), wild.sequence
    if len(sequence) != len(original):
        sizes = f"{len(sequence)} residues, {wild.name} has {len(original)}"
        raise InputError(f"{where}: {sizes}; insertions and deletions have no score here")
    changes = [(i, a, b) for i, (a, b) in enumerate(zip(original, sequence, strict=True)) if a != b]
    return tuple(_parse_one(f"{a}{i + wild.offset}{b}", wild, where) for i, a, b in changes)


def mutated(wild_type: str, mutant: Mutant) -> str:
    """The whole mutated protein."""
    letters = list(wild_type)
    for site, _, letter in mutant:
        letters[site] = letter
    return "".join(letters)


def name_of(mutant: Mutant, offset: int) -> str:
    return ":".join(f"{wild}{site + offset}{letter}" for site, wild, letter in mutant) or UNMUTATED[0]


def every_mutant(wild_type: str) -> list[Mutant]:
    """The 20 amino acids at each site, the wild type's own among them: [L * 20], site by site."""
    return [(Mutation(i, wild, letter),) for i, wild in enumerate(wild_type) for letter in AMINO_ACIDS]


def read_assay(
    path: str | Path, wild: WildType, mutant_column: str | None = None, score_column: str | None = None
) -> Assay:
    """A table of mutants: the column `mutant`, or else `mutated_sequence`; `DMS_score` or `score` where there is one.
    The flags name other columns."""
    table = read_table(path)
    column = mutant_column or next((name for name in MUTANT_COLUMNS if name in table.columns), None)
    if column is None and SEQUENCE_COLUMN not in table.columns:
        names = ", ".join(table.columns)
        raise InputError(f"{path}: no column mutant or {SEQUENCE_COLUMN}; it has {names} (--mutant_column names one)")
    if column is None:
        texts = table.column(SEQUENCE_COLUMN)
        mutants = [from_sequence(text, wild, table.where(i, SEQUENCE_COLUMN)) for i, text in enumerate(texts)]
    else:
        mutants = _named(table, column, wild)
    _refuse_repeats(table, mutants, wild)
    measured = score_column or next((name for name in SCORE_COLUMNS if name in table.columns), None)
    return Assay(table, mutants, None if measured is None else _numbers(table, measured), measured)


def _named(table: Table, column: str, wild: WildType) -> list[Mutant]:
    texts = table.column(column)
    try:
        mutants = [parse_mutant(text, wild, table.where(i, column)) for i, text in enumerate(texts)]
    except InputError as error:
        if (offset := fitting_offset(texts, wild.sequence)) not in (None, wild.offset):
            raise InputError(f"{error}; with --offset {offset} every mutation of the file fits") from None
        raise
    if SEQUENCE_COLUMN in table.columns:
        for i, (sequence, mutant) in enumerate(zip(table.column(SEQUENCE_COLUMN), mutants, strict=True)):
            if sequence.upper() != mutated(wild.sequence, mutant):
                raise InputError(f"{table.where(i, SEQUENCE_COLUMN)}: is not {wild.name} with {texts[i]}")
    return mutants


def fitting_offset(texts: Iterable[str], wild_type: str) -> int | None:
    """The number of the first residue with which the letters of all mutations fit; None for none, or for several."""
    pairs = {(int(m[2]), m[1].upper()) for text in texts for part in text.split(":") if (m := MUTATION.match(part))}
    if len(pairs) < 5:  # a few letters fit in many places
        return None
    numbers = [number for number, _ in pairs]
    offsets = range(max(numbers) - len(wild_type) + 1, min(numbers) + 1)
    good = [o for o in offsets if all(wild_type[number - o] == letter for number, letter in pairs)]
    return good[0] if len(good) == 1 else None


def _refuse_repeats(table: Table, mutants: Sequence[Mutant], wild: WildType) -> None:
    first: dict[Mutant, int] = {}
    for i, mutant in enumerate(mutants):
        if (earlier := first.setdefault(mutant, i)) != i:
            name = name_of(mutant, wild.offset)
            raise InputError(f"{table.where(i)}: {name} is on line {table.lines[earlier]} too; a mutant has one line")


def _numbers(table: Table, column: str) -> np.ndarray:
    """float64 [N]; an empty cell or NA is NaN."""
    values = np.full(len(table), np.nan)
    for i, text in enumerate(table.column(column)):
        if text.lower() in ("", "na", "n/a", "nan", "null"):
            continue
        try:
            values[i] = float(text)
        except ValueError:
            raise InputError(f"{table.where(i, column)}: {text!r} is no number") from None
        if not math.isfinite(values[i]):
            raise InputError(f"{table.where(i, column)}: {text!r} is no finite number; NA says that there is none")
    return values
