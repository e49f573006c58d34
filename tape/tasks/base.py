"""A task: which data, which model, which loss and which number. Everything a trainer or an evaluator needs to know.

    task = TASKS["secondary_structure"]
    model = task.model.from_pretrained("runs/tape_model", num_labels=task.num_labels, head="proteinlm")
    total, count = task.loss(task.forward(model, batch), batch)     # the caller divides once, over the whole batch
    task.score(predictions of the whole split)                      # {"accuracy": ..., "n_examples": ...}

What must hold: a Prediction holds one protein with its padding removed, so a score never depends on batching.
Legend: B proteins, L residues, T tokens (L + 2), C classes.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from tape import metrics
from tape.data.examples import summary
from tape.data.users_code import calling, refuse
from tape.models.outputs import cross_entropy_sum

Batch = Mapping[str, object]
ALIKE = 1e-6  # of the largest: predictions that differ by less differ by rounding


@dataclass(frozen=True)
class Prediction:
    """What one protein's metrics need. `scores` and `labels` by task:

    value              scores [], labels []
    homology           scores [C] logits, labels []
    secondary structure  scores [L, 3] logits, labels [L] (-1 = not counted), valid [L] (the record's valid_mask)
    contacts           scores [L, L] log-odds of contact, labels [L, L] (1, 0, -1 = not counted)
    masked LM          scores [m] cross-entropies in nats, labels [m] the hidden ids, predicted [m] the likeliest ids
    """

    id: str
    length: int  # residues the model saw
    scores: np.ndarray
    labels: np.ndarray
    valid: np.ndarray | None = None
    predicted: np.ndarray | None = None


Metric = Callable[[Sequence[Prediction]], float]


@dataclass(frozen=True)
class Task:
    """One TAPE task. Subclasses say what differs: `forward`, `loss`, `predictions`, `counts`, `per_protein`."""

    name: str
    dataset: type  # TAPE's constructor: (data_path, split, tokenizer, in_memory=False)
    model: type  # a ProteinBertFor... class
    num_labels: int
    splits: tuple[str, ...]  # test splits, after "train" and "valid"
    metric: str  # the primary metric, a key of `metrics`
    metrics: Mapping[str, Metric] = field(repr=False)
    higher_is_better: bool = True
    loss_breaks_ties: bool = False  # of two evaluations with the same metric the one of the lower loss is better

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The task's logits for one batch."""
        return logits_of(model, batch, model(input_ids=batch["input_ids"], input_mask=batch["input_mask"]))

    def loss(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | int]:
        """(sum of the losses, how many were summed): the caller adds both over everything, then divides once.

        Cross-entropy over the targets other than -1, unless a task has another.
        """
        return cross_entropy_sum(logits, batch["targets"])

    def predictions(self, logits: torch.Tensor, batch: Batch) -> list[Prediction]:
        """One record a protein, on the CPU, padding removed. Here: those of one target a protein."""
        lengths, targets = batch["protein_length"].tolist(), to_numpy(batch["targets"])
        rows = zip(batch["ids"], lengths, to_numpy(logits), targets, strict=True)
        return [Prediction(*row) for row in rows]

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float | int]:
        """Every metric of a whole split, and the counts behind it."""
        return {name: metric(predictions) for name, metric in self.metrics.items()} | self.counts(predictions)

    def remember(self, directory: Path, resume: bool) -> None:
        """Write what a run's directory needs, beside args.json, to be scored and used without its data; or, of a run
        that is resumed, check it."""

    def counts(self, predictions: Sequence[Prediction]) -> dict[str, int]:
        """What the metrics were taken over."""
        return {"n_examples": len(predictions)}

    def per_protein(self, predictions: Sequence[Prediction]) -> np.ndarray | None:
        """For a bootstrap over proteins, of the primary metric:

        [N]    the metric is the mean of these (NaN: the protein leaves the mean)
        [N, 2] the metric is sum of column 0 / sum of column 1
        None   neither (a rank correlation, a perplexity): resample the predictions and score them again
        """
        return None


def run_batch(
    task: Task, model: torch.nn.Module, batch: Batch, precision: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | int]:
    """(what task.forward gives, in fp32, and task.loss of it) of a batch on its device; precision: of autocast.

    What a user's model or data set does wrong in it is an InputError that names it.
    """
    kind = batch["input_ids"].device.type
    with calling(model, "forward", task.dataset):
        with torch.autocast(kind, precision, enabled=precision != torch.float32):
            outputs = task.forward(model, batch).float()
        return outputs, *task.loss(outputs, batch)


def logits_of(model: torch.nn.Module, batch: Batch, outputs: object) -> torch.Tensor:
    """The first of what a model returned, a tensor with a row a protein; InputError for anything else."""
    count, logits = len(batch["input_ids"]), None
    with contextlib.suppress(TypeError, KeyError, IndexError):
        logits = outputs[0]
    if torch.is_tensor(outputs) or not torch.is_tensor(logits) or logits.dim() == 0 or len(logits) != count:
        returned = summary(logits if torch.is_tensor(logits) and not torch.is_tensor(outputs) else outputs)
        refuse(model, f"forward should return a tuple that begins with logits [{count}, ...]; it returned {returned}")
    return logits


def describe_constant(predictions: Sequence[Prediction]) -> str:
    """ "all 8 predictions are 0.12", or "class 3 is predicted for all 8 proteins": a model that says nothing. "" where
    they differ, or are not one a protein."""
    scores = [np.asarray(p.scores) for p in predictions]
    if len(scores) < 2 or len({s.shape for s in scores}) > 1 or any(np.ndim(p.labels) for p in predictions):
        return ""
    first, number = scores[0], f"{len(scores):,}"
    if first.ndim == 0:
        alike = all(abs(score - first) <= ALIKE * abs(first) for score in scores)
        return f"all {number} predictions are {float(first):.4g}" if alike else ""
    if first.ndim == 1 and len(first) > 1 and all(s.argmax() == first.argmax() for s in scores):
        return f"class {first.argmax()} is predicted for all {number} proteins"
    return ""


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's values on the CPU; half precision becomes float32."""
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()


def apply_metric(function: Callable[[list, list], float], predictions: Sequence[Prediction]) -> float:
    """A metric in TAPE's calling convention: (labels, scores), lists with an entry a protein."""
    return float(function([p.labels for p in predictions], [p.scores for p in predictions]))


def tape_metric(name: str, predictions: Sequence[Prediction]) -> float:
    """TAPE's metric of that name, over a whole split."""
    return apply_metric(metrics.TAPE_METRICS[name], predictions)
