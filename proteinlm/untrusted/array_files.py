"""Arrays in files: .npz, .npy, .h5 and parquet, none of which may hold a pickle here.

What must hold: a damaged file is an InputError that names it and ends with `advice`.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from proteinlm.errors import InputError

MADE_AGAIN = "remove it, and it is made again"  # of what a command of ours keeps


@contextlib.contextmanager
def _whole(path: str | Path, advice: str) -> Iterator[None]:
    """Libraries raise errors of all kinds at a damaged file; those of the file system have its name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an old Python's header, which the error says better
            yield
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        reason = " ".join((str(error) or type(error).__name__).split())[:100]
        raise InputError(f"{path}: damaged ({reason}); {advice}") from None


def read_npz(
    path: str | Path, chosen: Callable[[str], object] | None = None, advice: str = MADE_AGAIN
) -> dict[str, np.ndarray]:
    """Its arrays by name. chosen: which of them are read (None: all)."""
    with _whole(path, advice), np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files if chosen is None or chosen(name)}


def read_npy(path: str | Path, mapped: bool = False, advice: str = MADE_AGAIN) -> np.ndarray:
    """The array. mapped: read as it is looked at."""
    with _whole(path, advice):
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("several arrays")
        return array


def read_parquet(
    path: str | Path, chosen: Callable[[str], object], advice: str
) -> tuple[dict[str, np.ndarray], dict[bytes, bytes]]:
    """(the chosen columns by name, the metadata of the file)."""
    import pyarrow.parquet

    with _whole(path, advice):
        schema = pyarrow.parquet.read_schema(path)
        table = pyarrow.parquet.read_table(path, columns=list(filter(chosen, schema.names)))
        return {name: table[name].to_numpy() for name in table.column_names}, schema.metadata or {}


class H5:
    """An .h5 file of this project's, open for reading."""

    def __init__(self, path: str | Path, advice: str = MADE_AGAIN):
        import h5py

        self.path, self._advice = path, advice
        with _whole(path, advice):
            self._file = h5py.File(path)

    def __contains__(self, name: str) -> bool:
        return name in self._file

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Rows of a data set."""
        with _whole(self.path, self._advice):
            return self._file[name][rows]
