"""LMDBs in TAPE's form for tests: pickled records under the keys b"0", b"1" ..., their number under b"num_examples".
And random records."""

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

RESIDUES = np.array(list("ACDEFGHIKLMNPQRSTVWY"))


def put_lmdb(path: Path, values: Mapping[bytes, object], subdir: bool = True) -> Path:
    """Write these entries, new or over old ones; what is not bytes is pickled. subdir=False: a single file."""
    import lmdb  # here, so that tests without records need it not

    path.parent.mkdir(parents=True, exist_ok=True)
    environment = lmdb.open(str(path), map_size=1 << 24, subdir=subdir, lock=subdir)
    with environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value if isinstance(value, bytes) else pickle.dumps(value))
    return path


def write_lmdb(path: Path, records: Iterable[object], count: bool = True, subdir: bool = True) -> Path:
    """A split of these records; count=False leaves b"num_examples" out."""
    values = {str(number).encode(): record for number, record in enumerate(records)}
    return put_lmdb(path, values | ({b"num_examples": len(values)} if count else {}), subdir)


def random_protein(rng: np.random.Generator, shortest: int = 30, longest: int = 70) -> str:
    """One sequence of random residues."""
    return "".join(rng.choice(RESIDUES, rng.integers(shortest, longest)))


def labels(folder: str, length: int, rng: np.random.Generator) -> dict:
    """The fields of one protein of `length` residues for the task that lives in `folder`."""
    everywhere = np.ones(length, dtype=bool)
    if folder == "secondary_structure":
        return {"ss3": rng.integers(0, 3, length), "ss8": rng.integers(0, 8, length), "valid_mask": everywhere}
    if folder == "proteinnet":  # a chain of C-alpha atoms 3.8 Angstrom apart that folds back on itself now and then
        steps = rng.normal(size=(length, 3))
        steps *= 3.8 / np.linalg.norm(steps, axis=1, keepdims=True)
        return {"tertiary": np.cumsum(steps, axis=0).astype(np.float32), "valid_mask": everywhere}
    if folder == "remote_homology":
        fold = int(rng.integers(0, 1195))
        return {"fold_label": fold, "class_label": 0, "superfamily_label": fold, "family_label": fold}
    if folder == "fluorescence":
        return {"log_fluorescence": rng.normal(size=1).astype(np.float32), "num_mutations": int(rng.integers(1, 9))}
    if folder == "stability":
        return {"stability_score": rng.normal(size=1).astype(np.float32)}
    return {"family": int(rng.integers(0, 9)), "clan": 0}
