"""One's own data as a task: a class for each kind of label, with the loss and the numbers that fit it.

    task = own_task(data, model)          model: a class of tape.models for KINDS[data.kind]

Regression is learned on targets scaled by train's mean and standard deviation; predictions are in the table's units.
Multilabel: binary cross-entropy of each label, predicted where the logit is above 0. What must hold: what is not known
(a missing label, a residue that is not scored) is in no sum and no count.

Legend: N proteins, B of a batch, L residues, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import softmax

from proteinlm.errors import InputError
from tape.metrics import IGNORE
from tape.models.outputs import squared_error_sum
from tape.own_data.data import OwnData
from tape.own_data.dataset import OwnDataset
from tape.scoring import resampled
from tape.tasks.base import Batch, Prediction, Task, to_numpy

# Kind of label -> which of a model type's classes it needs (keys of tape.models.zoo.MODELS[model_type]).
KINDS = {
    "regression": "value",
    "classification": "classification",
    "multilabel": "classification",
    "per_residue": "token_classification",
}


@dataclass(frozen=True)
class OwnTask(Task):
    """A task of a user's table. Subclasses give `loss`, `statistics` and `class_table`."""

    own: OwnData | None = None

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Logits; of a frozen encoder whose states are in the batch, by the head alone."""
        if batch.get("states") is None:
            return super().forward(model, batch)
        return model.head_logits(batch["states"], batch["input_mask"].bool())

    def statistics(self, predictions: Sequence[Prediction]) -> resampled.Statistics:
        """Every metric as a function of how often each protein was drawn."""
        raise NotImplementedError

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float | int]:
        values = self.statistics(predictions)(np.ones(len(predictions)))
        added = {name: metric(predictions) for name, metric in self.metrics.items() if name not in values}
        return values | added | self.counts(predictions)

    def class_table(self, predictions: Sequence[Prediction]) -> list[dict]:
        """A row a class; [] of regression."""
        return []

    def summary(self, predictions: Sequence[Prediction]) -> dict[str, object]:
        """What a result file says beside the metrics: the kind, the table, what leaks into it, a row a class."""
        own = self.own
        about = {"kind": own.kind, "table": own.table, "target": list(own.columns.target), "notices": list(own.notices)}
        return about | {"leak": own.division.get("leak", {}), "per_class": self.class_table(predictions)}

    def remember(self, directory: Path, resume: bool) -> None:
        if not resume:
            self.own.save(directory)
        elif list(OwnData.load(directory, proteins=False).sha256.values()) != list(self.own.sha256.values()):
            raise InputError(f"{self.own.table}: has changed since the run in {directory} was started")


def _stack(predictions: Sequence[Prediction]) -> tuple[np.ndarray, np.ndarray]:
    """(scores, labels) of all proteins, one row each."""
    return np.stack([p.scores for p in predictions]), np.array([p.labels for p in predictions])


class Regression(OwnTask):
    """Logits and targets [B, 1]."""

    def loss(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, int]:
        return squared_error_sum(logits, (batch["targets"] - self.own.mean) / self.own.std)

    def predictions(self, logits: torch.Tensor, batch: Batch) -> list[Prediction]:
        values = logits.double() * self.own.std + self.own.mean
        return [replace(p, scores=p.scores[0], labels=p.labels[0]) for p in super().predictions(values, batch)]

    def statistics(self, predictions: Sequence[Prediction]) -> resampled.Statistics:
        return resampled.regression(*_stack(predictions))


class Classification(OwnTask):
    """Logits [B, C], targets [B]; cross-entropy."""

    def statistics(self, predictions: Sequence[Prediction]) -> resampled.Statistics:
        scores, labels = _stack(predictions)
        return resampled.classification(softmax(scores.astype(np.float64), -1), labels)

    def per_protein(self, predictions: Sequence[Prediction]) -> np.ndarray:
        """[N, 2]: class, predicted class."""
        scores, labels = _stack(predictions)
        return np.stack([labels, scores.argmax(-1)], 1)

    def class_table(self, predictions: Sequence[Prediction]) -> list[dict]:
        scores, labels = _stack(predictions)
        classes = np.arange(len(self.own.classes))
        is_class, is_predicted = (values[:, None] == classes for values in (labels, scores.argmax(-1)))
        areas = resampled.auroc(softmax(scores.astype(np.float64), -1), is_class, np.ones_like(is_class))
        counts = ((is_class & is_predicted).sum(0), is_class.sum(0), is_predicted.sum(0))
        return resampled.class_table(self.own.classes, *counts, areas(np.ones(len(labels))))


class Multilabel(OwnTask):
    """Logits [B, C], targets [B, C] of 1, 0, -1 (not known); binary cross-entropy."""

    def loss(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        known = batch["targets"] != IGNORE
        targets = batch["targets"].clamp(min=0).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, targets, known.to(logits.dtype), reduction="sum"), known.sum()

    def statistics(self, predictions: Sequence[Prediction]) -> resampled.Statistics:
        return resampled.multilabel(*_stack(predictions))

    def per_protein(self, predictions: Sequence[Prediction]) -> np.ndarray:
        """[N, 2]: twice the labels that are right, labels and predicted labels; their sums' ratio is micro F1."""
        right, positive, predicted = resampled.hits(*_stack(predictions)).sum(2).T
        return np.stack([2 * right, positive + predicted], 1)

    def class_table(self, predictions: Sequence[Prediction]) -> list[dict]:
        scores, labels = _stack(predictions)
        areas = resampled.auroc(scores, labels == 1, labels != IGNORE)(np.ones(len(labels)))
        return resampled.class_table(self.own.classes, *resampled.hits(scores, labels).sum(0), areas)


