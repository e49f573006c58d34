"""TAPE model directories on disk: config.json and model.safetensors (or pytorch_model.bin). Names:
proteinlm.model_dir.names.

    config, state, head = read_tape_dir("runs/tape_model")        # state: names of proteinlm.model.ProteinBert
    write_tape_dir("runs/tape_model", config, state)              # state may hold lm_head.*; `head` as in the model

What must hold: every tensor's name and shape is checked against config.json, and nothing in a file is dropped silently:
what is left out is in the notes. Where decoder and embedding of a file differ (the original tied a random decoder), the
embedding wins and mlm.* is left out. Files from elsewhere go through proteinlm.untrusted.safe_load.

songlab's own transformer (post-LN) is another architecture: PostLayerNormFile says so, and tape.models.modeling_bert
turns to tape.models.modeling_tape.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from proteinlm.errors import InputError
from proteinlm.files import atomic_path, write_json
from proteinlm.model_dir.names import (
    FINAL_NORM,
    MLM_NAMES,
    TOKEN_TYPES,
    UNUSED_THERE,
    encoder_shapes,
    encoder_to_pretrain,
    encoder_to_tape,
    mlm_shapes,
)

logger = logging.getLogger(__name__)

CONFIG_NAME, SAFE_NAME, TORCH_NAME = "config.json", "model.safetensors", "pytorch_model.bin"

# What TAPE's own config.json holds beyond the shape.
TAPE_EXTRAS = {
    "base_model": "transformer",
    "finetuning_task": None,
    "num_labels": 2,
    "output_attentions": False,
    "output_hidden_states": False,
    "pruned_heads": {},
    "torchscript": False,
}
SHAPE_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)


class PostLayerNormFile(InputError):
    """The weights are those of songlab's transformer: LayerNorm after each sum, and on the embedding."""


@dataclass(frozen=True)
class TapeFiles:
    """What a TAPE directory holds, its names checked and the encoder's names ours."""

    config: dict
    state: dict[str, Tensor]  # names of ProteinBert, lm_head.* only where the file has a usable masked-LM head
    head: dict[str, Tensor]  # predict.* / classify.* of a finetuned run, as in the file
    notes: tuple[str, ...]  # what was left out or changed, one sentence each
    source: Path  # the file of weights


def read_config(directory: str | Path) -> dict:
    """config.json of `directory` (or a JSON file itself) as a dict."""
    path = Path(directory)
    path = path / CONFIG_NAME if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path}: no such file; a TAPE model directory holds {CONFIG_NAME} and {SAFE_NAME}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: a JSON object was expected, found {type(config).__name__}")
    return config


def read_tape_dir(directory: str | Path) -> tuple[dict, dict[str, Tensor], dict[str, Tensor]]:
    """(config, state with ProteinBert's names, head state); notes are logged. See `load_tape_dir`."""
    files = load_tape_dir(directory)
    for note in files.notes:
        logger.warning("%s", note)
    return files.config, files.state, files.head


def load_tape_dir(directory: str | Path, overrides: Mapping | None = None) -> TapeFiles:
    """Read and check a TAPE directory; `overrides` replace keys of config.json before the shapes are checked."""
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; --from_pretrained takes a TAPE model directory")
    config = read_config(directory) | dict(overrides or {})
    check_shape_keys(config, str(directory / CONFIG_NAME))
    path, tensors = read_weights(directory)
    notes: list[str] = []
    encoder, mlm, head = _sort_names(tensors, path, notes)
    if config["num_hidden_layers"] > len(encoder):  # before anything is made for each layer that config.json claims
        layers = config["num_hidden_layers"]
        raise InputError(f"{path}: its {len(encoder)} tensors cannot be the {layers} layers of config.json")
    types = encoder.get(TOKEN_TYPES)
    kinds = {} if types is None else {TOKEN_TYPES: (len(types) if types.dim() else 1, config["hidden_size"])}
    _check(encoder, encoder_shapes(config) | kinds, path, "bert.")
    mlm = _usable_mlm(mlm, encoder["embeddings.word_embeddings.weight"], path, notes)
    if mlm:
        _check(mlm, mlm_shapes(config), path, "mlm.")
    state = encoder_to_pretrain(encoder, config["num_attention_heads"], notes, str(path))
    if not config.get("final_layernorm", True):
        notes.append(f"{path}: encoder.final_ln.* left out, for config.json says final_layernorm false")
        state = {name: value for name, value in state.items() if not name.startswith("final_layernorm.")}
    state |= {f"lm_head.{MLM_NAMES[name]}": value for name, value in mlm.items()}
    return TapeFiles(config, state, head, tuple(notes), path)


def write_tape_dir(
    directory: str | Path,
    config: Mapping,
    state: Mapping[str, Tensor],
    mlm: Mapping[str, Tensor] | None = None,
    head: Mapping[str, Tensor] | None = None,
    torch_file: bool = False,
) -> None:
    """Write config.json and model.safetensors (also pytorch_model.bin if `torch_file`) with TAPE's names.

    state: names and shapes of ProteinBert with TAPE's 30 rows, lm_head.* allowed; mlm: the same head's tensors apart,
    with or without the prefix lm_head.; head: predict.* or classify.* as the model names them. Weights come first and
    config.json last: a directory with a config is complete.
    """
    from safetensors.torch import save_file

    directory = Path(directory)
    config = TAPE_EXTRAS | {"type_vocab_size": 1} | dict(config)
    check_shape_keys(config, str(directory / CONFIG_NAME))
    state = dict(state)
    mlm = {**(mlm or {}), **{name: state.pop(name) for name in list(state) if name.startswith("lm_head.")}}
    tensors = {f"bert.{name}": value for name, value in encoder_to_tape(state, config).items()}
    _check(tensors, {f"bert.{name}": shape for name, shape in encoder_shapes(config).items()}, directory, "")
    tensors |= _mlm_to_tape(mlm, state["word_embeddings.weight"], config, directory)
    tensors |= dict(head or {})
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_path(directory / SAFE_NAME) as temporary:
        save_file(tensors, str(temporary), metadata={"format": "pt"})
    if torch_file:
        with atomic_path(directory / TORCH_NAME) as temporary:
            torch.save(tensors, temporary)
    write_json(directory / CONFIG_NAME, config)


