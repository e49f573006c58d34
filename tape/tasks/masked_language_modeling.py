"""Masked language modelling on Pfam in TAPE's form: hidden residues guessed from the rest; perplexity."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from tape import metrics
from tape.datasets import MaskedLanguageModelingDataset
from tape.models.modeling_bert import ProteinBertForMaskedLM
from tape.models.outputs import cross_entropy_sum
from tape.tasks.base import Batch, Prediction, Task, to_numpy


class MaskedLanguageModeling(Task):
    """Cross-entropy over the hidden residues."""

    def loss(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return cross_entropy_sum(logits, batch["targets"])

    def predictions(self, logits: torch.Tensor, batch: Batch) -> list[Prediction]:
        targets = batch["targets"]
        hidden = targets != metrics.IGNORE
        nats = to_numpy(F.cross_entropy(logits[hidden].float(), targets[hidden], reduction="none"))
        likeliest, labels = to_numpy(logits[hidden].argmax(-1)), to_numpy(targets[hidden])
        ends = np.cumsum(to_numpy(hidden.sum(1)))
        rows = zip(batch["ids"], batch["protein_length"].tolist(), ends - np.diff(ends, prepend=0), ends, strict=True)
        return [
            Prediction(name, n, nats[start:end], labels[start:end], predicted=likeliest[start:end])
            for name, n, start, end in rows
        ]

    def counts(self, predictions: Sequence[Prediction]) -> dict[str, int]:
        return {"n_examples": len(predictions), "n_masked": sum(len(p.labels) for p in predictions)}


def _perplexity(predictions: Sequence[Prediction]) -> float:
    return metrics.perplexity(np.concatenate([p.scores for p in predictions]) if predictions else np.zeros(0))


def _accuracy(predictions: Sequence[Prediction]) -> float:
    right = sum(int((p.predicted == p.labels).sum()) for p in predictions)
    counted = sum(len(p.labels) for p in predictions)
    finite = all(np.isfinite(p.scores).all() for p in predictions)
    return right / counted if counted and finite else float("nan")


LM_METRICS = {"perplexity": _perplexity, "accuracy": _accuracy}
TASK = MaskedLanguageModeling(
    name="masked_language_modeling",
    dataset=MaskedLanguageModelingDataset,
    model=ProteinBertForMaskedLM,
    num_labels=0,
    splits=("holdout",),
    metric="perplexity",
    metrics=LM_METRICS,
    higher_is_better=False,
)
