"""Hugging Face's EsmcForMaskedLM directories (ESM C, Biohub 2026): config.json, weights, tokenizer files if there.

Its vocabulary has 64 rows, of which 33 are tokens; all of them are kept, for the head was trained over all. What the
files do not hold: the final norm's bias, which is zeros here, and the inverse frequencies, which are those of the base.

What must hold: a key of config.json that changes what the model computes is read, and another value than the network
can compute is refused. Read from transformers 5.24, modeling_esmc.py and configuration_esmc.py.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from proteinlm.errors import InputError
from proteinlm.model_dir.config import FLAG, POSITIVE, check_shape_keys, check_values, model_config_of, same_value
from proteinlm.model_dir.esm.common import EPSILON, INV_FREQ, computed_inv_freq
from proteinlm.model_dir.esm.names import ESMC_NAMES, ESMC_NOT_STORED, ESMC_PARTS, ESMC_UNUSED
from proteinlm.model_dir.files import (
    CONFIG_NAME,
    ModelFiles,
    check_layers,
    check_tensors,
    count_not_finite,
    read_config,
)
from proteinlm.model_dir.weights import WeightFiles
from proteinlm.network.config import ModelConfig
from proteinlm.tokenizer import ESMC_TOKENS, build_tokenizer

MODEL_TYPE = "esmc"
FINAL_BIAS = "final_layernorm.bias"  # of ProteinBert
DEPTH_OF_SCALE_1 = 36  # what a layer adds is divided by sqrt(layers / 36)
TOKEN_IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "mask_token_id": 32}


def read_esmc(directory: Path) -> ModelFiles:
    """A directory of EsmcForMaskedLM, EsmcModel, or a class that adds a task's head, which is left out with a note."""
    stored, weights = read_config(directory), WeightFiles(directory)
    config = esmc_config_of(stored, str(directory / CONFIG_NAME))
    tensors = {f"esmc.{name}" if name.startswith(ESMC_PARTS) else name: weights.get(name) for name in weights.files}
    check_layers(stored, tensors, weights.path)
    left_out = sorted(name for name in tensors if name.startswith(ESMC_UNUSED))
    tensors = {name: value for name, value in tensors.items() if name not in left_out}
    why = "left out: the masked language model has no use for it"
    notes = (f"{weights.path}: {', '.join(left_out)} {why}",) if left_out else ()
    has_head = any(name.startswith("lm_head.") for name in tensors)
    expected = ESMC_NAMES.expected(config, has_head)
    check_tensors(tensors, {name: expected[name] for name in expected if name not in ESMC_NOT_STORED}, weights.path)
    not_finite = count_not_finite(tensors)
    return ModelFiles(config, build_tokenizer("esmc"), to_own_names(tensors, config), notes, weights.path, not_finite)


def to_own_names(tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """ProteinBert's state, with what the file does not hold; `tensors` is used up."""
    state = ESMC_NAMES.restore(tensors, config.num_attention_heads)
    if "lm_head.decoder.bias" in state:
        state["lm_head.bias"] = state.pop("lm_head.decoder.bias")
    state[FINAL_BIAS] = torch.zeros_like(state["final_layernorm.weight"])
    state[INV_FREQ] = computed_inv_freq(config)
    return state


def to_file_names(name: str, tensor: Tensor, heads: int) -> dict[str, Tensor]:
    """What the file holds of a tensor of ProteinBert."""
    return {} if name in (FINAL_BIAS, INV_FREQ) else ESMC_NAMES.rename({name: tensor}, heads)


def esmc_config_of(stored: Mapping, where: str) -> ModelConfig:
    """The encoder of an EsmcConfig; InputError for what is another network or another vocabulary."""
    values = {key: value for key, value in stored.items() if value is not None}
    check_shape_keys(values, where)
    _check_same_network(values, where)
    layers, biases = values["num_hidden_layers"], values.get("attention_bias", False)
    own = {
        "hidden_act": "swish",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": values.get("attention_dropout", 0.0),
        "layer_norm_eps": EPSILON,
        "position_embedding_type": "rope",
        "rotary_base": _rope_theta(values, where),
        "add_bias_linear": biases,
        "swiglu": True,
        "qk_layernorm": True,
        "residual_scale": math.sqrt(DEPTH_OF_SCALE_1 / layers),
        "untie_embeddings_and_output_weights": True,
    }
    known = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    known += ("max_position_embeddings", "initializer_range")
    return model_config_of({key: values[key] for key in known if key in values} | own, where)


def _check_same_network(values: Mapping, where: str) -> None:
    """InputError for a value of a key that makes another network than this one, or another vocabulary."""
    heads, biases = values["num_attention_heads"], values.get("attention_bias", False)
    check_values({"attention_bias": biases}, ["attention_bias"], where, {"attention_bias": FLAG})
    only = {
        "vocab_size": len(ESMC_TOKENS),
        "hidden_act": "silu",
        "head_dim": values["hidden_size"] // heads,
        "num_key_value_heads": heads,
        "mlp_bias": biases,
        **TOKEN_IDS,
    }
    for key, right in only.items():
        if not same_value(values.get(key, right), right):
            raise InputError(f"{where}: {key} is {ascii(values[key])[:40]}; an ESM C of this shape has {right}")


def _rope_theta(values: Mapping, where: str) -> float:
    """The base of the inverse frequencies; InputError where they are scaled."""
    rope = values.get("rope_parameters", {})
    if (
        not isinstance(rope, dict)
        or set(rope) - {"rope_type", "rope_theta"}
        or rope.get("rope_type") not in (None, "default")
    ):
        raise InputError(f"{where}: rope_parameters {ascii(rope)[:80]}; only rope_theta, unscaled, can be opened")
    theta = {"rope_theta": rope.get("rope_theta", values.get("rope_theta", 10000.0))}
    check_values(theta, theta, where, {"rope_theta": POSITIVE})
    return theta["rope_theta"]
