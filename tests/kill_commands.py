"""Kills every writing command at random moments and goes on with it: `kill_and_compare("embed_h5", 20, ...)`.

A moment is a share of the command's CPU time, or one of the times that it is about to touch a file (opened for writing,
renamed, removed, a directory made: Python's audit events), where a random time would seldom fall. What must hold, after
each kill: what is there under a final name can be read and, but for files that grow, is what an undisturbed run has
there. At the end: the same command ends with status 0, with the files of the undisturbed run, their contents equal, and
no other, hidden ones included.
"""

import contextlib
import fnmatch
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from writing_commands import COMMANDS, Command, end_of, log_of, make_place, start_forked

from pretrain.checkpoint import files as checkpoint
from pretrain.data.indexed import IndexedDataset
from proteinlm.untrusted.array_files import SEAL, read_kept
from proteinlm.untrusted.safe_load import safe_torch_load

KILLS_A_RUN = 4
SILENT_SECONDS = 6  # that a peer is waited for
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM}
# What differs between two undisturbed runs, or between one that went on and one that did not.
VOLATILE = re.compile(
    r".*(seconds|minutes|per_second|_at|memory).*|command|resumed?|train_command|eval_commands|warnings"
)
OF_A_SAVE = ("previous", "files")  # keys of a checkpoint's meta.json: a run that was asked to stop has saved once more
TOUCHES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}


# ---- a moment


def count_touches(folder: Path, act: Callable[[int, str], None]) -> None:
    """From now on in this process: act(n, path) before the n-th time (from 0) that a path in the folder is touched."""
    count, inside = 0, str(folder)

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event == "open":
            touches = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            touches = event in TOUCHES
        named = touches and isinstance(arguments[0], str | os.PathLike)
        if named and (path := os.path.abspath(arguments[0])).startswith(inside):
            act(count, path)
            count += 1

    sys.addaudithook(hook)


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def cpu_seconds(pid: int) -> float:
    """Of a process and all that it has started."""
    with contextlib.suppress(OSError):
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK") + sum(map(cpu_seconds, children(pid)))
    return 0.0


@dataclass
class Undisturbed:
    """A run to its end, its files as values, the CPU seconds and touches that it took."""

    files: dict[str, object]
    seconds: float
    touches: Counter  # of each process


@dataclass
class Tally:
    """What was done to a command."""

    moments: Counter = field(default_factory=Counter)
    signals: Counter = field(default_factory=Counter)
    outcomes: Counter = field(default_factory=Counter)

    @property
    def kills(self) -> int:
        return self.moments.total()


# ---- what is there


def files_of(cwd: Path) -> dict[str, Path]:
    return {str(path.relative_to(cwd)): path for path in sorted(cwd.rglob("*")) if not path.is_dir()}


