"""One number a protein: squared error and Spearman's rho.

Fluorescence of GFP mutants (Sarkisyan et al. 2016); stability of designed miniproteins (protease resistance, Rocklin
et al. 2017).
"""

from dataclasses import replace
from functools import partial

import torch

from tape.datasets import FluorescenceDataset, StabilityDataset
from tape.models.modeling_bert import ProteinBertForValuePrediction
from tape.models.outputs import squared_error_sum
from tape.tasks.base import Batch, Prediction, Task, tape_metric


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
    metrics={name: partial(tape_metric, name) for name in ("spearmanr", "mse", "mae")},
)
STABILITY = replace(FLUORESCENCE, name="stability", dataset=StabilityDataset)
