"""A task that a user registered: the model gives its loss and logits, ((loss, metrics), logits, ...), as in TAPE.

    task = plugin_task(registry.get_task_spec("my_task"), MyModel)      # tape.registry.resolve_task does this

The dataset is TAPE's: constructor (data_path, split, tokenizer, in_memory), items, `collate_fn` giving a dict with
input_ids, input_mask and targets, which the model's forward takes by name. PluginData adds what our trainer asks for,
and a split (tape.data.splits) the `ids` and `target_shapes` of a batch.

What must hold: a mean loss is weighted by the targets it was taken over (those other than -1), so the sum over batches
is that of the whole split; a Prediction holds one protein: its targets have the shape they have in a batch of one, so
what is padding is never guessed. A model whose loss is no such mean still trains, but its number then depends on the
batches.

Legend: B proteins, N tokens of the longest (residues + 2), C classes.
"""

import inspect
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from proteinlm.errors import InputError
from tape import metrics
from tape.data.base import TapeDataset
from tape.data.examples import collate_with, summary
from tape.data.users_code import UsersCodeError, calling, describe, name_of, refuse
from tape.tasks.base import Batch, Metric, Prediction, Task, apply_metric, tape_metric, to_numpy
from tape.tokenizers import TAPETokenizer

logger = logging.getLogger(__name__)


