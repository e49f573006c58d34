"""Memory and time of the contact head `proteinlm`, as it is and with every map kept, side by side.

    python benchmarks/contact_memory.py                                           # 128 and 256 residues, a few minutes
    python benchmarks/contact_memory.py --lengths 128 256 512 1000 --output benchmarks/results/contact_memory.json

A training step (forward, cross-entropy, backward; dropout 0.5) and an inference, fp32 and bf16 autocast, each in a
process of its own on one thread. `saving` is the head with its blocks' insides computed again and its maps in strips
(what it does by itself from tape.models.heads.RECOMPUTE_PAIRS and STRIP_PAIRS on); `plain` keeps every map, as the
layers' ordinary use would. Peak resident memory is the kernel's (ru_maxrss), the process before the step included;
time is the process's own CPU seconds in the step, so that other work on the machine does not count, and wall seconds.
A process that goes over --limit-gb is stopped and said to be over. `--segments 1 2 3 5` also measures how many blocks
apart the kept maps are. `--proteins 1000 800`: one batch with padding, instead of one protein of each length. Maps
below 32 MB (under 350 residues in fp32) come from glibc's heap, which holds on to what is freed: there the peaks are
up to twice what is in use (MALLOC_MMAP_THRESHOLD_=1000000 shows it), for both ways. What must hold: both ways start
from the same weights and inputs; the sums of their logits and gradients are shown.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from proteinlm.files import write_json  # noqa: E402
from tape.models import heads  # noqa: E402

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
SWEEP_LENGTH = 512  # --segments is measured on the longest protein that is not above this
LEAST_FREE_GB = 2.0  # a process is stopped, too, before it takes the machine's last memory


def measure(case: dict) -> dict:
    """One training step or inference in this process."""
    with contextlib.suppress(OSError):  # should the machine run out of memory, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    heads.SEGMENT = case["segment"]
    head = heads.ContactHead(case["hidden"], "proteinlm").train(case["job"] == "training")
    saving = case["way"] == "saving"
    head.recompute, head.strip_pairs = saving, None if saving else 1 << 60
    lengths = [length + 2 for length in case["lengths"]]  # <cls> and <sep>
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    hidden = torch.randn(len(lengths), max(lengths), case["hidden"]) * mask.unsqueeze(2)
    begin_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin, begin_cpu = time.perf_counter(), time.process_time()
    with torch.autocast("cpu", PRECISIONS[case["precision"]], enabled=case["precision"] != "fp32"):
        if case["job"] == "training":
            logits = head(hidden.requires_grad_(), mask)
        else:
            with torch.no_grad():
                logits = head(hidden, mask)
    gradients = None
    if case["job"] == "training":
        targets = torch.randint(0, 2, logits.shape[:-1])
        F.cross_entropy(logits.float().flatten(0, -2), targets.flatten()).backward()
        gradients = sum(float(p.grad.double().abs().sum()) for p in head.parameters())
    return {
        "cpu_seconds": round(time.process_time() - begin_cpu, 3),
        "wall_seconds": round(time.perf_counter() - begin, 3),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
        "before_gb": round(begin_memory * 1024 / 1e9, 3),
        "logits": float(logits.detach().double().abs().sum()),
        "gradients": gradients,
    }


def run_child(case: dict, limit_gb: float, timeout: float) -> dict:
    """`measure` in a process of its own, which is stopped when it passes `limit_gb` or `timeout` seconds."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, __file__, "--case", json.dumps(case)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment, text=True) as child:
        begin, stopped = time.monotonic(), None
        while stopped is None and child.poll() is None:
            time.sleep(0.05)
            used = status_gb(f"/proc/{child.pid}/status", "VmRSS")
            if used > limit_gb:
                stopped = f"over {limit_gb:g} GB"
            elif status_gb("/proc/meminfo", "MemAvailable", default=1e9) < LEAST_FREE_GB:
                stopped = f"over {used:.1f} GB, all that the machine had free"
            elif time.monotonic() - begin > timeout:
                stopped = f"over {timeout:g} s"
        if stopped is not None:
            child.kill()
            return case | {"stopped": stopped, "wall_seconds": round(time.monotonic() - begin, 3)}
        output = child.stdout.read()
    if child.returncode:
        raise SystemExit(f"{' '.join(words)}: status {child.returncode}")
    return case | json.loads(output)