def is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in Path(name).parts if part != ".metadata") or ".parts/" in name


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def plain(value: object) -> object:
    """A value that == compares, without times."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items() if not VOLATILE.fullmatch(str(k))}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, torch.Tensor):
        return plain(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    if isinstance(value, np.ndarray):
        return repr(value.tolist()) if value.dtype == object else (value.shape, value.tobytes())
    return value if value == value else None  # NaN


def read_value(path: Path) -> object:
    """What a file holds, in a form that two runs have in common; an error for one that is not whole."""
    data = path.read_bytes()
    if path.suffix == ".json":
        value = plain(json.loads(data))
        return {k: v for k, v in value.items() if k not in OF_A_SAVE} if path.name == checkpoint.META else value
    if path.suffix == ".jsonl":
        return [plain(json.loads(line)) for line in data.decode().splitlines()]
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=True) as stored:
            arrays = read_kept(path) if SEAL in stored.files else {n: stored[n] for n in stored.files}
        return {n: plain(array[:3] if n == "outcome" else array) for n, array in arrays.items()}
    if path.suffix in (".pt", ".training") or path.name == "pytorch_model.bin":
        return plain(safe_torch_load(path))
    if path.suffix == ".distcp" or path.name in (".metadata", "log.txt"):
        return None  # a checkpoint is read as a whole; a log has the lines of every life
    if path.suffix in (".html", ".svg", ".md", ".csv", ".tsv", ".txt", ".yaml") and path.name != checkpoint.TRACKER:
        assert data.rstrip(b"\n") != data, f"{path}: ends without a line's end"
        return re.sub(rb"[0-9.]+ (s|min|minutes|seconds)\b", b"", data)
    if path.suffix == ".h5":
        import h5py

        with h5py.File(path) as file:
            file.visititems(lambda _, entry: entry[()] if isinstance(entry, h5py.Dataset) else None)
    if path.suffix == ".idx":
        IndexedDataset(path)
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            assert [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    return data


def values_of(cwd: Path, command: Command) -> dict[str, object]:
    """Every file's value but those of passing files, and every checkpoint's tensors."""
    files = {name: path for name, path in files_of(cwd).items() if not matches(name, command.passing)}
    values = {name: read_value(path) for name, path in files.items() if not is_hidden(name)}
    for meta in cwd.rglob(f"iter_*/{checkpoint.META}"):
        if is_hidden(str(meta.relative_to(cwd))):
            continue
        iteration = int(meta.parent.name.removeprefix("iter_"))
        for part in ("model", "optimizer", "rng")[: 3 if (meta.parent.parent / "metrics.jsonl").exists() else 1]:
            tensors = checkpoint.read_model_tensors(meta.parent.parent, iteration, part)
            values[f"{meta.parent.relative_to(cwd)}/{part}"] = plain(tensors)
    return values


def differences(actual: dict, expected: dict, command: Command) -> list[str]:
    """Names of what is missing, too much, or different at the end."""
    names = sorted(name for name in actual.keys() | expected.keys() if not matches(name, command.passing))
    return [n for n in names if n not in actual or n not in expected or actual[n] != expected[n]]


def check_visible(cwd: Path, command: Command, honest: Undisturbed) -> None:
    """Nothing partial under a final name."""
    for name, value in values_of(cwd, command).items():
        if not matches(name, command.grows):
            assert name in honest.files, f"{name}: no undisturbed run has it"
            assert value == honest.files[name], f"{name}: not what an undisturbed run has there"


# ---- a run


def undisturbed(command: Command, world: SimpleNamespace, cwd: Path) -> Undisturbed:
    counts, write = os.pipe()
    pid = start_forked(
        command, world, make_place(command, world, cwd),
        before=lambda rank: count_touches(cwd, lambda *_: os.write(write, bytes([rank]))),
    )  # fmt: skip
    os.close(write)
    with os.fdopen(counts, "rb") as pipe:
        touches = Counter(pipe.read())
    _, status, used = os.wait4(pid, 0)
    assert status == 0, f"undisturbed: status {status}\n{log_of(cwd).read_text()[-3000:]}"
    return Undisturbed(values_of(cwd, command), used.ru_utime + used.ru_stime, touches)


def strike(
    command: Command, world, cwd: Path, honest: Undisturbed, rng: random.Random, again: bool, tally: Tally
) -> bool:
    """Start the command and kill it, or one of its processes; False where it ended before the moment came."""
    name, victim = rng.choice(list(SIGNALS)), rng.randrange(command.processes)
    number = SIGNALS[name]
    if at_a_touch := rng.random() < 0.5:
        target = rng.randrange(max(1, honest.touches[victim]))

        def before(rank: int) -> None:
            if rank == victim:
                count_touches(cwd, lambda count, _: count == target and os.kill(os.getpid(), number))

        pid = start_forked(command, world, cwd, again, before)
    else:
        pid, moment = start_forked(command, world, cwd, again), rng.uniform(0, honest.seconds)
        while cpu_seconds(pid) < moment and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            ranks = children(pid) if command.processes > 1 else [pid]
            os.kill(ranks[victim] if victim < len(ranks) else pid, number)
    status = end_of(pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what it had started
    said = log_of(cwd).read_text(errors="replace") if log_of(cwd).exists() else ""
    if status == -number:
        outcome = "died"
    elif status == 0 and name == "SIGTERM" and "preempted" in said:
        outcome = "saved and left"
    elif status == 2 and f"ended with status {-number}" in said:
        outcome = "said that its child had died"
    else:
        assert status == 0 or (status == 2 and "exists" in said), f"status {status}\n{said[-3000:]}"
        return False
    tally.moments["about to touch a file" if at_a_touch else "at a time"] += 1
    tally.signals[name] += 1
    tally.outcomes[outcome] += 1
    return True


def kill_and_compare(name: str, kills: int, world: SimpleNamespace, folder: Path, seed: int) -> Tally:
    """Runs of a command until so many were killed, each gone on with to its end and compared."""
    command, rng, tally = COMMANDS[name], random.Random(f"{seed} {name}"), Tally()
    honest = undisturbed(command, world, folder / "undisturbed")
    for run in range(20 * kills):
        if tally.kills >= kills:
            break
        cwd, again = make_place(command, world, folder / f"killed_{run}"), False
        try:
            for _ in range(min(KILLS_A_RUN, kills - tally.kills)):
                struck, again = strike(command, world, cwd, honest, rng, again, tally), True
                if not struck:
                    break
                check_visible(cwd, command, honest)
            status = end_of(start_forked(command, world, cwd, again))
            said = log_of(cwd).read_text(errors="replace")
            # One that refuses to replace its result may have been killed after the last thing it does.
            assert status == 0 or (status == 2 and "exists" in said), f"status {status}\n{said[-3000:]}"
            different = differences(values_of(cwd, command), honest.files, command)
            assert not different, f"different at the end: {different[:5]}"
            left = [path for path in files_of(cwd) if is_hidden(path)]
            assert not left, f"left at the end: {left[:5]}"
        except AssertionError as error:
            raise AssertionError(f"{name}, {cwd}: {error}") from error
        tally.outcomes["equal at the end"] += 1
        shutil.rmtree(cwd)
    return tally


def fall_silent(name: str, world: SimpleNamespace, folder: Path) -> float:
    """Of two processes one stops in the middle of its second save (SIGSTOP): the other one ends with a line, the first
    checkpoint is whole, and the run goes on. Returns the seconds until that line."""
    flags = ("--distributed-timeout-minutes", str(SILENT_SECONDS / 60))
    command, honest = COMMANDS[name], undisturbed(COMMANDS[name], world, folder / "undisturbed")
    hasty = replace(command, words=lambda w: (*command.words(w), *flags))
    cwd, stopped = make_place(command, world, folder / "silent"), []

    def stop(_: int, path: str) -> None:
        if ".iter_0000004.tmp" in path and not stopped:
            stopped.append(path)
            os.kill(os.getpid(), signal.SIGSTOP)

    began = time.monotonic()
    pid = start_forked(hasty, world, cwd, before=lambda rank: rank == 1 and count_touches(cwd, stop))
    status, said = end_of(pid), log_of(cwd).read_text()
    seconds = time.monotonic() - began
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert status == 2 and "Traceback" not in said, f"{name}: status {status}\n{said[-3000:]}"
    assert len(lines) == 1 and "does not answer" in lines[0], f"{name}: {lines}"
    assert seconds < SILENT_SECONDS + 60, f"{name}: told of after {seconds:.0f} s"
    check_visible(cwd, command, honest)
    assert checkpoint.latest_iteration(cwd / "out") == 2
    assert end_of(start_forked(command, world, cwd, again=True)) == 0, log_of(cwd).read_text()[-3000:]
    different = differences(values_of(cwd, command), honest.files, command)
    assert not different, f"{name}: different at the end: {different[:5]}"
    return seconds
