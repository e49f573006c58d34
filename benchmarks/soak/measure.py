"""Whether memory, open files and threads stay flat while pretraining, finetuning and embedding run for hours.

    python benchmarks/soak/measure.py --minutes 120 --output benchmarks/results/soak    # soak.json, soak.csv, soak.png

The jobs (soak/jobs.py) run at the same time with one thread each and are ended after so many minutes; the samples are
taken from /proc (Linux) of each job's processes together. memory: resident (VmRSS); heap: what of it is no file
(RssAnon), for a file that is mapped becomes resident as it is read and costs nothing. A slope is the least-squares line
through the means of BLOCKS stretches of the time after the first WARM_UP of it, with its 95% interval by Student's t:
neighbouring samples are alike, means of long stretches hardly. soak.csv has every sample and grows as they come.
"""

import argparse
import contextlib
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from benchmarks.comparison import ROOT, machine
from benchmarks.soak.jobs import JOBS, command
from proteinlm.files import atomic_path, write_json

SAMPLES = 720  # of a job, no closer than half a second
WARM_UP = 0.2
BLOCKS = 16


@dataclass(frozen=True)
class Sample:
    """What the processes of a job have at one moment. Sizes in MiB."""

    minutes: float
    memory: float
    heap: float
    files: int
    threads: int


UNITS = {"memory": "MiB", "heap": "MiB", "files": "open files", "threads": "threads"}


# ---- from /proc


def family(pid: int) -> list[int]:
    """A process and those that it started, and so on."""
    children = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += [int(word) for word in (task / "children").read_text().split()]
    return [pid, *(process for child in children for process in family(child))]


