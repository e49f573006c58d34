"""Every writing command on a disk that is full, or read-only: `starve("embed_h5", world, folder)`.

What must hold: status 2 and one line that names a file in the working directory and says why; nothing partial under a
final name, nothing hidden left but what the work goes on with; and with room again the same command ends with the files
of an undisturbed run. The disk is a tmpfs (tests/small_disk.py), so nothing of the system itself is stood in for.
"""

import os
import re
import traceback
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

from kill_commands import Undisturbed, check_visible, differences, files_of, is_hidden, undisturbed, values_of
from small_disk import SmallDisk
from writing_commands import COMMANDS, Command, end_of, make_place, run_forked

PAGE = 4096
SHARES = (0.0, 0.4, 0.85)  # of what the files of an undisturbed run take
FULL, READ_ONLY = "no space left on device", "read-only file system"
# The last two are of checks that look at the disk before the work.
LINES = {
    FULL: rf"error: (\S+): (.*{FULL}|.* are free; .*)",
    READ_ONLY: rf"error: (\S+): (.*{READ_ONLY}|.* is not writable)",
}


def can_mount(folder: Path) -> bool:
    """Whether this system lets a test have a disk of its own."""
    pid = os.fork()
    if not pid:
        try:
            SmallDisk(folder / "probe", 1 << 16)
            os._exit(0)
        except OSError:
            os._exit(1)
    return end_of(pid) == 0


def complaint(status: int, text: str, why: str) -> str:
    """What is wrong with how a command told that it could not write; "" for nothing."""
    lines = text.splitlines()
    said = [line for line in lines if line.startswith("error: ")]
    first = [line for line in said if not line.startswith("error: process")]  # under torchrun it ends the others
    said = list(dict.fromkeys(first or [re.sub("process [0-9]+: ", "", line) for line in said]))
    if status != 2 or "Traceback" in text or "Exception ignored" in text:
        return f"status {status}"
    said = [re.sub(r" \(\d+ of \d+ runs of .* are not done; \S+table\.md names them\)$", "", line) for line in said]
    match = re.fullmatch(LINES[why], said[0], re.IGNORECASE) if len(said) == 1 else None
    if match is None:
        return f"lines {said}"
    hidden = any(part.startswith(".") and part.endswith(".tmp") for part in Path(match[1]).parts)
    return f"a hidden file is named: {said[0]}" if hidden else ""


def size_of(cwd: Path) -> int:
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in files_of(cwd).values())


def starve(name: str, world: SimpleNamespace, folder: Path, shares: tuple[float, ...] = SHARES) -> Counter:
    """A command on such disks; how often it failed as it should and how often there was room enough."""
    command, honest = COMMANDS[name], undisturbed(COMMANDS[name], world, folder / "undisturbed")
    size, outcomes = size_of(folder / "undisturbed"), Counter()
    for why, share in [*((FULL, share) for share in shares), (READ_ONLY, 0.0)]:
        place = folder / f"{why.split()[0]}_{share}"
        done, told = os.pipe()
        pid = os.fork()
        if not pid:
            os._exit(_on_a_small_disk(command, world, place, honest, why, int(share * size), told))
        os.close(told)
        with os.fdopen(done) as pipe:
            outcome = pipe.read()
        status = end_of(pid)
        assert status == 0, f"{name}, {why}, {share:.0%} of {size:,} bytes free: {outcome}"
        outcomes[outcome] += 1
    return outcomes


def _on_a_small_disk(
    command: Command, world: SimpleNamespace, place: Path, honest: Undisturbed, why: str, free: int, told: int
) -> int:
    """In a child: fail, then go on. Writes how it went to the pipe; 0 for as it should."""
    try:
        disk = SmallDisk(place, 64 << 20)
        cwd = make_place(command, world, place / "cwd")
        if why == FULL:
            disk.leave(free)
        else:
            disk.read_only(True)
        status, text = run_forked(command, world, cwd, log=place.with_name(f"{place.name}.log"))
        outcome = "room enough"
        if status != 0:
            wrong = complaint(status, text, why)
            assert not wrong, f"{wrong}\n{text[-2500:]}"
            check_visible(cwd, command, honest)
            left = [path for path in files_of(cwd) if path.endswith(".tmp")]
            assert not left, f"left: {left}"
            outcome = why
        disk.read_only(False)
        disk.leave(None)
        if status != 0:
            status, text = run_forked(command, world, cwd, again=True, log=place.with_name(f"{place.name}.log"))
        assert status == 0, f"with room again: status {status}\n{text[-2500:]}"
        different = differences(values_of(cwd, command), honest.files, command)
        left = [path for path in files_of(cwd) if is_hidden(path)]
        assert not different and not left, f"different at the end: {different[:5]}; left: {left[:5]}"
        os.write(told, outcome.encode())
        return 0
    except BaseException as error:
        os.write(told, (str(error) if isinstance(error, AssertionError) else traceback.format_exc())[-3500:].encode())
        return 1
