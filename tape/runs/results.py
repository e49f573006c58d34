"""The JSON files of a run, tape-train's (args.json) and tape-eval's (<task>-<split>.json), and whose weights it has.

What must hold: a file that is not what it should be is an InputError with its name; numbers that JSON cannot carry
are null in a file.
"""

import hashlib
import math
import shlex
from pathlib import Path

import numpy as np

from proteinlm import files
from proteinlm.errors import InputError
from proteinlm.model_dir.find import SAFE_NAME, TORCH_NAME, fair_esm_file

RESULT_KEYS = ("task", "split", "metric", "value", "n_examples", "head", "checkpoint", "seed")


def read_json(path: Path, content: str) -> dict:
    """A file's JSON object; `content` says in an InputError what should be in it."""
    try:
        return files.read_json(path)
    except InputError as error:
        raise InputError(f"{error}; should be {content}") from None


def read_run(directory: Path) -> dict:
    """What tape-train left in the run's directory (args.json); {} for a model directory from elsewhere."""
    path = directory / "args.json"
    return read_json(path, "what tape-train wrote") if path.is_file() else {}


def read_result(path: Path) -> dict:
    """One result file of tape-eval, checked for what every reader needs."""
    result = read_json(path, "a result that tape-eval wrote")
    missing = [key for key in RESULT_KEYS if key not in result]
    if missing:
        raise InputError(f"{path}: key {missing[0]!r} is missing; should be a result that tape-eval wrote")
    return result


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


def finite(value: object) -> object:
    """NaN and infinities become None, which JSON can carry; inside dicts and lists too."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
