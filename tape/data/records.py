"""TAPE's records on disk: where a split's file is, the records of an LMDB, one dict a protein, and their values.

    records = LMDBRecords(find_data_file("data", "fluorescence", "fluorescence", "train"))
    records[0]["primary"]

What must hold: an error names the file and the record; reading works in DataLoader workers, forked or spawned.
"""

import operator
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from proteinlm.errors import InputError
from proteinlm.untrusted.lmdb_files import LMDB

SUFFIXES = (".lmdb", ".json")
LARGEST = float(np.finfo(np.float32).max)  # of a number to learn


class WrongTypeError(InputError, TypeError):
    """A file or a record of another type than a list or a dict; a TypeError too, as songlab's datasets raise."""


def find_data_file(data_path: str | Path, folder: str, name: str, split: str) -> Path:
    """`<data_path>/<folder>/<name>_<split>.lmdb` or .json; `data_path` may also be that folder, or the file itself."""
    data_path = Path(data_path)
    if data_path.suffix in SUFFIXES:
        if not data_path.exists():
            raise InputError(f"{data_path}: no such file")
        return data_path
    places = [base / f"{name}_{split}{suffix}" for base in (data_path / folder, data_path) for suffix in SUFFIXES]
    for place in places:
        if place.exists():
            return place
    raise InputError(f"{places[0]}: no such LMDB directory, and no {places[1].name} beside it")


class LMDBRecords:
    """Records of an LMDB directory or single file: key b"num_examples" and keys b"0", b"1" ... of pickled dicts."""

    def __init__(self, path: Path):
        self.path, self._file = path, LMDB(path)
        self._length = len(self._file)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict:
        return as_record(self._file.record(index), self.path, index)


def as_record(value: object, path: Path, index: int) -> dict:
    """`value` as a dict with a `primary` of at least one residue (str) and an `id` (str)."""
    where = f"{path} record {index}"
    if not isinstance(value, Mapping):
        raise WrongTypeError(f"{where}: a dict was expected, found {type(value).__name__}")
    primary, name = value.get("primary"), value.get("id", str(index))
    primary = primary.decode("latin-1") if isinstance(primary, bytes) else primary
    if not isinstance(primary, str) or not primary:
        problem = "missing" if "primary" not in value else f"{value['primary']!r}"[:40]
        raise InputError(f"{where}: primary is {problem}; a protein of one residue or more was expected")
    return {**value, "primary": primary, "id": name.decode("latin-1") if isinstance(name, bytes) else str(name)}


# ---- values of a record


def field(record: dict, key: str, where: str) -> object:
    """record[key], or an InputError with the record's keys."""
    if record.get(key) is None:
        raise InputError(f"{where}: no {key}; the record has {', '.join(sorted(map(str, record)))}")
    return record[key]


def number_of(record: dict, key: str, where: str) -> float:
    """record[key] as one number that float32 can hold, or an InputError."""
    value = _array(field(record, key, where))
    good = value.size == 1 and value.dtype.kind in "iuf" and np.abs(value).max() <= LARGEST
    if not good:  # NaN is not below anything
        raise InputError(f"{where}: {key} is {record[key]!r}, one finite number was expected")
    return float(value.reshape(-1)[0])


def index_of(record: dict, key: str, where: str, count: int) -> int:
    """record[key] as a whole number of 0 ... count - 1, or an InputError."""
    value = field(record, key, where)
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number < count:
        raise InputError(f"{where}: {key} is {value!r}, one of 0-{count - 1} was expected")
    return number


def mask_of(record: dict, where: str, length: int) -> np.ndarray:
    """The record's valid_mask as bool [length], or an InputError."""
    mask = array_of(record, "valid_mask", where, (length,))
    if mask.dtype != bool and not ((mask == 0) | (mask == 1)).all():
        raise InputError(f"{where}: valid_mask must be 0 or 1 (or false and true) at each residue")
    return mask.astype(bool)


def array_of(record: dict, key: str, where: str, shape: tuple[int, ...]) -> np.ndarray:
    """record[key] as a numeric array of `shape` (the protein's residues first), or an InputError with both shapes."""
    array = _array(field(record, key, where))
    if array.dtype.kind not in "biuf":
        raise InputError(f"{where}: {key} holds no plain numbers")
    if array.shape != shape:
        raise InputError(
            f"{where}: {key} has shape {list(array.shape)}, but the protein has {shape[0]} residues"
            f" (expected {list(shape)})"
        )
    return array


def _array(value: object) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError:  # rows of different lengths
        return np.empty(0, object)
