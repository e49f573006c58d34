"""A directory that two runs must not share is locked: flock on the directory itself.

    with locked("ckpt", "--save") as directory: ...

There is no lock file, so none is left behind and none refuses a later run; a lock ends with its process, however that
ends. What must hold: a directory that was made for a run which came to nothing is gone again.
"""

import contextlib
import fcntl
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

from proteinlm.errors import InputError
from proteinlm.files import missing_directories, remove_empty

LOCK_SECONDS = 1.0  # in which a killed process is gone
_locks: set[int] = set()  # descriptors of this process


def _let_go() -> None:
    """A lock lives as long as a copy of its descriptor does, and a forked worker may outlive a run that was killed."""
    while _locks:
        os.close(_locks.pop())


os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def locked(directory: str | Path, flag: str, wait: bool = False) -> Iterator[Path]:
    """A `made_directory` that no other process of this machine has locked; InputError, which offers `flag`, where one
    has, or with `wait` its end is waited for. A file system without locks is taken as it is."""
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: a file; should be a directory")
    missing = missing_directories(directory)
    descriptor = _lock(directory, time.monotonic() + LOCK_SECONDS)
    if descriptor is None and not wait:
        raise InputError(f"{directory}: another run is writing here; wait for its end, or give another {flag}")
    if descriptor is None:
        print(f"notice: {directory}: another run is writing here; waiting for its end", flush=True)
        descriptor = _lock(directory, math.inf)
    _locks.add(descriptor)
    try:
        yield directory
    finally:
        remove_empty(missing)  # by whom the lock is held: another run's is empty too when it starts
        _locks.discard(descriptor)
        os.close(descriptor)


def _lock(directory: Path, deadline: float) -> int | None:
    """The descriptor of the locked directory; None where it is still another's at the deadline."""
    while True:
        directory.mkdir(parents=True, exist_ok=True)  # the other may have removed it at its end
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                return None
            time.sleep(0.05)
        except OSError:
            return descriptor
        else:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(directory), os.fstat(descriptor)):
                    return descriptor
        os.close(descriptor)
