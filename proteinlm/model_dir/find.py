"""Which directory a pretrained model's name means, at every door. Nothing is downloaded here.

    proteinlm.models()                              {name: directory}, those of models/ and the user's own
    export TAPE_MODELS=/data/tape_models            holds bert-base/config.json, bert-base/pytorch_model.bin
    ProteinBertModel.from_pretrained("bert-base")   as songlab's code asks for it

What must hold: a directory of that very path comes first; then $TAPE_MODELS/<name>; then ~/.cache/tape/<name>; then
the model that comes with this project: what is the user's own is never passed over, and where it hides one of ours a
warning says so. This is the one place of the package, beside the commands' entry points, that reads the environment.
"""

import functools
import logging
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from proteinlm.errors import InputError
from proteinlm.untrusted.json_files import read_json

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).parent.parent
CHECKOUT = (PACKAGE.parent / "pyproject.toml").is_file()
SHIPPED = PACKAGE.parent / "models" if CHECKOUT else PACKAGE / "_models"  # where a wheel has models/ (setup.py)

CONFIG_NAME, SAFE_NAME, TORCH_NAME = "config.json", "model.safetensors", "pytorch_model.bin"
MEGATRON_NAME = "model_optim_rng.pt"
# What pretraining and Megatron leave in a directory of checkpoints.
CHECKPOINT_FILES = ("latest_checkpointed_iteration.txt", "iter_*", "meta.json", "mp_rank_*", MEGATRON_NAME)
CONTACT_ENDING = "-contact-regression.pt"  # of the file that fair-esm has beside a model's
KINDS = ("model_type?", "base_model?")  # of config.json: Hugging Face's and TAPE's word for the architecture
TORCH_HEADS = (b"PK\x03\x04", b"\x80")  # how what torch.save wrote begins: a zip archive, or a pickle
# songlab's names of models that have no counterpart here; trRosetta's five are xaa ... xae.
LEFT_OUT = dict.fromkeys(("babbler-1900", "unirep"), "UniRep")
LEFT_OUT |= dict.fromkeys(("trrosetta", "xaa", "xab", "xac", "xad", "xae"), "trRosetta")


def shelves() -> list[Path]:
    """The directories in which a name is looked for, in this order."""
    own = os.environ.get("TAPE_MODELS")
    return [*([Path(own)] if own else []), Path(os.path.expanduser("~")) / ".cache" / "tape", SHIPPED]


def models() -> dict[str, Path]:
    """Every model that can be had by its name, with its directory."""
    directories = {}
    for shelf in reversed(shelves()):
        directories |= {file.parent.name: file.parent for file in shelf.glob(f"*/{CONFIG_NAME}")}
    return dict(sorted(directories.items()))


def find_model(name: str | Path) -> Path:
    """The directory of a model: a path, or a name of `models`.

    InputError if there is none, with the names that there are, and the place where it should be.
    """
    if not isinstance(name, str | os.PathLike):
        raise InputError(f"model {name!r}: should be the path of a model directory, or its name")
    path = Path(name)
    if path.exists():
        place = path
    elif str(name) in LEFT_OUT:
        raise InputError(f"{name}: songlab's {LEFT_OUT[str(name)]} model is left out here")
    elif len(path.parts) != 1 or path.suffix:
        raise InputError(f"{path}: no such directory; a TAPE model directory holds config.json and model.safetensors")
    else:
        place = next((shelf / name for shelf in shelves() if (shelf / name).is_dir()), None)
    if place is None:
        raise _no_model(name)
    ours = SHIPPED / name
    if len(path.parts) == 1 and (ours / CONFIG_NAME).is_file() and not place.samefile(ours):
        _warn_hidden(place, ours)
    return place


def _no_model(name: str | Path) -> InputError:
    """The error for a name of no model: those that there are, and where it should be."""
    names, (place, *others) = ", ".join(models()), shelves()
    others = "" if len(others) > 1 else ", or set TAPE_MODELS to the directory that holds it"
    return InputError(
        f"{name}: no such directory; {f'names at hand: {names}; ' if names else ''}a model of that name should be at "
        f"{place / name} (config.json and its weights){others}"
    )


