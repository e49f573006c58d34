"""TAPE's datasets under TAPE's names: token ids, mask and target of each protein, and the batches made of them.

    data = SecondaryStructureDataset("data", "train")
    token_ids, input_mask, labels = data[0]
    batch = data.collate_fn([data[0], data[1]])     # input_ids, input_mask, targets, ids, protein_length, ...

What must hold: no protein is dropped or cut silently. `max_length` (residues) with `too_long` says what happens to a
longer one, and `counts` says to how many it did. A record that is wrong is an InputError with its file and number.

Legend: L residues, N = L + 2 tokens (<cls> residues <sep>), B proteins of a batch.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from scipy.spatial.distance import cdist

from pretrain.data.masking import MASK_STREAM, mask_tokens, sample_rng
from pretrain.errors import InputError
from tape.metrics import IGNORE
from tape.records import find_data_file, open_records
from tape.tokenizer import TAPETokenizer

TOO_LONG = ("error", "crop", "skip")
CONTACT_DISTANCE = 8.0  # Angstrom between C-alpha atoms
MIN_SEPARATION = 6  # closer pairs along the chain are not scored


def pad_sequences(arrays: Sequence[np.ndarray], constant_value: int = 0) -> np.ndarray:
    """Arrays of one number of dimensions -> [B, longest ...], the rest filled with `constant_value`."""
    shape = [len(arrays), *np.max([array.shape for array in arrays], axis=0)]
    padded = np.full(shape, constant_value, arrays[0].dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[tuple(slice(size) for size in array.shape)] = array
    return padded


class Example(tuple):
    """One protein as TAPE's tuple, which also knows its name, its residues and their valid_mask (bool [L] or None)."""

    id: str
    length: int
    valid: np.ndarray | None

    @classmethod
    def of(cls, values: Sequence, record: dict, valid: np.ndarray | None = None) -> "Example":
        example = cls(values)
        example.id, example.length, example.valid = record["id"], len(record["primary"]), valid
        return example


class TapeDataset(torch.utils.data.Dataset):
    """What the datasets share. Subclasses say where the records are and make the target of one."""

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
        self.data = open_records(self.path)
        self._cache: list[dict | None] | None = [None] * len(self.data) if in_memory else None
        self._kept = self._keep()

    def __len__(self) -> int:
        return len(self._kept)

    def record(self, index: int) -> dict:
        """The whole record of protein `index` as it is on disk, uncropped: primary and id are str."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._read(int(self._kept[index]))

    def where(self, index: int) -> str:
        """File and record of protein `index`, for messages."""
        return f"{self.path} record {int(self._kept[index])}"

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [len(self)]: residues of each protein as the model sees it (after cropping)."""
        lengths = self._record_lengths[self._kept]
        return lengths if self.max_length is None else np.minimum(lengths, self.max_length)

    @property
    def counts(self) -> dict[str, int | str | None]:
        """What `max_length` did to this split, for a result file."""
        lengths, cropping = self._record_lengths, self.too_long == "crop"
        over = lengths - (self.max_length or lengths.max(initial=0))
        over = over[over > 0]
        return {
            "n_records": len(lengths),
            "n_examples": len(self),
            "max_length": self.max_length,
            "too_long": self.too_long,
            "n_cropped": len(over) if cropping else 0,
            "n_residues_cropped": int(over.sum()) if cropping else 0,
            "n_skipped": len(lengths) - len(self),
        }

    @cached_property
    def _record_lengths(self) -> np.ndarray:
        return np.array([len(self._read(i)["primary"]) for i in range(len(self.data))], np.int64)

    def _keep(self) -> np.ndarray:
        """Numbers of the records that are proteins of this dataset."""
        if self.max_length is None or self.too_long == "crop":
            return np.arange(len(self.data))
        fits = self._record_lengths <= self.max_length
        if self.too_long == "error" and not fits.all():
            first = int(fits.argmin())
            raise InputError(
                f"{self.path} record {first}: {self._record_lengths[first]} residues, but max_length is"
                f" {self.max_length} ({int((~fits).sum())} such records); crop or skip them explicitly"
            )
        return np.flatnonzero(fits)

    def _read(self, number: int) -> dict:
        if self._cache is None:
            return self.data[number]
        if self._cache[number] is None:
            self._cache[number] = self.data[number]
        return self._cache[number]

    def __getitem__(self, index: int) -> Example:
        record, where = self.record(index), self.where(index)
        return self._example(record, where, len(record["primary"]), index)

    def _example(self, record: dict, where: str, length: int, index: int) -> Example:
        """TAPE's tuple of one record of `length` residues; subclasses may make more of it."""
        record = self._cropped(record)
        token_ids = self._encode(record, where)
        return Example.of((token_ids, np.ones_like(token_ids), self._target(record, where, length)), record)

    def _target(self, record: dict, where: str, length: int):
        """The target of a record whose `primary` may be cropped; `length` residues are on disk."""
        raise NotImplementedError

    def _cropped(self, record: dict) -> dict:
        return record if self.max_length is None else {**record, "primary": record["primary"][: self.max_length]}

    def _encode(self, record: dict, where: str) -> np.ndarray:
        """int64 [N]; refuses a vocabulary that is not one id a residue."""
        token_ids = self.tokenizer.encode(record["primary"])
        if len(token_ids) != len(record["primary"]) + 2:
            found = f"{len(token_ids)} tokens for {len(record['primary'])} residues"
            raise InputError(f"{where}: {found}; TAPE's tasks need a vocabulary of one token a residue")
        return token_ids

    def collate_fn(self, batch: Sequence[Example]) -> dict:
        """Examples -> input_ids [B, N], input_mask [B, N], targets, ids (list of str), protein_length [B]."""
        token_ids, masks, targets = ([example[place] for example in batch] for place in range(3))
        return {
            "ids": [example.id for example in batch],
            "protein_length": torch.tensor([example.length for example in batch]),
            "input_ids": torch.from_numpy(pad_sequences(token_ids)),
            "input_mask": torch.from_numpy(pad_sequences(masks)),
            "targets": self._collate_targets(targets),
        }

    def _collate_targets(self, targets: list) -> torch.Tensor:
        if self.target_padding is None:
            return torch.tensor(targets)
        return torch.from_numpy(pad_sequences(targets, self.target_padding).astype(np.int64))


