"""Secondary structure: helix, strand or other for every residue (NetSurfP-2.0's data); 3-class accuracy. And 8 states.

`accuracy` counts every labelled residue, as TAPE does; `accuracy_valid` only those that the record's valid_mask keeps.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from tape import metrics
from tape.datasets import SecondaryStructure8Dataset, SecondaryStructureDataset
from tape.models.modeling_bert import ProteinBertForSequenceToSequenceClassification
from tape.tasks.base import Batch, Prediction, Task, tape_metric, to_numpy


class SecondaryStructure(Task):
    """One class a residue; cross-entropy over the labelled residues."""

    def predictions(self, logits: torch.Tensor, batch: Batch) -> list[Prediction]:
        scores, labels, valid = to_numpy(logits), to_numpy(batch["targets"]), to_numpy(batch["valid_mask"])
        rows = enumerate(zip(batch["ids"], batch["protein_length"].tolist(), strict=True))
        # Column 0 is <cls>; copies, so that a record does not keep its whole padded batch alive.
        return [
            Prediction(name, n, scores[b, 1 : n + 1].copy(), labels[b, 1 : n + 1].copy(), valid[b, 1 : n + 1].copy())
            for b, (name, n) in rows
        ]

    def counts(self, predictions: Sequence[Prediction]) -> dict[str, int]:
        return {"n_examples": len(predictions), "n_residues": int(self.per_protein(predictions)[:, 1].sum())}

    def per_protein(self, predictions: Sequence[Prediction]) -> np.ndarray:
        """[N, 2]: residues right, residues counted."""
        return np.array([metrics.count_right(p.scores, p.labels) for p in predictions], np.float64).reshape(-1, 2)


def _accuracy_valid(predictions: Sequence[Prediction]) -> float:
    valid = [replace(p, labels=np.where(p.valid, p.labels, metrics.IGNORE)) for p in predictions]
    return tape_metric("accuracy", valid)


TASK = SecondaryStructure(
    name="secondary_structure",
    dataset=SecondaryStructureDataset,
    model=ProteinBertForSequenceToSequenceClassification,
    num_labels=SecondaryStructureDataset.num_labels,
    splits=("casp12", "ts115", "cb513"),
    metric="accuracy",
    metrics={"accuracy": partial(tape_metric, "accuracy"), "accuracy_valid": _accuracy_valid},
)
# 8 states; the task's name is the original project's.
TASK_Q8 = replace(
    TASK, name="ss_q8", dataset=SecondaryStructure8Dataset, num_labels=SecondaryStructure8Dataset.num_labels
)
