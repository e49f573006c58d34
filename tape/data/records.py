"""TAPE's records on disk: an LMDB directory (or single .lmdb file) or a JSON list of dicts, one dict a protein.

    records = LMDBRecords(find_data_file("data", "fluorescence", "fluorescence", "train"))
    records[0]["primary"]

What must hold: pickled values are read through proteinlm.untrusted.safe_load alone; an error names the file and the
record; reading works in DataLoader workers, forked or spawned.
"""

import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from proteinlm.errors import InputError
from proteinlm.sequences import open_lmdb
from proteinlm.untrusted.safe_load import safe_pickle_loads

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
    """Records of an LMDB: key b"num_examples" and keys b"0", b"1" ... of pickled dicts."""

    # LMDB allows one environment per file and process, so records of one file share it (train and a holdout of it do).
    # Read-only and without its lock file, an environment is also good after a fork.
    _environments: ClassVar[weakref.WeakValueDictionary] = weakref.WeakValueDictionary()

    def __init__(self, path: Path):
        self.path = path
        self._environment = self._open()
        self._length = self._count()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict:
        value = self._value(str(index).encode())
        if value is None:
            raise InputError(f"{self.path} record {index}: missing, though num_examples says {len(self)}")
        return as_record(safe_pickle_loads(value, f"{self.path} record {index}"), self.path, index)

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

    def _value(self, key: bytes) -> bytes | None:
        import lmdb

        try:
            with self._environment.begin(write=False) as transaction:
                return transaction.get(key)
        except lmdb.Error as error:
            raise InputError(f"{self.path} key {key!r}: the LMDB is damaged ({error})") from None

    def _count(self) -> int:
        value = self._value(b"num_examples")
        if value is None:
            raise InputError(f"{self.path}: no key num_examples; a TAPE LMDB has the number of its records there")
        count = safe_pickle_loads(value, f"{self.path} key num_examples")
        if isinstance(count, bool) or not hasattr(count, "__index__") or count < 0:
            raise InputError(f"{self.path}: num_examples is {count!r}, a whole number of records was expected")
        return int(count)


class JSONRecords:
    """Records of TAPE's raw form: one JSON list of dicts, held in memory."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._records = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"{path}: not JSON ({error})") from None
        if not isinstance(self._records, list):
            raise WrongTypeError(f"{path}: a JSON list of records was expected, found {type(self._records).__name__}")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        return as_record(self._records[index], self.path, index)


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
