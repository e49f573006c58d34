"""Probes from end to end: embed once, train every head on every arm, score, draw. `proteinlm probe` calls `run`.

    data = read_structure("data")
    results = run("model", data, "structure_probe", Options(heads=("cnn", "logistic")))

What must hold: choices (early stopping) are made on a part of train that is held out by cluster; the other splits are
read once a head, at the end. A killed run goes on: embeddings at their last part, heads at their last epoch, and heads
that are done stay done. Files have their names only when they are whole.
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from probe.arms import OneHot
from probe.embeddings import embed_once, pooling_parts
from probe.names import ARMS, COMPOSITION, ONE_HOT, PRETRAINED, RANDOM
from probe.probes.data import ProbeData, without_unlearned
from probe.probes.heads import PROTEIN_HEADS, RESIDUE_HEADS, Recipe, load_head
from probe.probes.report import write_report
from probe.probes.scoring import Counted, count
from probe.probes.training import Inputs, Outcome, Pooled, Residues, Scale, fit, predict, scale_of
from proteinlm.devices import choose_device
from proteinlm.errors import InputError, did_you_mean
from proteinlm.files import atomic_path, check_writable
from proteinlm.running.locks import locked
from proteinlm.untrusted.array_files import MADE_AGAIN, read_kept, write_kept
from proteinlm.untrusted.safe_load import safe_torch_load
from tape.data.holdout import check_holdout, cluster_sequences, hold_out
from tape.inference.parts import kept_array

TRAINING = ".training"  # suffix of a fit's state between two epochs
OF_THE_SEQUENCE = {True: ONE_HOT, False: COMPOSITION}  # the arm without an encoder, of a head that reads residues


@dataclass(frozen=True)
class Options:
    """What is compared, and how. () or None: the usual one for the data or the head."""

    heads: Sequence[str] = ()  # cnn, or fnn
    arms: Sequence[str] = ()  # pretrained, random, and one_hot or composition
    poolings: Sequence[str] = ("mean",)
    layers: Sequence[int] | str = (-1,)  # or "all"
    seeds: Sequence[int] = (0, 1, 2)  # of the heads
    random_seed: int = 0  # of the random weights
    holdout: float = 0.1  # of train, for early stopping
    learning_rate: float | None = None
    batch_size: int | None = None
    epochs: int | None = None
    patience: int | None = None
    checkpoint: str | None = None  # of a head, which is then not trained
    embeddings_dir: str | None = None
    max_length: int | None = None
    too_long: str = "error"
    device: str = "auto"
    dtype: str = "fp32"
    batch_tokens: int | None = None


class Setup(NamedTuple):
    """One comparison. pooling: None where the head reads residues; layer: None without an encoder."""

    head: str
    pooling: str | None
    layer: int | None
    arm: str


@dataclass(frozen=True)
class Result:
    """A setup's fits, one a seed, and their predictions counted, by split and target."""

    setup: Setup
    outcomes: list[Outcome]
    counted: dict[tuple[str, str], list[Counted]]


def run(model: str | None, data: ProbeData, output: str | Path, options: Options | None = None) -> dict:
    """Everything; returns what OUTPUT/results.json holds. model: what proteinlm.load opens (None without the arms
    pretrained and random). InputError for a mistake in the data, the options or the checkpoint."""
    options, output, started = options or Options(), Path(output), time.monotonic()
    if options.checkpoint is None:
        data, whole = without_unlearned(data), data
        for notice in data.notices[len(whole.notices) :]:
            print(f"notice: {notice}", file=sys.stderr, flush=True)
    if len(set(options.seeds)) < len(options.seeds):
        raise InputError(f"seeds {', '.join(map(str, options.seeds))}: should differ")
    if set(data.splits) == {"train"}:
        raise InputError(
            f"{data.name}: no split to score beside train; --test names a table, --split_column none divides"
        )
    if options.checkpoint is None:
        where = data.where[0].partition(",")[0]
        check_holdout(options.holdout, [data.sequences[i] for i in data.splits["train"]], where)
    check_writable(output / "heads" / "head.npz")
    with locked(output, "--output"):
        work = _Work(model, data, output, options)
        results = [work.do(setup) for setup in work.setups]
        seconds = time.monotonic() - started
        return write_report(output, model, data, options, work.recipes, work.notes, results, seconds)