class PluginData(torch.utils.data.Dataset):
    """A TAPE dataset with the length and residues of each protein, read off its batches of one."""

    def __init__(
        self,
        dataset: type,
        data_path: str | Path,
        split: str,
        tokenizer: object = "iupac",
        in_memory: bool = False,
        max_length: int | None = None,
        too_long: str = "error",
    ):
        """max_length: residues the model may see; a longer protein is an InputError, for only the user's dataset could
        cut its labels too."""
        with calling(dataset, "__init__"):
            self.data = dataset(data_path, split, tokenizer, in_memory=in_memory)
        self.path, self.split, self.max_length, self.too_long = Path(data_path), split, max_length, "error"
        if not hasattr(self.data, "collate_fn"):
            raise InputError(f"{dataset.__name__}: no collate_fn; a TAPE dataset makes its own batches")
        self.collate_fn = self.data.collate_fn
        if max_length is not None and len(self) and self.lengths.max() > max_length:
            longest, number = int(self.lengths.max()), int(self.lengths.argmax())
            raise InputError(
                f"{dataset.__name__} {split} protein {number}: {longest} residues, but the model sees {max_length};"
                " let the dataset leave out or cut such proteins"
            )

    def __len__(self) -> int:
        with calling(self.data, "__len__"):
            return len(self.data)

    def __getitem__(self, index: int) -> object:
        with calling(self.data, f"__getitem__({index})"):
            return self.data[index]

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [len(self)]: residues of each protein."""
        return np.array([len(tokens) - 2 for tokens in self._tokens], np.int64)

    @cached_property
    def _tokens(self) -> list[np.ndarray]:
        """Token ids [N] of each protein, from a batch of its own, where nothing is padded."""
        proteins = []
        for index in range(len(self)):
            batch = collate_with(self.collate_fn, [self[index]])
            tokens = batch["input_ids"][0]
            tokens = (tokens[batch["input_mask"][0].bool()] if "input_mask" in batch else tokens).numpy()
            if len(tokens) < 3:
                where = f"__getitem__({index})"
                refuse(self.data, f"{where} has {len(tokens)} tokens; a protein has <cls>, a residue or more, <sep>")
            proteins.append(tokens)
        return proteins

    def check_ids(self, tokens: int) -> None:
        """InputError for a token id that a model of so many tokens does not have."""
        for index, ids in enumerate(self._tokens):
            if ids.min() < 0 or ids.max() >= tokens:
                wrong = int(ids.min() if ids.min() < 0 else ids.max())
                where = f"__getitem__({index})"
                refuse(self.data, f"{where} has the token id {wrong}; the model's are 0 to {tokens - 1}")

    def record(self, index: int) -> dict:
        """{'primary': residues, 'id': number} of protein `index`."""
        tokenizer = getattr(self.data, "tokenizer", None) or TAPETokenizer()
        with calling(tokenizer, "convert_ids_to_tokens", self.data):
            letters = tokenizer.convert_ids_to_tokens(self._tokens[index][1:-1])
        return {"primary": "".join(letters), "id": str(index)}


@dataclass(frozen=True)
class PluginPrediction(Prediction):
    """scores: the protein's logits; labels: its targets; and its batch's mean loss and metrics, with their weight."""

    loss: float = float("nan")
    weight: int = 0  # the protein's targets other than -1
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PluginOutputs:
    """What a model made of one batch: logits [B, ...], its mean loss (fp32) and its metrics."""

    logits: torch.Tensor
    mean_loss: torch.Tensor
    measured: Mapping[str, object]

    def float(self) -> "PluginOutputs":
        return replace(self, logits=self.logits.float())


class PluginTask(Task):
    """Loss, logits and metrics from the model; `loss` is the primary metric, lower is better, as in TAPE's training."""

    def forward(self, model: torch.nn.Module, batch: Batch) -> PluginOutputs:
        outputs = model(**accepted(model, batch))
        form = "forward with targets should return ((loss, metrics), logits)"
        if not isinstance(outputs, Sequence) or len(outputs) < 2:
            refuse(model, f"{form}; it returned {summary(outputs)}")
        first, logits = outputs[0], outputs[1]
        loss, measured = first if isinstance(first, tuple | list) and len(first) == 2 else (first, {})
        if not torch.is_tensor(loss) or not isinstance(measured, Mapping):
            refuse(model, f"{form}; its loss is {summary(loss)}, its metrics are {summary(measured)}")
        if not torch.is_tensor(logits) or logits.dim() == 0 or len(logits) != len(batch["input_ids"]):
            refuse(model, f"{form}; its logits of {len(batch['input_ids'])} proteins are {summary(logits)}")
        return PluginOutputs(logits, loss.float().mean(), measured)

    def loss(self, outputs: PluginOutputs, batch: Batch) -> tuple[torch.Tensor, int]:
        number = int(_weights(batch["targets"]).sum())
        return outputs.mean_loss * number, number

    def predictions(self, outputs: PluginOutputs, batch: Batch) -> list[Prediction]:
        """What is beyond a protein's own target is padding; so it is in those leading dimensions that scores share."""
        targets, scores, loss = to_numpy(batch["targets"]), to_numpy(outputs.logits), float(outputs.mean_loss.detach())
        measured = {name: float(torch.as_tensor(value).detach()) for name, value in outputs.measured.items()}
        shared = _leading_dims(scores, targets)
        tokens, weights = token_counts(batch).tolist(), _weights(batch["targets"]).tolist()
        rows = enumerate(zip(batch["ids"], batch["target_shapes"], tokens, weights, strict=True))
        predictions = []
        for b, (name, shape, n, weight) in rows:
            real = tuple(map(slice, shape))
            score, label = scores[b][real[:shared]].copy(), targets[b][real].copy()
            predictions.append(PluginPrediction(name, n - 2, score, label, loss=loss, weight=weight, measured=measured))
        return predictions

    def score(self, predictions: Sequence[PluginPrediction]) -> dict[str, float | int]:
        """Every metric, the model's own (weighted as the loss) under the model's names, and the counts."""
        table = super().score(predictions)
        names = dict.fromkeys(name for p in predictions for name in p.measured)
        return {name: _weighted(predictions, lambda p, name=name: p.measured[name]) for name in names} | table

    def per_protein(self, predictions: Sequence[PluginPrediction]) -> np.ndarray:
        """[N, 2]: loss times weight, weight. The loss is the mean of a protein's batch, so that an interval of a
        plugin's `loss` is exact only with --batch_size 1.
        """
        return np.array([[p.loss * p.weight, p.weight] for p in predictions], np.float64).reshape(-1, 2)


