"""What is measured of an arm: its three nested programs, memory, FLOPs, and the machine's own rate at those products.

forward        loss alone, with autograd's record
backward       forward and backward, less forward
optimizer      the whole step, less forward and backward: norm, clipping, AdamW
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.comparison import Seconds, take_turns
from benchmarks.training.arms import Arm, static_bytes
from benchmarks.training.batches import Fed
from proteinlm.network.config import ModelConfig


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def steps(arm: Arm, feds: Sequence[Fed]) -> None:
    """Whole steps, one a batch."""
    for fed in feds:
        arm.step(fed)
    wait(arm.device)


def forward(arm: Arm, feds: Sequence[Fed]) -> None:
    for fed in feds:
        arm.loss(fed)
    wait(arm.device)


def forward_backward(arm: Arm, feds: Sequence[Fed]) -> None:
    for fed in feds:
        arm.loss(fed).backward()
        arm.optimizer.zero_grad(set_to_none=True)
    wait(arm.device)


def phases(arms: dict[str, tuple[Arm, list[Fed]]], whole: dict[str, float], repeats: int) -> dict[str, dict]:
    """Seconds of forward, backward and optimizer by arm; whole: those of its steps."""
    programs = {"forward": forward, "forward_backward": forward_backward}
    calls = {(name, kind): partial(run, *arms[name]) for name in arms for kind, run in programs.items()}
    spent = {key: statistics.median(wall for wall, _ in runs) for key, runs in take_turns(calls, repeats).items()}
    rows = {}
    for name in arms:
        ahead, both = spent[name, "forward"], spent[name, "forward_backward"]
        parts = {"forward": ahead, "backward": both - ahead, "optimizer": whole[name] - both}
        rows[name] = {f"{part}_seconds": round(seconds, 4) for part, seconds in parts.items()}
    return rows


# ---- the machine's own rate


def layer_products(config: ModelConfig, tokens: int) -> list[tuple[int, int, int]]:
    """(m, k, n) of the matrix products of a layer's forward pass over so many tokens."""
    h, inner = config.hidden_size, config.ffn_hidden_size
    ups = [(tokens, h, inner)] * (2 if config.swiglu else 1)
    return [(tokens, h, 3 * h), (tokens, h, h), *ups, (tokens, inner, h)]


class Products:
    """A layer's matrix products, forward and backward, and nothing else: the rate that a step could have at most."""

    def __init__(self, config: ModelConfig, tokens: int, dtype: torch.dtype, device: torch.device, rounds: int = 4):
        self.device, self.rounds, self.operands = device, rounds, []
        make, products = partial(torch.randn, device=device, dtype=dtype), layer_products(config, tokens)
        for m, k, n in products:
            x, weight, gradient = make(m, k), make(n, k), make(m, n)
            self.operands += [(x, weight.t()), (gradient, weight), (gradient.t(), x)]
        self.outputs = [a.new_empty(a.shape[0], b.shape[1]) for a, b in self.operands]
        self.flops = rounds * sum(6 * m * k * n for m, k, n in products)

    def __call__(self) -> None:
        for _ in range(self.rounds):
            for (a, b), out in zip(self.operands, self.outputs, strict=True):
                torch.mm(a, b, out=out)
        wait(self.device)


def timed(call: Callable[[], object], device: torch.device, least: float = 0.2) -> float:
    """Seconds of a call, the median of several after a warm-up; `least`: seconds to spend in all."""
    call()
    wait(device)
    seconds, began = [], time.perf_counter()
    while len(seconds) < 3 or time.perf_counter() - began < least:
        start = time.perf_counter()
        call()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


# ---- memory


def peak_bytes_cuda(arm: Arm, fed: Fed) -> int:
    """Of a step: what it adds to what is allocated, and the arm's own weights and optimizer state."""
    wait(arm.device)
    torch.cuda.reset_peak_memory_stats(arm.device)
    before = torch.cuda.memory_allocated(arm.device)
    arm.step(fed)
    wait(arm.device)
    return torch.cuda.max_memory_allocated(arm.device) - before + static_bytes(arm)


def peak_bytes_cpu(name: str) -> int:
    """Resident bytes at most of a process that takes steps with this arm alone: this command again, in a child."""
    line = [sys.executable, *sys.argv, "--arms", name, "--rss_of_one_arm"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])["peak_bytes"]


def resident_peak() -> int:
    """Of this process. Linux's getrusage also has the peak of the process that started it, so the kernel is asked."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return 1024 * int(lines["VmHWM"].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


# ---- rows of the table


def rates(config: ModelConfig, feds: Sequence[Fed], parameters: int, runs: list[Seconds], limits: dict) -> dict:
    """limits: FLOP/s by name (`gemm_rate` measured, `peak` of the data sheet or None).

    flops: over real tokens, attention per protein. flops_6n: 6 x parameters x tokens as fed, the usual count.
    """
    wall = statistics.median(run[0] for run in runs)
    true = sum(fed.flops(config) for fed in feds) / wall
    usual = 6.0 * parameters * sum(fed.tokens for fed in feds) / wall
    row = {
        "steps": len(feds),
        "ms_per_step": round(1e3 * wall / len(feds), 3),
        "real_tokens_per_second": round(sum(fed.real_tokens for fed in feds) / wall, 1),
        "padded_tokens_per_second": round(sum(fed.tokens for fed in feds) / wall, 1),
        "padding": round(1 - sum(fed.real_tokens for fed in feds) / sum(fed.tokens for fed in feds), 4),
        "tflops": round(true / 1e12, 4),
        "tflops_6n": round(usual / 1e12, 4),
    }
    if limits.get("gemm_rate"):
        row["share_of_gemm_rate"] = round(true / limits["gemm_rate"], 4)
    if limits.get("peak"):
        row |= {"mfu": round(true / limits["peak"], 4), "mfu_6n": round(usual / limits["peak"], 4)}
    return row
