"""Reads what `python -m pretrain` saved (any iteration, any layout) into a PortableModel."""

from pathlib import Path

from converter.model import PortableModel
from pretrain import checkpoint
from pretrain.errors import InputError
from pretrain.model import ModelConfig
from pretrain.tokenizer import Tokenizer


def read(directory: str | Path, iteration: int | None = None) -> PortableModel:
    """The weights of one checkpoint: the latest, or `iteration`. Optimizer and RNG state are not read."""
    iteration, meta = checkpoint.load_meta(directory, iteration)
    origin = f"{directory} iteration {iteration}"
    try:
        config = ModelConfig(**meta["model_config"])
        tokenizer = Tokenizer.from_dict(meta["tokenizer"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{origin}: meta.json does not describe a model of ours: {error}") from error
    tensors = checkpoint.read_model_tensors(directory, iteration)
    model = PortableModel(config, tuple(tokenizer.tokens), tensors, origin)
    if not tokenizer.one_to_one:
        raise InputError(
            f"{origin}: its vocabulary ({tokenizer.name}) does not map residues one to one, "
            "which the tasks of TAPE need; pretrain with --tokenizer-type iupac"
        )
    return model
