"""The formats that are known, and which of them a path holds, judged by its contents or given by `--source`."""

from pathlib import Path

from converter.dcp import DCP
from converter.fair_esm import FAIR_ESM
from converter.formats import ReadOptions, model_dir_config
from converter.huggingface.esm import ESM
from converter.huggingface.esmc import ESMC
from converter.huggingface.megatron_bert import MEGATRON_BERT
from converter.megatron.checkpoint import MEGATRON
from converter.model import PortableModel
from converter.tape_dir import TAPE
from proteinlm.errors import InputError
from proteinlm.model_dir.files import CONFIG_NAME

FORMATS = {known.name: known for known in (TAPE, ESM, FAIR_ESM, ESMC, MEGATRON_BERT, MEGATRON, DCP)}


def recognise(path: Path) -> str:
    """A name of FORMATS, or an InputError that names what is there instead."""
    if not path.exists():
        raise InputError(f"{path}: no such checkpoint")
    if path.is_file() and path.suffix in (".safetensors", ".bin", ".json"):
        raise InputError(f"{path}: give --load its directory, with its config.json")
    names = [known.name for known in FORMATS.values() if known.recognises(path)]
    if len(names) == 1:
        return names[0]
    if names:
        raise InputError(f"{path}: holds checkpoints of {' and '.join(sorted(names))}; say which with --source")
    config = model_dir_config(path)
    if config is not None:
        types = " or ".join(known.model_type for known in FORMATS.values() if known.model_type)
        fault = f"{path / CONFIG_NAME}: model_type {ascii(config.get('model_type'))[:40]} is not {types}"
        raise InputError(f"{fault}; proteinlm.load and tape-* (model type huggingface) open other encoders as they are")
    entries = ", ".join(sorted(entry.name for entry in path.iterdir())[:6]) or "nothing"
    raise InputError(
        f"{path}: not recognised (there is {entries}); a checkpoint directory, a Megatron checkpoint, a TAPE or a "
        "Hugging Face model directory was expected; --source says which it is"
    )


def read(path: Path, name: str | None = None, **options: int | None) -> PortableModel:
    """The model at `path`, which is of the format `name` (None: recognised). options: fields of ReadOptions."""
    requested, source = ReadOptions(**options), FORMATS[name or recognise(path)]
    if not path.exists():
        raise InputError(f"{path}: no such checkpoint")
    if requested.num_attention_heads is not None and not source.asks_heads:
        only = f"only for Megatron files without args; {path} is {source.name}"
        raise InputError(f"--num-attention-heads {requested.num_attention_heads}: {only}")
    if path.is_file() and not source.reads_files:
        raise InputError(f"{path}: a file; give --load the directory of a {source.name} checkpoint")
    if requested.iteration is not None and not source.has_iterations:
        raise InputError(f"--iteration {requested.iteration}: {path} is a {source.name} directory; it holds one model")
    return source.read(path, requested)
