"""The plugins of a command line and of a run, and the names that a command line may have: known before torch is.

    load_plugins(argv)                              the file of each `--plugin FILE`
    options = parse_options(argv, task_names(), model_types())
    with plugins_of(run, args.plugin): ...          those that the run was trained with, where no flag gives any

Importing tape.registry takes seconds, and only plugins need it here. What must hold: a file that a run names is
executed only if this user has given its very content to --plugin before, for a run may come from someone else.
"""

import argparse
import contextlib
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from proteinlm.errors import InputError
from proteinlm.files import write_text
from tape.runs.names import FOLDERS, MODEL_TYPES

GIVEN = Path(".cache") / "tape" / "plugins"  # below the user's home: sha256 of each file that was given, a line each


def task_names() -> tuple[str, ...]:
    """Every task: ours, and what plugins and the calling script have registered."""
    registry = sys.modules.get("tape.registry")
    return registry.task_names() if registry else tuple(FOLDERS)


def model_types() -> tuple[str, ...]:
    """Every model type that some task has, ours first."""
    registry = sys.modules.get("tape.registry")
    return registry.model_types() if registry else MODEL_TYPES


def load_plugins(argv: Sequence[str] | None) -> list[str]:
    """Load the file of each `--plugin FILE` of a command line; returns the files.

    Before its other flags are parsed, which may name what these files register.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--plugin", action="append", nargs="?", const="", default=[])
    files = parser.parse_known_args(argv)[0].plugin
    if "" in files:
        raise InputError("--plugin: should be followed by a Python file (.py)")
    _load(files)
    _remember(files)
    return files


@contextlib.contextmanager
def plugins_of(run: Mapping, flags: Sequence[str]) -> Iterator[None]:
    """Inside, what a run (its args.json) was trained with is loaded, unless flags give plugins.

    A file that is gone, has changed or was never given by this user is not; an InputError inside then says so.
    """
    files, given = [] if flags else run.get("args", {}).get("plugin") or [], _given()
    known = [file for file in files if isinstance(file, str) and Path(file).is_file() and _sha256(file) in given]
    _load(known)
    try:
        yield
    except InputError as error:
        missing = next((file for file in files if file not in known), None)
        if missing is None:
            raise
        raise InputError(f"{error}; the run was trained with --plugin {missing}, which should be given") from error


def _load(files: Sequence[str]) -> None:
    for file in files:
        if Path(file).suffix != ".py" or not Path(file).is_file():
            raise InputError(f"--plugin {file}: should be a Python file (.py)")
    if files:
        from tape.registry import load_plugin

        for file in files:
            load_plugin(file)


def _sha256(file: str | Path) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _given() -> set[str]:
    try:
        return set((Path.home() / GIVEN).read_text(encoding="utf-8").split())
    except (OSError, ValueError, RuntimeError):  # none yet, or no home
        return set()


def _remember(files: Sequence[str]) -> None:
    given = _given()
    if new := {_sha256(file) for file in files} - given:
        with_new = "".join(f"{digest}\n" for digest in sorted(given | new))
        try:
            write_text(Path.home() / GIVEN, with_new)
        except (OSError, RuntimeError):  # it can be given again
            return
