"""Secondary structure: helix, strand or other for every residue (NetSurfP-2.0's data); 3-class accuracy. And 8 states.

`accuracy` counts every labelled residue, as TAPE does; `accuracy_valid` only those that the record's valid_mask keeps.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from tape import metrics
from tape.datasets import SecondaryStructure8Dataset, SecondaryStructureDataset
from tape.models.modeling_bert import ProteinBertForSequenceToSequenceClassification
from tape.models.outputs import cross_entropy_sum
from tape.tasks.base import Batch, Prediction, Task, to_numpy


class SecondaryStructure(Task):
    """One class a residue; cross-entropy over the labelled residues."""

    def loss(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return cross_entropy_sum(logits, batch["targets"])

    def predictions(self, logits: torch.Tensor, batch: Batch) -> list[Prediction]:
        scores, labels, valid = to_numpy(logits), to_numpy(batch["targets"]), to_numpy(batch["valid_mask"])
        rows = enumerate(zip(batch["ids"], batch["protein_length"].tolist(), strict=True))
        # Column 0 is <cls>; copies, so that a record does not keep its whole padded batch alive.
        return [
            Prediction(name, n, scores[b, 1 : n + 1].copy(), labels[b, 1 : n + 1].copy(), valid[b, 1 : n + 1].copy())
            for b, (name, n) in rows
        ]

    def counts(self, predictions: Sequence[Prediction]) -> dict[str, int]:
        counted = int(_right_and_counted(predictions)[:, 1].sum())
        return {"n_examples": len(predictions), "n_residues": counted}

    def per_protein(self, predictions: Sequence[Prediction]) -> np.ndarray:
        """[N, 2]: residues right, residues counted."""
        return _right_and_counted(predictions)


def _right_and_counted(predictions: Sequence[Prediction], only_valid: bool = False) -> np.ndarray:
    rows = []
    for p in predictions:
        labels = np.where(p.valid, p.labels, metrics.IGNORE) if only_valid else p.labels
        rows.append(metrics.count_right(p.scores, labels))
    return np.array(rows, np.float64).reshape(-1, 2)


def _ratio(table: np.ndarray) -> float:
    right, counted = table.sum(0)
    return float(right / counted) if counted else float("nan")


def _accuracy(predictions: Sequence[Prediction]) -> float:
    return _ratio(_right_and_counted(predictions))


def _accuracy_valid(predictions: Sequence[Prediction]) -> float:
    return _ratio(_right_and_counted(predictions, only_valid=True))


TASK = SecondaryStructure(
    name="secondary_structure",
    dataset=SecondaryStructureDataset,
    model=ProteinBertForSequenceToSequenceClassification,
    num_labels=3,
    splits=("casp12", "ts115", "cb513"),
    metric="accuracy",
    metrics={"accuracy": _accuracy, "accuracy_valid": _accuracy_valid},
)
# 8 states; the task's name is the original project's.
TASK_Q8 = replace(TASK, name="ss_q8", dataset=SecondaryStructure8Dataset, num_labels=8)
