"""What TAPE's datasets share: records of a split as TAPE's tuples, long proteins as an explicit choice, and batches.

    class MyDataset(TapeDataset):
        folder = "my_folder"                                    # <data_path>/my_folder/my_folder_<split>.lmdb or .json

        def _target(self, record, where, length):
            return number_of(record, "my_key", where)           # tape.data.records

What must hold: no protein is dropped or cut silently. `too_long` decides what happens to one of more than `max_length`
residues, and `counts` has their numbers. A record that is wrong is an InputError with its file and number.

Legend: L residues, N = L + 2 tokens (<cls> residues <sep>), B proteins of a batch.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from proteinlm.errors import InputError
from tape.data.examples import Example, TapeBatch, pad_sequences
from tape.data.files import dataset_factory
from tape.data.lengths import TOO_LONG
from tape.data.records import find_data_file
from tape.metrics import IGNORE
from tape.tokenizers import TAPETokenizer


class TapeDataset(torch.utils.data.Dataset):
    """What the datasets share. Subclasses give the folder and make the target of a record."""

    folder: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("train", "valid", "test")
    target_padding: ClassVar[int | None] = IGNORE  # None: one target a protein, nothing to pad

    def __init__(
        self,
        data_path: str | Path,
        split: str,
        tokenizer: str | TAPETokenizer = "iupac",
        in_memory: bool = False,
        max_length: int | None = None,
        too_long: str = "error",
    ):
        """data_path: TAPE's data root, the task's folder in it, or a .lmdb or .json itself.

        in_memory: keep decoded records. max_length: residues the model may see; too_long: what happens to a longer
        protein, 'error', 'crop' (its first max_length residues are kept) or 'skip'; see `counts`.
        """
        if split not in self.splits and Path(data_path).suffix not in (".lmdb", ".json"):
            raise InputError(f"{self.folder} has no split {split!r}; it has {', '.join(self.splits)}")
        if too_long not in TOO_LONG:
            raise InputError(f"too_long {too_long!r} is not one of {', '.join(TOO_LONG)}")
        self.tokenizer = TAPETokenizer(vocab=tokenizer) if isinstance(tokenizer, str) else tokenizer
        self.path = find_data_file(data_path, self.folder, self.folder, split)
        self.split, self.max_length, self.too_long = split, max_length, too_long
        self.data = dataset_factory(self.path, in_memory)
        self._numbers = self._choose()

    def __len__(self) -> int:
        return len(self._numbers)

    def record(self, index: int) -> dict:
        """The whole record of protein `index` as it is on disk, uncropped: primary and id are str."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.data[int(self._numbers[index])]

    def where(self, index: int) -> str:
        """File and record of protein `index`, for messages."""
        return self.place(int(self._numbers[index]))

    def place(self, number: int) -> str:
        """File and place of record `number` of the file."""
        return f"{self.path} record {number}"

    @property
    def whole_lengths(self) -> np.ndarray:
        """int64 [len(self)]: residues of each protein as it is on disk."""
        return self._record_lengths[self._numbers]

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [len(self)]: residues of each protein as the model sees it (after cropping)."""
        return self.whole_lengths if self.max_length is None else np.minimum(self.whole_lengths, self.max_length)

    @property
    def counts(self) -> dict[str, int | str | None]:
        """How many proteins of this split `max_length` cropped or skipped."""
        cropped = self.whole_lengths - self.lengths
        return {
            "n_records": len(self.data),
            "n_examples": len(self),
            "max_length": self.max_length,
            "too_long": self.too_long,
            "n_cropped": int((cropped > 0).sum()),
            "n_residues_cropped": int(cropped.sum()),
            "n_skipped": len(self.data) - len(self),
        }

    @cached_property
    def _record_lengths(self) -> np.ndarray:
        return np.array([len(self.data[i]["primary"]) for i in range(len(self.data))], np.int64)

    def _choose(self) -> np.ndarray:
        """Numbers of the records that are proteins of this dataset."""
        if self.max_length is None or self.too_long == "crop":
            return np.arange(len(self.data))
        fits = self._record_lengths <= self.max_length
        if self.too_long == "error" and not fits.all():
            first = int(fits.argmin())
            raise InputError(
                f"{self.place(first)}: {self._record_lengths[first]} residues, but max_length is"
                f" {self.max_length} ({int((~fits).sum())} such records); crop or skip them explicitly"
                " (--too_long crop)"
            )
        return np.flatnonzero(fits)

    def __getitem__(self, index: int) -> Example:
        record, where = self.record(index), self.where(index)
        residues = record["primary"][: self.max_length]
        token_ids = self.tokenizer.encode(residues)
        if len(token_ids) != len(residues) + 2:
            sizes = f"{len(token_ids)} tokens for {len(residues)} residues"
            raise InputError(f"{where}: {sizes}; TAPE's tasks need a vocabulary of one token a residue")
        return self._example(record | {"primary": residues}, token_ids, where, len(record["primary"]), index)

    def check(self, index: int) -> None:
        """InputError where the protein's record is not as the task needs it; overridden where an example is dear."""
        self[index]

    def _example(self, record: dict, token_ids: np.ndarray, where: str, length: int, index: int) -> Example:
        """TAPE's tuple of a record whose `primary` may be cropped (token_ids [N] are of that) and has `length` residues
        on disk; subclasses may make more of it.
        """
        return Example.of(record, token_ids, self._target(record, where, length))

    def _target(self, record: dict, where: str, length: int):
        """The target of a record whose `primary` may be cropped; `length` residues are on disk."""
        raise NotImplementedError

    def collate_fn(self, batch: Sequence[Example]) -> TapeBatch:
        """Examples -> input_ids [B, N], input_mask [B, N], targets; beside them ids (list of str), protein_length [B]
        and target_shapes (of each protein's target without its padding).

        Plain tuples (a user's own items in TAPE's form) will do; their place in the batch is then their id.
        """
        token_ids, masks = ([example[place] for example in batch] for place in range(2))
        values = {
            "input_ids": torch.from_numpy(pad_sequences(token_ids)),
            "input_mask": torch.from_numpy(pad_sequences(masks)),
            "targets": self._targets(batch),
        }
        extra = {
            "ids": [getattr(example, "id", str(place)) for place, example in enumerate(batch)],
            "protein_length": torch.tensor([len(tokens) - 2 for tokens in token_ids]),
            "target_shapes": [np.shape(target) for target in self._own_targets(batch)],
        }
        return TapeBatch(values, extra)

    def _own_targets(self, batch: Sequence[Example]) -> list:
        """Each protein's target, not yet padded."""
        return [example[2] for example in batch]

    def _targets(self, batch: Sequence[Example]) -> torch.Tensor:
        targets = self._own_targets(batch)
        if self.target_padding is None:
            return torch.tensor(targets)
        return torch.from_numpy(pad_sequences(targets, self.target_padding).astype(np.int64))
