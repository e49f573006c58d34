"""Kills, full disks and peers that fall silent, over every command that writes: what `make test-kill KILLS=N` runs.

    python tests/kill_harness.py --kills 1000 --seed 0 [--record benchmarks/results/kills.json]
    python tests/kill_harness.py --kills 20 --only embed_h5 pretrain_pp2 torchrun_dp2

SHARE_OF_TORCHRUN of the kills are of processes under torchrun, which starts them again (tests/kill_torchrun.py), for
these take seconds each; the others are dealt out evenly over the commands and layouts of tests/writing_commands.py
(tests/kill_commands.py). Then each of these has a disk that is full, and one that is read-only (starve_commands.py),
and each layout a process that stops in the middle of a save. The first thing that is not as it should be ends it all.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections import Counter
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=[*COMMANDS, *UNDER_TORCHRUN], metavar="COMMAND")
    parser.add_argument("--no-disks", action="store_true", help="no full disks and silent peers")
    parser.add_argument("--record", type=Path, help="file for what was done, as JSON")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    torch.set_num_threads(1)
    began, names = time.monotonic(), args.only or [*COMMANDS, *UNDER_TORCHRUN]
    killed, starved, silent = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        preload()
        jobs.subprocess = ForkedCommands
        world = make_world(folder / "world")
        for name, kills in deal(args.kills, names).items():
            if kills:
                killed[name] = kill(name, kills, world, folder / "killed" / name, args.seed)
                print(f"{name}: {killed[name]}", flush=True)
        disks = not args.no_disks and starve_commands.can_mount(folder)
        for name in (name for name in names if name in COMMANDS and disks):
            starved[name] = dict(starve_commands.starve(name, world, folder / "disks" / name))
            print(f"{name}: {starved[name]}", flush=True)
        for name in (f"pretrain_{layout}" for layout in LAYOUTS):
            if name in names and not args.no_disks:
                silent[name] = kill_commands.fall_silent(name, world, folder / "silent" / name)
                print(f"{name}: a silent peer is told of after {silent[name]:.1f} s", flush=True)
    total, seconds = sum(row["kills"] for row in killed.values()), round(time.monotonic() - began)
    signals = sum((Counter(row["signals"]) for row in killed.values()), Counter())
    print(f"{total} kills ({dict(signals)}), {len(starved)} commands on small disks, {seconds} s: as it should be")
    if args.record:
        about = machine("tests/kill_harness.py", torch.device("cpu")) | {"seconds": seconds, "kills": total}
        rows = {"killed": killed, "disks": starved, "silent_peer_seconds": silent}
        write_json(args.record, about | {"signals": dict(signals)} | rows)


if __name__ == "__main__":
    main()
