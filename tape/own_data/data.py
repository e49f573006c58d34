"""One's own data: read from a table, checked, divided into train, valid and test; and the copy that a run keeps.

    data = read_own_data("my_task.csv", Choice(target=("location",)))
    data = data.divided(valid=None, test=None, seed=0)
    data.save(run_dir); OwnData.load(run_dir)          # data.json (what it is) and data.csv (a protein a line)

What must hold: a run can be scored and used for prediction without the table it came from; whatever is left out is
counted in `notices`; the order of the proteins is the table's.
"""

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from proteinlm.errors import InputError
from proteinlm.files import atomic_path, write_json
from proteinlm.untrusted.csv_files import read_rows
from proteinlm.untrusted.json_files import read_json
from proteinlm.untrusted.shapes import NUMBER
from proteinlm.untrusted.text_files import read_text
from tape.data.holdout import cluster_sequences
from tape.own_data.columns import TARGET, Columns
from tape.own_data.kinds import KINDS, Target, from_text, to_text
from tape.own_data.splits import SPLITS, count_classes, describe_leak, divide, find_leak
from tape.runs.results import file_sha256

DATA_JSON, DATA_CSV = "data.json", "data.csv"
CSV_COLUMNS = ("id", "sequence", "target", "split", "line")
LEAK = {"*": dict.fromkeys(("proteins", "relative_in_train", "identical_in_train"), int)}
SHAPE = {  # of data.json
    **{"name": str, "kind": str, "why": str, "table": str, "sha256": {"*": str}, "proteins": int},
    **{"classes": [str], "ignore": [str], "notices": [str], "mean": NUMBER, "std": NUMBER},
    "columns": {"sequence": str, "target": [str], "id": str | None, "split": str | None},
    "division": {"proteins?": {"*": int}, "how?": [str], "valid_held_out?": bool, "leak?": LEAK},
}


@dataclass(frozen=True)
class Choice:
    """What the user said of the table; None: to be found out."""

    sequence: str | None = None
    target: tuple[str, ...] | None = None
    id: str | None = None
    split: str | None = None
    kind: str | None = None
    ignore: tuple[str, ...] = ()  # labels that are not to be learned
    labels: str | None = None  # FASTA of labels a residue, beside one of sequences


@dataclass(frozen=True)
class OwnProtein:
    """A protein with its label. line: of the table."""

    id: str
    sequence: str
    target: Target
    split: str
    line: int


