"""What the comparisons with Hugging Face share: ESM-2's shapes, proteins of real lengths, arms that take turns.

Not run by itself; embed.py and train_step.py import it.
"""

import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = {  # ESM-2's: layers, hidden size, heads
    "tiny": (2, 32, 4),
    "8m": (6, 320, 20),
    "35m": (12, 480, 20),
    "150m": (30, 640, 20),
    "650m": (33, 1280, 20),
    "3b": (36, 2560, 40),
}
# Percentiles of the lengths of 404,970 Pfam domains, UniRef90 and Swiss-Prot proteins (docs/results.md), cropped.
PERCENTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)
LENGTHS = (20, 24, 49, 56, 91, 155, 292, 392, 463, 933, 1022)
Seconds = tuple[float, float]  # wall, this process's CPU


def random_proteins(number: int, seed: int = 0) -> list[str]:
    """Random residues; the lengths are LENGTHS, with straight lines between them."""
    rng = np.random.default_rng(seed)
    lengths = np.interp(rng.uniform(0, 100, number), PERCENTILES, LENGTHS).astype(int)
    return ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), length)) for length in lengths]


def random_esm2(shape: str) -> torch.nn.Module:
    """transformers' EsmForMaskedLM of one of SHAPES, ESM-2's configuration else, with random weights and SDPA."""
    return esm2(*SHAPES[shape])


def esm2(layers: int, width: int, heads: int, inner: int | None = None) -> torch.nn.Module:
    """The same in any shape. inner: the width inside the MLP, 4 times the hidden size unless given."""
    from transformers import EsmConfig, EsmForMaskedLM

    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=33,
        pad_token_id=1,
        mask_token_id=32,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner or 4 * width,
        max_position_embeddings=1026,
        position_embedding_type="rotary",
        token_dropout=True,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return EsmForMaskedLM._from_config(config, attn_implementation="sdpa").eval()


def file_batches(lengths: np.ndarray, size: int, by_length: bool) -> list[np.ndarray]:
    """Which proteins a batch of `size` has: in file order, or longest first."""
    order = np.argsort(-lengths, kind="stable") if by_length else np.arange(len(lengths))
    return np.split(order, range(size, len(order), size))


def padding(lengths: np.ndarray, batches: Sequence[np.ndarray]) -> float:
    """The share of what a model gets that is padding, where a batch is padded to its longest protein."""
    fed = sum(len(batch) * int(lengths[batch].max() + 2) for batch in batches)
    return round(1 - (int(lengths.sum()) + 2 * len(lengths)) / fed, 4)


def take_turns(arms: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[Seconds]]:
    """What each call of each arm took; which one goes first changes from one repeat to the next."""
    seconds, names = {name: [] for name in arms}, list(arms)
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            began, began_cpu = time.perf_counter(), time.process_time()
            arms[name]()
            seconds[name].append((time.perf_counter() - began, time.process_time() - began_cpu))
            print(f"repeat {repeat + 1} {name}: {seconds[name][-1][0]:.2f} s", file=sys.stderr, flush=True)
    return seconds


def table(seconds: Mapping[str, list[Seconds]], proteins: int, residues: int) -> dict[str, dict]:
    """Medians and how much faster `ours` is, by wall time and by CPU time; printed too."""
    rows = {}
    for name, runs in seconds.items():
        wall, cpu = (statistics.median(values) for values in zip(*runs, strict=True))
        wall_ratio, cpu_ratio = (
            statistics.median(run[clock] / own[clock] for run, own in zip(runs, seconds["ours"], strict=True))
            for clock in (0, 1)
        )
        rows[name] = {
            "proteins_per_second": round(proteins / wall, 2),
            "residues_per_second": round(residues / wall, 1),
            "residues_per_cpu_second": round(residues / cpu, 1),
            "wall_seconds": round(wall, 3),
            "wall_range": [round(min(run[0] for run in runs), 3), round(max(run[0] for run in runs), 3)],
            "cpu_seconds": round(cpu, 3),
            "ours_faster_wall": round(wall_ratio, 3),
            "ours_faster_cpu": round(cpu_ratio, 3),
        }
        print(
            f"{name:10} {rows[name]['residues_per_second']:10,.0f} residues/s  {wall:8.2f} s  ours is {wall_ratio:.2f} "
            f"times as fast ({cpu_ratio:.2f} by CPU seconds)",
            flush=True,
        )
    return rows


def machine(command: str, device: torch.device) -> dict:
    """What it takes to get the numbers again. command: the file's path."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    cuda = device.type == "cuda"
    return {
        "commit": commit,
        "command": " ".join(["python", command, *sys.argv[1:]]),
        "machine": torch.cuda.get_device_name(device) if cuda else f"{_processor()}, {os.cpu_count()} CPUs",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The CPU's name where Linux knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())
