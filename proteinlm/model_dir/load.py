"""`proteinlm.load(path)`: opens a model directory for Python, whatever form it has.

What must hold: the form is recognised by the contents of the directory, never by its name; one that cannot be opened is
answered in one line with what to do. A form is a name in READERS (or "huggingface", which transformers runs);
`recognise` says which one a directory has.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from proteinlm.devices import choose_device
from proteinlm.encoder import Encoder
from proteinlm.errors import InputError
from proteinlm.huggingface.directory import open_directory
from proteinlm.model_dir.esm.esmc import esmc_config_of, read_esmc
from proteinlm.model_dir.esm.fair_esm import fair_esm_file, read_fair_esm
from proteinlm.model_dir.esm.huggingface import esm_config_of, read_esm
from proteinlm.model_dir.files import (
    CONFIG_NAME,
    ModelFiles,
    check_finite,
    load_tape_dir,
    model_type_of,
    read_config,
)
from proteinlm.model_dir.find import find_model
from proteinlm.network.config import ModelConfig
from proteinlm.network.model import ProteinBert
from proteinlm.tokenizer import build_tokenizer

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load(path: str | Path, dtype: str | torch.dtype = "fp32", device: str | torch.device | None = "auto") -> Encoder:
    """The encoder of a model directory, of its name (proteinlm.model_dir.find), or of a fair-esm file such as
    esm2_t6_8M_UR50D.pt.

    dtype: "fp32", or "bf16" or "fp16" for autocast to it (the weights stay fp32, but for an encoder that transformers
    runs, whose weights are rounded); a torch dtype does too. device: "auto" or None, "cpu", "cuda", "cuda:1" ...
    InputError for a training checkpoint, with the line that makes a model of it.
    """
    precision = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if precision not in DTYPES.values():
        raise InputError(f"dtype {dtype!r}: should be one of {', '.join(DTYPES)}")
    target, directory = choose_device(device), find_model(path)
    kind = recognise(directory)
    if kind == "huggingface":
        trunk, _, notes = open_directory(directory)
        _report(notes)
        return Encoder(trunk, build_tokenizer("tape"), target, precision, str(directory))
    files = READERS[kind](directory)
    check_finite(files.not_finite, files.source)
    _report(files.notes)
    with torch.device("meta"):  # no first weights, which would be overwritten
        model = ProteinBert(files.config, lm_head=any(name.startswith("lm_head.") for name in files.state))
    # Taken from the state one by one, so that what was read is let go as it is copied.
    weights = {name: files.state.pop(name).to(torch.float32, copy=True) for name in list(files.state)}
    model.load_state_dict(weights, assign=True)
    return Encoder(model, files.tokenizer, target, precision, str(directory), files.contact_head)


def _report(notes: Iterable[str]) -> None:
    for note in notes:
        logger.warning("%s", note)


def recognise(path: Path) -> str:
    """A key of READERS, or "huggingface"; InputError for what is no model, or another one."""
    if fair_esm_file(path) is not None:
        return "fair-esm"
    config = read_config(path)
    if path.is_dir() and str(config.get("model_type")) in CONFIGS:
        return config["model_type"]
    return "huggingface" if model_type_of(config, path) == "huggingface" else "tape"


def _read_tape(directory: Path) -> ModelFiles:
    kind = model_type_of(read_config(directory), directory)
    if kind != "transformer":
        text = f"TAPE's {kind}, which has no such encoder; tape-embed {kind} IN.fasta OUT {directory}"
        raise InputError(f"{directory}: {text}")
    files, tokenizer = load_tape_dir(directory), build_tokenizer("tape")
    size, expected, notes = files.model_config.vocab_size, tokenizer.vocab_size, files.notes
    if size != expected:
        raise InputError(f"{directory / CONFIG_NAME}: vocab_size {size}; TAPE's vocabulary has {expected} tokens")
    if files.head:
        notes += (f"{files.source}: {', '.join(sorted(files.head))} left out: the head of a finetuned task",)
    rest = (files.source, files.not_finite, files.contact_head)
    return ModelFiles(files.model_config, tokenizer, files.state, notes, *rest)


READERS: dict[str, Callable[[Path], ModelFiles]] = {
    "tape": _read_tape,
    "esm": read_esm,
    "fair-esm": read_fair_esm,
    "esmc": read_esmc,
}
# (config.json, where it lies) -> ModelConfig, for the forms that are a model_type of Hugging Face's.
CONFIGS: dict[str, Callable[[Mapping, str], ModelConfig]] = {"esm": esm_config_of, "esmc": esmc_config_of}
