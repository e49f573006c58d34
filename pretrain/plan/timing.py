"""How long what was counted takes on a cluster.

A micro-batch: matrix products at the rate of their shape, attention by the proteins' lengths, all other kernels by the
bytes they move, never less than the host needs to launch them, then tensor parallelism's messages, which nothing
hides. Gathers and sums of FSDP2 hide behind computation but for what is longer, and for one layer's. Messages after the
last micro-batch hide behind nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pretrain.parallel.mesh import Layout
from pretrain.plan.cluster import Cluster, Link

Values = Mapping[tuple, float]


@dataclass(frozen=True)
class Work:
    """Of one micro-batch, one GPU. attention: forward FLOPs of a whole layer over all heads."""

    half: bool
    compiled: bool
    attention: float


def group_link(cluster: Cluster, layout: Layout, axis: str) -> tuple[int, int, Link]:
    """(ranks, nodes they span, the link that bounds a ring over them) of an axis's groups."""
    sizes = {"tp": layout.tp, "dp_shard": layout.dp_shard, "dp_replicate": layout.dp_replicate, "pp": layout.pp}
    strides = {"tp": 1, "dp_shard": layout.tp}
    strides["dp_replicate"] = layout.tp * layout.dp_shard
    strides["pp"] = strides["dp_replicate"] * layout.dp_replicate
    sizes["dp"], strides["dp"] = layout.dp_shard * layout.dp_replicate, layout.tp
    sizes["world"] = sizes["other"] = cluster.size
    size, stride = sizes[axis], strides.get(axis, 1)
    nodes = -(-size * stride // cluster.gpus_per_node)
    rates = cluster.rates
    if nodes <= 1:
        return size, 1, rates.node
    # Neighbours on a node bring their own network cards: a ring crosses with all of them at once.
    neighbours = max(1, min(size, cluster.gpus_per_node // stride))
    bandwidth = min(rates.node.bandwidth, rates.network.bandwidth * neighbours)
    return size, min(nodes, size), Link(rates.network.latency, bandwidth)


def message_seconds(cluster: Cluster, layout: Layout, axis: str, collective: str, calls: float, size: float) -> float:
    """Of `calls` collectives over an axis with so many bytes in all (as `ledger.Ledger` counts them)."""
    ranks, nodes, link = group_link(cluster, layout, axis)
    if ranks == 1 or not calls:
        return 0.0
    if collective in ("send", "recv"):
        return calls * link.latency + size / link.bandwidth
    share, rounds = (ranks - 1) / ranks, 1
    if collective == "all_reduce":
        rounds = 2
    once = (ranks - nodes) * cluster.rates.node.latency + (nodes - 1) * link.latency
    if collective == "all_reduce":  # NCCL takes a tree where a ring is slow
        once = min(once, 2 * math.log2(ranks) * link.latency)
    return calls * rounds * once + rounds * share * size / link.bandwidth


@dataclass(frozen=True)
class StageTime:
    """Seconds of one stage: a micro-batch forward and backward, and what a step adds once."""

    forward: float
    backward: float
    exposed: float
    step: float
    compute: float  # of forward and backward, without messages


def stage_time(cluster: Cluster, layout: Layout, work: Work, one: Values, two: Values, count: int) -> StageTime:
    """one, two: a step of the stage with `count` micro-batches and with one more, which tells what each takes."""
    each = {key: two.get(key, 0.0) - value for key, value in one.items()}
    compute = {phase: _compute(cluster, layout, work, each, phase) for phase in ("forward", "backward")}
    hidden = {phase: _messages(cluster, layout, each, phase, ("dp_shard", "dp_replicate")) for phase in compute}
    added = {phase: _messages(cluster, layout, each, phase, ("tp",)) for phase in compute}
    seconds = {phase: max(compute[phase] + added[phase], hidden[phase]) for phase in compute}
    exposed = 0.0
    once = {key: value - count * each[key] for key, value in one.items()}
    for phase in compute:
        dp = ("dp_shard", "dp_replicate", "dp")
        total, calls = _messages(cluster, layout, once, phase, dp), _calls(once, phase, dp)
        if calls > 0.5:
            exposed += total / calls + max(0.0, total * (1 - 1 / calls) - seconds[phase])
    exposed += _messages(
        cluster, layout, once, "step", ("dp_shard", "dp_replicate", "dp", "tp", "pp", "world", "other")
    )
    rates = cluster.rates
    step = max(once.get(("work", "bytes", "step"), 0.0) / rates.hbm, rates.launch * _kernels(once, "step"))
    return StageTime(seconds["forward"], seconds["backward"], exposed, step, sum(compute.values()))


def _compute(cluster: Cluster, layout: Layout, work: Work, values: Values, phase: str) -> float:
    rates = cluster.rates
    total = values.get(("work", "bytes", phase), 0.0) / rates.hbm * (rates.compiled if work.compiled else 1.0)
    for key, flops in values.items():
        if key[:3] != ("work", "product", phase) or key[-1] != "flops" or flops <= 0:
            continue
        n, k, calls = key[3], key[4], values[*key[:5], "calls"]
        m = flops / (2 * n * k * calls)
        moved = values[*key[:5], "bytes"] / rates.hbm
        total += max(rates.product(flops, (m, n, k), work.half), moved)
    attention = values.get(("work", "attention", phase), 0.0) * work.attention / layout.tp
    backward = phase == "backward"
    if backward and (again := _recomputed(values)):  # forward passes again
        total += again * work.attention / layout.tp / rates.attention[0]
        attention -= again * work.attention / layout.tp
    total += attention * (2.5 if backward else 1.0) / rates.attention[backward]
    launches = rates.launch * _kernels(values, phase) * (rates.compiled if work.compiled else 1.0)
    return max(total, launches)


def _recomputed(values: Values) -> float:
    backward, forward = (values.get(("work", "attention", phase), 0.0) for phase in ("backward", "forward"))
    return max(0.0, backward - forward)


def _kernels(values: Values, phase: str) -> float:
    return values.get(("work", "kernels", phase), 0.0)


def _messages(cluster: Cluster, layout: Layout, values: Values, phase: str, axes: tuple[str, ...]) -> float:
    return sum(
        message_seconds(cluster, layout, key[1], key[2], values[*key[:5], "calls"], size)
        for key, size in values.items()
        if key[0] == "traffic" and key[-1] == "bytes" and key[1] in axes and key[4] == phase
    )


def _calls(values: Values, phase: str, axes: tuple[str, ...]) -> float:
    return sum(
        number
        for key, number in values.items()
        if key[0] == "traffic" and key[-1] == "calls" and key[1] in axes and key[4] == phase
    )
