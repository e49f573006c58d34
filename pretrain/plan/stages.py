"""What a stage of any size does, from a few counted steps of small ones.

Everything that is counted is affine in the number of a stage's layers, in the micro-batches of a step, and in the rows
of a micro-batch: three pairs of steps (micro-batches, rows) with two and with three layers determine it. Cuts over more
replicas than the two that were counted change sizes as FSDP2 pads them. tests/unit/pretrain/test_plan_count.py compares
this with whole steps.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from pretrain.config.options import Config
from pretrain.parallel.mesh import Layout
from pretrain.plan.count import Counted, count
from proteinlm.network.config import ModelConfig

LAYERS = (2, 3)
ROWS = (1, 2)
IN_FLIGHT = {"whole": 1, "first": 2, "middle": 2, "last": 1}  # micro-batches of the small steps
# kind of stage -> (pipeline ranks of the small model, the rank counted): alone it is the whole model
PLACES = {"whole": (1, 0), "first": (2, 0), "middle": (3, 1), "last": (2, 1)}
SHARDED = 2  # replicas of the small model over which FSDP2 cuts
_CORNERS = ((0, ROWS[0]), (1, ROWS[0]), (0, ROWS[1]))  # (micro-batches above the fewest, rows)
Values = dict[tuple, float]


@dataclass(frozen=True)
class Settings:
    """What decides a small step, sizes apart. cut: none, optimizer (--use-distributed-optimizer) or full (FSDP2)."""

    kind: str
    tp: int
    cut: str = "none"
    recompute: bool = False


@dataclass
class Stages:
    """Counts stages of one model, each when first asked for.

    What the distributed optimizer and recomputation change is counted on the whole model: of a pipeline's stage it is
    the same for each layer, and for the rest in proportion to its weights.
    """

    config: Config
    model: ModelConfig
    made: dict[Settings, "_Stage"] = field(default_factory=dict)
    steps: int = 0

    def at(self, settings: Settings, layers: int, rows: int, micro_batches: int, shard: int) -> Values:
        """A step of this stage, with so many layers, micro-batches of so many rows, cut over `shard` replicas."""
        sizes = layers, rows, micro_batches
        kind, tp, cut, recompute = settings.kind, settings.tp, settings.cut, settings.recompute
        plain, ways = Settings(kind, tp), 1
        if cut == "full" and kind != "whole":  # a schedule lets go of gathered weights at other times than a loop
            plain, ways, cut = Settings(kind, tp, cut), shard, "none"
        own = self._stage(plain)
        values = own.at(*sizes, ways)
        whole = Settings("whole", tp)
        terms = []
        if cut != "none":
            terms.append((replace(whole, cut=cut), whole, shard))
        if recompute:
            cut_whole = replace(whole, cut=settings.cut)
            terms.append((replace(cut_whole, recompute=True), cut_whole, shard if settings.cut != "none" else 1))
        for other, like, shards in terms:
            share = own.weights_of_rest / self._stage(other).weights_of_rest
            changed = self._stage(other).at(*sizes, shards, share)
            before = self._stage(like).at(*sizes, 1 if like.cut == "none" else shards, share)
            values = _moved(values, changed, before, IN_FLIGHT[kind])
        return values

    def _stage(self, settings: Settings) -> "_Stage":
        if settings not in self.made:
            self.made[settings] = self._count(settings)
        return self.made[settings]

    def _count(self, settings: Settings) -> "_Stage":
        pp, rank = PLACES[settings.kind]
        runs = {}
        for layers in LAYERS:
            for more, rows in _CORNERS:
                runs[layers, more, rows] = self._step(settings, pp, rank, layers, rows, pp + more)
                self.steps += 1
        return _Stage(runs, pp)

    def _step(self, settings: Settings, pp: int, rank: int, layers: int, rows: int, micro_batches: int) -> Counted:
        shard = 1 if settings.cut == "none" else SHARDED
        layout = Layout(pp, 1, shard, settings.tp)
        c, model = self.config, replace(self.model, num_layers=layers * pp)
        parallel = replace(
            c.parallel,
            tensor_model_parallel_size=settings.tp,
            sequence_parallel=settings.tp > 1,
            pipeline_model_parallel_size=pp,
            pipeline_schedule=None,
            num_layers_per_virtual_pipeline_stage=None,
            use_distributed_optimizer=settings.cut == "optimizer",
            use_torch_fsdp2=settings.cut == "full",
        )
        recompute = "full" if settings.recompute else None
        training = replace(c.training, micro_batch_size=rows, recompute_granularity=recompute, compile=False)
        config = replace(c, parallel=parallel, training=training)
        first_of_stage = rank * shard * settings.tp
        return count(config, model, layout, first_of_stage, micro_batches)


class _Stage:
    """The affine functions of one kind of stage."""

    def __init__(self, runs: Mapping[tuple[int, int, int], Counted], pp: int):
        self.first_micro_batches = pp
        flat = {corner: _flat(run) for corner, run in runs.items()}
        self.keys = sorted({key for values in flat.values() for key in values}, key=str)
        few, many = (
            [np.array([flat[n, more, rows].get(key, 0) for key in self.keys], float) for more, rows in _CORNERS]
            for n in LAYERS
        )
        self.layer = [b - a for a, b in zip(few, many, strict=True)]
        self.rest = [a - LAYERS[0] * slope for a, slope in zip(few, self.layer, strict=True)]
        self.peak = np.array([key[0] == "peak" for key in self.keys])
        self.stays = np.array(
            [key[0] == "peak" and key[1] != "saved" and key[2] == "communication" for key in self.keys]
        )
        self.buffers = self.keys.index(("state", "communication"))
        self.free = np.array([key[:2] == ("peak", "saved") for key in self.keys]) & (pp > 1)
        self.sent = np.array([_is_of_shards(key) for key in self.keys])
        self.held = np.array([_is_sharded_state(key) for key in self.keys])
        shapes = runs[LAYERS[0], 0, ROWS[0]].shapes
        self.of_layer, self.of_rest = _one_layer(shapes), _rest(shapes)

    @property
    def weights_of_rest(self) -> float:
        return _padded(self.of_rest, 1)

    def at(self, layers: int, rows: int, micro_batches: int, shard: int, share: float = 1.0) -> Values:
        """share: of what is no layer."""
        parts = (self.rest, self.of_rest, share), (self.layer, self.of_layer, layers)
        total = sum(self._part(values, shapes, rows, micro_batches, shard) * n for values, shapes, n in parts)
        return dict(zip(self.keys, total.tolist(), strict=True))

    def _part(self, values: list[np.ndarray], shapes: list, rows: int, micro_batches: int, shard: int) -> np.ndarray:
        base, one_more, wider = values
        per_row = (wider - base) / (ROWS[1] - ROWS[0]) / self.first_micro_batches
        more = micro_batches - self.first_micro_batches
        sums = base + more * (one_more - base) + micro_batches * (rows - ROWS[0]) * per_row
        # A peak is reached in one micro-batch, with gradients of others if there were any; a pipeline keeps the buffers
        # in which it receives until the step's end.
        peaks = (base if more <= 0 else one_more) + (rows - ROWS[0]) * (wider - base)
        if more > 0:
            buffer = (one_more - base)[self.buffers] if self.first_micro_batches > 1 else 0.0
            peaks = peaks + np.where(self.stays, (more * rows - 1) * buffer, 0.0)
        result = np.where(self.peak, peaks, sums)
        buffers = self.first_micro_batches * (one_more - base)
        result = np.where(self.free, base - buffers + (rows - ROWS[0]) * (wider - base - buffers), result)
        if shard > 1 and shapes:
            padded = _padded(shapes, shard) / _padded(shapes, SHARDED)
            result = result * np.where(self.sent, padded, 1.0) * np.where(self.held, padded * SHARDED / shard, 1.0)
        return result


def _moved(values: Values, changed: Values, before: Values, in_flight: int) -> Values:
    """`values` with the difference of two whole models; each micro-batch in flight keeps the difference."""
    result = dict(values)
    for key in changed.keys() | before.keys():
        difference = changed.get(key, 0.0) - before.get(key, 0.0)
        if key[0] == "peak" and key[2] == "activations" and key[1] not in ("saved", "reduction", "optimizer"):
            saved = ("peak", "saved", "activations")
            difference += (in_flight - 1) * (changed[saved] - before[saved])
        result[key] = result.get(key, 0.0) + difference
    return result


def _flat(run: Counted) -> Values:
    values: Values = {}
    for key, (calls, size) in run.traffic.items():
        values["traffic", *key, "calls"], values["traffic", *key, "bytes"] = calls, size
    for key, number in run.work.items():
        values["work", *key] = number
    for segment, peak in run.peaks.items():
        values |= {("peak", segment, category): size for category, size in peak.items()}
    values |= {("state", category): size for category, size in run.state.items()}
    values["peak", "saved", "activations"] = run.saved["activations"]
    return values


def _is_of_shards(key: tuple) -> bool:
    """Bytes of FSDP2's messages; the step's one sum of numbers may go over the same ranks."""
    return key[:2] == ("traffic", "dp_shard") and key[2] in ("all_gather", "reduce_scatter") and key[-1] == "bytes"


def _is_sharded_state(key: tuple) -> bool:
    if key == ("work", "bytes", "step"):  # nearly all of it is the optimizer's
        return True
    if key[0] == "state":
        return key[1] in ("weights", "gradients", "optimizer")
    own = ("weights", "gradients", "optimizer") if key[1] in ("reduction", "optimizer") else ("weights",)
    return key[0] == "peak" and key[2] in own


def _padded(shapes: list[tuple[int, ...]], shard: int) -> float:
    """Numbers that travel: FSDP2 cuts the first dimension into equal pieces, the last ones padded."""
    return float(sum(math.ceil(shape[0] / shard) * shard * math.prod(shape[1:]) for shape in shapes))


def _layer_of(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "layers" else None


def _one_layer(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    number = next(n for n in map(_layer_of, shapes) if n is not None)
    return [shape for name, shape in shapes.items() if _layer_of(name) == number]


def _rest(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [shape for name, shape in shapes.items() if _layer_of(name) is None]
