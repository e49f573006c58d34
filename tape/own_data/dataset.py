"""One split of one's own data as a TAPE dataset: token ids, mask and target of each protein.

What must hold: as of every TAPE dataset (tape.data.base), no protein is dropped or cut silently.

Legend: L residues, N = L + 2 tokens (<cls> residues <sep>), B proteins of a batch, C classes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from proteinlm.errors import InputError
from tape.data.base import TapeDataset
from tape.data.examples import Example
from tape.metrics import IGNORE
from tape.own_data.data import OwnData
from tape.own_data.splits import SPLITS
from tape.tokenizers import TAPETokenizer


class OwnDataset(TapeDataset):
    """Targets: [B, 1] of regression, [B] of classification, [B, C] of multilabel, [B, N] of per_residue."""

    folder, splits = "own data", SPLITS

    def __init__(
        self,
        data: OwnData,
        data_path: str | Path,
        split: str,
        tokenizer: str | TAPETokenizer = "iupac",
        in_memory: bool = True,
        max_length: int | None = None,
        too_long: str = "error",
    ):
        """data_path is not read: `data` has the proteins."""
        self.own = data
        self._proteins = [protein for protein in data.proteins if protein.split == split]
        if not self._proteins:
            has = ", ".join(name for name in SPLITS if any(p.split == name for p in data.proteins))
            raise InputError(f"{data.table}: no protein in split {split!r}; it has {has}")
        self.tokenizer = TAPETokenizer(vocab=tokenizer) if isinstance(tokenizer, str) else tokenizer
        self.path, self.split, self.max_length, self.too_long = Path(data.table), split, max_length, too_long
        self.data = [{"primary": p.sequence, "id": p.id, "target": p.target} for p in self._proteins]
        self._numbers = self._choose()

    def place(self, number: int) -> str:
        protein = self._proteins[number]
        return f"{self.path} line {protein.line} ({protein.id})"

    @property
    def class_of(self) -> np.ndarray | None:
        """int64 [len(self)] of a classification, else None."""
        if self.own.kind != "classification":
            return None
        return np.array([self.record(i)["target"] for i in range(len(self))], np.int64)

    def _target(self, record: dict, where: str, length: int):
        target = record["target"]
        if self.own.kind != "per_residue":
            return target
        return np.pad(target[: len(record["primary"])], 1, constant_values=IGNORE)

    def _targets(self, batch: Sequence[Example]) -> torch.Tensor:
        if self.own.kind == "per_residue":
            return super()._targets(batch)
        targets = np.array([example[2] for example in batch])
        if self.own.kind == "regression":
            return torch.from_numpy(targets.astype(np.float64)).unsqueeze(1)
        return torch.from_numpy(targets.astype(np.int64))
