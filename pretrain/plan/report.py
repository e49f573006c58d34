"""Candidates as a choice, as words, and as the JSON that docs/formats.md describes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from pretrain.config.options import Config
from pretrain.plan.cluster import Cluster
from pretrain.plan.lengths import Lengths
from pretrain.plan.search import Candidate
from proteinlm.errors import InputError
from proteinlm.network.config import ModelConfig

NEAR = 0.02  # so much slower than the fastest, a simpler layout is preferred
GB = 1e9
CUT_WORDS = {"none": "replicas", "optimizer": "distributed optimizer", "full": "FSDP2"}


@dataclass(frozen=True)
class Plan:
    """What was planned for, and every candidate, the fastest first. best: the recommended one."""

    command: str
    config: Config
    model: ModelConfig
    cluster: Cluster
    lengths: Lengths
    tokens: float
    candidates: tuple[Candidate, ...]
    best: Candidate
    reason: str

    def days(self, candidate: Candidate) -> float:
        return self.tokens / candidate.tokens_per_second / 86_400

    def cost(self, candidate: Candidate) -> float | None:
        price = self.cluster.price
        return None if price is None else self.days(candidate) * 24 * self.cluster.size * price


def make_plan(
    command: str,
    config: Config,
    model: ModelConfig,
    cluster: Cluster,
    lengths: Lengths,
    tokens: float,
    candidates: Sequence[Candidate],
) -> Plan:
    """InputError where no layout is allowed or none fits."""
    if not candidates:
        raise InputError(
            f"no layout of {cluster.size} GPUs divides global-batch-size {config.training.global_batch_size} into "
            "micro-batches: give a --global-batch-size that is a multiple of the GPUs"
        )
    ordered = tuple(sorted(candidates, key=lambda c: -c.tokens_per_second))
    best, reason = _choose(ordered, cluster)
    return Plan(command, config, model, cluster, lengths, tokens, ordered, best, reason)


def _choose(candidates: Sequence[Candidate], cluster: Cluster) -> tuple[Candidate, str]:
    fitting = [c for c in candidates if c.fits(cluster)]
    if not fitting:
        raise InputError(_nothing_fits(candidates, cluster))
    fastest = fitting[0]
    near = [c for c in fitting if c.tokens_per_second >= (1 - NEAR) * fastest.tokens_per_second]
    best = min(near, key=lambda c: (_complexity(c), -c.tokens_per_second))
    used = f"{best.total_memory / GB:.1f} of {cluster.memory:g} GB a GPU"
    if best is fastest:
        reason = f"the fastest of the {len(fitting):,} layouts that fit, in {used}"
    else:
        behind = 1 - best.tokens_per_second / fastest.tokens_per_second
        reason = f"the simplest within {NEAR:.0%} of the fastest that fits ({behind:.1%} behind it), in {used}"
    simpler = [c for c in candidates if _complexity(c) < _complexity(best)]
    if simpler:
        plain = max(simpler, key=lambda c: (c.fits(cluster), c.tokens_per_second))
        slower = 1 - plain.tokens_per_second / best.tokens_per_second
        why = f"is {slower:.0%} slower" if plain.fits(cluster) else f"needs {plain.total_memory / GB:.0f} GB"
        reason += f"; {describe(plain)} {why}"
    return best, reason


def _complexity(candidate: Candidate) -> int:
    layout = candidate.layout
    cut = ("none", "optimizer", "full").index(candidate.cut)
    pipeline = 0 if layout.pp == 1 else 3 if candidate.schedule == "1f1b" else 4
    hybrid = candidate.cut != "none" and layout.dp_replicate > 1
    return cut + hybrid + pipeline + 3 * (layout.tp > 1)


def _nothing_fits(candidates: Sequence[Candidate], cluster: Cluster) -> str:
    closest = min(candidates, key=lambda c: c.total_memory)
    name, size = max(closest.memory.items(), key=lambda pair: pair[1])
    states = sum(closest.memory[key] for key in ("weights", "gradients", "optimizer"))
    of_states = states > closest.memory["activations"]
    helps = "more GPUs to shard over" if of_states else "a shorter --seq-length, more tp (--gpus-per-node)"
    return (
        f"no layout fits {cluster.memory:g} GB a GPU: the closest, {describe(closest)}, needs "
        f"{closest.total_memory / GB:.1f} GB, of which {name} {size / GB:.1f}; {helps} or GPUs of more memory would "
        "help"
    )


def describe(candidate: Candidate) -> str:
    """'tp 2, pp 4 (1f1b), FSDP2 over 8 x 2, micro-batch 4, recomputed'."""
    layout = candidate.layout
    parts = [f"tp {layout.tp}"] if layout.tp > 1 else []
    parts += [f"pp {layout.pp} ({candidate.schedule})"] if layout.pp > 1 else []
    if candidate.cut == "none":
        parts.append(f"{layout.dp_replicate} replicas" if layout.dp_replicate > 1 else "one replica")
    else:
        groups = f" in {layout.dp_replicate} groups" if layout.dp_replicate > 1 else ""
        parts.append(f"{CUT_WORDS[candidate.cut]} over {layout.dp_shard}{groups}")
    parts.append(f"micro-batch {candidate.config.training.micro_batch_size}")
    return ", ".join(parts + (["recomputed"] if candidate.recompute else []))


def layout_flags(base: Config, candidate: Candidate) -> list[str]:
    """What the command line of `base` needs besides, for this layout."""
    words = []
    for section in ("training", "parallel"):
        before, after = getattr(base, section), getattr(candidate.config, section)
        for option in fields(after):
            value = getattr(after, option.name)
            if value == getattr(before, option.name):
                continue
            flag = option.name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words += [f"--{flag}", "none" if value is None else str(value)]
    return words


def start_command(plan: Plan, flags: Sequence[str]) -> str:
    """The command line that starts the recommended layout; flags: what the planner was given for pretraining."""
    c = plan.cluster
    nodes = f"--nnodes {c.nodes} --rdzv-backend c10d --rdzv-endpoint HOST:29500 " if c.nodes > 1 else ""
    words = [*flags, *layout_flags(plan.config, plan.best)]
    return f"torchrun {nodes}--nproc-per-node {c.gpus_per_node} -m pretrain {' '.join(words)}"


def to_dict(plan: Plan, flags: Sequence[str]) -> dict:
    """The plan as JSON."""
    c = plan.cluster
    return {
        "command": plan.command,
        "parameters": plan.model.num_parameters(),
        "global_batch_size": plan.config.training.global_batch_size,
        "seq_length": plan.config.data.seq_length,
        "tokens": plan.tokens,
        "lengths": asdict(plan.lengths),
        "cluster": {
            "gpu": c.name, "gpus_per_node": c.gpus_per_node, "nodes": c.nodes, "memory_gb": c.memory,
            "price_per_gpu_hour": c.price, "calibration": c.calibrated_by, "error": c.rates.error,
        },
        "recommended": plan.candidates.index(plan.best),
        "reason": plan.reason,
        "start": start_command(plan, flags),
        "layouts": [_layout_dict(plan, candidate) for candidate in plan.candidates],
    }  # fmt: skip


def _layout_dict(plan: Plan, candidate: Candidate) -> dict:
    traffic: dict[str, dict[str, float]] = {}
    for (axis, phase), size in sorted(candidate.traffic.items()):
        traffic.setdefault(axis, {})[phase] = round(size / GB, 4)
    cost = plan.cost(candidate)
    return {
        "name": describe(candidate),
        "layout": asdict(candidate.layout),
        "sharding": candidate.cut,
        "schedule": candidate.schedule,
        "micro_batch_size": candidate.config.training.micro_batch_size,
        "micro_batches": candidate.micro_batches,
        "recompute": candidate.recompute,
        "fits": candidate.fits(plan.cluster),
        "memory_gb": {name: round(size / GB, 3) for name, size in candidate.memory.items()},
        "total_memory_gb": round(candidate.total_memory / GB, 3),
        "traffic_gb": traffic,
        "bubble": round(candidate.bubble, 4),
        "step_seconds": round(candidate.seconds, 6),
        "real_tokens_per_second": round(candidate.tokens_per_second, 1),
        "mfu": round(candidate.mfu, 4),
        "days": round(plan.days(candidate), 4),
        "cost": None if cost is None else round(cost, 2),
        "flags": " ".join(layout_flags(plan.config, candidate)),
    }


def as_text(plan: Plan, values: dict, rows: int) -> str:
    """The table for a terminal."""
    c, error = values["cluster"], plan.cluster.rates.error
    source = f"calibrated by {c['calibration']}" if c["calibration"] else "data-sheet figures"
    lines = [
        f"{values['parameters'] / 1e6:,.0f}M parameters on {plan.cluster.size} x {c['gpu']} "
        f"({c['nodes']} x {c['gpus_per_node']}), global batch {values['global_batch_size']} x {values['seq_length']}; "
        f"{source}, times ±{error:.0%}",
        "",
        f"{'layout':64} {'GB':>6} {'ms':>9} {'bubble':>6} {'MFU':>5} {'real tokens/s':>14} {'days':>8}"
        + (f" {'cost':>12}" if plan.cluster.price is not None else ""),
    ]
    fastest = [candidate for candidate in plan.candidates if candidate.fits(plan.cluster)][:rows]
    for candidate in fastest if plan.best in fastest else [plan.best, *fastest]:
        lines.append(_line(plan, candidate))
    unfit = sum(not candidate.fits(plan.cluster) for candidate in plan.candidates)
    lines += ["", f"{len(plan.candidates):,} layouts, {unfit:,} do not fit. Recommended (*): {describe(plan.best)}:"]
    lines += [f"{plan.reason}."]
    if all(candidate.layout.tp == 1 for candidate in plan.candidates) and plan.cluster.gpus_per_node > 1:
        lines.append("Left out: tensor parallelism (--tensor-model-parallel-size 2 to see it); a replica fits.")
    lines += ["", values["start"]]
    return "\n".join(lines)


def _line(plan: Plan, candidate: Candidate) -> str:
    mark = "* " if candidate is plan.best else "  "
    cost = plan.cost(candidate)
    return (
        f"{mark + describe(candidate):64} {candidate.total_memory / GB:6.1f} {1e3 * candidate.seconds:9.1f} "
        f"{candidate.bubble:6.1%} {candidate.mfu:5.1%} {candidate.tokens_per_second:14,.0f} {plan.days(candidate):8.2f}"
        + ("" if cost is None else f" {cost:12,.0f}")
    )