@functools.cache  # once a process, however often a command asks
def _warn_hidden(place: Path, ours: Path) -> None:
    logger.warning("%s: opened instead of the model of that name that comes with proteinlm (%s)", place, ours)


def fair_esm_file(path: Path) -> Path | None:
    """The model's file at `path`: a .pt itself, or the only one of a directory without config.json; else None."""
    if path.is_dir() and not (path / CONFIG_NAME).is_file():
        files = [file for file in path.glob("*.pt") if not file.name.endswith(CONTACT_ENDING)]
        path = files[0] if len(files) == 1 else path
    if not path.is_file() or path.suffix != ".pt" or path.name == MEGATRON_NAME:
        return None
    with open(path, "rb") as file:
        return path if file.read(4).startswith(TORCH_HEADS) else None


def require_model(name: str | Path | None, config_file: str | Path | None = None, model_type: str = "") -> None:
    """InputError where there is no model of this name, or no config.json (both may be None), or it is plainly not of
    this model type."""
    if name is not None and fair_esm_file(path := find_model(name)) is None:
        config = read_config(path)
        kind = model_type_of(config, path)
        if kind == "huggingface" and model_type == "transformer" and config.get("model_type") not in ("esm", "esmc"):
            raise other_model_type(config, path)
    if config_file is not None:
        read_config(config_file)


def read_config(directory: str | Path) -> dict:
    """config.json of `directory` (or a JSON file itself) as a dict; InputError with what to do for another thing."""
    path = Path(directory)
    file = path / CONFIG_NAME if path.is_dir() else path
    if not file.is_file() or file.suffix in (".safetensors", ".bin", ".pt"):
        raise no_model_directory(path)
    return read_json(file, shape=dict.fromkeys(KINDS, str))


def no_model_directory(path: Path) -> InputError:
    """The error for a path that is no directory with a config.json."""
    is_megatron = path.is_file() and path.name == MEGATRON_NAME
    if is_megatron or any(next(path.glob(pattern), None) for pattern in CHECKPOINT_FILES):
        return InputError(f"{path}: a training checkpoint; {_conversion(path)} makes a model of it")
    if path.is_file() and (path.parent / CONFIG_NAME).is_file():
        return InputError(f"{path}: a file of a model directory; give the directory, {path.parent}")
    missing = path / CONFIG_NAME if path.is_dir() else path
    fault = f"{path}: a file" if path.is_file() else f"{missing}: no such file"
    return InputError(f"{fault}; a model directory holds {CONFIG_NAME} and {SAFE_NAME} or {TORCH_NAME}")


def model_type_of(config: Mapping, directory: Path) -> str:
    """The model type (TAPE's base_model) of a directory with this config.json; "huggingface" for what `transformers`
    runs, whose files have a model_type and no base_model. InputError for a file, and for a megatron-bert."""
    if directory.is_file():
        raise no_model_directory(directory)
    kind = config.get("model_type") or config.get("architectures")  # old files of Hugging Face's have only a class
    if not kind or "base_model" in config:
        return str(config.get("base_model") or "transformer")
    if "megatronbert" in str(kind).lower().replace("-", ""):
        raise InputError(
            f"{directory}: Hugging Face's {ascii(kind)[:40]}; {_conversion(directory)} makes a model of it"
        )
    return "huggingface"


def other_model_type(config: Mapping, directory: Path) -> InputError:
    """The error for a directory of Hugging Face's where one of another model type of `tape-*` is read."""
    kind = config.get("model_type") or config.get("architectures") or "run"
    own = "transformer" if kind in ("esm", "esmc") else "huggingface"
    advice = f"its model type is {own} (tape-train {own} TASK --from_pretrained {directory} ...)"
    return InputError(f"{directory}: Hugging Face's {ascii(kind)[:40]}; {advice}")


def _conversion(path: Path) -> str:
    return f"python -m converter --load {shlex.quote(str(path))} --save DIR --target tape"
