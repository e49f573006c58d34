"""Temporary files that say whose they are, so that the next process which writes the same removes a killed one's.

    temporary_beside(Path("out.h5"))        # .out.h5.<machine>-<process>-<when it was started>.<random>.tmp

What must hold: what a living process of this machine is writing, or one of another machine, is left alone.
"""

import os
import re
import shutil
import tempfile
import zlib
from pathlib import Path


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


def temporary_beside(final: Path, directory: bool = False) -> Path:
    """Make an empty hidden file (or directory) beside `final`, and remove those that killed processes left there."""
    beginning, own = f".{final.name[:50]}.", _process()
    machine = own.partition("-")[0]
    for name in os.listdir(final.parent):
        if name.startswith(beginning + machine):
            left = re.fullmatch(r"-([0-9]+)-([0-9]+)\.\w+\.tmp", name.removeprefix(beginning + machine))
            if left and _started(int(left[1])) != left[2]:
                remove(final.parent / name)
    options = {"prefix": f"{beginning}{own}.", "suffix": ".tmp", "dir": final.parent}
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
