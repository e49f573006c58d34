"""Hugging Face's EsmForMaskedLM directories (ESM-2, ESM-1b, ESM-1v): config.json, weights, vocab.txt if there.

What must hold: a key of config.json that changes what the model computes is read, its default being EsmConfig's, and
another value than the network can compute is refused; the stored inverse frequencies are taken as they are; nothing in
a file is dropped silently. Read from transformers 5.23, modeling_esm.py and configuration_esm.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from proteinlm.errors import InputError
from proteinlm.model_dir.config import (
    FLAG,
    POSITIVE,
    check_shape_keys,
    check_values,
    model_config_of,
    one_of,
    same_value,
)
from proteinlm.model_dir.contact_head import expected_contacts, take_contacts
from proteinlm.model_dir.esm.common import FIRST_POSITION, computed_inv_freq, same_inv_freq
from proteinlm.model_dir.esm.names import (
    DECODER,
    ENCODER_PARTS,
    ESM_CONTACTS,
    ESM_NAMES,
    INV_FREQ,
    LAYER_INV_FREQ,
    NORM_KINDS,
    OTHER_HEADS,
    POSITIONS,
    UNUSED,
    WORDS,
)
from proteinlm.model_dir.files import (
    CONFIG_NAME,
    ModelFiles,
    check_layers,
    check_tensors,
    count_not_finite,
    read_config,
    same,
)
from proteinlm.model_dir.weights import WeightFiles
from proteinlm.network.config import ModelConfig
from proteinlm.tokenizer import ESM_TOKENS, build_tokenizer

MODEL_TYPE = "esm"
POSITION_TYPES = {"absolute": "learned_absolute", "rotary": "rope"}  # Hugging Face's names -> ours
# Keys that make another network, and the only value of each that is this one.
ONLY = {"hidden_act": "gelu", "is_decoder": False, "add_cross_attention": False, "is_folding_model": False}
# What EsmConfig has where config.json does not say it, and the rule of each.
DEFAULTS = {
    "position_embedding_type": "absolute",
    "rope_theta": 10000.0,
    "emb_layer_norm_before": False,
    "token_dropout": False,
    "tie_word_embeddings": True,
    "layer_norm_eps": 1e-12,
}
RULES = {
    "position_embedding_type": one_of(POSITION_TYPES),
    "rope_theta": POSITIVE,
    **dict.fromkeys(("emb_layer_norm_before", "token_dropout", "tie_word_embeddings"), FLAG),
}


def read_esm(directory: Path) -> ModelFiles:
    """A directory of EsmForMaskedLM, EsmModel, or a class that adds a task's head, which is left out with a note."""
    where, stored = str(directory / CONFIG_NAME), read_config(directory)
    config = esm_config_of(stored, where)
    _check_vocabulary(directory, stored, where)
    weights = WeightFiles(directory)
    tensors, notes = _full_names(weights.get_all()), []
    check_layers(stored, tensors, weights.path)
    _leave_out(tensors, config, notes)
    _one_inv_freq(tensors, config, weights.path, notes)
    if _decoder(tensors, stored, notes):
        config = replace(config, untie_embeddings_and_output_weights=True)
    has_head = any(name.startswith("lm_head.") for name in tensors)
    expected = ESM_NAMES.expected(config, has_head) | expected_contacts(tensors, config, ESM_CONTACTS)
    check_tensors(tensors, expected, weights.path)
    not_finite = count_not_finite(tensors)
    contact_head = take_contacts(tensors, ESM_CONTACTS)
    state = ESM_NAMES.restore(tensors, config.num_attention_heads)
    notes = tuple(f"{weights.path}: {note}" for note in notes)
    return ModelFiles(config, build_tokenizer("esm"), state, notes, weights.path, not_finite, contact_head)


