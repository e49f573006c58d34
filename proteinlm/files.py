"""Files that appear whole or not at all, and the directories that hold them: none is left by work that came to nothing.

A file is written under a temporary name beside the target, synced, renamed. A directory that two runs must not share
is locked itself (flock on the directory): there is no lock file to leave behind, and a lock ends with its process.
"""

import contextlib
import fcntl
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from proteinlm.errors import InputError


def fsync_path(path: Path) -> None:
    """Flush a file's or a directory's contents to disk, so that a rename after it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: Path) -> None:
    """InputError where a file `path`, and the directories above it that are not there yet, could not be made."""
    if Path(path).is_dir():
        raise InputError(f"{path}: a directory; the output is a file")
    parent = next(above for above in Path(path).absolute().parents if above.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        reason = "not writable" if parent.is_dir() else "not a directory"
        raise InputError(f"{path}: cannot be made, {parent} is {reason}")


@contextlib.contextmanager
def made_directory(path: str | Path) -> Iterator[Path]:
    """`path` as a directory, made with those above it where they are missing; of these what is empty at the end goes
    again, so that only work which wrote something leaves a directory."""
    path = Path(path)
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield path
    finally:
        for directory in missing:
            with contextlib.suppress(OSError):  # not empty, or never made
                directory.rmdir()


LOCK_SECONDS = 1.0  # in which a killed process is gone
_locks: set[int] = set()  # descriptors of this process
# A lock lives as long as any copy of its descriptor; a forked worker that outlives a killed run must not hold it.
os.register_at_fork(after_in_child=lambda: [os.close(descriptor) for descriptor in _locks])


@contextlib.contextmanager
def locked(directory: str | Path, flag: str, wait: bool = False) -> Iterator[Path]:
    """`made_directory` that no other process of this machine has locked; InputError, which offers `flag`, where one
    has, or with `wait` its end is waited for. A file system without locks is taken as it is."""
    with made_directory(directory) as directory:
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
            _locks.discard(descriptor)
            os.close(descriptor)


def _lock(directory: Path, deadline: float) -> int | None:
    """The descriptor of the locked directory; None where it is still another's at the deadline."""
    while True:
        directory.mkdir(parents=True, exist_ok=True)  # the other may have removed it at its end
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if directory.is_dir() and os.path.samestat(os.stat(directory), os.fstat(descriptor)):
                return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                return None
            time.sleep(0.05)
        except OSError:
            return descriptor
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(final: str | Path) -> Iterator[Path]:
    """Yield a temporary path in `final`'s directory; on success it becomes `final`, on any error it is removed."""
    final = Path(final)
    with made_directory(final.parent):
        handle, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            fsync_path(temporary)
            os.replace(temporary, final)
            fsync_path(final.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(final: str | Path, text: str) -> None:
    """Replace `final` with `text` (UTF-8) in one step."""
    with atomic_path(final) as temporary:
        temporary.write_text(text, encoding="utf-8")


def plain(value: object) -> object:
    """A value as JSON can hold it: null for NaN and infinity, lists for tuples."""
    if isinstance(value, Mapping):
        return {key: plain(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [plain(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(final: str | Path, value: object) -> None:
    """Replace `final` with `value` as indented JSON in one step."""
    write_text(final, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> dict:
    """A JSON object from a file; InputError for anything else."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({str(error)[:100]})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: a JSON object was expected, found {type(value).__name__}")
    return value
