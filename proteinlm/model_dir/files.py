"""TAPE model directories on disk: config.json and model.safetensors (or pytorch_model.bin).

    files = load_tape_dir("runs/tape_model")    # files.state: names of proteinlm.network.model.ProteinBert
    write_tape_dir("runs/copy", files.config, files.state)      # lm_head.* may be in it; `head`: as in the model

What must hold: every tensor's name and shape is checked against config.json, and nothing in a file is dropped silently:
what is left out is in the notes. Where decoder and embedding of a file differ (the original tied a random decoder), the
embedding wins and mlm.* is left out. Files from elsewhere go through proteinlm.untrusted.safe_load.

songlab's own transformer (post-LN) is another architecture: PostLayerNormFile says so. What is no model directory is
answered here in one line with what to do, so that `proteinlm.load` and every command say the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from proteinlm.errors import InputError
from proteinlm.files import write_json
from proteinlm.model_dir.config import TAPE_EXTRAS, model_config_of
from proteinlm.model_dir.contact_head import CONTACTS, contact_tensors, expected_contacts, take_contacts
from proteinlm.model_dir.find import CONFIG_NAME, model_type_of, other_model_type, read_config
from proteinlm.model_dir.names import DECODER, FINAL_NORM, TAPE_NAMES, TOKEN_TYPES, UNUSED, WORDS, from_tape
from proteinlm.model_dir.weights import WeightFiles, write_weights
from proteinlm.network.config import ModelConfig
from proteinlm.network.contacts import ContactRegression
from proteinlm.tokenizer import TAPE_TOKENS, Tokenizer

OPTIONAL = (TOKEN_TYPES, FINAL_NORM, UNUSED)  # a file may have these where the model does not


class PostLayerNormFile(InputError):
    """The weights are those of songlab's transformer: LayerNorm after each sum, and on the embedding."""


@dataclass(frozen=True)
class TapeFiles:
    """What a TAPE directory holds, its names checked and the encoder's names those of ProteinBert."""

    config: dict
    model_config: ModelConfig
    state: dict[str, Tensor]  # names of ProteinBert, lm_head.* only where the file has a usable masked-LM head
    head: dict[str, Tensor]  # predict.* / classify.* of a finetuned run, as in the file
    notes: tuple[str, ...]  # what was left out or changed, one sentence each
    source: Path  # the file of weights
    not_finite: dict[str, int]  # name in the file -> how many of its numbers are NaN or infinity
    contact_head: ContactRegression | None = None