@dataclass(frozen=True)
class OwnData:
    """A whole table."""

    name: str  # of the task
    kind: str
    why: str  # it is of that kind
    columns: Columns
    classes: tuple[str, ...]  # () for regression
    ignore: tuple[str, ...]
    table: str
    sha256: dict[str, str]  # of the table, and of the labels beside it
    proteins: list[OwnProtein] = field(repr=False)
    notices: tuple[str, ...] = ()
    mean: float = 0.0  # of regression's targets in train
    std: float = 1.0
    division: dict = field(default_factory=dict)  # how train, valid and test were made, and what leaks

    @property
    def sequences(self) -> list[str]:
        return [protein.sequence for protein in self.proteins]

    @cached_property
    def class_of(self) -> np.ndarray | None:
        """int64 [N] of a classification, else None."""
        if self.kind != "classification":
            return None
        return np.array([protein.target for protein in self.proteins], np.int64)

    def class_names(self, i: int) -> Sequence[str]:
        """The classes of protein i; () for regression."""
        target = self.proteins[i].target
        if self.kind == "regression":
            return ()
        if self.kind == "classification":
            return (self.classes[target],)
        places = np.flatnonzero(target == 1) if self.kind == "multilabel" else np.unique(target[target >= 0])
        return [self.classes[place] for place in places]

    # ---- train, valid and test

    def divided(self, valid: float | None = None, test: float | None = None, seed: int = 0) -> "OwnData":
        """With a split for each protein, the scale of train, and the leak looked for."""
        clusters = cluster_sequences(self.sequences)
        splits = [protein.split for protein in self.proteins]
        try:
            splits, how = divide(splits, self.sequences, self.class_of, clusters, valid, test, seed)
        except InputError as error:
            raise InputError(f"{self.table}: {error}") from None
        proteins = [replace(p, split=split) for p, split in zip(self.proteins, splits, strict=True)]
        counts = {name: splits.count(name) for name in SPLITS}
        division = {"proteins": counts, "how": how or [f"by column {self.columns.split}"]}
        division |= {"valid_held_out": any(line.startswith("valid:") for line in how)}
        division |= {"leak": find_leak(splits, self.sequences, clusters)}
        division |= {"classes": count_classes(splits, self.class_names)} if self.classes else {}
        notices = [f"class {name!r}: {_unlearned(counts)}" for name, counts in division.get("classes", {}).items()
                   if not counts["train"]]  # fmt: skip
        data = replace(self, proteins=proteins, division=division, notices=(*self.notices, *notices))
        return data._scaled() if self.kind == "regression" else data

    def _scaled(self) -> "OwnData":
        values = np.array([protein.target for protein in self.proteins if protein.split == "train"])
        if values.std() == 0:
            raise InputError(f"{self.table}: every target in train is {values[0]:g}; there is nothing to learn")
        return replace(self, mean=float(values.mean()), std=float(values.std()))

    def describe(self) -> list[str]:
        """What was understood and what was done, a line each."""
        kind = f"kind: {self.kind} ({self.why})"
        if self.classes:
            kind += f", {len(self.classes)} classes: {', '.join(self.classes[:12])}"
            kind += " ..." if len(self.classes) > 12 else ""
        lines = [f"{self.table}: {len(self.proteins):,} proteins", self.columns.describe(), kind]
        if self.division:
            counts = self.division["proteins"]
            lines += self.division["how"] + [", ".join(f"{name} {counts[name]:,}" for name in SPLITS)]
            lines += describe_leak(self.division["leak"])
        return lines + [f"notice: {notice}" for notice in self.notices]

    # ---- the run's copy

    def changed(self) -> str:
        """'', or that the table is no longer the one that this is a copy of."""
        for path, digest in self.sha256.items():
            if Path(path).is_file() and file_sha256(path) != digest:
                return f"{path} has changed since the run was trained"
        return ""

    def save(self, directory: Path) -> None:
        """data.csv, then data.json: with the second the copy is whole."""
        with atomic_path(directory / DATA_CSV) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(CSV_COLUMNS)
            for p in self.proteins:
                writer.writerow((p.id, p.sequence, to_text(self.kind, p.target, self.classes), p.split, p.line))
        values = {name: value for name, value in vars(self).items() if name in self.__dataclass_fields__}
        write_json(directory / DATA_JSON, values | {"columns": asdict(self.columns), "proteins": len(self.proteins)})

    @classmethod
    def load(cls, directory: Path, proteins: bool = True) -> "OwnData":
        """The copy in a run's directory; `proteins` False: without them."""
        path, own = directory / DATA_JSON, "what tape-train wrote of one's own data"
        stored = read_json(path, own, SHAPE)
        if stored["kind"] not in KINDS:
            raise InputError(f"{path}: key 'kind' is {stored['kind'][:40]!r}; should be one of {', '.join(KINDS)}")
        target = stored["columns"]["target"]
        if len(set(target)) != max(len(target), 1):
            raise InputError(f"{path}: key 'columns.target' is {target}; should be columns that differ, at least one")
        columns = {name: stored["columns"][name] for name in Columns.__dataclass_fields__}
        values = {name: stored[name] for name in cls.__dataclass_fields__}
        values |= {name: tuple(stored[name]) for name in ("classes", "ignore", "notices")} | {"proteins": []}
        data = cls(**values | {"columns": Columns(**columns | {"target": tuple(target)})})
        if not proteins:
            return data
        data = replace(data, proteins=list(data._read(directory / DATA_CSV)))
        if len(data.proteins) != stored["proteins"]:
            sizes = f"{len(data.proteins)} proteins, {DATA_JSON} says {stored['proteins']}"
            raise InputError(f"{directory / DATA_CSV}: {sizes}; should be {own}")
        return data

    def _read(self, path: Path) -> Iterator[OwnProtein]:
        rows = read_rows(path, read_text(path, "should be the run's copy of its data"))
        for line, row in itertools.islice(rows, 1, None):
            try:
                name, sequence, text, split, line_of_table = row
                target = from_text(self.kind, text, self.classes, path)
                yield OwnProtein(name, sequence, target, split, int(line_of_table))
            except (ValueError, KeyError) as error:
                raise InputError(f"{path}, line {line}: not the run's copy of its data ({error})") from None


def _unlearned(counts: dict[str, int]) -> str:
    where = " and ".join(f"{counts[name]} in {name}" for name in SPLITS[1:] if counts[name])
    return f"no protein in train but {where}; it cannot be learned, and those proteins count as wrong"


def task_name(table: str, target: Sequence[str]) -> str:
    """'my_task' of my_task.csv, with the target column behind it where that says something: 'deeploc_location'."""
    stem = Path(table).name.split(".")[0]
    if len(target) == 1 and target[0].lower() not in TARGET:
        stem = f"{stem}_{target[0]}"
    return re.sub(r"\W+", "_", stem)