def accepted(model: torch.nn.Module, batch: Batch) -> dict:
    """The entries of a batch that the model's forward has arguments for (all, if it takes **keywords)."""
    arguments = inspect.signature(model.forward).parameters.values()
    if any(argument.kind is inspect.Parameter.VAR_KEYWORD for argument in arguments):
        return dict(batch)
    return {argument.name: batch[argument.name] for argument in arguments if argument.name in batch}


def token_counts(batch: Batch) -> torch.Tensor:
    """int64 [B]: tokens of each protein, from input_mask, or (without one) the padded length."""
    if "input_mask" in batch:
        return batch["input_mask"].long().sum(1)
    tokens = batch["input_ids"]
    return torch.full((len(tokens),), tokens.shape[1], device=tokens.device)


def _weights(targets: torch.Tensor) -> torch.Tensor:
    """int64 [B]: targets of each protein that count (whole numbers other than -1; every real number does)."""
    counted = torch.ones_like(targets, dtype=torch.bool) if targets.is_floating_point() else targets != metrics.IGNORE
    return counted.reshape(len(targets), -1).sum(1)


def _leading_dims(scores: np.ndarray, targets: np.ndarray) -> int:
    """How many dimensions scores [B, ...] and targets [B, ...] share, from the second on, until one differs."""
    pairs = zip(scores.shape[1:], targets.shape[1:], strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _weighted(predictions: Sequence[PluginPrediction], value: Callable[[PluginPrediction], float]) -> float:
    """The mean of a value of each protein, weighted by its targets; NaN where there are none."""
    total = sum(p.weight for p in predictions)
    return sum(value(p) * p.weight for p in predictions if p.weight) / total if total else float("nan")


def _loss(predictions: Sequence[PluginPrediction]) -> float:
    return _weighted(predictions, lambda p: p.loss)


def plugin_task(spec, model: type) -> PluginTask:
    """The Task of a TAPETaskSpec and one of its model classes."""
    is_tape_dataset = isinstance(spec.dataset, type) and issubclass(spec.dataset, TapeDataset)
    if is_tape_dataset:  # a subclass may have songlab's constructor, which cannot crop
        parameters = inspect.signature(spec.dataset).parameters.values()
        is_tape_dataset = any(p.name == "max_length" or p.kind is p.VAR_KEYWORD for p in parameters)
    splits = tuple(s for s in getattr(spec.dataset, "splits", ("test",)) if s not in ("train", "valid"))
    return PluginTask(
        name=spec.name,
        dataset=spec.dataset if is_tape_dataset else partial(PluginData, spec.dataset),
        model=model,
        num_labels=spec.num_labels,
        splits=splits,
        metric="loss",
        metrics={"loss": _loss}
        | {name: partial(_tape_metric, name) for name in ("accuracy", "spearmanr", "mse", "mae")},
        higher_is_better=False,
    )


def _tape_metric(name: str, predictions: Sequence[Prediction]) -> float:
    """TAPE's metric as a Task's; NaN where it does not fit the task's labels."""
    if not predictions or (np.asarray(predictions[0].labels).dtype.kind in "iub") != (name == "accuracy"):
        return float("nan")
    return tape_metric(name, predictions)


def registered_metrics(functions: Mapping[str, Callable], taken: Mapping[str, Metric]) -> dict[str, Metric]:
    """Metrics that users registered, as a Task's. Each gets (labels, scores), lists with an entry a protein.

    A task's own metric keeps its name. One that fails on this task's labels is NaN, with the reason logged: a plugin's
    metric need not fit every task.
    """
    for name in functions:
        if name in taken:
            logger.warning("metric %s: the task has its own of that name, which is used", name)
    return {name: partial(_registered, name, function) for name, function in functions.items() if name not in taken}


def _registered(name: str, function: Callable, predictions: Sequence[Prediction]) -> float:
    try:
        return apply_metric(function, predictions)
    except SystemExit as error:
        raise UsersCodeError(f"{name_of(function)}: {describe(error, function)}") from error
    except Exception as error:
        logger.warning("metric %s: %s", name, describe(error, function))
        return float("nan")
