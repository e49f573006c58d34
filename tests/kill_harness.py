"""Kills, full disks and peers that fall silent, over every command that writes: what `make test-kill KILLS=N` runs.

    python tests/kill_harness.py --kills 1000 --seed 0 [--record benchmarks/results/kills.json]
    python tests/kill_harness.py --kills 20 --only embed_h5 pretrain_pp2 torchrun_dp2

SHARE_OF_TORCHRUN of the kills are of processes under torchrun, which starts them again (tests/kill_torchrun.py), for
these take seconds each; the others are dealt out evenly over the commands and layouts of tests/writing_commands.py
(tests/kill_commands.py). Then each of these has a disk that is full, and one that is read-only (starve_commands.py),
and each layout a process that stops in the middle of a save. A command with which something is not as it should be is
told at once and at the end (status 1); the others go on.

Commands that the records of --resume have are not tried again: of a call that was cut off, or of calls that had some of
the commands each (--only, with as many kills as these get of the whole: then they are the same ones). A row names the
commit that was run.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks/ is not installed
os.environ.setdefault("OMP_NUM_THREADS", "1")

import kill_commands
import kill_torchrun
import starve_commands
import torch
from writing_commands import COMMANDS, LAYOUTS, ForkedCommands, make_world, preload

from benchmarks.comparison import machine
from proteinlm.files import write_json
from tape.runs import jobs

SHARE_OF_TORCHRUN = 0.05
UNDER_TORCHRUN = {f"torchrun_{name}": name for name in kill_torchrun.LAYOUTS}


def deal(kills: int, names: list[str]) -> dict[str, int]:
    """How many each gets."""
    launched = [name for name in names if name in UNDER_TORCHRUN]
    others = [name for name in names if name not in UNDER_TORCHRUN]
    number = round(kills * SHARE_OF_TORCHRUN) if others else kills
    shares = {name: (number + i) // len(launched) for i, name in enumerate(launched)}
    rest = kills - sum(shares.values())
    return {name: (rest + i) // len(others) for i, name in enumerate(others)} | shares


def kill(name: str, kills: int, world, folder: Path, seed: int) -> dict:
    """What was done to one command, as JSON has it."""
    if name in UNDER_TORCHRUN:
        moments = kill_torchrun.kill_and_compare(UNDER_TORCHRUN[name], kills, folder, seed)
        return {"kills": moments.total(), "signals": {"SIGKILL": moments.total()}, "moments": dict(moments)}
    tally = kill_commands.kill_and_compare(name, kills, world, folder, seed)
    return {"kills": tally.kills} | {key: dict(sorted(value.items())) for key, value in vars(tally).items()}


def starve(name: str, world, folder: Path) -> dict:
    return dict(starve_commands.starve(name, world, folder))


def fall_silent(name: str, world, folder: Path) -> dict:
    return {"told_after_seconds": round(kill_commands.fall_silent(name, world, folder), 1)}


def works(args: argparse.Namespace, world, folder: Path) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """(part of the record, command, what makes its row) of all that is to be done."""
    names = args.only or [*COMMANDS, *UNDER_TORCHRUN]
    for name, kills in deal(args.kills, names).items():
        if kills:
            yield "killed", name, partial(kill, name, kills, world, folder / "killed" / name, args.seed)
    if not args.no_disks and starve_commands.can_mount(folder):
        for name in (name for name in names if name in COMMANDS):
            yield "disks", name, partial(starve, name, world, folder / "disks" / name)
    for name in (f"pretrain_{layout}" for layout in LAYOUTS):
        if name in names and not args.no_disks:
            work = partial(fall_silent, name, world, folder / "silent" / name)
            yield "silent_peers", name, work


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=[*COMMANDS, *UNDER_TORCHRUN], metavar="COMMAND")
    parser.add_argument("--no-disks", action="store_true", help="no full disks and silent peers")
    parser.add_argument("--record", type=Path, help="file for what was done, as JSON, written after each command")
    parser.add_argument("--resume", nargs="+", type=Path, default=[], help="records whose commands are done")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    torch.set_num_threads(1)
    about, failed = machine("tests/kill_harness.py", torch.device("cpu")), []
    parts, began = {"killed": {}, "disks": {}, "silent_peers": {}}, time.monotonic()
    for done in (json.loads(path.read_text()) for path in args.resume):
        parts = {part: rows | done[part] for part, rows in parts.items()}
        began -= done["seconds"]

    def record() -> None:
        if args.record:
            write_json(args.record, about | {"seconds": round(time.monotonic() - began)} | totals(parts) | parts)

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        preload()
        jobs.subprocess = ForkedCommands
        for part, name, work in works(args, make_world(folder / "world"), folder):
            if name in parts[part]:
                continue
            try:
                parts[part][name] = work() | {"commit": about["commit"]}
            except AssertionError as error:
                failed.append(f"{name} ({part})")
                print(f"NOT as it should be: {failed[-1]}: {error}", flush=True)
                continue
            print(f"{name} ({part}): {parts[part][name]}", flush=True)
            record()
    record()
    print(f"{totals(parts)}, {len(parts['disks'])} commands on small disks, {time.monotonic() - began:.0f} s: ", end="")
    print(f"NOT as it should be: {', '.join(failed)}" if failed else "as it should be")
    return bool(failed)


def totals(parts: dict[str, dict]) -> dict:
    signals = sum((Counter(row["signals"]) for row in parts["killed"].values()), Counter())
    return {"kills": signals.total(), "signals": dict(signals)}


if __name__ == "__main__":
    sys.exit(main())
