"""One number a protein: squared error and Spearman's rho.

Fluorescence of GFP mutants (Sarkisyan et al. 2016); stability of designed miniproteins (protease resistance, Rocklin
et al. 2017).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from tape import metrics
from tape.datasets import FluorescenceDataset, StabilityDataset
from tape.models.modeling_bert import ProteinBertForValuePrediction
from tape.models.outputs import squared_error_sum
from tape.tasks.base import Batch, Prediction, Task, stack_scores

FUNCTIONS = {"spearmanr": metrics.spearmanr, "mse": metrics.mean_squared_error, "mae": metrics.mean_absolute_error}


def _metric(name: str, predictions: Sequence[Prediction]) -> float:
    return FUNCTIONS[name](*stack_scores(predictions))


class ValueTask(Task):
    """Logits and targets [B, 1]."""

    def loss(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, int]:
        return squared_error_sum(logits, batch["targets"])

    def predictions(self, logits: torch.Tensor, batch: Batch) -> list[Prediction]:
        return [replace(p, scores=p.scores[0], labels=p.labels[0]) for p in super().predictions(logits, batch)]


FLUORESCENCE = ValueTask(
    name="fluorescence",
    dataset=FluorescenceDataset,
    model=ProteinBertForValuePrediction,
    num_labels=1,
    splits=("test",),
    metric="spearmanr",
    metrics={name: partial(_metric, name) for name in FUNCTIONS},
)
STABILITY = replace(FLUORESCENCE, name="stability", dataset=StabilityDataset)
