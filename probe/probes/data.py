"""Labelled proteins for probes: TAPE's secondary structure, or one's own table with one or more columns of labels.

    data = read_structure("data")                                      TAPE's LMDBs: ss3, ss8, disorder
    data = read_columns("train.csv", ("location", "membrane"), tests=("valid.csv",))
    data.splits["train"], data.targets["ss3"].labels[0]                places of proteins; int16 [L], -1 not known

What must hold: what is not known (an unresolved residue, an unknown membrane, a label that is missing) is -1, is not
trained on and not scored; classes that ProtTrans' heads know have ProtTrans' order.

Legend: B proteins of all splits, L residues of one, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from proteinlm.errors import InputError
from proteinlm.tables import read_table
from tape.data.holdout import cluster_sequences
from tape.data.records import LMDBRecords, find_data_file
from tape.datasets import SecondaryStructureDataset, array_of
from tape.metrics import IGNORE
from tape.own_data.columns import choose_columns
from tape.own_data.data import Choice, OwnData, OwnProtein
from tape.own_data.kinds import MISSING
from tape.own_data.read import read_own_data
from tape.own_data.splits import SPLITS, divide

STATES_3, STATES_8, DISORDER = tuple("HEC"), tuple("GHIBESTC"), tuple("-X")
LOCATIONS = ("Cell.membrane", "Cytoplasm", "Endoplasmic.reticulum", "Golgi.apparatus", "Lysosome/Vacuole")
LOCATIONS += ("Mitochondrion", "Nucleus", "Peroxisome", "Plastid", "Extracellular")
# Classes in ProtTrans' order (bio_embeddings' basic_annotation_extractor.py), and DeepLoc's words for unknown.
KNOWN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "location": (LOCATIONS, ("Cytoplasm-Nucleus",)),
    "membrane": (("S", "M"), ("U",)),
    "ss3": (STATES_3, ()),
    "ss8": (STATES_8, ()),
    "disorder": (DISORDER, ()),
}
PROTEIN_CLASSES, RESIDUE_CLASSES = ("location", "membrane"), ("ss3", "ss8", "disorder")


@dataclass(frozen=True)
class Target:
    """One kind of label. labels: int16 [B], or B arrays [L] of a label a residue."""

    name: str
    classes: tuple[str, ...]
    labels: Sequence


@dataclass(frozen=True)
class ProbeData:
    """Proteins of all splits. splits: name -> int64 places; notices: what was left out, for the user."""

    name: str
    per_residue: bool
    ids: list[str]
    where: list[str]  # file and place of each, for messages
    sequences: list[str]
    splits: dict[str, np.ndarray]
    targets: dict[str, Target]
    notices: tuple[str, ...] = ()

    def describe(self) -> list[str]:
        counts = ", ".join(f"{name} {len(places):,}" for name, places in self.splits.items())
        lines = [f"{self.name}: {counts} proteins"]
        lines += [f"{t.name}: {len(t.classes)} classes, {' '.join(t.classes)}" for t in self.targets.values()]
        return lines + [f"notice: {notice}" for notice in self.notices]


def known_labels(target: Target, places: np.ndarray) -> int:
    """How many proteins at `places` have a label."""
    return sum(bool((np.atleast_1d(target.labels[i]) != IGNORE).any()) for i in places)


def limited(data: ProbeData, number: int) -> ProbeData:
    """`number` proteins of each split, at random (always the same ones), in their order."""
    draw = np.random.default_rng(0)
    kept = [np.sort(draw.permutation(own)[:number]) for own in data.splits.values()]
    places, ends = np.concatenate(kept), np.cumsum([0, *map(len, kept)])
    splits = {name: np.arange(*ends[i : i + 2]) for i, name in enumerate(data.splits)}

    def taken(values: Sequence) -> Sequence:
        return values[places] if isinstance(values, np.ndarray) else [values[i] for i in places]

    targets = {name: replace(target, labels=taken(target.labels)) for name, target in data.targets.items()}
    ids, where, sequences = map(taken, (data.ids, data.where, data.sequences))
    return replace(data, ids=ids, where=where, sequences=sequences, splits=splits, targets=targets)


def without_unlearned(data: ProbeData) -> ProbeData:
    """Only the targets of which train has labels; InputError where there is none."""
    kept = {name: t for name, t in data.targets.items() if known_labels(t, data.splits["train"])}
    lost = [name for name in data.targets if name not in kept]
    if not kept:
        raise InputError(f"{data.name}: train has no labels of {', '.join(lost)}")
    notices = tuple(f"{name} left out: train has no such labels" for name in lost)
    return replace(data, targets=kept, notices=data.notices + notices)


def _with_repeats(data: ProbeData) -> ProbeData:
    """A notice for each split that has sequences of train, whose labels a head has seen."""
    train = {data.sequences[i].upper() for i in data.splits["train"]}
    notices = []
    for split, places in data.splits.items():
        again = 0 if split == "train" else sum(data.sequences[i].upper() in train for i in places)
        notices += [f"{again:,} of the {len(places):,} sequences of {split} are in train too"] if again else []
    return replace(data, notices=(*data.notices, *notices))


# ---- TAPE's secondary structure


def read_structure(directory: str | Path, splits: Sequence[str] = SecondaryStructureDataset.splits) -> ProbeData:
    """Every split that is there: ss3, and ss8 and disorder of the records that have them.

    The places that valid_mask leaves out are unresolved: their structure is not known, their disorder is. `disorder`
    is NetSurfP-2.0's column, 1 where a residue is ordered; ProtTrans' class 1 is the disordered one.
    """
    ids, lines, sequences, places, missing = [], [], [], {}, []
    labels: dict[str, list] = {name: [] for name in RESIDUE_CLASSES}
    folder = SecondaryStructureDataset.folder
    for split in splits:
        try:
            path = find_data_file(directory, folder, folder, split)
        except InputError:
            if split == "train":
                raise
            missing.append(split)
            continue
        records = LMDBRecords(path)
        places[split] = np.arange(len(ids), len(ids) + len(records))
        for number in range(len(records)):
            record, where = records[number], f"{path} record {number}"
            ids.append(record["id"])
            lines.append(where)
            sequences.append(record["primary"])
            for name, values in _structure(record, where).items():
                labels[name].append(values)
    targets = {name: Target(name, KNOWN[name][0], own) for name, own in labels.items()}
    targets = {name: t for name, t in targets.items() if known_labels(t, range(len(ids)))}
    notices = tuple(f"{directory} has no {split}" for split in missing)
    return _with_repeats(ProbeData(folder, True, ids, lines, sequences, places, targets, notices))


def _structure(record: dict, where: str) -> dict[str, np.ndarray]:
    """int16 [L] of each kind of label, -1 where it is not known."""
    length, unknown = len(record["primary"]), np.full(len(record["primary"]), IGNORE, np.int16)
    resolved = np.ones(length, bool)
    if record.get("valid_mask") is not None:
        resolved = array_of(record, "valid_mask", where, (length,)).astype(bool)
    values = dict.fromkeys(RESIDUE_CLASSES, unknown)
    for name, classes in (("ss3", STATES_3), ("ss8", STATES_8)):
        if record.get(name) is None and name != "ss3":
            continue
        own = array_of(record, name, where, (length,))
        if own.dtype.kind not in "iu" or not ((own >= IGNORE) & (own < len(classes))).all():
            raise InputError(f"{where}: {name} must be whole numbers of 0-{len(classes) - 1} (or -1, unknown)")
        values[name] = np.where(resolved, own, IGNORE).astype(np.int16)
    if record.get("disorder") is not None:
        own = array_of(record, "disorder", where, (length,))
        if not np.isin(own, (0, 1)).all():
            raise InputError(f"{where}: disorder must be 1 (ordered) or 0 at each residue")
        values["disorder"] = (1 - own).astype(np.int16)
    return values


# ---- one's own table


def read_columns(
    path: str, targets: Sequence[str] | None, choice: Choice | None = None, tests: Sequence[str] = (), seed: int = 0
) -> ProbeData:
    """A table, each of `targets` a column of labels (None: the one that is found); tests: more tables, to be scored.

    Without a split column and without `tests`, valid and test are held out by cluster. InputError for labels that are
    numbers or sets of classes, and for columns of labels a residue beside ones a protein.
    """
    choice = choice or Choice()
    if not targets:
        targets = choose_columns(read_table(path), choice.sequence, None, choice.id, choice.split).target
    columns = {target: _read_target((path, *tests), target, choice) for target in targets}
    kinds = {tables[0].kind for tables in columns.values()}
    if len(kinds) > 1:
        raise InputError(f"{path}: some of {', '.join(columns)} are a class a residue, others one a protein; one kind")
    names = [Path(table).name.split(".")[0] for table in (path, *tests)]
    if len(set(names)) < len(names) or "train" in names[1:]:
        raise InputError(f"tables {', '.join(names)}: each should have a name of its own, the ones to score not train")
    proteins: list[OwnProtein] = []
    where: list[str] = []
    labels: dict[str, dict[int, object]] = {target: {} for target in targets}
    of_table: dict[str, np.ndarray] = {}
    for number, (name, table) in enumerate(zip(names, (path, *tests), strict=True)):
        rows = {protein.line: protein for tables in columns.values() for protein in tables[number].proteins}
        place = {line: len(proteins) + i for i, line in enumerate(sorted(rows))}
        of_table[name] = np.fromiter(place.values(), np.int64)
        proteins += [rows[line] for line in place]
        where += [f"{table}, line {line} ({rows[line].id})" for line in place]
        for target, tables in columns.items():
            labels[target] |= {place[protein.line]: protein.target for protein in tables[number].proteins}
    sequences = [protein.sequence for protein in proteins]
    made = {target: _target(target, tables[0], labels[target], sequences) for target, tables in columns.items()}
    notices = [line for tables in columns.values() for table in tables for line in table.notices]
    if tests:
        places = {"train": of_table.pop(names[0])} | of_table
        if any(proteins[i].split not in ("", "train") for i in places["train"]):
            raise InputError(f"{path}: has proteins that are not of split train; with --test all of it is train")
    else:
        places, how = _divided(path, proteins, next(iter(made.values())), seed)
        notices += how
    ids, notices = [protein.id for protein in proteins], tuple(dict.fromkeys(notices))
    name = f"{Path(path).resolve().parent.name}/{names[0]}" if tests else names[0]
    return _with_repeats(ProbeData(name, kinds == {"per_residue"}, ids, where, sequences, places, made, notices))


def _read_target(paths: Sequence[str], target: str, choice: Choice) -> list[OwnData]:
    """Each table's data of one column of labels, the first one's classes being those of all."""
    choice = replace(choice, target=(target,))
    cells = set(read_table(paths[0]).column(target))
    for classes, unknown in KNOWN.values():
        if len(cells & set(classes)) > 1 and cells <= {*classes, *unknown, *choice.ignore, *MISSING}:
            choice = replace(choice, ignore=(*choice.ignore, *unknown))
    train = read_own_data(paths[0], choice)
    if train.kind not in ("classification", "per_residue"):
        kind = f"{paths[0]}: {target} is {train.kind} ({train.why})"
        raise InputError(f"{kind}; probes learn one class a protein or a residue. tape-train learns {train.kind}")
    return [train, *(read_own_data(path, choice, train) for path in paths[1:])]


def _divided(
    path: str, proteins: Sequence[OwnProtein], target: Target, seed: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """(places of each split, how they were made): those of the table's column, else train, valid and test."""
    splits, how = [protein.split for protein in proteins], []
    if "" in splits:
        sequences = [protein.sequence for protein in proteins]
        classes = None if isinstance(target.labels, list) else target.labels.astype(np.int64) + 1  # 0: not known
        try:
            splits, how = divide(splits, sequences, classes, cluster_sequences(sequences), None, None, seed)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    names = np.array(splits)
    places = {name: np.flatnonzero(names == name) for name in SPLITS if name in splits}
    if "train" not in places:
        raise InputError(f"{path}: the split column has no protein in train")
    return places, how


def _target(name: str, data: OwnData, labels: Mapping[int, object], sequences: Sequence[str]) -> Target:
    """The labels of all proteins, classes in ProtTrans' order where it has them all."""
    per_residue = data.kind == "per_residue"
    known = (KNOWN[key][0] for key in (RESIDUE_CLASSES if per_residue else PROTEIN_CLASSES))
    classes = next((order for order in known if set(data.classes) <= set(order)), data.classes)
    place = np.array([classes.index(own) for own in data.classes] + [IGNORE], np.int16)  # the last one: of -1
    if per_residue:
        own = (labels.get(i, np.full(len(sequence), IGNORE)) for i, sequence in enumerate(sequences))
        return Target(name, classes, [place[one] for one in own])
    return Target(name, classes, np.array([place[labels.get(i, IGNORE)] for i in range(len(sequences))], np.int16))
