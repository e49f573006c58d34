"""Stages `ladder-200m` and `ladder-3b`: one training step of this project, faster from row to row.

    python benchmarks/gpu/ladder.py OUT --shape 200m     # OUT/ladder-200m.json, and a profile of the fastest row
    python benchmarks/gpu/ladder.py OUT --shape 3b

Each row changes one thing: recomputation of whole layers (as shipped before), none, compiled layers, no dropout,
FlashAttention 3 where it is installed, a residual stream in bf16. bf16, rows of 2,176 tokens, whole proteins of real
lengths, `pretrain.train_step` whole. MFU by true FLOPs (real tokens, attention per protein) against the data sheet.
"""

import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
import torch
import torch.nn.attention
from torch.profiler import ProfilerActivity, profile

from benchmarks.comparison import random_proteins, take_turns
from benchmarks.gpu.stage import Stage, parser
from benchmarks.training import measure
from benchmarks.training.arms import Ours, Setting
from benchmarks.training.batches import Fed, micro_batches, packed
from benchmarks.training.models import PROTEINLM_SHAPES, Weights, proteinlm_weights
from pretrain.interval import peak_flops

# (what is new, flags of Setting that it sets, dropout)
ROWS = (
    ("as shipped before: dropout 0.1, layers recomputed", {"recompute": True}, 0.1),
    ("no recomputation", {"recompute": False}, 0.1),
    ("compiled layers", {"compile": True}, 0.1),
    ("dropout 0", {}, 0.0),
    ("FlashAttention 3", {"flash3": True}, 0.0),
    ("bf16 residual stream", {"fp32_residual": False}, 0.0),
)
# shape -> (layers, so that 16 bytes a parameter and the activations fit; micro-batches' rows; the row's tokens)
SIZES = {"200m": (16, (4, 16), 2176), "3b": (8, (2, 8), 2176), "tiny": (2, (1, 2), 256)}
STEPS, WARM_UP, LEAST = 8, 3, 45.0  # steps of a repeat; steps before; seconds that a row may need
TOP = 25  # kernels of the profile


