"""Remote homology: which of 1,195 SCOP folds a domain has (Hou et al. 2018); top-1 accuracy."""

from collections.abc import Sequence

import numpy as np
import torch

from tape import metrics
from tape.datasets import RemoteHomologyDataset
from tape.models.modeling_bert import ProteinBertForSequenceClassification
from tape.models.outputs import cross_entropy_sum
from tape.tasks.base import Batch, Prediction, Task, stack_scores, to_numpy


class RemoteHomology(Task):
    """One class a protein; cross-entropy."""

    def loss(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return cross_entropy_sum(logits, batch["targets"])

    def predictions(self, logits: torch.Tensor, batch: Batch) -> list[Prediction]:
        rows = zip(
            batch["ids"], batch["protein_length"].tolist(), to_numpy(logits), to_numpy(batch["targets"]), strict=True
        )
        return [Prediction(*row) for row in rows]

    def per_protein(self, predictions: Sequence[Prediction]) -> np.ndarray:
        """[N]: 1 where the protein's fold was ranked first; inf where its scores are not numbers, for NaN is "none"."""
        right = np.array([metrics.accuracy(p.scores[None], np.atleast_1d(p.labels)) for p in predictions])
        broken = np.array([not np.isfinite(p.scores).all() for p in predictions], bool)
        return np.where(broken, np.inf, right)


def _accuracy(predictions: Sequence[Prediction]) -> float:
    return metrics.accuracy(*stack_scores(predictions))


TASK = RemoteHomology(
    name="remote_homology",
    dataset=RemoteHomologyDataset,
    model=ProteinBertForSequenceClassification,
    num_labels=1195,
    splits=("test_fold_holdout", "test_superfamily_holdout", "test_family_holdout"),
    metric="accuracy",
    metrics={"accuracy": _accuracy},
)
