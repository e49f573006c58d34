"""Peak memory and time of converting a large Megatron checkpoint, target by target.

    python benchmarks/convert_memory.py                                       # a model of a few million parameters
    python benchmarks/convert_memory.py --size 3b --work DIR --output benchmarks/results/convert_3b.md

A synthetic fp16 checkpoint of the shape of pretrain/configs/proteinlm_3b.yaml (about 6 GB, TP 8) is written into --work
shard by shard, then converted by `python -m converter` in a process of its own for each target, with and without a
change of dtype. Peak resident memory is the kernel's (wait4): it counts the pages of the one mapped shard too, which
the kernel may take back at any time; the peak of memory of the process's own (RssAnon, sampled) is beside it.
--limit-gb: run with that much address space for data (RLIMIT_DATA), so that needing more is a failure.
"""

import argparse
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"small": (8, 512, 8, 512), "3b": (36, 2560, 40, 2176)}  # layers, hidden, heads, positions
RUNS = [("tape", None), ("hf", None), ("megatron", None), ("dcp", None), ("tape", "fp32"), ("dcp", "fp32")]


def write_checkpoint(directory: Path, size: tuple[int, int, int, int], tp: int) -> int:
    """A version-3.0 fp16 checkpoint, one shard in memory at a time; returns its bytes."""
    layers, hidden, heads, positions = size
    args = argparse.Namespace(
        num_layers=layers, hidden_size=hidden, num_attention_heads=heads, max_position_embeddings=positions,
        padded_vocab_size=128 * tp, make_vocab_size_divisible_by=128, tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=1, layernorm_epsilon=1e-12, bias_gelu_fusion=True, openai_gelu=False, fp16=True,
    )  # fmt: skip

    def matrix(*shape: int, seed: int) -> torch.Tensor:
        return torch.empty(shape).uniform_(-0.03, 0.03, generator=torch.Generator().manual_seed(seed)).half()

    def norm(prefix: str) -> dict[str, torch.Tensor]:
        return {f"{prefix}.weight": torch.ones(hidden).half(), f"{prefix}.bias": torch.zeros(hidden).half()}

    (directory / "iter_0000001").mkdir(parents=True)
    (directory / "latest_checkpointed_iteration.txt").write_text("1")
    total = 0
    for rank in range(tp):
        transformer = {}
        for n in range(layers):
            for name, shape in {
                "attention.query_key_value": (3 * hidden // tp, hidden),
                "attention.dense": (hidden, hidden // tp),
                "mlp.dense_h_to_4h": (4 * hidden // tp, hidden),
                "mlp.dense_4h_to_h": (hidden, 4 * hidden // tp),
            }.items():
                transformer[f"layers.{n}.{name}.weight"] = matrix(*shape, seed=100 * n + rank)
                transformer[f"layers.{n}.{name}.bias"] = torch.zeros(shape[0]).half()
            for name in ("input_layernorm", "post_attention_layernorm"):
                transformer |= norm(f"layers.{n}.{name}")
        transformer |= norm("final_layernorm")
        embedding = {
            "word_embeddings": {"weight": matrix(128, hidden, seed=7 + rank)},
            "position_embeddings": {"weight": matrix(positions, hidden, seed=8)},
        }
        head = {"bias": torch.zeros(128).half(), "dense.weight": matrix(hidden, hidden, seed=9)}
        head |= {"dense.bias": torch.zeros(hidden).half(), **norm("layernorm")}
        language = {"embedding": embedding, "transformer": transformer}
        content = {"args": args, "iteration": 1, "checkpoint_version": 3.0}
        path = directory / "iter_0000001" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
        path.parent.mkdir()
        torch.save(content | {"model": {"language_model": language, "lm_head": head}}, path)
        total += path.stat().st_size
    return total


def measure(source: Path, target: Path, flags: list[str], limit_gb: float | None) -> tuple[float, float, float]:
    """(seconds, peak resident GB, peak of the process's own GB) of one conversion."""

    def limited() -> None:
        if limit_gb:
            resource.setrlimit(resource.RLIMIT_DATA, (int(limit_gb * 1e9),) * 2)

    words = [sys.executable, "-m", "converter", "--load", str(source), "--save", str(target), *flags]
    started, own = time.monotonic(), 0
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, preexec_fn=limited)
        while True:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            own = max(own, rss_anon(process.pid))
            time.sleep(0.05)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{' '.join(words)}\nstatus {process.returncode}\n{output.read().decode()[-2000:]}")
    return time.monotonic() - started, usage.ru_maxrss * 1024 / 1e9, own / 1e9


def rss_anon(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--tp", type=int, default=8)
    parser.add_argument("--work", type=Path, help="directory for the checkpoint and the results, removed afterwards")
    parser.add_argument("--limit-gb", type=float)
    parser.add_argument("--output", type=Path, help="also write the table there (Markdown)")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="convert_memory_", dir=options.work))
    try:
        report = run(options, work)
    finally:
        shutil.rmtree(work)
    print(report)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(report)


def run(options, work: Path) -> str:
    started = time.monotonic()
    size = write_checkpoint(work / "in", SIZES[options.size], options.tp)
    print(f"wrote {size / 1e9:.2f} GB in {time.monotonic() - started:.0f} s", flush=True)
    rows = []
    for target, dtype in RUNS:
        flags = ["--target", target, *(["--dtype", dtype] if dtype else [])]
        if target == "megatron":
            flags += ["--tensor-model-parallel-size", "4", "--pipeline-model-parallel-size", "2"]
        seconds, peak, own = measure(work / "in", work / "out", flags, options.limit_gb)
        written = sum(path.stat().st_size for path in (work / "out").rglob("*") if path.is_file())
        shutil.rmtree(work / "out")
        rows.append(f"| `{' '.join(flags)}` | {written / 1e9:.2f} | {peak:.2f} | {own:.2f} | {seconds:.0f} |")
        print(rows[-1], flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    layers, hidden, heads, positions = SIZES[options.size]
    shard = f"{options.tp} shards of {size / options.tp / 1e9:.2f} GB"
    shape = f"{layers} layers, hidden {hidden}, {heads} heads, {positions} positions"
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, {memory:.0f} GB"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    limit = f" --limit-gb {options.limit_gb:g}" if options.limit_gb else ""
    lines = [
        "# Memory of a conversion",
        "",
        f"Source: Megatron, fp16, TP {options.tp}, {size / 1e9:.2f} GB in {shard} ({shape}).",
        "",
        "| flags | written, GB | peak resident, GB | of it the process's own, GB | seconds |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"`python benchmarks/convert_memory.py --size {options.size} --tp {options.tp}{limit}`, "
        f"commit {commit.strip()}, {machine}, {versions}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