class _Work:
    """The arms' embeddings and the fits of a run."""

    def __init__(self, model: str | None, data: ProbeData, output: Path, options: Options):
        self.model, self.data, self.output, self.options = model, data, output, options
        self.device = choose_device(options.device)
        self.recipes = _recipes(data, options)
        self.directory = Path(options.embeddings_dir or output.parent / "embeddings")
        self.arms: dict[str, object] = {}
        self.notes: dict[str, object] = {}
        self.setups = list(self._setups())
        self.train, self.held_out = self._hold_out()
        self.identity = self._identity()

    def _setups(self) -> Iterator[Setup]:
        """Every comparison, a head, pooling and layer at a time; the sequence's arm once a head."""
        arms = tuple(dict.fromkeys(self.options.arms or ARMS))
        poolings = tuple(dict.fromkeys(self.options.poolings))
        for arm in arms:
            if arm not in ARMS:
                hint = did_you_mean(arm, ARMS) or f"; should be one of {', '.join(ARMS)}"
                raise InputError(f"arm {arm!r}: unknown{hint}")
        for pooling in poolings:
            pooling_parts(pooling)
        if self.options.checkpoint is not None:
            if set(self.options.arms) - {PRETRAINED}:
                raise InputError(f"arms {', '.join(self.options.arms)}: with a checkpoint, only {PRETRAINED}")
            safe_torch_load(self.options.checkpoint)  # one that cannot be read is refused before the work
            arms = (PRETRAINED,)
        for head, recipe in self.recipes.items():
            own = OF_THE_SEQUENCE[recipe.reads_residues]
            encoders = [arm for arm in arms if arm in (PRETRAINED, RANDOM)]
            if not encoders and own not in arms:
                raise InputError(f"no arm of {', '.join(arms)} fits {head}; should be pretrained, random or {own}")
            for pooling in (None,) if recipe.reads_residues else poolings:
                for layer in self.vectors(encoders[0]).layers if encoders else ():
                    yield from (Setup(head, pooling, layer, arm) for arm in encoders)
            if own in arms:
                yield Setup(head, None if recipe.reads_residues else "mean", None, own)

    def vectors(self, arm: str):
        """The arm's embeddings; computed when they are first asked for."""
        if arm not in self.arms:
            options, started = self.options, time.monotonic()
            if arm in OF_THE_SEQUENCE.values():
                read = [own.lengths for own in self.arms.values()]  # as much of each protein as an encoder reads
                limits = read[0] if read else [options.max_length] * len(self.data.sequences)
                pairs = zip(self.data.sequences, limits, strict=True)
                self.arms[arm] = OneHot([sequence[:limit] for sequence, limit in pairs])
            elif self.model is None:
                raise InputError(f"arm {arm}: needs a model")
            else:
                self.arms[arm] = embed_once(
                    self.model, self.data.sequences, self.directory, layers=options.layers,
                    per_residue=any(recipe.reads_residues for recipe in self.recipes.values()),
                    random_seed=options.random_seed if arm == RANDOM else None, device=options.device,
                    dtype=options.dtype, max_length=options.max_length, too_long=options.too_long,
                    where=self.data.where,
                    batch_tokens=options.batch_tokens,
                )  # fmt: skip
            self.notes[f"seconds to embed: {arm}"] = round(time.monotonic() - started, 1)
        return self.arms[arm]

    def _hold_out(self) -> tuple[np.ndarray, np.ndarray]:
        """(train without, and) the part of train that early stopping looks at."""
        train = self.data.splits["train"]
        if self.options.checkpoint is not None:
            return train, train[:0]
        sequences = [self.data.sequences[i] for i in train]
        target = next(iter(self.data.targets.values()))
        labels = None if self.data.per_residue else target.labels[train].astype(np.int64) + 1  # 0: not known
        digest = hashlib.sha256("\n".join(sequences).encode()).hexdigest()[:16]
        clusters = kept_array(self.directory / f"clusters-{digest}.npz", lambda: cluster_sequences(sequences))
        parts = hold_out(sequences, self.options.holdout, 0, labels, clusters)
        self.notes["held out of train"] = parts.summary()
        return train[parts.train], train[parts.held_out]

    def _identity(self) -> str:
        """A digest of the data and of what is held out."""
        digest = hashlib.sha256("\n".join(self.data.sequences).encode())
        for name, places in [*self.data.splits.items(), ("", self.train), ("", self.held_out)]:
            digest.update(name.encode() + places.tobytes())
        for target in self.data.targets.values():
            digest.update(f"{target.name} {target.classes}".encode())
            for labels in [target.labels] if isinstance(target.labels, np.ndarray) else target.labels:
                digest.update(labels.tobytes())
        return digest.hexdigest()

    def do(self, setup: Setup) -> Result:
        """Train and score the setup, a seed at a time; what is done already is read."""
        vectors = self.vectors(setup.arm)
        layer = -1 if setup.layer is None else setup.layer
        inputs = Residues(vectors, layer) if setup.pooling is None else Pooled(vectors.pooled(setup.pooling, layer))
        result = Result(setup, [], {})
        for seed in self.options.seeds if self.options.checkpoint is None else (0,):
            recipe = asdict(replace(self.recipes[setup.head], make=None))
            key = [self.identity, vectors.identity, list(setup), recipe, seed, "scaled"]
            key += [self.options.checkpoint and Path(self.options.checkpoint).stat().st_mtime_ns, torch.__version__]
            words = [str(part) for part in (*setup, f"seed{seed}") if part is not None]
            digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]
            path = self.output / "heads" / f"{'_'.join(words)}-{digest}.npz"
            if not path.is_file():
                self._fit(setup, inputs, vectors.lengths, seed, path)
            path.with_suffix(TRAINING).unlink(missing_ok=True)  # whose end a kill may have come before
            outcome, counted = _read_fit(path, self.data)
            result.outcomes.append(outcome)
            for where, own in counted.items():
                result.counted.setdefault(where, []).append(own)
        return result

    def _fit(self, setup: Setup, inputs: Inputs, lengths: np.ndarray, seed: int, path: Path) -> None:
        data, recipe, checkpoint = self.data, self.recipes[setup.head], self.options.checkpoint
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            head = recipe.make(inputs.width, {name: target.classes for name, target in data.targets.items()})
        saved = path.with_suffix(TRAINING)
        what = ", ".join(f"{part}" for part in setup if part is not None)
        if checkpoint is None:
            inputs.scale = inputs.scale or scale_of(inputs, self.train)
            places = {"train": self.train, "held_out": self.held_out}
            outcome = fit(head, recipe, inputs, data.targets, **places, seed=seed, device=self.device, saved=saved)
            best = f"epoch {outcome.best} of {outcome.epochs} is best, held-out loss {outcome.loss:.4f}"
            print(f"{what}, seed {seed}: {best}, {outcome.seconds:.1f} s", file=sys.stderr, flush=True)
        else:
            kept = load_head(head, checkpoint)
            inputs.scale = None if kept is None else Scale(kept["mean"], kept["deviation"])
            outcome = Outcome(0, 0, float("nan"), 0.0)
        arrays = {"outcome": np.array([outcome.epochs, outcome.best, outcome.loss, outcome.seconds])}
        for split, places in data.splits.items():
            if split == "train":
                continue
            predicted = predict(head, inputs, list(data.targets), places, self.device)
            for name, target in data.targets.items():
                own = count(target, places, predicted[name], lengths)
                arrays |= {f"{split}/{name}/{part}": value for part, value in vars(own).items()}
        with atomic_path(path.with_suffix(".pt")) as temporary:
            weights = {key: value.cpu() for key, value in head.state_dict().items()}
            scale = {} if inputs.scale is None else {"scale": vars(inputs.scale)}
            torch.save({"state_dict": weights, **scale}, temporary)
        write_kept(path, arrays, compressed=True)


def _recipes(data: ProbeData, options: Options) -> dict[str, Recipe]:
    """The heads asked for, with the options' settings in the place of theirs."""
    known = RESIDUE_HEADS if data.per_residue else PROTEIN_HEADS
    heads = options.heads or (next(iter(known)),)
    for head in heads:
        if head not in known:
            kind = "residue" if data.per_residue else "protein"
            raise InputError(f"head {head!r}: none for a label a {kind}; should be one of {', '.join(known)}")
    names = ("learning_rate", "batch_size", "epochs", "patience")
    changes = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return {head: replace(known[head], **changes) for head in heads}


def _read_fit(path: Path, data: ProbeData) -> tuple[Outcome, dict[tuple[str, str], Counted]]:
    file = read_kept(path)
    try:
        epochs, best, loss, seconds = file["outcome"].tolist()
        counted = {
            (split, name): Counted(*(file[f"{split}/{name}/{part}"] for part in ("places", "pairs", "owners")))
            for split in data.splits
            for name in data.targets
            if split != "train"
        }
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); {MADE_AGAIN}") from None
    return Outcome(int(epochs), int(best), loss, seconds), counted