def field(record: dict, key: str, where: str) -> object:
    """record[key], or an InputError that says what the record has."""
    if record.get(key) is None:
        raise InputError(f"{where}: no {key}; the record has {', '.join(sorted(map(str, record)))}")
    return record[key]


def array_of(record: dict, key: str, where: str, shape: tuple[int, ...]) -> np.ndarray:
    """record[key] as a numeric array of `shape`, or an InputError with both shapes."""
    value = field(record, key, where)
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.empty(0, object)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{where}: {key} holds no plain numbers")
    if array.shape != shape:
        raise InputError(
            f"{where}: {key} has shape {list(array.shape)}, but the protein has {len(record['primary'])} residues"
            f" (expected {list(shape)})"
        )
    return array


class ValueDataset(TapeDataset):
    """One number a protein. Item: (token_ids [N], input_mask [N], value); targets [B, 1]."""

    key: ClassVar[str]
    target_padding = None

    def _target(self, record: dict, where: str, length: int) -> float:
        value = np.asarray(field(record, self.key, where))
        if value.size != 1 or value.dtype.kind not in "iuf" or not np.isfinite(value).all():
            raise InputError(f"{where}: {self.key} is {record[self.key]!r}, one finite number was expected")
        return float(value.reshape(-1)[0])

    def _collate_targets(self, targets: list) -> torch.Tensor:
        return torch.tensor(targets, dtype=torch.float32).unsqueeze(1)


class FluorescenceDataset(ValueDataset):
    """log_fluorescence of GFP mutants."""

    folder, key = "fluorescence", "log_fluorescence"


class StabilityDataset(ValueDataset):
    """stability_score of designed miniproteins."""

    folder, key = "stability", "stability_score"


class RemoteHomologyDataset(TapeDataset):
    """Fold of a domain. Item: (token_ids [N], input_mask [N], fold_label 0-1194); targets [B]."""

    folder = "remote_homology"
    splits = ("train", "valid", "test_fold_holdout", "test_family_holdout", "test_superfamily_holdout")
    num_labels = 1195
    target_padding = None

    def _target(self, record: dict, where: str, length: int) -> int:
        label = field(record, "fold_label", where)
        if not hasattr(label, "__index__") or not 0 <= label < self.num_labels:
            raise InputError(f"{where}: fold_label is {label!r}, one of 0-{self.num_labels - 1} was expected")
        return int(label)


