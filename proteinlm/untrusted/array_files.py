"""Arrays in files: .npz, .npy, .h5 and parquet, none of which may hold a pickle here.

    write_kept("part_000003.npz", {"mean": vectors})        # read_kept takes these arrays, and no others, from there

What must hold: a damaged file is an InputError that names it and ends with `advice`.
"""

import contextlib
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from proteinlm.errors import InputError
from proteinlm.files import atomic_path

MADE_AGAIN = "remove it, and it is made again"  # of what a command of ours keeps
SEAL = "seal"  # entry of a kept .npz: its own name, and the checksums that zip has of the others


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


def write_kept(path: str | Path, arrays: Mapping[str, np.ndarray], compressed: bool = False) -> None:
    """Keep arrays for `read_kept`."""
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            (np.savez_compressed if compressed else np.savez)(file, **arrays)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(SEAL, json.dumps(_seal(path, archive)))


def read_kept(path: str | Path, chosen: Callable[[str], object] | None = None) -> dict[str, np.ndarray]:
    """What `write_kept` wrote there: every array is there, with its bytes. chosen: which of them are read."""
    with _whole(path, MADE_AGAIN), zipfile.ZipFile(path) as archive:
        if SEAL not in archive.namelist() or json.loads(archive.read(SEAL)) != _seal(path, archive):
            raise ValueError("its arrays are not those that were kept under this name")
    return read_npz(path, lambda name: name != SEAL and (chosen is None or chosen(name)))


def _seal(path: str | Path, archive: zipfile.ZipFile) -> dict:
    sums = {own.filename: own.CRC for own in archive.infolist() if own.filename != SEAL}
    return {"name": Path(path).name, "of": sums}


def read_npy(path: str | Path, shape: tuple, dtype: str, mapped: bool = False, advice: str = MADE_AGAIN) -> np.ndarray:
    """The array, of that shape and of numbers like "<f4", row by row. mapped: read as it is looked at."""
    with _whole(path, advice):
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("several arrays")
        own = (array.shape, array.dtype, array.flags.c_contiguous)
        if own != (shape, np.dtype(dtype), True):
            order = "" if own[2] else ", by columns"
            raise ValueError(f"{array.dtype} {list(array.shape)}{order}; {np.dtype(dtype)} {list(shape)} was expected")
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
        self._halves: dict = {}  # data sets that were looked at
        with _whole(path, advice):
            self._file = h5py.File(path)

    def __contains__(self, name: str) -> bool:
        return name in self._file

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Rows of a data set."""
        with _whole(self.path, self._advice):
            return self._file[name][rows]

    def read_half(self, name: str, rows: slice, shape: tuple) -> np.ndarray:
        """float32, rows of a data set in half precision. shape: of the whole of it; all that is read is finite."""
        with _whole(self.path, self._advice):
            if name not in self._halves:
                data = self._file[name]
                if (data.shape, data.dtype) != (shape, np.float16):
                    raise ValueError(f"{name} is {data.dtype} {list(data.shape)}; float16 {list(shape)} was expected")
                self._halves[name] = data
            values = self._halves[name][rows].astype(np.float32)
            if not np.isfinite(values.sum()):  # no sum of finite ones, 65,504 at most, is as large
                raise ValueError(f"{name} holds numbers that are not finite")
            return values
