"""Temporary files that say whose they are, so that the next process which writes there removes a killed one's.

    temporary_beside(Path("out.h5"))        # .out.h5.<machine>-<process>-<when it was started>.<random>.tmp

What must hold: what a living process of this machine is writing, or one of another machine, is left alone.
"""

import functools
import os
import re
import shutil
import tempfile
import zlib
from pathlib import Path

NAME = re.compile(r"\..*\.([0-9a-f]{8})-([0-9]+)-([0-9]+)\.\w+\.tmp")  # machine, process, start


def _process() -> str:
    """A name for this process that no later one of this machine has."""
    return f"{zlib.crc32(os.uname().nodename.encode()):08x}-{os.getpid()}-{_started(os.getpid())}"


def _started(pid: int) -> str | None:
    """When a process was started, where the system tells (Linux: in ticks since the machine was); None: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "0"


@functools.cache
def sweep(directory: Path) -> None:
    """Remove what killed processes were writing in a directory. Once a process: those that die later leave it to the
    next one."""
    for name in os.listdir(directory):
        left = NAME.fullmatch(name)
        if left and left[1] == _process().partition("-")[0] and _started(int(left[2])) != left[3]:
            remove(directory / name)


def temporary_beside(final: Path, directory: bool = False) -> Path:
    """Make an empty hidden file (or directory) beside `final`."""
    sweep(final.parent.absolute())
    options = {"prefix": f".{final.name[:50]}.{_process()}.", "suffix": ".tmp", "dir": final.parent}
    if directory:
        return Path(tempfile.mkdtemp(**options))
    handle, name = tempfile.mkstemp(**options)
    os.close(handle)
    return Path(name)


def remove(path: Path) -> None:
    """A file, or a directory with all that is in it; what another process removes meanwhile is gone too."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
