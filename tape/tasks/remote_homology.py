"""Remote homology: which of 1,195 SCOP folds a domain has (Hou et al. 2018); top-1 accuracy."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from tape import metrics
from tape.datasets import RemoteHomologyDataset
from tape.models.modeling_bert import ProteinBertForSequenceClassification
from tape.tasks.base import Prediction, Task, tape_metric


class RemoteHomology(Task):
    """One class a protein; cross-entropy."""

    def per_protein(self, predictions: Sequence[Prediction]) -> np.ndarray:
        """[N]: 1 where the protein's fold was ranked first, else 0; inf where a score is not finite (a NaN would leave
        the mean).
        """
        right = np.array([metrics.count_right(p.scores[None], np.atleast_1d(p.labels))[0] for p in predictions])
        return np.where(np.isnan(right), np.inf, right)


TASK = RemoteHomology(
    name="remote_homology",
    dataset=RemoteHomologyDataset,
    model=ProteinBertForSequenceClassification,
    num_labels=RemoteHomologyDataset.num_labels,
    splits=("test_fold_holdout", "test_superfamily_holdout", "test_family_holdout"),
    metric="accuracy",
    metrics={"accuracy": partial(tape_metric, "accuracy")},
)
