"""Files that appear whole or not at all: written under a temporary name beside the target, synced, renamed; and pipes
that can be read again.

Directories are made for the first thing that is worth keeping: none is left by work that came to nothing.
"""

import atexit
import contextlib
import errno
import functools
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from pathlib import Path

from proteinlm.errors import InputError, name_copy
from proteinlm.running.leftovers import remove, temporary_beside


def fsync_path(path: Path) -> None:
    """Flush a file's or a directory's contents to disk, so that a rename after it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: str | Path, *inputs: str | Path) -> None:
    """InputError where a file `path`, and the directories above it that are not there yet, could not be made, and where
    it is one of the inputs, which it would replace."""
    if any(Path(path).resolve() == Path(own).resolve() for own in inputs):
        raise InputError(f"{path}: is the input; give the output a name of its own")
    if Path(path).is_dir():
        raise InputError(f"{path}: a directory; the output is a file")
    require_plain(Path(path))
    parent = next(above for above in Path(path).absolute().parents if above.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        reason = "not writable" if parent.is_dir() else "not a directory"
        raise InputError(f"{path}: cannot be made, {parent} is {reason}")


def require_plain(path: Path) -> None:
    """InputError where something is in a file's place that must not be replaced: a device, a pipe, a broken link."""
    if path.is_symlink() and not path.exists():
        raise InputError(f"{path}: a link to nothing; an output takes the place of what is there")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path}: no regular file; an output takes the place of what is there")


COPIES = "proteinlm-"  # how the names of directories begin that hold what pipes gave


def is_copy(path: str | Path) -> bool:
    """Whether a path is one of `reread`'s copies, beside which nothing is kept."""
    return Path(path).parent.name.startswith(COPIES)


def require_file(path: str) -> str:
    """`path`; InputError where nothing is there."""
    if path != "-" and not os.path.exists(path):
        raise InputError(f"{path}: no such file")
    return path


@functools.cache
def reread(path: str, suffix: str = "") -> str:
    """A path that can be read any number of times: `path`, or a copy of what a pipe gave, which goes with the process.

    A pipe is standard input, written as "-", or what a shell makes of <(command). suffix: of the copy's name, but a
    pipe may be named as a table.
    """
    try:
        again = path != "-" and (stat.S_ISREG(mode := os.stat(path).st_mode) or stat.S_ISDIR(mode))
    except OSError:  # not there
        again = True
    if again:
        return path
    directory = Path(tempfile.mkdtemp(prefix=COPIES))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    suffix = next((own for own in Path(path).suffixes if own in (".csv", ".tsv", ".tab")), suffix)
    copy = directory / f"{'stdin' if path == '-' else 'pipe'}{suffix}"
    try:
        with open(0 if path == "-" else path, "rb", closefd=path != "-") as source, copy.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    except OSError as error:
        raise InputError(f"{path}: cannot be copied to {copy}, to be read twice ({error.strerror or error})") from error
    name_copy(str(copy), "standard input" if path == "-" else path)
    return str(copy)


@contextlib.contextmanager
def made_directory(path: str | Path) -> Iterator[Path]:
    """`path` as a directory, made with those above it where they are missing; of these what is empty at the end goes
    again, so that only work which wrote something leaves a directory."""
    path = Path(path)
    missing = missing_directories(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield path
    finally:
        remove_empty(missing)


def missing_directories(path: Path) -> list[Path]:
    """Of a directory and those above it, the lowest first."""
    return [directory for directory in (path, *path.parents) if not directory.exists()]


def remove_empty(directories: list[Path]) -> None:
    for directory in directories:
        with contextlib.suppress(OSError):  # not empty, or never made
            directory.rmdir()


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # what only a write can fail with


@contextlib.contextmanager
def writing(final: str | Path, place: Path | None = None) -> Iterator[None]:
    """InputError that names `final` and the reason (no space left ...) where something is not written within.

    place: the file or directory that is being written, where other things are done within as well. A library that hides
    the reason (torch, HDF5, Arrow) fails with an error of its own; then the system is asked whether it takes more.
    """
    try:
        yield
    except InputError as error:  # of a file in a directory that has no name yet
        if place is None or str(place) not in str(error):
            raise
        raise InputError(str(error).replace(str(place), str(final))) from error
    except Exception as error:
        code, name = getattr(error, "errno", None), getattr(error, "filename", None)
        if place is not None and name is not None and not str(name).startswith((str(place), str(final))):
            raise  # of another file, which was read meanwhile
        if place is not None and name is None and code not in FULL:
            code = _refusal(place)
        if code is None:
            raise
        raise InputError(f"{final}: cannot be written: {os.strerror(code).lower()}") from error


def _refusal(place: Path) -> int | None:
    """Why no more can be written to a file or directory now; None where it can."""
    try:
        with tempfile.TemporaryFile(dir=place) if place.is_dir() else place.open("r+b", 0) as file:
            file.seek(0, os.SEEK_END)
            for _ in range(16):
                file.write(bytes(1 << 12))
    except OSError as error:
        return None if error.errno == errno.ENOENT else error.errno  # another process may have removed it
    return None


def need_room(path: Path, size: int) -> None:
    """OSError where the disk of a file has not so many bytes free, for a writer that cannot bear to find out: HDF5
    prints pages or ends the process."""
    if shutil.disk_usage(path.parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@contextlib.contextmanager
def atomic_path(final: str | Path) -> Iterator[Path]:
    """Yield a temporary path in `final`'s directory; on success it becomes `final`, on any error it is removed.
    InputError where there is no room for it."""
    with _named_at_the_end(Path(final), directory=False) as temporary:
        yield temporary
        temporary.chmod(0o644)
        fsync_path(temporary)


@contextlib.contextmanager
def atomic_directory(final: str | Path) -> Iterator[Path]:
    """The same for a directory of files; an empty one of the name is replaced."""
    with _named_at_the_end(Path(final), directory=True) as temporary:
        yield temporary
        temporary.chmod(0o755)
        for path in [*temporary.rglob("*"), temporary]:
            fsync_path(path)


@contextlib.contextmanager
def _named_at_the_end(final: Path, directory: bool) -> Iterator[Path]:
    require_plain(final)
    with contextlib.ExitStack() as stack:
        with writing(final):
            stack.enter_context(made_directory(final.parent))
            temporary = temporary_beside(final, directory)
        stack.callback(remove, temporary)
        with writing(final, temporary):
            yield temporary
            os.replace(temporary, final)
            fsync_path(final.parent)


def write_text(final: str | Path, text: str) -> None:
    """Replace `final` with `text` (UTF-8) in one step. What is no text (a byte in a file's name) is written as JSON and
    Python escape it."""
    with atomic_path(final) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def finite(value: object) -> object:
    """A value as JSON can hold it: None for NaN and infinity, lists for tuples, Python's numbers for NumPy's."""
    if isinstance(value, Mapping):
        return {key: finite(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [finite(own) for own in value]
    if isinstance(value, int) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value) if math.isfinite(value) else None


def write_json(final: str | Path, value: object) -> None:
    """Replace `final` with `value` as indented JSON in one step. It is JSON: null stands for what is no number."""
    write_text(final, json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
