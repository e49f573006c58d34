"""TAPE's datasets under TAPE's names: token ids, mask and target of each protein, and the batches made of them.

    data = SecondaryStructureDataset("data", "train")
    token_ids, input_mask, labels = data[0]
    batch = data.collate_fn([data[0], data[1]])     # TAPE's keys: input_ids, input_mask, targets
    batch["ids"], batch["protein_length"]           # found too, but not part of model(**batch)

Constructors, items and batches are songlab's; max_length and too_long are ours. The files themselves (LMDBDataset,
FastaDataset, dataset_factory, EmbedDataset ...) are in tape.data.files and named here too.

What must hold: no protein is dropped or cut silently (tape.data.base); a record that is wrong is an InputError with
its file and number.

Legend: L residues, N = L + 2 tokens (<cls> residues <sep>), B proteins of a batch.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from scipy.spatial.distance import cdist

from proteinlm.errors import InputError
from proteinlm.masking import MASK_STREAM, mask_tokens, sample_rng
from tape.data.base import TapeDataset
from tape.data.examples import Example, TapeBatch, pad_sequences
from tape.data.files import EmbedDataset, FastaDataset, JSONDataset, LMDBDataset, NPZDataset, dataset_factory
from tape.data.records import array_of, index_of, mask_of, number_of
from tape.metrics import IGNORE

__all__ = [
    "EmbedDataset",
    "FastaDataset",
    "FluorescenceDataset",
    "JSONDataset",
    "LMDBDataset",
    "LanguageModelingDataset",
    "MaskedLanguageModelingDataset",
    "NPZDataset",
    "ProteinnetDataset",
    "RemoteHomologyDataset",
    "SecondaryStructure8Dataset",
    "SecondaryStructureDataset",
    "StabilityDataset",
    "TapeDataset",
    "dataset_factory",
    "pad_sequences",
]

CONTACT_DISTANCE = 8.0  # Angstrom between C-alpha atoms
MIN_SEPARATION = 6  # closer pairs along the chain are not scored
FARTHEST = 1e150  # of a coordinate: its square is still a number


class ValueDataset(TapeDataset):
    """One number a protein. Item: (token_ids [N], input_mask [N], value); targets [B, 1]."""

    key: ClassVar[str]
    target_padding = None

    def _target(self, record: dict, where: str, length: int) -> float:
        return number_of(record, self.key, where)

    def _targets(self, batch: Sequence[Example]) -> torch.Tensor:
        return torch.tensor([example[2] for example in batch], dtype=torch.float32).unsqueeze(1)


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
        return index_of(record, "fold_label", where, self.num_labels)

    @property
    def class_of(self) -> np.ndarray:
        """int64 [len(self)]: the fold of each protein."""
        return np.array([self._target(self.record(i), self.where(i), 0) for i in range(len(self))], np.int64)


class SecondaryStructureDataset(TapeDataset):
    """3-class structure of each residue. Item: (token_ids [N], input_mask [N], labels [N], -1 at <cls> and <sep>).

    TAPE ignores valid_mask, and so do the targets; batch["valid_mask"] has it, [B, N] (True where the record has none),
    for the metric that does not.
    """

    folder = "secondary_structure"
    splits = ("train", "valid", "casp12", "ts115", "cb513")
    num_labels = 3
    key: ClassVar[str] = "ss3"

    def _example(self, record: dict, token_ids: np.ndarray, where: str, length: int, index: int) -> Example:
        labels = array_of(record, self.key, where, (length,))
        if labels.dtype.kind not in "iu" or not ((labels >= IGNORE) & (labels < self.num_labels)).all():
            raise InputError(f"{where}: {self.key} must be whole numbers of 0-{self.num_labels - 1} (or -1, unknown)")
        whole = "valid_mask" not in record or record["valid_mask"] is None
        valid = np.ones(length, bool) if whole else mask_of(record, where, length)
        seen = len(record["primary"])
        labels = np.pad(labels[:seen].astype(np.int64), 1, constant_values=IGNORE)
        return Example.of(record, token_ids, labels, valid=valid[:seen])

    def collate_fn(self, batch: Sequence[Example]) -> TapeBatch:
        rows = [np.ones(len(e[0]) - 2, bool) if getattr(e, "valid", None) is None else e.valid for e in batch]
        collated = super().collate_fn(batch)
        collated.extra["valid_mask"] = torch.from_numpy(pad_sequences([np.pad(row, 1) for row in rows], False))
        return collated


class SecondaryStructure8Dataset(SecondaryStructureDataset):
    """The same with the 8 states of DSSP (ss8), which some copies of the data lack."""

    num_labels = 8
    key = "ss8"

    def _example(self, record: dict, token_ids: np.ndarray, where: str, length: int, index: int) -> Example:
        if record.get(self.key) is None:
            raise InputError(f"{where}: no ss8; 8-state structure needs a file with ss8 (this one has 3-state labels)")
        return super()._example(record, token_ids, where, length, index)


class ProteinnetDataset(TapeDataset):
    """Contacts. Item: (token_ids [N], input_mask [N], contact map [L, L], L); targets [B, L, L].

    1 where C-alpha atoms are closer than 8 Angstrom, else 0; -1 where |i - j| < 6 or a residue is not in valid_mask. A
    residue that is, and has a coordinate that is no number, is an InputError.
    """

    folder = "proteinnet"
    splits = ("train", "train_unfiltered", "valid", "test")

    def check(self, index: int) -> None:
        record = self.record(index)
        self._positions(record, self.where(index), len(record["primary"]))

    def _positions(self, record: dict, where: str, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(C-alpha positions float64 [L, 3], bool [L]: known)."""
        tertiary = array_of(record, "tertiary", where, (length, 3)).astype(np.float64)
        valid = mask_of(record, where, length)
        wrong = np.flatnonzero(valid & ~(np.abs(tertiary) < FARTHEST).all(1))  # NaN is not below anything
        if len(wrong):
            fault = f"tertiary of residue {wrong[0]} is {tertiary[wrong[0]].tolist()} ({len(wrong)} such residues)"
            raise InputError(f"{where}: {fault}; valid_mask should be 0 where there are no coordinates")
        return tertiary, valid

    def _example(self, record: dict, token_ids: np.ndarray, where: str, length: int, index: int) -> Example:
        (tertiary, valid), seen = self._positions(record, where, length), len(record["primary"])
        return Example.of(record, token_ids, contact_map(tertiary[:seen], valid[:seen]), seen, valid=valid[:seen])

    def collate_fn(self, batch: Sequence[Example]) -> TapeBatch:
        """protein_length [B] is one of TAPE's keys here; beside them valid_mask [B, L]."""
        collated = super().collate_fn(batch)
        collated["protein_length"] = collated.extra.pop("protein_length")
        rows = [(e[2] != IGNORE).any(1) if getattr(e, "valid", None) is None else e.valid for e in batch]
        collated.extra["valid_mask"] = torch.from_numpy(pad_sequences(rows, False))
        return collated


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

    def check(self, index: int) -> None:
        """Nothing but the residues, which were read with their length."""

    def _example(self, record: dict, token_ids: np.ndarray, where: str, length: int, index: int) -> Example:
        vocabulary = self.tokenizer.tokenizer
        maskable = np.isin(token_ids, vocabulary.residue_ids)
        rng = sample_rng(self.seed, MASK_STREAM, int(self._numbers[index]), self.epoch)
        masked, positions, hidden = mask_tokens(token_ids, maskable, vocabulary, rng, self.mask_prob)
        labels = np.full(len(token_ids), IGNORE, np.int64)
        labels[positions] = hidden
        return Example.of(record, masked, labels, *_families(record))


class LanguageModelingDataset(TapeDataset):
    """Pfam as it is. Item: (token_ids [N], input_mask [N], clan, family); targets [B, N] are the tokens, -1 at padding.

    A model of this task does its own shifting: position i is guessed without token i.
    """

    folder = "pfam"
    splits = ("train", "valid", "holdout")

    def check(self, index: int) -> None:
        """Nothing but the residues, which were read with their length."""

    def _example(self, record: dict, token_ids: np.ndarray, where: str, length: int, index: int) -> Example:
        return Example.of(record, token_ids, *_families(record))

    def _own_targets(self, batch: Sequence[Example]) -> list:
        return [example[0] for example in batch]


def _families(record: dict) -> tuple[int, int]:
    """(clan, family) of a Pfam record, -1 where it has none, or none that is a whole number."""
    numbers = (record.get(name) for name in ("clan", "family"))
    return tuple(int(number) if isinstance(number, int | np.integer) else -1 for number in numbers)
