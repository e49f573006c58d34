"""Every layout of a run on a cluster that its configuration allows, with memory, traffic, time and cost.

    candidates = Search(config, model_config, cluster, lengths).all()

A layout is a `Config`: what `pretrain.config.validate` refuses is not one. Left out is what cannot pay: tp without
--sequence-parallel, and tp over several nodes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pretrain.config.options import Config
from pretrain.config.validate import check, for_world, not_compiled
from pretrain.interval import training_flops
from pretrain.parallel import gradients, overlap
from pretrain.parallel.apply import schedule_of
from pretrain.parallel.mesh import Layout
from pretrain.parallel.pipeline import layers_of_stage
from pretrain.plan.cluster import Cluster
from pretrain.plan.lengths import Lengths
from pretrain.plan.schedule import in_flight, orders, simulate
from pretrain.plan.stages import Settings, Stages, Values
from pretrain.plan.timing import StageTime, Work, message_seconds, stage_time
from proteinlm.errors import InputError
from proteinlm.masking import num_to_mask
from proteinlm.network.config import ModelConfig

CUTS = ("none", "optimizer", "full")
ROWS = (1, 2, 4, 8, 16, 32)
PIECES = (2, 4)  # stages of a rank under the interleaved schedule
LARGEST_PP = 64
# Not in the counts, bytes: the CUDA context with its libraries' workspaces, and NCCL's buffers where there are peers;
# and what the allocator loses between the blocks that it keeps.
CONTEXT, NCCL, FRAGMENTATION = 0.8e9, 1.2e9, 0.06


@dataclass(frozen=True)
class Candidate:
    """One layout and what it amounts to. memory: bytes by category of the fullest GPU. traffic: (axis, phase) -> bytes
    a step of one GPU, of the busiest stage. seconds: of an optimizer step. bubble: the share of it that the busiest
    stage waits for others. mfu: by true FLOPs, recomputation left out."""

    config: Config
    layout: Layout
    cut: str
    schedule: str | None
    micro_batches: int
    memory: dict[str, float]
    traffic: dict[tuple[str, str], float]
    seconds: float
    bubble: float
    tokens_per_second: float
    mfu: float

    @property
    def total_memory(self) -> float:
        return sum(self.memory.values())

    @property
    def recompute(self) -> bool:
        return self.config.training.recompute_granularity == "full"

    def fits(self, cluster: Cluster) -> bool:
        return self.total_memory <= 1e9 * cluster.memory


class Search:
    """Makes candidates; stages are counted once."""

    def __init__(self, config: Config, model: ModelConfig, cluster: Cluster, lengths: Lengths):
        self.config, self.model, self.cluster, self.lengths = config, model, cluster, lengths
        self.stages = Stages(config, model)
        self.half = config.training.bf16 or config.training.fp16

    def all(self) -> list[Candidate]:
        """Whether they fit or not.

        tp is counted only where a replica does not fit without it (in one stage, nothing recomputed), or where the
        configuration has some: it takes three quarters of the time, and would not be chosen.
        """
        made, enough = [], False
        for config in configurations(self.config, self.cluster):  # tp 1 first
            if enough and config.parallel.tensor_model_parallel_size > 1:
                break
            made.append(candidate := self.candidate(config))
            whole = candidate.layout.tp == candidate.layout.pp == 1 and not candidate.recompute
            enough |= whole and candidate.fits(self.cluster) and self.config.parallel.tensor_model_parallel_size == 1
        return made

    def candidate(self, config: Config) -> Candidate:
        """What a validated configuration amounts to."""
        layout = Layout.of(config, self.cluster.size)
        t, p = config.training, config.parallel
        cut = "full" if p.use_torch_fsdp2 else "optimizer" if p.use_distributed_optimizer else "none"
        schedule = schedule_of(p)
        count = t.global_batch_size // (t.micro_batch_size * layout.dp_replicate * layout.dp_shard)
        pieces = _pieces(config, self.model.num_layers)
        ranks = self._ranks(config, layout, cut, pieces, count)
        memory = self._memory(ranks, layout, schedule, pieces, count)
        times = {stage: self._time(values, config, layout, count) for stage, values in ranks.items()}
        seconds, bubble = self._seconds(times, ranks, layout, schedule, pieces, count)
        rows, lengths = t.global_batch_size, self.lengths
        masked = rows * num_to_mask(config.data.mask_prob, config.data.seq_length)
        flops = training_flops(self.model, rows * lengths.real_tokens, rows * lengths.squares, masked)
        peak = (self.cluster.gpu.half if self.half else self.cluster.gpu.single) * self.cluster.size
        busiest = max(times, key=lambda stage: times[stage].forward + times[stage].backward)
        traffic = self._traffic(ranks[busiest][0], layout, pieces)
        return Candidate(
            config, layout, cut, schedule, count, memory, traffic, seconds, bubble,
            rows * lengths.real_tokens / seconds, flops / seconds / peak,
        )  # fmt: skip

    def _ranks(self, config: Config, layout: Layout, cut: str, pieces: int, count: int) -> dict[int, tuple]:
        """Stage -> what one step of it is, with `count` micro-batches and with one more."""
        stages, t = layout.pp * pieces, config.training
        made: dict[tuple, tuple[Values, Values]] = {}
        result = {}
        for stage in range(stages):
            kind = _kind(stage, stages)
            layers = len(layers_of_stage(stage, stages, self.model.num_layers))
            if (kind, layers) not in made:
                settings = Settings(kind, layout.tp, cut, t.recompute_granularity == "full")
                sizes = layers, t.micro_batch_size
                made[kind, layers] = tuple(
                    self._replicated(self.stages.at(settings, *sizes, n, layout.dp_shard), layout)
                    for n in (count, count + 1)
                )
            result[stage] = made[kind, layers]
        return result

    def _replicated(self, values: Values, layout: Layout) -> Values:
        """With the sums over replicas of which the counted step has one: of whole gradients, during the last backward
        pass where there are replicas alone, of FSDP2's shards in the last backward pass."""
        if layout.dp_replicate == 1:
            return values
        size = 2 if self.config.parallel.grad_reduce_in_bf16 else 4
        dtype = "bfloat16" if size == 2 else "float32"
        if layout.dp_shard == 1:
            overlapped = layout.dp_replicate == self.cluster.size
            key = "traffic", "dp", "all_reduce", dtype, "backward" if overlapped else "step"
            numbers, bucket = values["state", "weights"] / 4, overlap.BUCKET if overlapped else gradients.BUCKET
            return {**values, (*key, "calls"): -(-numbers // bucket), (*key, "bytes"): numbers * size}
        sums = {k: v for k, v in values.items() if k[:3] == ("traffic", "dp_shard", "reduce_scatter")}
        shards = {
            ("traffic", "dp_replicate", "all_reduce", *k[3:]): v / (layout.dp_shard if k[-1] == "bytes" else 1)
            for k, v in sums.items()
        }
        return {**values, **shards}

    def _memory(
        self, ranks: dict[int, tuple], layout: Layout, schedule: str | None, pieces: int, count: int
    ) -> dict[str, float]:
        """Of the pipeline's fullest rank."""
        every = [
            self._memory_of_rank(rank, ranks, layout, schedule, pieces, count)
            for rank in (range(layout.pp) if layout.pp <= 4 else (0, 1, layout.pp // 2, layout.pp - 1))
        ]
        return max(every, key=lambda memory: sum(memory.values()))

    def _memory_of_rank(
        self, rank: int, ranks: dict[int, tuple], layout: Layout, schedule: str | None, pieces: int, count: int
    ) -> dict[str, float]:
        own = [ranks[stage][0] for stage in range(rank, layout.pp * pieces, layout.pp)]
        flying, counted = {rank: 1}, 1
        if schedule:
            enough = count if count <= 6 * layout.pp else 4 * layout.pp
            flying = in_flight(orders(schedule, layout.pp, pieces, enough)[rank])
            counted = 1 if rank == layout.pp - 1 else 2  # in the steps that `Stages` counted
        largest = max(own, key=lambda values: _peak(values)[1])
        peak = dict(_peak(largest)[0])
        for values in own:
            if values is not largest:
                for category in ("weights", "gradients"):
                    peak[category] += values["state", category]
        if schedule:
            saved = sum(n * ranks[s][0]["peak", "saved", "activations"] for s, n in flying.items())
            peak["activations"] += saved - counted * largest["peak", "saved", "activations"]
        peak["optimizer"] = sum(values["state", "optimizer"] for values in own)
        peak["activations"] = max(0.0, peak["activations"])
        changing = sum(peak[name] for name in ("gradients", "activations", "communication"))
        return {**peak, "other": CONTEXT + NCCL * (self.cluster.size > 1) + FRAGMENTATION * changing}

    def _time(self, values: tuple[Values, Values], config: Config, layout: Layout, count: int) -> StageTime:
        attention = 4.0 * self.model.hidden_size * self.lengths.squares * config.training.micro_batch_size
        attention *= 1.15 if self.model.attention_dropout else 1.0  # the kernel draws a mask
        asked = config.training.compile
        compiled = self.half and not not_compiled(config) if asked is None else asked
        work = Work(self.half, bool(compiled), attention)
        return stage_time(self.cluster, layout, work, *values, count)

    def _seconds(
        self, times: dict[int, StageTime], ranks: dict[int, tuple], layout: Layout, schedule: str | None,
        pieces: int, count: int,
    ) -> tuple[float, float]:  # fmt: skip
        forward, backward = ([getattr(times[s], name) for s in sorted(times)] for name in ("forward", "backward"))
        hop = 0.0
        if schedule:
            sent = [(v, k) for k, v in ranks[0][0].items() if k[:3] == ("traffic", "pp", "send") and k[-1] == "bytes"]
            hop = sum(message_seconds(self.cluster, layout, "pp", "send", 1, v / count) for v, _ in sent)
        seconds, idle = simulate(schedule or "1f1b", layout.pp, pieces, count, forward, backward, hop)
        once = max(
            sum(times[s].exposed + times[s].step for s in range(rank, layout.pp * pieces, layout.pp))
            for rank in range(layout.pp)
        )
        return seconds + once, idle * seconds / (seconds + once)

    def _traffic(self, values: Values, layout: Layout, pieces: int) -> dict[tuple[str, str], float]:
        total: dict[tuple[str, str], float] = {}
        for key, size in values.items():
            if key[0] == "traffic" and key[-1] == "bytes" and key[2] != "recv":
                place = key[1], key[4]
                total[place] = total.get(place, 0.0) + size * pieces
        return total


def _peak(values: Values) -> tuple[dict[str, float], float]:
    """(bytes by category in the fullest segment, their sum with the optimizer's state)."""
    segments: dict[str, dict[str, float]] = {}
    for key, size in values.items():
        if key[0] == "peak" and key[1] not in ("saved", "backward of the inner layer"):
            segments.setdefault(key[1], {})[key[2]] = max(0.0, size)
    state = values["state", "optimizer"]
    totals = {
        name: sum(v for k, v in segment.items() if k != "optimizer") + state for name, segment in segments.items()
    }
    fullest = max(totals, key=totals.get)
    return segments[fullest], totals[fullest]


def _kind(stage: int, stages: int) -> str:
    if stages == 1:
        return "whole"
    return "first" if stage == 0 else "last" if stage == stages - 1 else "middle"


def _pieces(config: Config, layers: int) -> int:
    per_stage = config.parallel.num_layers_per_virtual_pipeline_stage
    return layers // per_stage // config.parallel.pipeline_model_parallel_size if per_stage else 1


def configurations(config: Config, cluster: Cluster) -> Iterator[Config]:
    """The configuration in every layout that it allows on so many GPUs."""
    deepest = min(LARGEST_PP, config.model.num_layers)
    for tp in _divisors(cluster.gpus_per_node, cluster.gpus_per_node):
        for pp in _divisors(cluster.size // tp, deepest):
            yield from _with_data_parallelism(config, cluster, tp, pp)


def _with_data_parallelism(config: Config, cluster: Cluster, tp: int, pp: int) -> Iterator[Config]:
    replicas = cluster.size // (tp * pp)
    within = max(1, cluster.gpus_per_node // tp)
    layers = config.model.num_layers
    schedules: list[tuple[str | None, int | None]] = [(None, None)]
    if pp > 1:
        schedules = [("1f1b", None), ("zero-bubble", None)]
        schedules += [("interleaved", layers // (pp * n)) for n in PIECES if layers % (pp * n) == 0]
    for cut in CUTS if replicas > 1 else CUTS[:1]:
        instances = {1, replicas // within} if cut != "none" and replicas > within and replicas % within == 0 else {1}
        for groups in sorted(instances):
            for schedule, piece in schedules:
                for rows in sorted({*ROWS, config.training.micro_batch_size}):
                    for recompute in (None, "full"):
                        parallel = replace(
                            config.parallel,
                            tensor_model_parallel_size=tp,
                            sequence_parallel=tp > 1,
                            pipeline_model_parallel_size=pp,
                            pipeline_schedule=schedule,
                            num_layers_per_virtual_pipeline_stage=piece,
                            use_distributed_optimizer=cut == "optimizer",
                            use_torch_fsdp2=cut == "full",
                            num_distributed_optimizer_instances=groups,
                        )
                        training = replace(config.training, micro_batch_size=rows, recompute_granularity=recompute)
                        yield from _valid(replace(config, parallel=parallel, training=training), cluster.size)


def _valid(config: Config, size: int) -> Iterator[Config]:
    try:
        check(config)
        yield for_world(config, size)
    except InputError:
        return


def _divisors(number: int, most: int) -> list[int]:
    return [n for n in range(1, min(number, most) + 1) if number % n == 0]