@dataclass(frozen=True)
class ModelFiles:
    """What a reader makes of a directory or file, whatever its format (proteinlm.model_dir.load.READERS).

    Numbers that are none are counted: who computes with the weights refuses them (`check_finite`), who copies does not.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    state: dict[str, Tensor]  # names of ProteinBert, lm_head.* only where there is a usable head
    notes: tuple[str, ...]  # what was left out or changed, one sentence each
    source: Path | str = ""  # the file of weights
    not_finite: Mapping[str, int] = field(default_factory=dict)  # name in the file -> numbers that are NaN or infinity
    contact_head: ContactRegression | None = None


def load_tape_dir(directory: str | Path, overrides: Mapping | None = None) -> TapeFiles:
    """Read and check a TAPE directory; `overrides` replace keys of config.json before the shapes are checked."""
    directory = Path(directory)
    config = read_config(directory)
    if model_type_of(config, directory) == "huggingface":
        raise other_model_type(config, directory)
    config |= dict(overrides or {})
    model_config = model_config_of(config, str(directory / CONFIG_NAME))
    if model_config.mask_token_id not in (None, TAPE_TOKENS.index("<mask>")):
        mask = f"mask_token_id {model_config.mask_token_id}; <mask> is 1 in TAPE's vocabulary"
        raise InputError(f"{directory / CONFIG_NAME}: {mask}")
    weights = WeightFiles(directory)
    path, tensors = weights.path, weights.get_all()
    not_finite, (tensors, head) = count_not_finite(tensors), _sort_names(tensors, path)
    check_layers(config, tensors, path)
    notes = []
    untied = model_config.untie_embeddings_and_output_weights
    decoder, words = None if untied else tensors.pop(DECODER, None), tensors.get(WORDS)
    if decoder is not None and words is not None and not same(decoder, words):
        notes.append(f"{DECODER} differs from the embedding: the embedding is kept, mlm.* dropped")
        tensors = {name: value for name, value in tensors.items() if not name.startswith("mlm.")}
    expected = TAPE_NAMES.expected(model_config, lm_head=any(name.startswith("mlm.") for name in tensors))
    expected |= expected_contacts(tensors, model_config)
    if (types := tensors.get(TOKEN_TYPES)) is not None:
        expected[TOKEN_TYPES] = torch.empty(len(types) if types.dim() else 1, model_config.hidden_size, device="meta")
    check_tensors(tensors, expected, path, OPTIONAL)
    contact_head = take_contacts(tensors)
    state, more = from_tape(tensors, model_config)
    notes = tuple(f"{path}: {note}" for note in (*notes, *more))
    return TapeFiles(config, model_config, state, head, notes, path, not_finite, contact_head)


def write_tape_dir(
    directory: str | Path,
    config: Mapping,
    state: Mapping[str, Tensor],
    head: Mapping[str, Tensor] | None = None,
    torch_file: bool = False,
    dtype: torch.dtype | None = None,
    contact_head: ContactRegression | None = None,
) -> None:
    """Write config.json and model.safetensors (also pytorch_model.bin if `torch_file`) with TAPE's names.

    state: names and shapes of ProteinBert with TAPE's 30 rows, lm_head.* allowed; head: predict.* or classify.* as the
    model names them. dtype: what to round to (None: each tensor's own). Weights come first and config.json last: a
    directory with a config is complete.
    """
    directory = Path(directory)
    config = TAPE_EXTRAS | dict(config)
    model_config = model_config_of(config, str(directory / CONFIG_NAME))
    heads, has_lm_head = model_config.num_attention_heads, any(name.startswith("lm_head.") for name in state)
    renamed = TAPE_NAMES.rename({name: tensor.to("meta") for name, tensor in state.items()}, heads)
    check_tensors(renamed, TAPE_NAMES.expected(model_config, has_lm_head), directory)

    def translate(name: str, tensor: Tensor) -> dict[str, Tensor]:
        parts = TAPE_NAMES.rename({name: tensor}, heads)
        if name == "word_embeddings.weight":
            parts[TOKEN_TYPES] = tensor.new_zeros(config["type_vocab_size"], model_config.hidden_size)
            if has_lm_head and not model_config.untie_embeddings_and_output_weights:
                parts[DECODER] = tensor
        return parts

    tensors = {**state, **(head or {}), **contact_tensors(contact_head)}
    write_weights(directory, tensors, translate, dtype, torch_file)
    write_json(directory / CONFIG_NAME, config)


def check_layers(config: Mapping, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse more layers than the file can hold, before anything is made for each that config.json claims."""
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > len(tensors):
        raise InputError(f"{path}: its {len(tensors)} tensors cannot be the {layers} layers of config.json")


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, their kind of number included; NaN of the same bits is."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a, b) or torch.equal(*(value.contiguous().view(-1).view(torch.uint8) for value in (a, b)))


def _sort_names(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a file into (encoder and masked-LM head, task head); `bert.` is added where the file leaves it out."""
    if any(".attention.output.LayerNorm." in name or name.endswith("embeddings.LayerNorm.weight") for name in tensors):
        what = "songlab's post-LN transformer (model type tape_transformer)"
        raise PostLayerNormFile(f"{path}: this is {what}, another architecture than this pre-LN BERT")
    model, head = {}, {}
    for name, value in tensors.items():
        full_name = f"bert.{name.removeprefix('bert.')}"
        if name.startswith(("mlm.", CONTACTS)):
            model[name] = value
        elif full_name.startswith(("bert.embeddings.", "bert.encoder.", UNUSED)):
            model[full_name] = value
        elif name.startswith(("predict.", "classify.")):
            head[name] = value
        else:
            raise InputError(f"{path}: {name} is not a name of a TAPE model (bert.*, mlm.*, predict.*, classify.*)")
    return model, head


def check_tensors(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    path: Path | str,
    optional: tuple[str, ...] = (),
    who_needs: str = "config.json gives",
) -> None:
    """Every name of `expected` is there with its shape and its kind of number, and no other.

    optional: how names begin that are passed over. who_needs: words between what is there and what should be.
    """
    missing = [name for name in expected if name not in tensors]
    if missing:
        count = f"{len(missing)} of {len(expected)} names that {who_needs} are"
        raise InputError(f"{path}: {missing[0]} is missing ({count})")
    for name, value in tensors.items():
        if name not in expected and name.startswith(optional):
            continue
        if name not in expected:
            raise InputError(f"{path}: {name} does not belong to the model ({who_needs.rsplit(' give')[0]})")
        if value.shape != expected[name].shape:
            actual, right = list(value.shape), list(expected[name].shape)
            raise InputError(f"{path}: {name} has shape {actual}, but {who_needs} {right}")
        if value.is_floating_point() != expected[name].is_floating_point():
            raise InputError(f"{path}: {name} holds {value.dtype}, but {who_needs} {expected[name].dtype}")


def count_not_finite(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Name -> how many numbers are NaN or infinity, of the tensors that hold any.

    One sum a tensor, to which each of them is passed on; single numbers are looked at where it is not finite.
    """
    counts = {}
    for name, value in tensors.items():
        value = value.float() if value.is_floating_point() and value.element_size() == 1 else value  # torch adds no fp8
        if value.is_floating_point() and not value.sum().isfinite():
            counts[name] = value.numel() - int(value.isfinite().sum())
    return {name: count for name, count in counts.items() if count}


def check_finite(not_finite: Mapping[str, int], where: Path | str) -> None:
    """InputError for NaN or infinity: no number that comes out of such a model means anything."""
    if not_finite:
        (name, count), number = next(iter(not_finite.items())), len(not_finite)
        more = f"{count:,} numbers" + (f", and {number - 1} more tensors" if number > 1 else "")
        raise InputError(f"{where}: {name} holds NaN or infinity ({more}): a diverged run or a damaged file")
