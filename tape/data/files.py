"""songlab's raw datasets: the records of one file as dicts, whatever its format, and EmbedDataset.

    data = dataset_factory("proteins.fasta")        # .lmdb, .json, .fasta (.faa .fna ..., .gz), or a folder of .npz
    data[0]["primary"], data[0]["id"]

Names, constructors, items and errors (FileNotFoundError, TypeError, IndexError, ValueError) are songlab's.
"""

import errno
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from proteinlm.errors import InputError
from proteinlm.sequences import read_fasta
from proteinlm.untrusted.array_files import read_npz
from proteinlm.untrusted.json_files import read_json_records
from tape.data.examples import pad_sequences
from tape.data.records import LMDBRecords, WrongTypeError, as_record
from tape.tokenizers import TAPETokenizer

FASTA = (".fasta", ".fa", ".faa", ".fna", ".ffn", ".frn", ".gz")


def _existing(data_file: str | Path) -> Path:
    path = Path(data_file)
    path.stat()  # FileNotFoundError
    return path


def dataset_factory(data_file: str | Path, *args, **kwargs) -> Dataset:
    """The dataset of a file by its ending; further arguments go to its constructor."""
    path = _existing(data_file)
    for suffixes, kind in (((".lmdb",), LMDBDataset), (FASTA, FastaDataset), ((".json",), JSONDataset)):
        if path.suffix in suffixes:
            return kind(path, *args, **kwargs)
    if path.is_dir():
        return NPZDataset(path, *args, **kwargs)
    raise InputError(f"{path}: a data file of kind {path.suffix or 'none'}; should be .lmdb, .json or .fasta")


class _Records(Dataset):
    """Items 0 ... len - 1, each a dict with 'id'."""

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._records[index]


class FastaDataset(_Records):
    """A FASTA file (or .gz), in memory: {'id': first word of the header, 'primary', 'protein_length'}."""

    def __init__(self, data_file: str | Path, in_memory: bool = False):
        records = [(header.split(maxsplit=1), residues) for header, residues in read_fasta(str(_existing(data_file)))]
        self._records = [
            {"id": words[0] if words else str(number), "primary": residues, "protein_length": len(residues)}
            for number, (words, residues) in enumerate(records)
        ]


class LMDBDataset(_Records):
    """An LMDB in TAPE's form. Items are its dicts; in_memory keeps each that has been read."""

    def __init__(self, data_file: str | Path, in_memory: bool = False):
        self._records = LMDBRecords(_existing(data_file))
        self._cache: dict[int, dict] | None = {} if in_memory else None

    def __getitem__(self, index: int) -> dict:
        if self._cache is None:
            return super().__getitem__(index)
        if index not in self._cache:
            self._cache[index] = super().__getitem__(index)
        return self._cache[index]


class JSONDataset(_Records):
    """A JSON list of dicts, in memory. TypeError where the file or a record has another type."""

    def __init__(self, data_file: str | Path, in_memory: bool = True):
        self.path = _existing(data_file)
        self._records = read_json_records(self.path)
        if not isinstance(self._records, list):
            kind = type(self._records).__name__
            raise WrongTypeError(f"{self.path}: a JSON list of records was expected, found {kind}")

    def __getitem__(self, index: int) -> dict:
        return as_record(super().__getitem__(index), self.path, index)


class NPZDataset(Dataset):
    """A folder of .npz files, one protein each (all, or those named in split_files); 'id' is the file's name."""

    def __init__(self, data_file: str | Path, in_memory: bool = True, split_files: Collection[str] | None = None):
        folder, names = Path(data_file), None if split_files is None else set(split_files)
        files = sorted(path for path in folder.iterdir() if path.suffix == ".npz")  # NotADirectoryError
        if names == set():
            raise InputError(f"{folder}: split_files names no file")
        self._files = files if names is None else [path for path in files if path.name in names]
        if not self._files or (names and len(self._files) < len(names)):
            missing = f"{len(names) - len(self._files)} of the files asked for missing" if names else "no .npz file"
            raise FileNotFoundError(errno.ENOENT, missing, str(folder))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {"id": self._files[index].stem} | read_npz(self._files[index], advice="should be an .npz of one protein")


class EmbedDataset(Dataset):
    """Proteins to embed. Item: (id, token_ids [N], input_mask [N]); a batch: ids, input_ids and input_mask [B, N]."""

    def __init__(
        self,
        data_file: str | Path,
        tokenizer: str | TAPETokenizer = "iupac",
        in_memory: bool = False,
        convert_tokens_to_ids: bool = True,
    ):
        self.tokenizer = TAPETokenizer(vocab=tokenizer) if isinstance(tokenizer, str) else tokenizer
        self.data = dataset_factory(data_file)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[str, np.ndarray, np.ndarray]:
        item = self.data[index]
        token_ids = self.tokenizer.encode(item["primary"])
        return item["id"], token_ids, np.ones_like(token_ids)

    def collate_fn(self, batch: Sequence[tuple]) -> dict:
        ids, token_ids, masks = zip(*batch, strict=True)
        tensors = {
            "input_ids": torch.from_numpy(pad_sequences(token_ids)),
            "input_mask": torch.from_numpy(pad_sequences(masks)),
        }
        return {"ids": list(ids)} | tensors
