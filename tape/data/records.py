"""TAPE's records on disk: where a split's file is, and the records of an LMDB, one dict a protein.

    records = LMDBRecords(find_data_file("data", "fluorescence", "fluorescence", "train"))
    records[0]["primary"]

What must hold: an error names the file and the record; reading works in DataLoader workers, forked or spawned.
"""

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from proteinlm.errors import InputError
from proteinlm.sequences import lmdb_count, lmdb_record, open_lmdb

SUFFIXES = (".lmdb", ".json")


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

    # LMDB allows one environment per file and process, so records of one file share it (train and a holdout of it do).
    # Read-only and without its lock file, an environment is also good after a fork.
    _environments: ClassVar[weakref.WeakValueDictionary] = weakref.WeakValueDictionary()

    def __init__(self, path: Path):
        self.path = path
        self._environment = self._open()
        self._length = lmdb_count(self._environment, path)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict:
        return as_record(lmdb_record(self._environment, self.path, index), self.path, index)

    def __getstate__(self) -> dict:
        return {"path": self.path, "_length": self._length}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._environment = self._open()

    def _open(self):
        key = str(self.path.resolve())
        environment = self._environments.get(key)
        if environment is None:
            if self.path.is_dir() and not (self.path / "data.mdb").is_file():
                raise InputError(f"{self.path}: a directory without data.mdb is no LMDB")
            environment = self._environments[key] = open_lmdb(str(self.path))
        return environment


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
