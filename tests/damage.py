"""Good checkpoints of every kind, ways to damage a copy of one, and what must be seen when it is converted.

Used by the tests of corrupted, truncated, mixed, mis-shaped and malicious files (tests/seam/test_convert_attack_*.py).
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron_writer import random_weights, write_megatron

from converter import __main__ as convert
from proteinlm.errors import run

FILE = "model_optim_rng.pt"
LANGUAGE = ("model", "language_model")
SMALL = {"hidden": 8, "heads": 2, "layers": 2, "positions": 8, "ffn": 16}
ONE = f"iter_0001000/mp_rank_00/{FILE}"


@dataclass(frozen=True)
class Case:
    """A base directory, what is done to a copy of it, further flags, and a part of the line that must be printed."""

    name: str
    base: str
    damage: Callable[[Path, Path], None]  # (the copy, the marker that an attack would make)
    message: str = ""
    flags: tuple = ()


class Attack:
    """Pickles as a call. Made only here; whoever unpickles it runs `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def write_bases(directory: Path) -> None:
    """One good directory of each kind."""
    weights = random_weights(1, **SMALL)
    write_megatron(directory / "megatron", weights)
    write_megatron(directory / "two_by_two", weights, 2, 2)
    write_megatron(directory / "pipeline", weights, 1, 2)
    write_megatron(directory / "other", random_weights(2, **SMALL), 2, 2)
    write_megatron(directory / "other_pipeline", random_weights(2, **SMALL), 1, 2)
    for target in ("tape", "hf", "dcp"):
        words = ["--load", str(directory / "megatron"), "--save", str(directory / target), "--target", target]
        assert run(convert.main, words) == 0
    for kind, name in (("tape", "tape_bin"), ("hf", "hf_bin")):
        words = ["--load", str(directory / kind), "--save", str(directory / name), "--target", kind, "--bin"]
        assert run(convert.main, words) == 0
        (directory / name / "model.safetensors").unlink()


# ---- ways to damage


def truncated(file: str, share: float) -> Callable:
    def damage(path: Path, marker: Path) -> None:
        content = (path / file).read_bytes()
        (path / file).write_bytes(content[: int(share * len(content))])

    return damage


def flipped(file: str, share: float, bit: int) -> Callable:
    def damage(path: Path, marker: Path) -> None:
        content = bytearray((path / file).read_bytes())
        content[int(share * (len(content) - 1))] ^= 1 << bit
        (path / file).write_bytes(content)

    return damage


def replaced(file: str, content: bytes | str) -> Callable:
    def damage(path: Path, marker: Path) -> None:
        (path / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def removed(file: str) -> Callable:
    def damage(path: Path, marker: Path) -> None:
        target = path / file
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return damage


def taken_from(other: str, file: str) -> Callable:
    def damage(path: Path, marker: Path) -> None:
        shutil.copy(path.parent / "bases" / other / file, path / file)

    return damage


def rewritten(change: Callable[[dict], object], tp: int = 1, pp: int = 1, only: tuple = (0, 0)) -> Callable:
    """The Megatron checkpoint written again with `change(content)` applied to rank `only`."""

    def damage(path: Path, marker: Path) -> None:
        def changed(content: dict, t: int, p: int) -> None:
            if (t, p) == only:
                change(content)

        shutil.rmtree(path)
        write_megatron(path, random_weights(1, **SMALL), tp, pp, change=changed)

    return damage


def json_changed(file: str, **values: object) -> Callable:
    def damage(path: Path, marker: Path) -> None:
        content = json.loads((path / file).read_text()) | values
        (path / file).write_text(json.dumps({key: value for key, value in content.items() if value is not KeyError}))

    return damage


def state_changed(change: Callable[[dict], object], file: str = "pytorch_model.bin") -> Callable:
    def damage(path: Path, marker: Path) -> None:
        state = torch.load(path / file, weights_only=True)
        change(state)
        torch.save(state, path / file)

    return damage


def set_arg(**values: object) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        for name, value in values.items():
            setattr(content["args"], name, value)

    return change


def at(content: dict, place: tuple) -> dict:
    for key in place:
        content = content[key]
    return content


def nothing(path: Path, marker: Path) -> None:
    """The base as it is; the flags are what is wrong."""


def refused(case: Case, bases: Path, tmp_path: Path, capsys) -> None:
    """Run the conversion of a damaged copy and see that it is refused as it should be. tmp_path must be empty."""
    source, target, marker = bases.parent / "case", tmp_path / "out", tmp_path / "ran"
    shutil.copytree(bases / case.base, source)
    flags = case.flags if "--target" in case.flags else ("--target", "tape", *case.flags)
    try:
        case.damage(source, marker)
        capsys.readouterr()
        status = run(convert.main, [str(word) for word in ("--load", source, "--save", target, *flags)])
    finally:
        shutil.rmtree(source, ignore_errors=True)
    error = capsys.readouterr().err.strip()
    assert status == 2, error
    assert len(error.splitlines()) == 1 and error.startswith("error: ") and case.message in error, error
    assert str(source) in error or "--" in error or case.flags, error
    assert len(error) < 900, error
    assert list(tmp_path.iterdir()) == [], "nothing was written and nothing ran"