class PerResidue(OwnTask):
    """Logits [B, N, C], targets [B, N]; cross-entropy over the scored residues."""

    def predictions(self, logits: torch.Tensor, batch: Batch) -> list[Prediction]:
        scores, labels = to_numpy(logits), to_numpy(batch["targets"])
        rows = enumerate(zip(batch["ids"], batch["protein_length"].tolist(), strict=True))
        return [Prediction(name, n, scores[b, 1 : n + 1].copy(), labels[b, 1 : n + 1].copy()) for b, (name, n) in rows]

    def counts(self, predictions: Sequence[Prediction]) -> dict[str, int]:
        scored = sum(int((p.labels != IGNORE).sum()) for p in predictions)
        return {"n_examples": len(predictions), "n_residues": scored}

    def per_protein(self, predictions: Sequence[Prediction]) -> np.ndarray:
        """[N, C * C]: residues of each label and predicted class; NaN where a score is not finite."""
        size = len(self.own.classes)
        rows = np.zeros((len(predictions), size * size))
        for row, p in zip(rows, predictions, strict=True):
            scored = p.labels != IGNORE
            pairs = p.labels[scored] * size + p.scores[scored].argmax(-1)
            row[:] = np.bincount(pairs, minlength=size * size) if np.isfinite(p.scores[scored]).all() else np.nan
        return rows

    def statistics(self, predictions: Sequence[Prediction]) -> resampled.Statistics:
        return resampled.per_residue(self.per_protein(predictions))

    def class_table(self, predictions: Sequence[Prediction]) -> list[dict]:
        size = len(self.own.classes)
        confusion = self.per_protein(predictions).sum(0).reshape(size, size)
        return resampled.class_table(self.own.classes, np.diag(confusion), confusion.sum(1), confusion.sum(0), None)


# Kind -> (class, its metrics, the primary one first).
TASKS: dict[str, tuple[type[OwnTask], tuple[str, ...]]] = {
    "regression": (Regression, resampled.REGRESSION),
    "classification": (Classification, resampled.CLASSIFICATION),
    "multilabel": (Multilabel, resampled.MULTILABEL),
    "per_residue": (PerResidue, resampled.PER_RESIDUE),
}


def own_task(data: OwnData, model: type) -> OwnTask:
    """The task of a user's data with a model class of the kind that it needs."""
    kind, names = TASKS[data.kind]

    def metric(name: str) -> Callable[[Sequence[Prediction]], float]:
        return lambda predictions: task.statistics(predictions)(np.ones(len(predictions)))[name]

    task = kind(
        name=data.name,
        dataset=partial(OwnDataset, data),
        model=model,
        num_labels=max(1, len(data.classes)),
        splits=tuple(name for name in ("test",) if any(p.split == name for p in data.proteins)),
        metric=names[0],
        metrics={name: metric(name) for name in names},
        own=data,
        loss_breaks_ties=True,  # a rare class is named by no prediction for a while, and every such MCC is 0
    )
    return task
