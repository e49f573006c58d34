"""Kills processes of a run under torchrun at random moments, and compares what the run ends with to an undisturbed one.

A run is two processes (gloo, CPU, fp32, dropout on) that save every third iteration, and load what they save. Before
each kill a seeded generator draws the process and the moment: in a step, while a checkpoint is being written, or while
the processes start. torchrun (--max-restarts) starts both again. What must hold: every visible checkpoint loads, after
every kill; weights, Adam's moments and logged losses at the end equal the undisturbed run's bit for bit.

Needs Linux (/proc). Ends every process that it started, also when it fails.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from pretrain.checkpoint import files as checkpoint
from pretrain.data.indexed import IndexedWriter
from proteinlm.tokenizer import build_tokenizer

ROOT = Path(__file__).parent.parent
ITERATIONS, SAVE_INTERVAL = 30, 3
KILLS_A_RUN = 5
RUN_TIMEOUT_S = 300
TINY = [
    *("--num-layers", "2", "--hidden-size", "32", "--num-attention-heads", "4", "--max-position-embeddings", "64"),
    *("--seq-length", "64", "--micro-batch-size", "2", "--global-batch-size", "4", "--lr", "1e-3"),
    *("--hidden-dropout", "0.1", "--attention-dropout", "0.1", "--num-workers", "0", "--device", "cpu"),
    *("--split", "100,0,0", "--log-interval", "1", "--eval-iters", "0", "--train-iters", str(ITERATIONS)),
    *("--save-interval", str(SAVE_INTERVAL), "--distributed-timeout-minutes", "1"),
]
LAYOUTS = {  # name -> flags
    "dp2": [],
    "fsdp2-async-keep3": ["--use-distributed-optimizer", "--async-save", "--keep-last", "3"],
    "tp2-sp": ["--tensor-model-parallel-size", "2", "--sequence-parallel"],
    "pp2": ["--pipeline-model-parallel-size", "2"],
}


def make_corpus(folder: Path) -> list[str]:
    """Flags that name 200 random proteins."""
    prefix = folder / "random_text_document"
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 60, 200)
    with IndexedWriter(prefix) as writer:
        writer.add(rng.choice(build_tokenizer().encode("ACDEFGHIKLMNPQRSTVWY"), lengths.sum()), lengths)
    return ["--data-path", str(prefix)]


# ---- a run and its processes


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@contextlib.contextmanager
def torchrun(flags: list[str], max_restarts: int, log: Path) -> Iterator[subprocess.Popen]:
    """A run of two processes; when the context closes, nothing of it is left."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*start, "--max-restarts", str(max_restarts), "-m", "pretrain", *flags]
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    with log.open("ab") as out:
        job = subprocess.Popen(words, env=environment, stdout=out, stderr=out, cwd=ROOT, start_new_session=True)
    try:
        yield job
    finally:
        ranks = children(job.pid)
        if job.poll() is None:
            job.kill()
        job.wait()
        for pid in filter(is_alive, ranks):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@dataclass
