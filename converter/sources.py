"""Says what kind of checkpoint lies at a path, by what is in it. `--source KIND` overrides the answer."""

from pathlib import Path

from converter import dcp, tape_dir
from converter.huggingface import megatron_bert as huggingface
from converter.megatron import checkpoint as megatron
from converter.megatron.files import FILE_NAME, RELEASE, TRACKER, has_shards
from converter.model import PortableModel
from converter.streams import read_json
from pretrain.checkpoint import files as checkpoint
from proteinlm.errors import InputError

KINDS = ("dcp", "megatron", "tape", "hf")


def recognise(path: Path) -> str:
    """One of KINDS, or an InputError that says what is there instead."""
    if path.is_file():
        if path.suffix in (".safetensors", ".bin", ".json"):
            raise InputError(f"{path}: give --load the directory that it lies in, with its config.json")
        return "megatron"  # a bare model_optim_rng.pt; reading it says what else it is
    if (path / "config.json").is_file():
        return _of_config(path)
    if (path / FILE_NAME).is_file() or has_shards(path):
        return "megatron"
    if (path / checkpoint.META).is_file():
        return "dcp"
    runs = [entry for entry in sorted(path.iterdir()) if entry.name.startswith("iter_") or entry.name == RELEASE]
    kinds = {kind for entry in runs if entry.is_dir() for kind in [_of_iteration(entry)] if kind}
    if len(kinds) == 1:
        return kinds.pop()
    if len(kinds) > 1:
        raise InputError(f"{path}: holds iterations of {' and '.join(sorted(kinds))}; say which with --source")
    if (path / TRACKER).is_file():
        return "dcp"  # its reader names what the tracker points at and is missing
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:6]) or "nothing"
    raise InputError(
        f"{path}: not recognised (there is {found}); a checkpoint directory, a Megatron checkpoint, a TAPE or a "
        "Hugging Face model directory was expected; --source says which it is"
    )


def _of_iteration(directory: Path) -> str | None:
    if has_shards(directory):
        return "megatron"
    return "dcp" if (directory / checkpoint.META).exists() or (directory / ".metadata").exists() else None


def _of_config(path: Path) -> str:
    told = read_json(path / "config.json")
    kind = told.get("model_type")
    if kind == huggingface.MODEL_TYPE or (kind is None and "MegatronBert" in str(told.get("architectures"))):
        return "hf"
    if kind is not None:
        raise InputError(f"{path / 'config.json'}: model_type {ascii(kind)[:40]} is not {huggingface.MODEL_TYPE}")
    return "tape"


def read(path: Path, kind: str | None, iteration: int | None, heads: int | None) -> tuple[str, PortableModel]:
    """(kind, model) of what lies at `path`."""
    if not path.exists():
        raise InputError(f"{path}: no such checkpoint")
    kind = kind or recognise(path)
    if kind == "megatron":
        return kind, megatron.read(path, iteration, heads)
    if heads is not None:
        raise InputError(f"--num-attention-heads {heads}: only for Megatron files without args; {path} is {kind}")
    if path.is_file():
        raise InputError(f"{path}: a file; give --load the directory of a {kind} checkpoint")
    if kind == "dcp":
        return kind, dcp.read(path, iteration)
    if iteration is not None:
        raise InputError(f"--iteration {iteration}: {path} is a {kind} directory, which holds one model")
    return kind, (tape_dir if kind == "tape" else huggingface).read(path)
