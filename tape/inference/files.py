"""Embeddings as one file: .npz in TAPE's layout, .h5 or .parquet for millions of proteins. Input order, same bytes.

  npz       one key a protein: np.load(path, allow_pickle=True)[id].item() is {"pooled": [h], "avg": [h] ...}
  hdf5      ids [N] (strings), length [N] (residues), pooled/avg/mean [N, h]; per-residue states of all proteins one
            under the other as seq [T, h], protein i in rows offsets[i] to offsets[i + 1]
  parquet   columns id, length, and a list of h numbers for each of pooled/avg/mean; seq is a list of such lists. A row
            group a part
  h5-per-protein  HDF5 with a dataset a protein under its key (KEYS), [h], or [L, h] of the residues alone, its name in
            the attribute `original_id`: what bio_embeddings, biotrainer, VESPA and ProtSpace read. One output a file

Of several layers the first three hold pooled_layer_0, pooled_layer_6 ... in the place of pooled, and the last is a file
a layer. `attributes` (model, layer, flags ...) are the HDF5 file's attributes and the .parquet schema's metadata.

What must hold: the bytes are a function of the parts, with no time or host in them; one part is in memory at a time
(.npz: and one index entry a protein).
"""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from proteinlm.errors import InputError
from proteinlm.files import need_room
from tape.inference.fasta import Protein
from tape.inference.parts import is_per_token, split_rows, unpack_names

OUTPUTS = ("pooled", "avg", "mean", "seq")  # tape.inference.encoding
PER_PROTEIN = "h5-per-protein"
FORMATS = ("npz", "hdf5", "parquet", PER_PROTEIN)
SUFFIXES = {".npz": "npz", ".h5": "hdf5", ".hdf5": "hdf5", ".parquet": "parquet", ".pq": "parquet"}
NEEDS = {"hdf5": "h5py", "parquet": "pyarrow", PER_PROTEIN: "h5py"}
HDF5_ROOM = 4 << 20  # for what HDF5 holds back until the file is closed
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the zip format's zero

Part = Mapping[str, np.ndarray]  # ids (packed), length, and a row a protein (seq: a row a token) of each output


@dataclass(frozen=True)
class Contents:
    """What the file will hold."""

    proteins: int
    tokens: int
    widths: Mapping[str, int]  # output -> numbers of a vector
    dtype: str  # float32 | float16
    attributes: Mapping[str, object]


def id_key(name: str) -> str:
    """The name, but HDF5 takes a / for a group in a group, and "." for the group itself."""
    return name.replace("/", "_") if name != "." else "_"


def accession_key(name: str) -> str:
    """VESPA's: of sp|P12345|NAME the middle, and _ for all but letters and digits (Rostlab/VESPA, predict/utils.py)."""
    return re.sub("[^a-zA-Z0-9]", "_", name.split("|")[1] if "|" in name else name)


def sequence_key(residues: str) -> str:
    """biotrainer's (its docs/h5_file_standardization.md)."""
    return hashlib.sha256(f"{residues}_{len(residues)}".encode()).hexdigest()


# --h5_keys -> the key of a protein in a file of one dataset a protein.
KEYS: dict[str, Callable[[Protein], str]] = {
    "id": lambda protein: id_key(protein.id),
    "accession": lambda protein: accession_key(protein.id),
    "sequence_hash": lambda protein: sequence_key(protein.residues),
}
NAME_KEYS: dict[str, Callable[[str], str]] = {"id": id_key, "accession": accession_key}  # two proteins need two


def choose_format(output: str | Path, name: str) -> str:
    """--format, or what the output's suffix says; InputError where neither says or a library is absent."""
    if name == "auto":
        suffix = Path(output).suffix.lower()
        if suffix not in SUFFIXES:
            known = ", ".join(SUFFIXES)
            raise InputError(f"{output}: the suffix {suffix!r} says no format; name it {known} or give --format")
        name = SUFFIXES[suffix]
    if name in NEEDS:
        try:
            __import__(NEEDS[name])
        except ImportError as error:
            raise InputError(f"--format {name} needs {NEEDS[name]}: pip install {NEEDS[name]}") from error
    return name