def status_gb(path: str, name: str, default: float = 0.0) -> float:
    """A line of /proc in GB; `default` where there is none."""
    try:
        text = Path(path).read_text()
    except OSError:
        return default
    return next((float(line.split()[1]) * 1024 / 1e9 for line in text.splitlines() if line.startswith(name)), default)


def cases(options: argparse.Namespace) -> list[dict]:
    """What is measured, the small first."""
    batches = [options.proteins] if options.proteins else [[length] for length in sorted(options.lengths)]
    common = {"hidden": options.hidden, "segment": heads.SEGMENT}
    results = [
        {"lengths": lengths, "job": job, "precision": precision, "way": way} | common
        for lengths in batches
        for job in options.jobs
        for precision in options.precisions
        for way in ("saving", "plain")
    ]
    longest = max((lengths for lengths in batches if max(lengths) <= SWEEP_LENGTH), default=batches[0])
    swept = {"lengths": longest, "job": "training", "precision": "fp32", "way": "saving"} | common
    return results + [swept | {"segment": segment} for segment in options.segments]


def table(rows: list[dict]) -> str:
    """One line a pair of ways: peak GB, CPU seconds, and the plain head's as a multiple of the saving one's."""
    lines = ["residues  job        precision  blocks  saving: GB, CPU s  plain: GB, CPU s    plain / saving: GB, CPU s"]
    plain = {key(row): row for row in rows if row["way"] == "plain"}
    for row in rows:
        if row["way"] == "plain":
            continue
        other = plain.get(key(row), {})
        ratio = "-"
        if "peak_gb" in row and "peak_gb" in other:
            ratio = f"{other['peak_gb'] / row['peak_gb']:.2f}, {other['cpu_seconds'] / row['cpu_seconds']:.2f}"
        names = [",".join(map(str, row["lengths"])), row["job"], row["precision"], str(row["segment"])]
        widths = (10, 11, 11, 8, 19, 20)
        cells = [*names, numbers(row), numbers(other)]
        lines.append("".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)) + ratio)
    return "\n".join(lines)


def key(row: dict) -> tuple:
    return (tuple(row["lengths"]), row["job"], row["precision"], row["segment"])


def numbers(row: dict) -> str:
    return f"{row['peak_gb']:.2f}, {row['cpu_seconds']:.1f}" if "peak_gb" in row else row.get("stopped", "not run")


def where() -> dict:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "commit": commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {memory:.0f} GB; one thread",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "command": " ".join(["benchmarks/contact_memory.py", *sys.argv[1:]]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256], help="residues, one protein each")
    parser.add_argument("--proteins", type=int, nargs="+", help="residues of one batch's proteins, instead")
    parser.add_argument("--hidden", type=int, default=1024, help="the encoder's width")
    parser.add_argument("--jobs", nargs="+", default=["training", "inference"], choices=("training", "inference"))
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--segments", type=int, nargs="*", default=[], help="blocks between kept maps")
    parser.add_argument("--limit-gb", type=float, default=16.0)
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds a process may take")
    parser.add_argument("--output", type=Path, help="also write the numbers there (JSON)")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case)))
        return
    rows = []
    for case in cases(options):
        rows.append(run_child(case, options.limit_gb, options.timeout))
        print(json.dumps(rows[-1]), flush=True)
        if options.output:
            write_json(options.output, where() | {"recompute_pairs": heads.RECOMPUTE_PAIRS[False], "runs": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
