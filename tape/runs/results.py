"""The JSON files of a run, tape-train's (args.json) and tape-eval's (<task>-<split>.json), and whose weights it has.

What must hold: a file that is not what it should be is an InputError with its name; numbers that JSON cannot carry
are null in a file.
"""

import hashlib
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from proteinlm.errors import InputError
from proteinlm.model_dir.find import SAFE_NAME, TORCH_NAME, fair_esm_file
from proteinlm.untrusted.json_files import read_json
from proteinlm.untrusted.shapes import NUMBER

# What is read of tape-train's record and of tape-eval's results. null: not a finite number.
SOURCE = {"weights_sha256": str, "path?": str, "weights?": str}
ARGS = {"max_length?": int, "seed?": int}
ARGS |= dict.fromkeys(("task?", "model_type?", "too_long?", "time_or_name?"), str)
VALIDATION = {"method?": str, "train?": int, "held_out?": int}
RUN = {
    "args": ARGS | {"plugin?": [str]},
    "from_pretrained?": SOURCE,
    "validation?": VALIDATION,
    **{"best_step?": int, "best?": NUMBER, "minutes?": NUMBER, "recipe?": {"values?": dict}},
}
RESULT = {
    **{"task": str, "split": str, "metric": str, "value": NUMBER | None, "n_examples": int, "seed": int | None},
    **{"head": str | int | float | bool | None, "run?": str, "model_type?": str, "args?": dict, "metrics?": dict},
    "checkpoint": {"from_pretrained?": SOURCE},
    "interval?": {"low": NUMBER | None, "high": NUMBER | None},
    "truncated?": {"proteins_cropped?": int, "max_length?": int},
}


def read_run(directory: Path) -> dict:
    """What tape-train left in the run's directory (args.json); {} for a model directory from elsewhere."""
    path = directory / "args.json"
    return read_json(path, "what tape-train wrote", RUN) if os.path.lexists(path) else {}


def read_result(path: Path, more: Mapping = MappingProxyType({})) -> dict:
    """One result file of tape-eval. more: what its reader needs beside RESULT."""
    return read_json(path, "a result that tape-eval wrote", RESULT | dict(more))


def file_sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_identity(directory: str | Path) -> dict[str, str]:
    """Which weights a number came from: the directory, the file's name and its sha256 (of several, that of theirs)."""
    single = fair_esm_file(Path(directory))
    if single is not None:
        return {"path": str(directory), "weights": single.name, "weights_sha256": file_sha256(single)}
    for name in (SAFE_NAME, TORCH_NAME):
        path, index = Path(directory) / name, Path(directory) / f"{name}.index.json"
        if path.is_file():
            return {"path": str(directory), "weights": name, "weights_sha256": file_sha256(path)}
        if index.is_file():
            from proteinlm.model_dir.weights import WeightFiles

            shards = sorted(set(WeightFiles(Path(directory)).files.values()))
            digest = hashlib.sha256("".join(map(file_sha256, shards)).encode()).hexdigest()
            return {"path": str(directory), "weights": index.name, "weights_sha256": digest}
    raise InputError(f"{directory}: holds neither {SAFE_NAME} nor {TORCH_NAME}; should be a directory of tape-train's")


def require_directory(model: Path) -> None:
    """InputError for a file of fair-esm, which other commands take, where one needs a directory around it."""
    if model.is_file() and fair_esm_file(model) is not None:
        conversion = f"python -m converter --load {shlex.quote(str(model))} --save DIR --target tape"
        raise InputError(f"{model}: a file, and this command needs a model's directory; {conversion} makes one")