class Killer:
    """Draws whom to kill and when, and waits for that moment."""

    job: subprocess.Popen
    save: Path
    rng: random.Random
    moments: Counter = field(default_factory=Counter)

    def strike(self) -> bool:
        """Kill one process; False where the run ended before the moment came."""
        moment = self.rng.choices(["in a step", "in a save", "at the start"], [45, 40, 15])[0]
        came = self._until(lambda: len(children(self.job.pid)) == 2)
        ranks = children(self.job.pid)
        if came and moment == "at the start":
            time.sleep(self.rng.uniform(0, 4))
        elif came:
            goal = self._saved() + 1
            came = self._until(lambda: self._saved() >= goal)  # so that every life gets further than the last
            if moment == "in a save":
                came = came and self._until(self._is_saving)
                time.sleep(self.rng.uniform(0, 0.03))
            else:
                time.sleep(self.rng.uniform(0, 0.5))
        victims = [pid for pid in ranks if is_alive(pid)]
        if not came or self.job.poll() is not None or len(victims) < 2:
            return False
        os.kill(self.rng.choice(victims), signal.SIGKILL)
        self.moments[moment] += 1
        if not self._until(lambda: not any(is_alive(pid) for pid in ranks)):
            raise AssertionError("the run ended when a process was killed: torchrun did not start it again")
        return True

    def _until(self, condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while self.job.poll() is None:
            if condition():
                return True
            assert time.monotonic() < deadline, f"nothing happened in {RUN_TIMEOUT_S} s"
            time.sleep(0.002)
        return False

    def _saved(self) -> int:
        """How many checkpoints the tracker says were made."""
        tracker = self.save / checkpoint.TRACKER
        return int(tracker.read_text()) // SAVE_INTERVAL if tracker.exists() else 0

    def _is_saving(self) -> bool:
        return any(self.save.glob(".iter_*.tmp"))


# ---- what must hold


def check_visible(save: Path) -> int:
    """Load every checkpoint in sight and the one that the tracker names. Returns how many there are."""
    seen = sorted(save.glob("iter_*"))
    for path in seen:
        for part in ("model", "optimizer", "rng"):
            checkpoint.read_model_tensors(save, int(path.name.removeprefix("iter_")), part)
    if (save / checkpoint.TRACKER).exists():
        checkpoint.read_model_tensors(save)
    return len(seen)


def end_of(save: Path) -> dict:
    """The last checkpoint's tensors, and the loss of every iteration."""
    latest = checkpoint.latest_iteration(save)
    assert latest == ITERATIONS, f"the run ended at iteration {latest}"
    assert json.loads((save / "exit_reason.json").read_text())["reason"] == "completed"
    parts = ("model", "optimizer", "rng")
    tensors = {f"{p} {n}": t for p in parts for n, t in checkpoint.read_model_tensors(save, latest, p).items()}
    lines = map(json.loads, (save / "metrics.jsonl").read_text().splitlines())
    losses = {line["iteration"]: torch.tensor(line["lm_loss"]) for line in lines if "lm_loss" in line}
    assert list(losses) == list(range(1, ITERATIONS + 1)), "every iteration is logged once"
    return {**tensors, **{f"loss of iteration {number}": loss for number, loss in losses.items()}}


def differences(actual: dict, expected: dict) -> list[str]:
    """Names whose tensors are not equal bit for bit."""
    names = sorted(actual.keys() | expected.keys())
    return [n for n in names if n not in actual or n not in expected or not torch.equal(actual[n], expected[n])]


def run_to_the_end(flags: list[str], save: Path, kills: int, rng: random.Random) -> Counter:
    """One run with at most `kills` kills. Returns how many came at which moment."""
    save.mkdir(parents=True)
    log = save.parent / f"{save.name}.log"
    try:
        with torchrun([*flags, "--save", str(save), "--load", str(save)], kills, log) as job:
            killer = Killer(job, save, rng)
            while killer.moments.total() < kills and killer.strike():
                check_visible(save)
            assert job.wait(RUN_TIMEOUT_S) == 0, f"torchrun ended with {job.returncode}"
    except BaseException:
        print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
        raise
    check_visible(save)
    return killer.moments


def kill_and_compare(layout: str, kills: int, folder: Path, seed: int) -> Counter:
    """Runs of a layout until `kills` processes were killed, each run compared with an undisturbed one."""
    flags = [*TINY, *make_corpus(folder), *LAYOUTS[layout]]
    rng = random.Random(f"{seed} {layout}")
    run_to_the_end(flags, folder / "undisturbed", 0, rng)
    honest, moments = end_of(folder / "undisturbed"), Counter()
    for number in range(10 * kills):
        if moments.total() == kills:
            break
        save = folder / f"killed_{number}"
        came = run_to_the_end(flags, save, min(KILLS_A_RUN, kills - moments.total()), rng)
        different = differences(end_of(save), honest)
        assert not different, f"{layout}: {len(different)} tensors differ, {different[:3]} among them"
        moments += came
        print(f"{layout}: killed {came.total()} times, equal bit for bit: {dict(came)}", flush=True)
    return moments
