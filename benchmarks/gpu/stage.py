"""What the stages of gpu.sh share: their flags, their time, and JSON that is there after every row."""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.comparison import ROOT, machine
from proteinlm.errors import ArgumentParser
from proteinlm.files import write_json


def parser(doc: str) -> ArgumentParser:
    """OUT, --minutes, --device, --rehearse."""
    flags = ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("out", type=Path, help="folder of the results")
    flags.add_argument("--minutes", type=float, default=8.5, help="what does not fit is left out, and named (8.5)")
    flags.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    flags.add_argument("--rehearse", action="store_true", help="tiny shapes, on a CPU")
    return flags


GRACE = 15  # seconds after a stage's minutes in which it may end by itself


class Stage:
    """One stage's result, OUT/<name>.json, written whole after everything that is added to it."""

    def __init__(self, name: str, args: argparse.Namespace):
        self.path, self.ends = args.out / f"{name}.json", time.monotonic() + 60 * args.minutes
        self.began, self.name, self.args = time.monotonic(), name, args
        args.out.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGALRM, self._stop)
        signal.setitimer(signal.ITIMER_REAL, 60 * args.minutes + GRACE)
        self.result = {"stage": name, "rehearsal": args.rehearse, "not_run": []}
        self.result |= machine(f"benchmarks/gpu/{Path(sys.argv[0]).name}", torch.device(args.device))
        self.write()

    def _stop(self, *_: object) -> None:
        """What is in the file stays; nothing else ends a call that hangs in a library."""
        print(f"{self.name}: stopped, {GRACE} s after its minutes", file=sys.stderr, flush=True)
        os._exit(1)

    def seconds_left(self) -> float:
        return self.ends - time.monotonic()

    def has(self, seconds: float, what: str) -> bool:
        """Whether so much time is left; if not, `what` is noted as not run."""
        if self.seconds_left() >= seconds:
            return True
        self.skip(what, f"{max(0.0, self.seconds_left()):.0f} s were left, it needs {seconds:.0f}")
        return False

    def skip(self, what: str, why: str) -> None:
        print(f"{self.name}: {what} not run: {why}", flush=True)
        self.result["not_run"].append({"what": what, "why": why})
        self.write()

    def add(self, **values: object) -> None:
        self.result |= values
        self.write()

    def write(self) -> None:
        self.result["stage_seconds"] = round(time.monotonic() - self.began, 1)
        write_json(self.path, self.result)

    def run(self, *words: object, least: float = 20.0) -> subprocess.CompletedProcess | None:
        """A command of this project in the time left, its output shown; None (and noted) if it had too little."""
        line = [sys.executable, *map(str, words)]
        what = " ".join(line[1:])
        if not self.has(least, what):
            return None
        print(f"$ python {what}", flush=True)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        with subprocess.Popen(line, cwd=ROOT, **pipes) as process:
            try:
                text, _ = process.communicate(timeout=self.seconds_left())
            except subprocess.TimeoutExpired:
                stop_all(process)
                self.skip(what, "it took longer than the stage had")
                return None
        print(text[-4000:], flush=True)
        if process.returncode:
            self.skip(what, f"status {process.returncode}: {last_line(text)}")
        return subprocess.CompletedProcess(line, process.returncode, text)


def stop_all(process: subprocess.Popen) -> None:
    """A command and what it has started, which have a process group of their own: politely, then not."""
    for sign, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, None)):
        os.killpg(process.pid, sign)
        try:
            process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            continue
        return


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")[:300]


def words_of(text: str | None) -> Sequence[str]:
    """The words of a flag that holds several."""
    return text.split() if text else ()