def check_shape_keys(config: Mapping, where: str) -> None:
    """The numbers that give every shape: positive integers, all there, and heads that divide the hidden size."""
    for key in SHAPE_KEYS:
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            found = "is missing" if key not in config else f"is {value!r}"
            raise InputError(f"{where}: {key} {found}; a positive whole number is needed")
    if config["hidden_size"] % config["num_attention_heads"]:
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        raise InputError(f"{where}: num_attention_heads {heads} must divide hidden_size {hidden}")
    if config.get("pruned_heads"):
        raise InputError(f"{where}: pruned_heads {config['pruned_heads']} is not supported; only {{}} is")


def _mlm_to_tape(mlm: Mapping[str, Tensor], embedding: Tensor, config: Mapping, where: Path) -> dict[str, Tensor]:
    """ProteinBert's LM head -> `mlm.*`, the tied decoder written out as TAPE has it; {} where there is no head."""
    if not mlm:
        return {}
    back = {ours: theirs for theirs, ours in MLM_NAMES.items()}
    short = {name.removeprefix("lm_head."): value for name, value in mlm.items()}
    named = {back.get(name, name): value for name, value in short.items() if name != "decoder.weight"}
    _check(named, mlm_shapes(config), where, "mlm.")
    # A copy: safetensors refuses two names for one memory.
    return {f"mlm.{name}": value for name, value in named.items()} | {"mlm.decoder.weight": embedding.detach().clone()}


def read_weights(directory: Path) -> tuple[Path, dict[str, Tensor]]:
    """The weights file and its tensors; safetensors where there are both."""
    if (directory / SAFE_NAME).is_file():
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return directory / SAFE_NAME, load_file(directory / SAFE_NAME)
        except SafetensorError as error:
            raise InputError(f"{directory / SAFE_NAME}: not a whole safetensors file ({error})") from None
    path = directory / TORCH_NAME
    if not path.is_file():
        raise InputError(f"{directory}: neither {SAFE_NAME} nor {TORCH_NAME} is there")
    from proteinlm.untrusted.safe_load import safe_torch_load

    tensors = safe_torch_load(path)
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise InputError(f"{path}: a state dict (name -> tensor) was expected")
    return path, dict(tensors)


def _sort_names(tensors: Mapping[str, Tensor], path: Path, notes: list[str]) -> tuple[dict, dict, dict]:
    """Split a file into (encoder below `bert.`, masked-LM head below `mlm.`, task head); note what nothing uses."""
    if any(".attention.output.LayerNorm." in name or name.endswith("embeddings.LayerNorm.weight") for name in tensors):
        what = "songlab's post-LN transformer (model type tape_transformer)"
        raise PostLayerNormFile(f"{path}: this is {what}, another architecture than this pre-LN BERT")
    encoder, mlm, head, unused = {}, {}, {}, []
    for name, value in tensors.items():
        short = name.removeprefix("bert.")
        if short.startswith(UNUSED_THERE):
            unused.append(name)
        elif name.startswith("mlm."):
            mlm[name.removeprefix("mlm.")] = value
        elif short.startswith(("embeddings.", "encoder.")):
            encoder[short] = value
        elif name.startswith(("predict.", "classify.")):
            head[name] = value
        else:
            raise InputError(f"{path}: {name} is not a name of a TAPE model (bert.*, mlm.*, predict.*, classify.*)")
    if unused:
        notes.append(f"{path}: {', '.join(unused)} left out deliberately: random and unused in the original too")
    return encoder, mlm, head


def _usable_mlm(mlm: dict[str, Tensor], embedding: Tensor, path: Path, notes: list[str]) -> dict[str, Tensor]:
    """The masked-LM head without its decoder, or {} where that decoder is not the embedding."""
    decoder = mlm.pop("decoder.weight", None)
    if decoder is not None and not torch.equal(decoder, embedding):
        notes.append(f"{path}: mlm.decoder.weight differs from the embedding: the embedding is kept, mlm.* dropped")
        return {}
    return mlm


def _check(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple], path: Path, prefix: str) -> None:
    """Every name of `shapes` is there with its shape and a floating type, and no other."""
    missing = [name for name in shapes if name not in tensors]
    if missing:
        raise InputError(f"{path}: {prefix}{missing[0]} is missing ({len(missing)} of {len(shapes)} names are)")
    for name, value in tensors.items():
        if name not in shapes and name.removeprefix("bert.") in (TOKEN_TYPES, *FINAL_NORM):
            continue  # a file may have these where the model does not
        if name not in shapes:
            raise InputError(f"{path}: {prefix}{name} does not belong to the model of config.json")
        if tuple(value.shape) != tuple(shapes[name]):
            found, wanted = list(value.shape), list(shapes[name])
            raise InputError(f"{path}: {prefix}{name} has shape {found}, but config.json gives {wanted}")
        if not value.is_floating_point():
            raise InputError(f"{path}: {prefix}{name} holds {value.dtype}, a floating type was expected")
