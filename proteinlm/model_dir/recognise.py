"""What lies at a path that should be a model directory; where it is another thing, what to do, in one line.

What must hold: judged by contents, never by a directory's name. Every reader asks here, so that every command and
`proteinlm.load` give the same answer.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path

from proteinlm.errors import InputError
from proteinlm.model_dir.weights import CONFIG_NAME, SAFE_NAME, TORCH_NAME

MEGATRON_NAME = "model_optim_rng.pt"
# What pretraining and Megatron leave in a directory of checkpoints.
CHECKPOINT_FILES = ("latest_checkpointed_iteration.txt", "iter_*", "meta.json", "mp_rank_*", MEGATRON_NAME)


def no_model_directory(path: Path) -> InputError:
    """The error for a path that is no directory with a config.json."""
    content = f"a model directory holds {CONFIG_NAME} and {SAFE_NAME} or {TORCH_NAME}"
    is_megatron_file = path.is_file() and path.name == MEGATRON_NAME
    if is_megatron_file or any(next(path.glob(pattern), None) for pattern in CHECKPOINT_FILES):
        return InputError(f"{path}: a training checkpoint; {_conversion(path)} makes a model of it")
    if not path.is_file():
        return InputError(f"{path / CONFIG_NAME if path.is_dir() else path}: no such file; {content}")
    if (path.parent / CONFIG_NAME).is_file():
        return InputError(f"{path}: a file of a model directory; give the directory, {path.parent}")
    return InputError(f"{path}: a file; {content}")


def model_type_of(config: Mapping, directory: Path) -> str:
    """Which of TAPE's model types a directory with this config.json holds; InputError for Hugging Face's, or a file.

    TAPE's files have no model_type, and those of this project and songlab have base_model, which Hugging Face's lack.
    """
    if directory.is_file():
        raise no_model_directory(directory)
    kind = config.get("model_type") or config.get("architectures")
    if kind and "base_model" not in config:
        advice = f"{_conversion(directory)} makes a model of it"
        if "megatronbert" not in str(kind).lower().replace("-", ""):
            advice = "of Hugging Face's models only a megatron-bert can be opened, after conversion"
        raise InputError(f"{directory}: Hugging Face's {ascii(kind)[:40]}; {advice}")
    return str(config.get("base_model") or "transformer")


def _conversion(path: Path) -> str:
    return f"python -m converter --load {shlex.quote(str(path))} --save DIR --target tape"