class SecondaryStructureDataset(TapeDataset):
    """3-class structure of each residue. Item: (token_ids [N], input_mask [N], labels [N], -1 at <cls> and <sep>).

    TAPE ignores valid_mask, and so do the targets; a batch carries it as valid_mask [B, N] (True where the record has
    none), for the metric that does not.
    """

    folder = "secondary_structure"
    splits = ("train", "valid", "casp12", "ts115", "cb513")
    num_labels = 3

    def _example(self, record: dict, where: str, length: int, index: int) -> Example:
        labels = array_of(record, "ss3", where, (length,))
        if labels.dtype.kind not in "iu" or not ((labels >= IGNORE) & (labels < self.num_labels)).all():
            raise InputError(f"{where}: ss3 must be whole numbers of 0-{self.num_labels - 1} (or -1, unknown)")
        whole = "valid_mask" not in record or record["valid_mask"] is None
        valid = np.ones(length, bool) if whole else array_of(record, "valid_mask", where, (length,)).astype(bool)
        record = self._cropped(record)
        token_ids, kept = self._encode(record, where), len(record["primary"])
        labels = np.pad(labels[:kept].astype(np.int64), 1, constant_values=IGNORE)
        return Example.of((token_ids, np.ones_like(token_ids), labels), record, valid[:kept])

    def collate_fn(self, batch: Sequence[Example]) -> dict:
        valid = pad_sequences([np.pad(example.valid, 1) for example in batch], False)
        return super().collate_fn(batch) | {"valid_mask": torch.from_numpy(valid)}


class ProteinnetDataset(TapeDataset):
    """Contacts. Item: (token_ids [N], input_mask [N], contact map [L, L], L); targets [B, L, L].

    1 where C-alpha atoms are closer than 8 Angstrom, else 0; -1 where |i - j| < 6 or a residue is not in valid_mask (or
    has a coordinate that is no number).
    """

    folder = "proteinnet"
    splits = ("train", "train_unfiltered", "valid", "test")

    def _example(self, record: dict, where: str, length: int, index: int) -> Example:
        tertiary = array_of(record, "tertiary", where, (length, 3)).astype(np.float64)
        valid = array_of(record, "valid_mask", where, (length,)).astype(bool) & np.isfinite(tertiary).all(1)
        record = self._cropped(record)
        token_ids, kept = self._encode(record, where), len(record["primary"])
        contacts = contact_map(tertiary[:kept], valid[:kept])
        return Example.of((token_ids, np.ones_like(token_ids), contacts, kept), record, valid[:kept])

    def collate_fn(self, batch: Sequence[Example]) -> dict:
        """Also valid_mask [B, L]."""
        valid = pad_sequences([example.valid for example in batch], False)
        return super().collate_fn(batch) | {"valid_mask": torch.from_numpy(valid)}


def contact_map(tertiary: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """int64 [L, L] from C-alpha positions [L, 3] in Angstrom and valid [L]: 1 contact, 0 none, -1 not scored."""
    positions = np.where(valid[:, None], tertiary, 0.0)  # what is not valid may be no number
    contacts = (cdist(positions, positions) < CONTACT_DISTANCE).astype(np.int64)
    places = np.arange(len(valid))
    near = np.abs(places[:, None] - places[None, :]) < MIN_SEPARATION
    contacts[near | ~(valid[:, None] & valid[None, :])] = IGNORE
    return contacts


class MaskedLanguageModelingDataset(TapeDataset):
    """Pfam with hidden residues. Item: (masked ids [N], input_mask [N], labels [N], clan, family); targets [B, N].

    Masking as in pretraining: 15% of the tokens, residues only, 80% <mask>, 10% any residue, 10% kept. A function of
    (seed, protein) and, in training, of `epoch`, which `set_epoch` sets.
    """

    folder = "pfam"
    splits = ("train", "valid", "holdout")
    mask_prob = 0.15
    seed = 0
    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Training masks of another epoch; valid and holdout never change."""
        self.epoch = epoch if self.split == "train" else 0

    def _example(self, record: dict, where: str, length: int, index: int) -> Example:
        record = self._cropped(record)
        token_ids, vocabulary = self._encode(record, where), self.tokenizer.tokenizer
        maskable = np.isin(token_ids, vocabulary.residue_ids)
        rng = sample_rng(self.seed, MASK_STREAM, int(self._kept[index]), self.epoch)
        masked, positions, hidden = mask_tokens(token_ids, maskable, vocabulary, rng, self.mask_prob)
        labels = np.full(len(token_ids), IGNORE, np.int64)
        labels[positions] = hidden
        classes = (int(record.get("clan", -1)), int(record.get("family", -1)))
        return Example.of((masked, np.ones_like(masked), labels, *classes), record)