def take_sample(pid: int, minutes: float) -> Sample:
    """A process that ends meanwhile counts as nothing."""
    totals = dict.fromkeys(("VmRSS", "RssAnon", "Threads", "files"), 0)
    for process in family(pid):
        with contextlib.suppress(OSError):
            totals["files"] += len(os.listdir(f"/proc/{process}/fd"))
            for line in Path(f"/proc/{process}/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in totals:
                    totals[name] += int(value.split()[0])
    memory, heap = (round(totals[name] / 1024, 3) for name in ("VmRSS", "RssAnon"))
    return Sample(round(minutes, 4), memory, heap, totals["files"], totals["Threads"])


# ---- the jobs


@contextlib.contextmanager
def started(words: Sequence[str], log: Path) -> Iterator[subprocess.Popen]:
    """A job, ended with the context."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    with log.open("wb") as out:
        job = subprocess.Popen(command(words), env=environment, stdout=out, stderr=out, cwd=log.parent)
    try:
        yield job
    finally:
        for process in reversed(family(job.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, 9)
        job.wait()


def watch(names: Sequence[str], minutes: float, folder: Path, table: Path) -> dict[str, list[Sample]]:
    """Run the jobs for so many minutes and sample them."""
    pause = max(0.5, 60 * minutes / SAMPLES)
    logs = {name: folder / name / "log.txt" for name in names}
    for log in logs.values():
        log.parent.mkdir()
    commands = {name: JOBS[name](logs[name].parent, 60 * minutes) for name in names}
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    with contextlib.ExitStack() as stack, table.open("w", newline="", buffering=1) as file:
        writer = csv.writer(file)
        writer.writerow(["job", *(field.name for field in fields(Sample))])
        jobs = {name: stack.enter_context(started(commands[name], logs[name])) for name in names}
        began = time.monotonic()
        while (passed := time.monotonic() - began) < 60 * minutes:
            time.sleep(pause - passed % pause)
            for name, job in jobs.items():
                if job.poll() is not None:
                    end = logs[name].read_text(errors="replace")[-2000:]
                    sys.exit(f"{name} ended with status {job.returncode} before its time:\n{end}")
                samples[name].append(take_sample(job.pid, (time.monotonic() - began) / 60))
                writer.writerow([name, *astuple(samples[name][-1])])
    return samples


# ---- the slope


def slope(times: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """(slope, its 95% interval) of the means of BLOCKS stretches of `values` [N] over `times` [N]."""
    from scipy import stats

    if values.min() == values.max():
        return 0.0, 0.0, 0.0
    means = [[part.mean() for part in np.array_split(array, BLOCKS)] for array in (times, values)]
    line = stats.linregress(*means)
    half = stats.t.ppf(0.975, BLOCKS - 2) * line.stderr
    return float(line.slope), float(line.slope - half), float(line.slope + half)


def settled(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.minutes >= WARM_UP * samples[-1].minutes]


def summary(samples: Sequence[Sample]) -> dict[str, dict]:
    """Of each measure: its median at both ends of the time after the warm-up, and its slope an hour."""
    after = settled(samples)
    hours, part, rows = np.array([sample.minutes for sample in after]) / 60, max(1, len(after) // BLOCKS), {}
    for name in UNITS:
        values = np.array([getattr(sample, name) for sample in after], float)
        rise, low, high = slope(hours, values)
        rows[name] = {
            "unit": UNITS[name],
            "first": round(statistics.median(values[:part].tolist()), 3),
            "last": round(statistics.median(values[-part:].tolist()), 3),
            "most": float(values.max()),
            "per_hour": round(rise, 4),
            "interval": [round(low, 4), round(high, 4)],
        }
    return rows


# ---- the picture


def draw(samples: dict[str, list[Sample]], rows: dict[str, dict], caption: str, path: Path) -> None:
    """A column a job: memory above, files and threads below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.8 * len(samples), 5.6), layout="constrained", facecolor="white")
    axes = figure.subplots(2, len(samples), sharex=True, squeeze=False)
    lines = (
        (("memory", "#0072B2", "-"), ("heap", "#D55E00", "-")),
        (("files", "#0072B2", "-"), ("threads", "#D55E00", "--")),
    )
    for (above, below), (name, taken) in zip(axes.T, samples.items(), strict=True):
        minutes = [sample.minutes for sample in taken]
        for axis, drawn in zip((above, below), lines, strict=True):
            for measure, colour, style in drawn:
                row = rows[name][measure]
                low, high = row["interval"]
                label = f"{measure}: {row['per_hour']:+.2f} an hour [{low:+.2f}, {high:+.2f}]"
                axis.plot(minutes, [getattr(s, measure) for s in taken], style, color=colour, lw=1, label=label)
            axis.set_ylim(0, 1.35 * axis.get_ylim()[1])
            axis.axvspan(0, WARM_UP * minutes[-1], color="#dddddd", lw=0)
            axis.legend(frameon=False, fontsize=7, loc="upper right")
        above.set(title=name, ylabel="MiB of the job's processes")
        below.set(xlabel="minutes", ylabel="number")
    figure.supxlabel(caption, fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--work", help="where the jobs write (a folder of its own, removed at the end)")
    parser.add_argument("--output", type=Path, required=True, help="of OUTPUT.json, OUTPUT.csv and OUTPUT.png")
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    about = machine("benchmarks/soak/measure.py", torch.device("cpu")) | {"threads": 1, "minutes": args.minutes}
    with tempfile.TemporaryDirectory(prefix="soak-", dir=args.work) as folder:
        samples = watch(args.jobs, args.minutes, Path(folder), args.output.with_suffix(".csv"))
    rows = {name: summary(taken) for name, taken in samples.items()}
    caption = (
        f"random proteins and weights, seed 0; {args.minutes:g} minutes, one thread a job; grey: warm-up, not in the "
        "slopes\npretraining and finetuning: 2 layers of width 64; embedding: 6 layers of width 320"
    )
    draw(samples, rows, caption, args.output.with_suffix(".png"))
    write_json(args.output.with_suffix(".json"), about | {"warm_up": WARM_UP, "jobs": rows})
    for name, row in rows.items():
        print(f"{name:12}", "; ".join(f"{key} {v['per_hour']:+.2f} {v['interval']} an hour" for key, v in row.items()))


if __name__ == "__main__":
    main()
