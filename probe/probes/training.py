"""A head trained on frozen embeddings, and what it predicts.

    outcome = fit(head, recipe, inputs, targets, train, held_out, seed=0)
    predicted = predict(head, inputs, targets, places)               classes of proteins, or of residues

Adam on the sum of the targets' mean cross-entropies; after each epoch the same is computed on `held_out`, a part of
train, and the weights with the lowest are kept. What must hold: batches are a function of (seed, epoch), so that a
killed training goes on where it was; memory is one batch of residues, however long the proteins are.

Legend: B proteins of a batch, N residues of the longest, h width, C classes.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from probe.probes.data import Target
from probe.probes.heads import Head, Recipe, loss_sums, padded
from proteinlm.errors import InputError
from proteinlm.files import atomic_path
from proteinlm.progress import Progress
from proteinlm.untrusted.safe_load import safe_torch_load
from tape.data.batching import epoch_batches, eval_batches
from tape.metrics import IGNORE

PIECE_NUMBERS = 1 << 25  # of embeddings in memory at a time
EVALUATION_BATCH = 64  # proteins
SAVE_SECONDS = 30.0


class Vectors(Protocol):
    """probe.embeddings.Embeddings, or probe.arms.OneHot."""

    lengths: np.ndarray
    width: int

    def residues(self, i: int, layer: int = -1) -> np.ndarray: ...


@dataclass
class Scale:
    """x -> (x - mean) / deviation, both [h]."""

    mean: Tensor
    deviation: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


class Pooled:
    """A vector a protein, [B, p]. scale: of what `of` gives (None: as they are)."""

    def __init__(self, vectors: np.ndarray, scale: Scale | None = None):
        self.vectors, self.width, self.scale = torch.from_numpy(vectors), vectors.shape[1], scale
        self.lengths = np.ones(len(vectors), np.int64)  # rows of each

    def of(self, places: Sequence[int]) -> tuple[Tensor, None]:
        rows = self.vectors[torch.as_tensor(places)]
        return rows if self.scale is None else self.scale(rows), None


class Residues:
    """The vectors of every residue, read when they are asked for. scale: as of Pooled."""

    def __init__(self, vectors: Vectors, layer: int = -1, scale: Scale | None = None):
        self.vectors, self.layer, self.width, self.lengths = vectors, layer, vectors.width, vectors.lengths
        self.scale = scale

    def of(self, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """[B, N, h] and its mask."""
        rows = [torch.from_numpy(self.vectors.residues(int(i), self.layer)) for i in places]
        return padded(rows if self.scale is None else [self.scale(row) for row in rows])


Inputs = Pooled | Residues


@dataclass(frozen=True)
class Outcome:
    """epochs: that were run; best: the one whose weights were kept; loss: on the held-out part then."""

    epochs: int
    best: int
    loss: float
    seconds: float


def labels_of(target: Target, places: Sequence[int], lengths: np.ndarray) -> Tensor:
    """int64 [B], or [B, N] with -1 at padding; a protein that was cropped has the labels of what is left."""
    if isinstance(target.labels, np.ndarray):
        return torch.from_numpy(target.labels[places].astype(np.int64))
    rows = [torch.from_numpy(target.labels[i][: lengths[i]].astype(np.int64)) for i in places]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORE)


def _pieces(batch: np.ndarray, lengths: np.ndarray, width: int) -> list[np.ndarray]:
    """A batch in pieces that fit in memory, of two proteins or more (for BatchNorm). lengths: of all that `batch`
    numbers."""
    if len(batch) < 4 or len(batch) * int(lengths[batch].max()) * width <= PIECE_NUMBERS:
        return [batch]
    return [piece for half in np.array_split(batch, 2) for piece in _pieces(half, lengths, width)]


def _batch(inputs: Inputs, targets: Mapping[str, Target], places: np.ndarray, device: torch.device) -> tuple:
    """(x, mask, labels by target) on the device."""
    x, mask = inputs.of(places)
    labels = {name: labels_of(target, places, inputs.lengths).to(device) for name, target in targets.items()}
    return x.to(device), None if mask is None else mask.to(device), labels


def _epoch(
    head: Head,
    optimizer: torch.optim.Optimizer,
    inputs: Inputs,
    targets: Mapping[str, Target],
    batches: Sequence[np.ndarray],
    device: torch.device,
) -> None:
    head.train()
    for places in batches:
        known = {
            name: int((labels_of(target, places, inputs.lengths) != IGNORE).sum()) for name, target in targets.items()
        }
        optimizer.zero_grad(set_to_none=True)
        for piece in _pieces(places, inputs.lengths, inputs.width):
            x, mask, labels = _batch(inputs, targets, piece, device)
            sums = loss_sums(head(x, mask), labels)
            sum(own / max(known[name], 1) for name, own in sums.items()).backward()
        optimizer.step()


@torch.no_grad()
def held_out_loss(
    head: Head, inputs: Inputs, targets: Mapping[str, Target], places: np.ndarray, device: torch.device
) -> float:
    """The sum over targets of the mean cross-entropy over all known labels."""
    head.eval()
    sums, known = dict.fromkeys(targets, 0.0), dict.fromkeys(targets, 0)
    for piece in _evaluation_pieces(inputs, places):
        x, mask, labels = _batch(inputs, targets, places[piece], device)
        for name, own in loss_sums(head(x, mask), labels).items():
            sums[name] += float(own)
            known[name] += int((labels[name] != IGNORE).sum())
    return sum(sums[name] / max(known[name], 1) for name in targets)


def _evaluation_pieces(inputs: Inputs, places: np.ndarray) -> Iterator[np.ndarray]:
    """Numbers of `places`, each once."""
    lengths = inputs.lengths[places]
    for batch in eval_batches(lengths, EVALUATION_BATCH):
        yield from _pieces(batch, lengths, inputs.width)


def fit(
    head: Head,
    recipe: Recipe,
    inputs: Inputs,
    targets: Mapping[str, Target],
    train: np.ndarray,
    held_out: np.ndarray,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    saved: Path | None = None,
    quiet: bool = False,
) -> Outcome:
    """Train `head` in place. saved: a file in which long work is kept and gone on with; the caller removes it."""
    device, started = device or torch.device("cpu"), time.monotonic()
    head.to(device)
    optimizer = torch.optim.Adam(head.parameters(), recipe.learning_rate, fused=True)
    state = _State(head, optimizer, saved)
    epoch = state.load(device)
    with Progress("epochs", recipe.epochs, epoch, quiet=quiet) as progress, torch.random.fork_rng():
        while epoch < recipe.epochs and epoch - state.best < recipe.patience:
            torch.manual_seed(int(np.random.default_rng([seed, epoch]).integers(1 << 62)))  # of dropout
            batches = epoch_batches(inputs.lengths[train], recipe.batch_size, seed, epoch)
            _epoch(head, optimizer, inputs, targets, [train[batch] for batch in _joined(head, batches)], device)
            epoch += 1
            loss = held_out_loss(head, inputs, targets, held_out, device)
            if not np.isfinite(loss):
                raise InputError(f"epoch {epoch}: the loss is not finite; --learning_rate should be lower")
            state.after(epoch, loss, started)
            progress.add(1)
    head.load_state_dict(state.weights)
    head.eval()
    return Outcome(epoch, state.best, state.loss, state.seconds + time.monotonic() - started)


def _joined(head: Head, batches: list[np.ndarray]) -> list[np.ndarray]:
    """For a head with BatchNorm, which needs two proteins: a batch of one joined to another."""
    if not any(isinstance(part, torch.nn.BatchNorm1d) for part in head.modules()):
        return batches
    single, rest = ([batch for batch in batches if (len(batch) < 2) == alone] for alone in (True, False))
    if not rest:
        raise InputError(f"{type(head).__name__} learns from batches of two proteins or more; batch_size should be 2")
    return [*rest[:-1], np.concatenate([rest[-1], *single])]


def scale_of(inputs: Inputs, places: np.ndarray) -> Scale:
    """Mean 0 and deviation 1 of each number over the proteins, or residues, at `places`. As scikit-learn's, what never
    changes keeps its deviation."""
    count, sums, squares = 0, 0.0, 0.0
    for piece in _evaluation_pieces(inputs, places):
        x, mask = inputs.of(places[piece])
        rows = (x if mask is None else x[mask]).double()
        count, sums, squares = count + len(rows), sums + rows.sum(0), squares + (rows**2).sum(0)
    mean, power = sums / count, squares / count
    variance = (power - mean**2).clamp(min=0)
    changes = variance > 1e-12 * power  # of a constant there is rounding left
    return Scale(mean.float(), torch.where(changes, variance.sqrt(), 1.0).float())


class _State:
    """The best weights so far, and all that a killed training needs to go on."""

    def __init__(self, head: Head, optimizer: torch.optim.Optimizer, path: Path | None):
        self.head, self.optimizer, self.path = head, optimizer, path
        self.best, self.loss, self.weights, self.seconds = 0, float("inf"), {}, 0.0
        self._last = time.monotonic()

    def load(self, device: torch.device) -> int:
        """The number of epochs that the file has; 0 without one."""
        if self.path is None or not self.path.is_file():
            return 0
        kept = safe_torch_load(self.path)
        self.head.load_state_dict(kept["head"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.best, self.loss, self.seconds = kept["best"], kept["loss"], kept["seconds"]
        self.weights = {name: value.to(device) for name, value in kept["weights"].items()}
        return kept["epoch"]

    def after(self, epoch: int, loss: float, started: float) -> None:
        if loss < self.loss:
            self.best, self.loss = epoch, loss
            self.weights = {name: value.clone() for name, value in self.head.state_dict().items()}
        if self.path is None or time.monotonic() - self._last < SAVE_SECONDS:
            return
        values = {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict(), "epoch": epoch}
        values |= {"best": self.best, "loss": self.loss, "weights": self.weights}
        values |= {"seconds": self.seconds + time.monotonic() - started}
        with atomic_path(self.path) as temporary:
            torch.save(values, temporary)
        self._last = time.monotonic()


@torch.no_grad()
def predict(
    head: Head, inputs: Inputs, targets: Sequence[str], places: np.ndarray, device: torch.device | None = None
) -> dict[str, list]:
    """By target the class of each protein at `places`, an int, or of its residues, int64 [L]."""
    device = device or torch.device("cpu")
    head.to(device).eval()
    classes: dict[str, list] = {name: [None] * len(places) for name in targets}
    for piece in _evaluation_pieces(inputs, places):
        x, mask = inputs.of(places[piece])
        logits = head(x.to(device), None if mask is None else mask.to(device))
        for name in targets:
            best = logits[name].argmax(-1).cpu().numpy()
            for number, own, i in zip(piece, best, places[piece], strict=True):
                classes[name][number] = int(own) if own.ndim == 0 else own[: inputs.lengths[i]]
    return classes