def esm_config_of(stored: Mapping, where: str) -> ModelConfig:
    """The encoder of an EsmConfig; InputError for what is another network or another vocabulary."""
    values = DEFAULTS | {key: value for key, value in stored.items() if value is not None}
    for key, only in ONLY.items():
        if not same_value(values.get(key, only), only):
            raise InputError(f"{where}: {key} {ascii(values[key])[:40]} is another network; only {only} can be opened")
    check_values(values, RULES, where, RULES)
    check_shape_keys(values, where)
    _check_ids(values, where)
    positions, offset = values["max_position_embeddings"], 0
    if values["position_embedding_type"] == "absolute":
        offset = FIRST_POSITION
        if positions <= offset:
            raise InputError(f"{where}: max_position_embeddings {positions}; the first {offset} rows are no position's")
    own = {
        "position_embedding_type": POSITION_TYPES[values["position_embedding_type"]],
        "max_position_embeddings": positions - offset,
        "position_offset": offset,
        "rotary_base": values["rope_theta"],
        "embedding_layernorm": values["emb_layer_norm_before"],
        "untie_embeddings_and_output_weights": not values["tie_word_embeddings"],
    }
    known = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    known += ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps")
    known += ("token_dropout", "mask_token_id", "pruned_heads")
    return model_config_of({key: values[key] for key in known if key in values} | own, where)


def _check_ids(values: Mapping, where: str) -> None:
    """The vocabulary is ESM's, as far as config.json says anything about it."""
    if values["vocab_size"] != len(ESM_TOKENS):
        size = values["vocab_size"]
        raise InputError(f"{where}: vocab_size {size}; only ESM's vocabulary of {len(ESM_TOKENS)} tokens can be opened")
    for key, token in (("pad_token_id", "<pad>"), ("mask_token_id", "<mask>")):
        right = ESM_TOKENS.index(token)
        if key in values and (type(values[key]) is not int or values[key] != right):
            raise InputError(f"{where}: {key} is {ascii(values[key])[:40]}; {token} is {right} in ESM's vocabulary")
    if values["token_dropout"] and "mask_token_id" not in values:
        raise InputError(f"{where}: token_dropout is true and mask_token_id is missing; {len(ESM_TOKENS) - 1} is right")


def _check_vocabulary(directory: Path, stored: Mapping, where: str) -> None:
    """vocab.txt and vocab_list, where they are there, hold ESM's tokens in their order."""
    text = directory / "vocab.txt"
    if text.is_file():
        build_tokenizer("esm", str(text))
    listed = stored.get("vocab_list")
    if listed is not None and (not isinstance(listed, list) or tuple(listed) != ESM_TOKENS):
        raise InputError(f"{where}: vocab_list is not ESM's 33 tokens in their order, <cls> to <mask>")


def _full_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`esm.` is added where a file of EsmModel alone leaves it out; a LayerNorm's gamma and beta become weight and
    bias."""
    full = {}
    for name, value in tensors.items():
        name = f"esm.{name}" if name.startswith(ENCODER_PARTS) else name
        module, _, kind = name.rpartition(".")
        full[f"{module}.{NORM_KINDS[kind]}" if module.endswith(".LayerNorm") and kind in NORM_KINDS else name] = value
    return full


def _leave_out(tensors: dict[str, Tensor], config: ModelConfig, notes: list[str]) -> None:
    """Remove what the model has no use for, with a note where it says something."""
    for name in [name for name in tensors if name.startswith(UNUSED)]:
        del tensors[name]
    if config.position_embedding_type == "rope" and tensors.pop(POSITIONS, None) is not None:
        notes.append(f"{POSITIONS} left out: positions are rotary, so nothing reads it")
    others = sorted(name for name in tensors if name.startswith(OTHER_HEADS))
    if others:
        notes.append(f"{', '.join(others)} left out: not part of a masked language model")
    for name in others:
        del tensors[name]


def _one_inv_freq(tensors: dict[str, Tensor], config: ModelConfig, path: Path, notes: list[str]) -> None:
    """Older files have the inverse frequencies once a layer, newer ones once; they must all be the same numbers."""
    if config.position_embedding_type != "rope":
        return
    names = [name for name in tensors if name == INV_FREQ or name.endswith(LAYER_INV_FREQ)]
    if names:
        tensors[INV_FREQ] = same_inv_freq({name: tensors.pop(name) for name in names}, path)
    else:
        notes.append(f"no inv_freq: the inverse frequencies are those of rope_theta {config.rotary_base:g}")
        tensors[INV_FREQ] = computed_inv_freq(config)


def _decoder(tensors: dict[str, Tensor], stored: Mapping, notes: list[str]) -> bool:
    """Whether the LM head has a matrix of its own. The copy of a tied one is removed."""
    if DECODER not in tensors or stored.get("tie_word_embeddings") is False:
        return DECODER in tensors
    if WORDS in tensors and same(tensors[DECODER], tensors[WORDS]):
        del tensors[DECODER]
        return False
    notes.append(f"{DECODER} differs from {WORDS}: the head keeps its own matrix, untied")
    return True
