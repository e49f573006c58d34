"""PortableModel <-> a directory of Hugging Face's `EsmForMaskedLM`, for `AutoModelForMaskedLM` and `AutoTokenizer`.

Neither reading nor writing needs `transformers`; `--verify` does. Read by `proteinlm/model_dir/esm/huggingface.py`.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from converter.formats import Format, ReadOptions, WriteOptions, has_model_type
from converter.loaders import LoadedModel, load_transformers
from converter.model import PortableModel, portable, require_final_layernorm, require_options
from converter.vocabulary import to_tokenizer
from proteinlm.errors import InputError
from proteinlm.files import write_json, write_text
from proteinlm.model_dir.contact_head import contact_tensors, no_contacts
from proteinlm.model_dir.esm.common import FIRST_POSITION
from proteinlm.model_dir.esm.huggingface import MODEL_TYPE, POSITION_TYPES, read_esm
from proteinlm.model_dir.esm.names import ESM_CONTACTS, ESM_NAMES
from proteinlm.model_dir.files import CONFIG_NAME
from proteinlm.model_dir.weights import write_weights
from proteinlm.network.config import ModelConfig
from proteinlm.tokenizer import ESM_TOKENS

FAMILY = "Esm"
# What the network of ESM-1b, 1v and 2 always is.
ALWAYS = {
    **{"hidden_act": "gelu", "lm_head_act": "gelu", "normalization": "LayerNorm", "add_bias_linear": True},
    **{"swiglu": False, "qk_layernorm": False, "residual_scale": 1.0, "lm_head_transform": True},
}


def read_hf_esm(directory: Path, options: ReadOptions) -> PortableModel:
    return portable(read_esm(directory), str(directory))


def prepare_hf_esm(model: PortableModel, options: WriteOptions) -> PortableModel:
    return to_esm(model, "Hugging Face's ESM")


def to_esm(model: PortableModel, who: str) -> PortableModel:
    """The model as ESM's files have it: 33 tokens without padding, learned positions after two rows of no position.

    InputError for what `who` cannot compute.
    """
    require_final_layernorm(model, f"{who} always applies")
    require_options(model, ALWAYS, who)
    if model.config.position_embedding_type == "none":
        raise InputError(f"{model.origin}: position_embedding_type none; {who} has learned_absolute or rope")
    if model.tokenizer.name == "iupac":
        model = model.noted(f"{who} ends proteins with <eos>, which pretraining on the iupac vocabulary never showed")
    model = to_tokenizer(model, "esm", divisible_by=1).with_config(output_dropout=True)
    if model.config.position_embedding_type == "learned_absolute" and model.config.position_offset != FIRST_POSITION:
        positions = model.tensors["position_embeddings.weight"][model.config.position_offset :]
        positions = torch.cat((positions.new_zeros(FIRST_POSITION, positions.shape[1]), positions))
        model = replace(model, tensors=model.tensors | {"position_embeddings.weight": positions})
        model = model.with_config(position_offset=FIRST_POSITION).noted(
            f"{FIRST_POSITION} rows of zeros put before the position embedding: {who} begins after them"
        )
    if model.contact_head is None:
        model = model.noted("no contact regression: zeros are written for it, and its contacts say nothing there")
    return model


def write_hf_esm(model: PortableModel, directory: Path, options: WriteOptions) -> None:
    """Weights, then tokenizer, then config.json: a directory with a config.json is complete."""

    def translate(name: str, tensor: Tensor) -> dict[str, Tensor]:
        return ESM_NAMES.rename({name: tensor}, model.config.num_attention_heads)

    head = model.contact_head or no_contacts(model.config, model.dtype)
    tensors = model.tensors | contact_tensors(head, ESM_CONTACTS)
    write_weights(directory, tensors, translate, options.dtype, options.torch_file)
    _write_tokenizer(directory, model.config.max_tokens)
    write_json(directory / CONFIG_NAME, _config_json(model, options.dtype or model.dtype))


def _config_json(model: PortableModel, dtype: torch.dtype) -> dict:
    config = model.config
    return {
        "architectures": [f"{FAMILY}{'ForMaskedLM' if model.has_lm_head else 'Model'}"],
        "model_type": MODEL_TYPE,
        "vocab_size": config.vocab_size,
        "pad_token_id": ESM_TOKENS.index("<pad>"),
        "mask_token_id": ESM_TOKENS.index("<mask>"),
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.ffn_hidden_size,
        "hidden_act": config.hidden_act,
        "hidden_dropout_prob": float(config.hidden_dropout),  # EsmConfig takes no int for a float
        "attention_probs_dropout_prob": float(config.attention_dropout),
        "initializer_range": float(config.init_method_std),
        "layer_norm_eps": float(config.layernorm_epsilon),
        **_positions(config),
        "rope_theta": float(config.rotary_base),
        "emb_layer_norm_before": config.embedding_layernorm,
        "token_dropout": config.token_dropout,
        "tie_word_embeddings": not config.untie_embeddings_and_output_weights,
        "is_folding_model": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "converted_from": model.origin,
    }


def _positions(config: ModelConfig) -> dict[str, object]:
    names = {kind: name for name, kind in POSITION_TYPES.items()}
    return {
        "position_embedding_type": names[config.position_embedding_type],
        "max_position_embeddings": config.max_position_embeddings + config.position_offset,
    }


def _write_tokenizer(directory: Path, longest: int | None) -> None:
    """vocab.txt, tokenizer_config.json and special_tokens_map.json, as EsmTokenizer writes them. longest: in tokens."""
    roles = ("cls", "pad", "eos", "unk", "mask")
    names = {f"{role}_token": f"<{role}>" for role in roles}
    length = {} if longest is None else {"model_max_length": longest}
    write_text(directory / "vocab.txt", "\n".join(ESM_TOKENS) + "\n")
    write_json(directory / "special_tokens_map.json", names)
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "EsmTokenizer", **length} | names)


def load_hf_esm(directory: Path, model: PortableModel) -> LoadedModel | None:
    return load_transformers(directory, model, FAMILY, ESM_TOKENS)


ESM = Format(
    "esm",
    has_model_type(MODEL_TYPE),
    read_hf_esm,
    prepare_hf_esm,
    write_hf_esm,
    load_hf_esm,
    model_type=MODEL_TYPE,
    has_torch_file=True,
)
