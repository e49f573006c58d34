"""PortableModel <-> what `python -m pretrain` saves: a directory of PyTorch distributed checkpoints with meta.json."""

from dataclasses import asdict, replace
from pathlib import Path

import torch

from converter.model import PortableModel, make_config, with_lm_head
from converter.vocabulary import take_rows, to_tokenizer
from pretrain.checkpoint import files as checkpoint
from proteinlm.errors import InputError
from proteinlm.tokenizer import Tokenizer

COUNTERS = ("iteration", "consumed_train_samples", "consumed_tokens", "consumed_proteins", "skipped_iterations")


def read(directory: str | Path, iteration: int | None = None) -> PortableModel:
    """The weights of one checkpoint: the latest, or `iteration`. Optimizer and RNG state are not read."""
    directory = Path(directory)
    named = checkpoint.ITERATION_NAME.fullmatch(directory.name)
    if named and (directory / checkpoint.META).is_file():  # one checkpoint itself, not the run's directory
        directory, iteration = directory.parent, int(named[1])
    iteration, meta = checkpoint.load_meta(directory, iteration)
    origin = f"{directory} iteration {iteration}"
    if not isinstance(meta.get("model_config"), dict) or not isinstance(meta.get("tokenizer"), dict):
        raise InputError(f"{origin}: meta.json lacks model_config or tokenizer")
    config = make_config(meta["model_config"], f"{origin}: meta.json")
    tokenizer = _tokenizer(meta["tokenizer"], origin)
    if config.vocab_size != tokenizer.vocab_size:
        sizes = f"vocab_size {config.vocab_size}, its tokenizer has {tokenizer.vocab_size} tokens"
        raise InputError(f"{origin}: meta.json says {sizes}")
    stored = meta.get("counters") if isinstance(meta.get("counters"), dict) else {}
    counters = {name: stored[name] for name in COUNTERS if type(stored.get(name)) is int}
    tensors = checkpoint.read_model_tensors(directory, iteration)
    notes = ["the optimizer's and random generators' states were not read: only weights are converted"]
    model = PortableModel(config, tokenizer, tensors, origin, tuple(notes), counters).checked()
    tensors, dropped = take_rows(
        tensors, tokenizer.tokens, tokenizer, config.make_vocab_size_divisible_by, origin
    )  # only clears padding rows
    return replace(model, tensors=tensors).noted(*dropped)


def _tokenizer(value: dict, origin: str) -> Tokenizer:
    try:
        return Tokenizer.from_dict(value)
    except (InputError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{origin}: meta.json: {error}") from None


def prepare(model: PortableModel) -> PortableModel:
    """The model as `write` stores it: on the pretraining vocabulary (a SentencePiece one is kept), with an LM head."""
    if not model.config.final_layernorm:
        raise InputError(
            f"{model.origin}: final_layernorm is false, and pretraining always has that norm; remove the key from "
            "config.json to convert the model with it"
        )
    divisible_by = model.config.make_vocab_size_divisible_by
    divisible_by = 128 if divisible_by == 1 else divisible_by
    if model.tokenizer.one_to_one:
        model = to_tokenizer(model, "iupac", divisible_by)
    return with_lm_head(replace(model, config=replace(model.config, output_dropout=True)))


def write(model: PortableModel, directory: Path, dtype: torch.dtype | None = None, last_use: bool = False) -> None:
    """Write `iter_*` and its tracker: what `python -m pretrain --load DIRECTORY --finetune` starts from.

    last_use: the caller is done with the model, so that rounding may give each tensor's memory back as it goes.
    """
    source = model.tensors if last_use else dict(model.tensors)
    tensors = {}
    for name in list(source):
        tensor = source.pop(name)
        tensors[name] = tensor.to(dtype or tensor.dtype)
    iteration = model.counters.get("iteration", 0)
    counters = dict.fromkeys(COUNTERS, 0) | dict(model.counters) | {"iteration": iteration}
    meta = {
        "model_config": asdict(model.config),
        "tokenizer": model.tokenizer.to_dict(),
        "config": None,
        "counters": counters,
        "loss_scaler": None,
        "converted_from": model.origin,
    }
    checkpoint.save_checkpoint(directory, iteration, {"model": tensors}, meta)