def fed(weights: Weights, rows: int, length: int, steps: int) -> list[Fed]:
    """The same proteins for every row of the ladder."""
    proteins = [p[: length - 2] for p in random_proteins(steps * rows * length // 180 + 50)]
    batches = micro_batches(np.array([len(p) for p in proteins]), length, rows)[:steps]
    return [packed([[proteins[i] for i in row] for row in batch], length, weights.tokenizer) for batch in batches]


def measured(arm: Ours, feds: list[Fed], setting: Setting, repeats: int) -> dict:
    """A row of the table; the first loss shows that a row computes what the others do."""
    loss = float(arm.loss(feds[0]).detach())
    for _ in range(WARM_UP):
        arm.step(feds[0])
    tokens = setting.rows * setting.seq_length
    products = measure.Products(arm.config, tokens, setting.dtype, arm.device)
    products()
    seconds = take_turns({"gemm": products, "ours": lambda: measure.steps(arm, feds)}, repeats)
    limits = {
        "gemm_rate": products.flops / statistics.median(wall for wall, _ in seconds["gemm"]),
        "peak": peak_flops(arm.device, setting.dtype),
    }
    del products
    row = measure.rates(arm.config, feds, arm.config.num_parameters(), seconds["ours"], limits)
    row |= {"first_loss": round(loss, 4), "gemm_tflops": round(limits["gemm_rate"] / 1e12, 3)}
    whole = statistics.median(wall for wall, _ in seconds["ours"])
    row |= measure.phases({"ours": (arm, feds)}, {"ours": whole}, 1)["ours"]
    if arm.device.type == "cuda":
        row["peak_bytes"] = measure.peak_bytes_cuda(arm, feds[0])
    return row


def kernels(arm: Ours, feds: list[Fed], path: Path) -> list[dict]:
    """The kernels that take longest in three steps; the whole table goes to `path`."""
    cuda = arm.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as trace:
        measure.steps(arm, feds[:3])
    averages, key = trace.key_averages(), "self_device_time_total" if cuda else "self_cpu_time_total"
    path.write_text(averages.table(sort_by=key, row_limit=TOP, max_name_column_width=100))
    # On a GPU the operators' rows repeat the time of the kernels that they start.
    rows = [e for e in averages if not cuda or str(e.device_type).endswith("CUDA")]
    total = sum(getattr(e, key) for e in rows) or 1
    rows = sorted(rows, key=lambda e: -getattr(e, key))[:TOP]
    return [
        {"kernel": e.key[:100], "calls": e.count, "ms": round(getattr(e, key) / 1e3, 3),
         "share": round(getattr(e, key) / total, 4)}
        for e in rows
    ]  # fmt: skip


def restore_flash2() -> None:
    """What the last row of the size before had is for the whole process."""
    if getattr(torch.nn.attention, "current_flash_attention_impl", lambda: None)() is not None:
        torch.nn.attention.restore_flash_attention_impl()


def climb(stage: Stage, shape: str, rows: int, repeats: int) -> None:
    """All rows of the ladder at one size, each in the result as soon as it is measured."""
    layers, _, length = SIZES[shape]
    device, fastest, table = torch.device(stage.args.device), float("inf"), []
    setting = Setting("bf16", rows=rows, seq_length=length)
    weights: Weights | None = None
    restore_flash2()
    for name, changes, dropout in ROWS:
        label = f"{shape}, {rows} rows: {name}"
        if device.type != "cuda" and changes.keys() & {"compile", "flash3"}:
            stage.skip(label, "needs a GPU")
            continue
        if not stage.has(1.0 if stage.args.rehearse else LEAST, label):
            continue
        if weights is None or weights.config.hidden_dropout != dropout:
            weights = proteinlm_weights((layers, *PROTEINLM_SHAPES[shape][1:]), length, dropout, with_peer=False)
        feds = fed(weights, rows, length, 2 if stage.args.rehearse else STEPS)
        feds = [one.pinned() for one in feds] if device.type == "cuda" else feds
        try:
            arm = Ours(weights, replace(setting, **changes), device)
            row = measured(arm, feds, arm.setting, repeats)
        except (ValueError, RuntimeError) as error:  # FlashAttention 3 is not here, memory is full
            stage.skip(label, str(error).splitlines()[0][:200])
            arm = None
            torch.cuda.empty_cache()
            continue
        setting = arm.setting
        table.append({"row": name, "dropout": dropout} | asdict(setting) | row)
        print(f"{label}: {row['ms_per_step']} ms, {row['real_tokens_per_second']:,.0f} real tokens/s", flush=True)
        stage.add(**{f"rows_{rows}": table, f"parameters_{rows}": arm.config.num_parameters()})
        if row["ms_per_step"] < fastest:
            fastest = row["ms_per_step"]
            best = kernels(arm, feds, stage.path.with_name(f"profile-{shape}-{rows}.txt"))
            stage.add(**{f"profile_{rows}": {"row": name, "kernels": best}})
        arm = None
        torch.cuda.empty_cache()


def main() -> int:
    flags = parser(__doc__)
    flags.add_argument("--shape", choices=SIZES, required=True)
    flags.add_argument("--repeats", type=int, default=3)
    args = flags.parse_args()
    stage = Stage(f"ladder-{args.shape}", args)
    if args.rehearse:
        args.shape, args.repeats = "tiny", 1
    stage.add(shape=args.shape, layers=SIZES[args.shape][0])
    for rows in SIZES[args.shape][1]:
        climb(stage, args.shape, rows, args.repeats)
    return 0 if any(f"rows_{rows}" in stage.result for rows in SIZES[args.shape][1]) else 1


if __name__ == "__main__":
    sys.exit(main())
