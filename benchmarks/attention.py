"""Attention alone, every backend of a device, by the shape of the proteins: milliseconds and GFLOP/s.

    python benchmarks/attention.py                                   # the shapes of the three smallest presets
    python benchmarks/attention.py --shapes 8,20,320,16 --dtypes bf16 --output benchmarks/results/attention.json

A shape is n,H,S,D: n proteins of S tokens, H heads of D; with --ragged their lengths are spread evenly from 1 to S.
The FLOPs are those of the real tokens' products, 4 n H S^2 D forward and 2.5 times as many backward. Backends take
turns; medians. `forward` is without gradients, `training` forward and backward.

What must hold: before it is timed, each backend's output and gradients agree with the reference in fp64 to TOLERANCE.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.comparison import PRECISIONS, machine
from proteinlm.devices import choose_device
from proteinlm.errors import run
from proteinlm.files import write_json
from proteinlm.network.attention import AttentionPlan, choose_backend, make_plan, packed_attention

SHAPES = ("6,6,256,32", "24,6,80,32", "3,20,448,16", "12,20,160,16", "4,20,512,24")
TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}  # relative, of norms


def lengths_of(number: int, longest: int, ragged: bool) -> list[int]:
    return torch.linspace(1, longest, number).int().tolist() if ragged else [longest] * number


def candidates(device: torch.device, dtype: torch.dtype, head_size: int) -> list[str]:
    """What can run there; the chosen one first."""
    chosen = choose_backend(device, dtype, 0.0, head_size)
    others = ("efficient", "buckets") if device.type == "cuda" else ()
    return [chosen, *(name for name in others if name != chosen)]


def answer(qkv: Tensor, plan: AttentionPlan, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(output, gradient of the queries, keys and values)."""
    leaf = qkv.detach().requires_grad_()
    output = packed_attention(leaf, plan)
    output.backward(weight)
    return output.detach(), leaf.grad


def difference(actual: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(actual, exact, strict=True))


def check(qkv: Tensor, plans: dict[str, AttentionPlan], weight: Tensor) -> dict[str, float]:
    """The difference of each backend from the reference; stops beyond TOLERANCE."""
    bounds = next(iter(plans.values())).cu_seqlens
    exact = answer(qkv.double(), make_plan(bounds, "reference"), weight.double())
    differences = {name: difference(answer(qkv, plan, weight), exact) for name, plan in plans.items()}
    for name, value in differences.items():
        assert value <= TOLERANCE[qkv.dtype], f"{name} differs by {value:.1e}, more than {TOLERANCE[qkv.dtype]:.0e}"
    unrelated = difference((exact[0].flip(0), exact[1]), exact)
    assert unrelated > 10 * TOLERANCE[qkv.dtype], f"the stream reversed differs by {unrelated:.1e} only"
    return differences


@torch.no_grad()
def forward(qkv: Tensor, plan: AttentionPlan) -> None:
    packed_attention(qkv, plan)


def seconds(calls: dict[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):  # the first is a warm-up
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


def measure(shape: str, dtype: torch.dtype, device: torch.device, args: argparse.Namespace) -> list[dict]:
    number, heads, longest, size = map(int, shape.split(","))
    lengths = lengths_of(number, longest, args.ragged)
    generator = torch.Generator().manual_seed(0)
    qkv, weight = (
        torch.randn(sum(lengths), heads, *rest, generator=generator).to(device, dtype) for rest in ((3, size), (size,))
    )
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    plans = {name: make_plan(bounds, name, longest) for name in candidates(device, dtype, size)}
    differences = check(qkv, plans, weight)
    flops = 4 * heads * size * sum(length**2 for length in lengths)
    rows = []
    for what, work, factor in (("forward", forward, 1.0), ("training", partial(answer, weight=weight), 3.5)):
        calls = {name: partial(work, qkv, plan) for name, plan in plans.items()}
        for name, taken in seconds(calls, device, args.repeats).items():
            rate = factor * flops / taken / 1e9
            row = {"shape": shape, "dtype": str(dtype).removeprefix("torch."), "backend": name, "work": what}
            rows.append(row | {"ms": taken * 1e3, "gflops_per_second": rate, "difference": differences[name]})
            print(
                f"{shape:16} {row['dtype']:9} {name:10} {what:9} {taken * 1e3:9.2f} ms {rate:10,.0f} GF/s", flush=True
            )
    return rows


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), metavar="n,H,S,D")
    parser.add_argument("--dtypes", nargs="+", choices=PRECISIONS, default=["fp32", "bf16"])
    parser.add_argument("--ragged", action="store_true", help="lengths from 1 to S (default: all S)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    device = choose_device(args.device)
    rows = [
        row for shape in args.shapes for name in args.dtypes for row in measure(shape, PRECISIONS[name], device, args)
    ]
    if args.output:
        write_json(args.output, machine("benchmarks/attention.py", device) | {"ragged": args.ragged, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