def _write_npz(path: Path, contents: Contents, parts: Iterator[Part]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for part in parts:
            rows = split_rows(part["length"])
            for i, (protein, tokens) in enumerate(zip(unpack_names(part["ids"]), rows, strict=True)):
                # Whole arrays, not views: a pickled view may carry other bytes.
                vectors = {name: part[name][tokens if is_per_token(name) else i].copy() for name in contents.widths}
                boxed = np.empty((), object)
                boxed[()] = vectors
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, boxed)
                archive.writestr(zipfile.ZipInfo(f"{protein}.npy", ZIP_DATE), buffer.getvalue())


def _write_hdf5(path: Path, contents: Contents, parts: Iterator[Part]) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs.update({name: _plain(value) for name, value in contents.attributes.items()})
        ids = file.create_dataset("ids", contents.proteins, h5py.string_dtype())
        lengths = file.create_dataset("length", contents.proteins, np.int32)
        rows = {name: contents.tokens if is_per_token(name) else contents.proteins for name in contents.widths}
        data = {name: file.create_dataset(name, (rows[name], contents.widths[name]), contents.dtype) for name in rows}
        with_offsets = any(map(is_per_token, rows))
        if with_offsets:
            offsets = file.create_dataset("offsets", contents.proteins + 1, np.int64)
        row = token = 0
        for part in parts:
            need_room(path, HDF5_ROOM + sum(array.nbytes for array in part.values()))
            count, tokens = len(part["length"]), int(part["length"].sum()) + 2 * len(part["length"])
            ids[row : row + count] = unpack_names(part["ids"])
            lengths[row : row + count] = part["length"]
            for name, dataset in data.items():
                begin, number = (token, tokens) if is_per_token(name) else (row, count)
                dataset[begin : begin + number] = part[name]
            if with_offsets:
                offsets[row + 1 : row + count + 1] = token + np.cumsum(part["length"].astype(np.int64) + 2)
            row, token = row + count, token + tokens


def _write_parquet(path: Path, contents: Contents, parts: Iterator[Part]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = pa.float16() if contents.dtype == "float16" else pa.float32()
    vectors = {name: pa.list_(number, width) for name, width in contents.widths.items()}
    columns = {"id": pa.string(), "length": pa.int32()}
    columns |= {name: pa.list_(vector) if is_per_token(name) else vector for name, vector in vectors.items()}
    metadata = {name: str(_plain(value)) for name, value in contents.attributes.items()}
    schema = pa.schema(list(columns.items()), metadata=metadata)
    # No dictionary and no compression: numbers of a network hold next to no repeats.
    with pq.ParquetWriter(path, schema, compression="NONE", use_dictionary=False) as writer:
        for part in parts:
            table = [pa.array(unpack_names(part["ids"]), pa.string()), pa.array(part["length"], pa.int32())]
            for name, width in contents.widths.items():
                flat = pa.FixedSizeListArray.from_arrays(pa.array(part[name].ravel(), number), width)
                if is_per_token(name):
                    ends = np.cumsum(part["length"] + 2, dtype=np.int32)
                    flat = pa.ListArray.from_arrays(pa.array(np.concatenate(([0], ends)), pa.int32()), flat)
                table.append(flat)
            batch = pa.Table.from_arrays(table, schema=schema)
            writer.write_table(batch, row_group_size=max(1, len(batch)))


def _write_per_protein(path: Path, contents: Contents, parts: Iterator[Part]) -> None:
    import h5py

    (name,) = contents.widths
    with h5py.File(path, "w") as file:
        file.attrs.update({key: _plain(value) for key, value in contents.attributes.items()})
        for part in parts:
            need_room(path, HDF5_ROOM + sum(array.nbytes for array in part.values()) + 4096 * len(part["length"]))
            keys, rows = unpack_names(part["keys"]), split_rows(part["length"])
            for i, (key, protein, tokens) in enumerate(zip(keys, unpack_names(part["ids"]), rows, strict=True)):
                if key not in file:  # the same residues again have the same hash, and the same numbers
                    residues = slice(tokens.start + 1, tokens.stop - 1)
                    dataset = file.create_dataset(key, data=part[name][residues if is_per_token(name) else i])
                    dataset.attrs["original_id"] = protein


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | float) else json.dumps(value)


# write(path, contents, parts): all parts, in order.
WRITERS: dict[str, Callable[[Path, Contents, Iterator[Part]], None]] = {
    "npz": _write_npz,
    "hdf5": _write_hdf5,
    "parquet": _write_parquet,
    PER_PROTEIN: _write_per_protein,
}
