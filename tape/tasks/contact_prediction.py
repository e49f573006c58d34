"""Contacts: which residues six or more apart have C-alpha atoms within 8 Angstrom (ProteinNet); P@L/5.

P@L, P@L/2 and P@L/5 in five separation bands (tape.metrics): mean over proteins, with the number that left each mean.
"""

import inspect
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from tape import metrics
from tape.datasets import ProteinnetDataset
from tape.models.modeling_bert import ProteinBertForContactPrediction
from tape.tasks.base import Batch, Prediction, Task, logits_of, to_numpy


class ContactPrediction(Task):
    """Two classes a pair of residues; cross-entropy over the valid pairs."""

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        # A model in TAPE's form may want the lengths; ours take them from the mask.
        takes_lengths = "protein_length" in inspect.signature(model.forward).parameters
        lengths = {"protein_length": batch["protein_length"]} if takes_lengths else {}
        outputs = model(input_ids=batch["input_ids"], input_mask=batch["input_mask"], **lengths)
        return logits_of(model, batch, outputs)

    def predictions(self, logits: torch.Tensor, batch: Batch) -> list[Prediction]:
        # Log-odds order pairs as the probability does, without the ties of a probability rounded to 1.
        scores = to_numpy(logits[..., 1].float() - logits[..., 0].float())
        labels = to_numpy(batch["targets"]).astype(np.int8)
        rows = enumerate(zip(batch["ids"], batch["protein_length"].tolist(), strict=True))
        return [Prediction(name, n, scores[b, :n, :n].copy(), labels[b, :n, :n].copy()) for b, (name, n) in rows]

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float | int]:
        """All precisions (each protein's pairs sorted once) and, per band, how many proteins left the mean."""
        table = metrics.precision_table([(p.scores, p.labels) for p in predictions])
        result: dict[str, float | int] = {"n_examples": len(predictions)}
        for name, values in table.items():
            result[name], result[f"n_left_{name}"] = metrics.mean_over_proteins(values)
        return result

    def per_protein(self, predictions: Sequence[Prediction]) -> np.ndarray:
        """[N]: P@L/5 of each protein (separation >= 6), NaN where it has none."""
        return metrics.precision_table([(p.scores, p.labels) for p in predictions])[self.metric]


def _precision(name: str, predictions: Sequence[Prediction]) -> float:
    return metrics.mean_over_proteins(metrics.precision_table([(p.scores, p.labels) for p in predictions])[name])[0]


TASK = ContactPrediction(
    name="contact_prediction",
    dataset=ProteinnetDataset,
    model=ProteinBertForContactPrediction,
    num_labels=2,
    splits=("test",),
    metric="precision_at_l5",
    metrics={name: partial(_precision, name) for name in metrics.PRECISIONS},
)
