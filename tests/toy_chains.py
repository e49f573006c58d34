"""Chains of known structure for tests: random walks, in TAPE's records, with residues that were not resolved; and
relatives of proteins."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tape_lmdb import write_lmdb

RESIDUES = np.array(list("ACDEFGHIKLMNPQRSTVWY"))


def record(name: str, length: int, seed: int, hidden: tuple[int, ...] = ()) -> dict:
    """hidden: residues that were not resolved."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(length, 3))
    steps *= 2.2 / np.linalg.norm(steps, axis=1, keepdims=True)
    valid = np.ones(length, bool)
    valid[list(hidden)] = False
    tertiary = np.cumsum(steps, 0).astype(np.float32)
    tertiary[~valid] = np.nan
    return {"primary": "".join(rng.choice(RESIDUES, length)), "id": name, "tertiary": tertiary, "valid_mask": valid}


def write_chains(path: Path, count: int, seed: int = 0, length: int = 30) -> Path:
    """`count` chains of about `length` residues, the first with three that were not resolved."""
    records = [record(f"c{n}", length + n % 5, seed + n, (3, 4, 20) if n == 0 else ()) for n in range(count)]
    return write_lmdb(path, records)


def relatives(sequence: str, number: int, rng: np.random.Generator, rate: float = 0.35) -> Iterator[str]:
    """`number` proteins in which each residue was drawn anew with that probability."""
    for _ in range(number):
        drawn = rng.choice(RESIDUES, len(sequence))
        yield "".join(np.where(rng.random(len(sequence)) < rate, drawn, list(sequence)))
