"""Toy tables of one's own proteins, whose labels follow from the residues. For tests.

path = write_table(tmp_path / "my.csv", "classification", count=40)
"""

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

RESIDUES = np.array(list("ACDEFGHIKLMNPQRSTVWY"))


def toy_sequences(count: int, seed: int = 0, longest: int = 40) -> list[str]:
    """Unrelated proteins with anything from few to many lysines."""
    rng = np.random.default_rng(seed)
    sequences = []
    for _ in range(count):
        length = int(rng.integers(20, longest + 1))
        letters = np.where(rng.random(length) < rng.random() / 2, "K", rng.choice(RESIDUES, length))
        sequences.append("".join(letters))
    return sequences


LABELS: dict[str, Callable[[str], str]] = {
    "regression": lambda s: f"{100 + 40 * s.count('K') / len(s):.3f}",
    "classification": lambda s: "many" if s.count("K") > len(s) / 5 else "few",
    "multilabel": lambda s: ";".join(
        ["rich" if s.count("K") > len(s) / 5 else "poor"] + (["long"] if len(s) > 30 else [])
    ),
    "per_residue": lambda s: "".join("K" if letter == "K" else "-" for letter in s),
}


def write_table(path: Path, kind: str, count: int = 40, seed: int = 0) -> Path:
    sequences = toy_sequences(count, seed)
    return write_rows(path, [(f"P{i}", s, LABELS[kind](s)) for i, s in enumerate(sequences)])


def write_rows(path: Path, rows: Iterable[Sequence], columns: Sequence[str] = ("id", "sequence", "target")) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path
