"""Train, valid and test of one's own proteins: by a column, else by cluster of sequences; and what leaks between them.

What must hold: proteins of one cluster (tape.data.holdout: about 70% identity) never sit on two sides of a cut made
here, unless the printed line says that none could be made; the leak is looked for whoever made the cut.
"""

from collections.abc import Callable, Sequence

import numpy as np

from proteinlm.errors import InputError
from tape.data.holdout import hold_out

SPLITS = ("train", "valid", "test")
LEFT_OUT = "pred"  # biotrainer's: proteins to predict, which have no part here
NAMES = dict.fromkeys(("train", "training", "tr"), "train")
NAMES |= dict.fromkeys(("valid", "validation", "val", "dev", "development"), "valid")
NAMES |= dict.fromkeys(("test", "testing", "holdout", "hold-out", "held-out"), "test")
NAMES |= dict.fromkeys((LEFT_OUT, "predict", "prediction"), LEFT_OUT)
FRACTION = 0.1  # of the proteins, for each of valid and test
FEWEST = 10  # proteins that can be cut into train, valid and test


def read_split(cell: str, validation: str, where: str) -> str:
    """train, valid, test or LEFT_OUT from a cell of the split column. validation: biotrainer's VALIDATION=True."""
    name = NAMES.get(cell.strip().lower())
    if name is None:
        raise InputError(f"{where}: {cell[:40]!r} is no split; should be train, valid (validation, val, dev) or test")
    if validation.lower() == "true":
        if name != "train":
            raise InputError(f"{where}: VALIDATION=True with {cell}; should be with train")
        return "valid"
    return name


def divide(
    splits: list[str],
    sequences: Sequence[str],
    labels: np.ndarray | None,
    clusters: np.ndarray,
    valid: float | None,
    test: float | None,
    seed: int,
) -> tuple[list[str], list[str]]:
    """(split of each protein, how it was made, a line each).

    splits: from the column, "" everywhere where there is none; a column that lacks valid loses a part of train to it.
    valid, test: fractions to hold out, None: FRACTION; 0 of test: none. labels: classes that train must keep.
    """
    splits, lines = list(splits), []
    if "" in splits:
        splits = ["train"] * len(splits)
        if len(splits) < FEWEST:
            raise InputError(
                f"{len(splits)} proteins are too few to cut into train, valid and test (at least {FEWEST}); "
                "a split column (train, valid, test) says which is which"
            )
        if test != 0:
            lines.append(_move(splits, "test", sequences, labels, clusters, test or FRACTION, seed))
    if "train" not in splits:
        raise InputError("the split column has no protein in train")
    if "valid" not in splits:
        lines.append(_move(splits, "valid", sequences, labels, clusters, valid or FRACTION, seed))
    return splits, lines


def _move(splits: list[str], name: str, sequences, labels, clusters, fraction: float, seed: int) -> str:
    """Move a part of train to `name`, in place; returns how."""
    train = np.flatnonzero(np.array(splits) == "train")
    kept = None if labels is None else labels[train]
    parts = hold_out([sequences[i] for i in train], fraction, seed, kept, clusters[train])
    for place in parts.held_out:
        splits[train[place]] = name
    return f"{name}: {parts.describe()}"


def find_leak(splits: Sequence[str], sequences: Sequence[str], clusters: np.ndarray) -> dict[str, dict[str, int]]:
    """For every split but train (and ""): how many proteins have a relative in train (share a cluster), and how many
    the same sequence."""
    part = np.array(splits)
    in_train, same = (
        set(clusters[part == "train"].tolist()),
        {sequence for sequence, split in zip(sequences, splits, strict=True) if split == "train"},
    )
    leak = {}
    for name in dict.fromkeys((*(name for name in SPLITS if name in splits), *splits)):
        if name in ("train", ""):
            continue
        places = np.flatnonzero(part == name).tolist()
        leak[name] = {
            "proteins": len(places),
            "relative_in_train": sum(int(clusters[i]) in in_train for i in places),
            "identical_in_train": sum(sequences[i] in same for i in places),
        }
    return leak


def describe_leak(leak: dict[str, dict[str, int]]) -> list[str]:
    """A line for each part."""

    def line(name: str, counts: dict[str, int]) -> str:
        related, number = counts["relative_in_train"], counts["proteins"]
        text = f"leak check: {related:,} of {number:,} {name} proteins have a relative in train"
        if not related:
            return text
        text += f" (a chain of pairs of about 70% identity or more), {counts['identical_in_train']:,} the same sequence"
        return f"{text}; what is scored on {name} is in part memory"

    return [line(name, counts) for name, counts in leak.items()]


def count_classes(splits: Sequence[str], names: Callable[[int], Sequence[str]]) -> dict[str, dict[str, int]]:
    """Class -> split -> how many proteins. names(i): the classes of protein i."""
    counts: dict[str, dict[str, int]] = {}
    for i, split in enumerate(splits):
        for name in names(i):
            of_class = counts.setdefault(name, dict.fromkeys(SPLITS, 0))
            of_class[split] += 1
    return counts
