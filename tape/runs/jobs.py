"""Runs in processes of their own: `call` for one command, Job and `run_jobs` for tape-train and tape-eval of each.

A job's directory also holds RECORD (its commands, weights and minutes) and log.txt (what they printed). What must hold:
a job that is done is not run again, one that was cut off goes on from its last saved state, and a directory of another
command or of other weights is refused.
"""

import contextlib
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from proteinlm.errors import EXIT_INTERRUPTED, EXIT_USAGE, InputError
from proteinlm.files import made_directory, write_json, writing
from proteinlm.running.leftovers import sweep
from proteinlm.untrusted.json_files import read_json
from proteinlm.untrusted.shapes import NUMBER

RECORD = "reproduce.json"
# What is in it, the optional once that part is done.
SHAPE = {"train_command": str, "source": str, "resumed?": bool, "recipe?": dict}
SHAPE |= {"eval_commands?": [str], "train_minutes?": NUMBER, "eval_minutes?": NUMBER}


_running: set[subprocess.Popen] = set()  # what `call` waits for, in whichever thread


def call(module: str, words: Sequence[str], log: Path) -> float:
    """Run one of the commands to its end, its output at the end of `log`; minutes. InputError if it fails; of one that
    was refused no log stays. KeyboardInterrupt if it was interrupted."""
    begin, first = time.perf_counter(), not log.exists()
    with made_directory(log.parent):
        with writing(log), log.open("a", encoding="utf-8") as file:
            file.write(f"$ python -m {module} {shlex.join(words)}\n")
        with log.open("a", encoding="utf-8") as file:
            status = _status([sys.executable, "-m", module, *words], file)
        if status == EXIT_INTERRUPTED:
            raise KeyboardInterrupt
        if status != 0:
            last, where = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1], log
            if first and status == EXIT_USAGE:
                log.unlink()
                where = log.parent
            raise InputError(f"{where}: {module} ended with status {status}: {last}")
    return (time.perf_counter() - begin) / 60


def _status(command: list[str], output: object) -> int:
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    _running.add(process)
    try:
        return process.wait()
    finally:
        _running.discard(process)


@contextlib.contextmanager
def side_by_side(number: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for as many jobs. After an error the jobs that wait are called off; after Ctrl-C those that run, too."""
    with ThreadPoolExecutor(number) as pool:
        try:
            yield pool
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(_running) if isinstance(error, KeyboardInterrupt) else ():
                process.send_signal(signal.SIGINT)
            raise


@dataclass(frozen=True)
class Arm:
    """Where a run's weights come from."""

    name: str
    model_type: str
    flags: tuple[str, ...]  # --from_pretrained ... or --model_config_file ...
    source: str = ""  # sha256 of the weights or of the shape that the runs start from


@dataclass(frozen=True)
class Job:
    """One run: train, then score."""

    arm: Arm
    task: str
    seed: int
    directory: Path
    recipe: Mapping[str, object]
    train: tuple[str, ...]  # the words after `python -m tape.train`
    evaluate: tuple[str, ...]  # those after `python -m tape.evaluate`; --split comes last
    splits: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.arm.name} {self.task} seed {self.seed}"

    @property
    def train_command(self) -> str:
        return f"python -m tape.train {shlex.join(self.train)}"

    def missing(self) -> list[str]:
        """Splits that have not been scored yet."""
        paths = {split: self.directory / f"{self.task}-{split}" for split in self.splits}
        return [s for s, p in paths.items() if not (p.with_suffix(".json").exists() and p.with_suffix(".npz").exists())]

    def record(self) -> dict:
        """The content of RECORD, {} where there is none. InputError where it is damaged or another run's than this."""
        path = self.directory / RECORD
        if not path.exists():
            return {}
        record = read_json(path, "what tape.reproduce wrote", SHAPE)
        try:
            actual = (_identity(record["train_command"], self.arm), record["source"])
        except ValueError as error:  # an open quote
            raise InputError(f"{path}: key 'train_command' is no command line ({error})") from None
        if actual != (_identity(self.train_command, self.arm), self.arm.source):
            raise InputError(
                f"{self.directory}: trained by another command or from other weights ({record['train_command']}); "
                "remove it or give another OUT"
            )
        return record


def _identity(command: str, arm: Arm) -> list[str]:
    """A command's words but for those that change nothing in a run: where it reads, writes and computes, and in which
    order its flags stand.

    Nor does it matter where the arm's weights or shape lie: `source` says which they are.
    """
    words = shlex.split(command)
    for flag in ("--data_dir", "--device", "--output_dir", *arm.flags[:1]):
        if flag in words:
            place = words.index(flag)
            del words[place : place + 2]
    return sorted("\0".join(words).split("\0--"))


def run_job(job: Job) -> str:
    """Train and score what is not done yet; returns what was done, in words."""
    with made_directory(job.directory):
        try:
            return _run_job(job)
        except BaseException:
            if not (job.directory / "args.json").exists():  # nothing was begun
                (job.directory / RECORD).unlink(missing_ok=True)
            raise


def _run_job(job: Job) -> str:
    path, log, record, done = job.directory / RECORD, job.directory / "log.txt", job.record(), []
    with writing(path):
        sweep(job.directory.absolute())  # what is done writes nothing more
    if "train_minutes" not in record:
        resume = (job.directory / "args.json").exists()
        resumed = resume or record.get("resumed", False)
        record |= {"train_command": job.train_command, "source": job.arm.source, "resumed": resumed}
        write_json(path, record)
        minutes = call("tape.train", [*job.train, *(["--resume"] if resume else [])], log)
        record |= {"train_minutes": minutes, "recipe": dict(job.recipe)}
        write_json(path, record)
        done.append(f"trained in {minutes:.1f} min")
    missing = job.missing()
    if missing:
        words = [*job.evaluate, "--split", *missing]
        commands = [*record.get("eval_commands", []), f"python -m tape.evaluate {shlex.join(words)}"]
        record["eval_commands"] = list(dict.fromkeys(commands))  # noted first: a kill may come when all is scored
        write_json(path, record)
        minutes = call("tape.evaluate", words, log)
        write_json(path, record | {"eval_minutes": record.get("eval_minutes", 0.0) + minutes})
        done.append(f"scored {', '.join(missing)} in {minutes:.1f} min")
    return "; ".join(done) or "was done"


def other_runs(jobs: Sequence[Job]) -> dict[str, str]:
    """Name -> why, of the jobs whose directory holds another run's numbers."""
    problems = {}
    for job in jobs:
        try:
            job.record()
        except InputError as error:
            problems[job.name] = str(error)
    return problems


def run_jobs(jobs: Sequence[Job], number: int) -> dict[str, str]:
    """Run the jobs, `number` at a time; returns what failed: name -> why. One line a job on stdout."""
    failed: dict[str, str] = {}
    lock, finished = threading.Lock(), []

    def one(job: Job) -> None:
        try:
            outcome = run_job(job)
        except (InputError, OSError) as error:
            outcome = f"FAILED: {error}"
            failed[job.name] = str(error)
        with lock:
            finished.append(job)
            print(f"[{len(finished)}/{len(jobs)}] {job.name}: {outcome}", flush=True)

    with side_by_side(number) as pool:
        list(pool.map(one, jobs))
    return failed
