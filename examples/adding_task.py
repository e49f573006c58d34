"""A task of one's own: how many mutations does a variant of GFP carry? One number a protein, from TAPE's own files.

    tape-train transformer num_mutations --plugin examples/adding_task.py --data_dir data --output_dir runs/count
    tape-eval transformer num_mutations runs/count --plugin examples/adding_task.py --split test --metrics mae median

or, as in songlab's package, `python examples/adding_task.py transformer num_mutations --data_dir data ...`: it trains.

A task is a dataset class with TAPE's constructor, items and collate_fn, and the models it may be run with. The loss and
the logits are what the model returns for `model(**batch)`: ((loss, metrics), logits).
"""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from tape import ProteinBertForValuePrediction, TAPETokenizer
from tape.datasets import LMDBDataset, pad_sequences
from tape.registry import registry


@registry.register_task("num_mutations")  # a classification would say num_labels=...
class NumMutationsDataset(Dataset):
    """Item: (token_ids [N], input_mask [N], number of mutations)."""

    def __init__(self, data_path: str | Path, split: str, tokenizer="iupac", in_memory: bool = False):
        if split not in ("train", "valid", "test"):
            raise ValueError(f"no split {split!r}; there are train, valid and test")
        self.tokenizer = TAPETokenizer(vocab=tokenizer) if isinstance(tokenizer, str) else tokenizer
        file = Path(data_path) / "fluorescence" / f"fluorescence_{split}.lmdb"
        self.data = LMDBDataset(file, in_memory=in_memory)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, float]:
        record = self.data[index]
        token_ids = self.tokenizer.encode(record["primary"])
        return token_ids, np.ones_like(token_ids), float(record["num_mutations"])

    def collate_fn(self, batch: list[tuple]) -> dict[str, torch.Tensor]:
        """Token ids and mask are padded with 0 (labels of residues would be with -1, which no loss counts)."""
        token_ids, masks, numbers = zip(*batch, strict=True)
        return {
            "input_ids": torch.from_numpy(pad_sequences(token_ids, 0)),
            "input_mask": torch.from_numpy(pad_sequences(masks, 0)),
            "targets": torch.tensor(numbers, dtype=torch.float32).unsqueeze(1),
        }


registry.register_task_model("num_mutations", "transformer", ProteinBertForValuePrediction)


@registry.register_metric("median")
def median_absolute_error(target, prediction) -> float:
    """A metric gets two lists with an entry a protein."""
    return float(np.median(np.abs(np.ravel(target) - np.ravel(prediction))))


if __name__ == "__main__":
    from tape.main import run_train

    run_train()
