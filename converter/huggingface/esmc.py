"""PortableModel <-> a directory of Hugging Face's `EsmcForMaskedLM` (ESM C).

Neither reading nor writing needs `transformers`; `--verify` does. Read by `proteinlm/model_dir/esm/esmc.py`.
"""

from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from converter.formats import Format, ReadOptions, WriteOptions, has_model_type
from converter.loaders import LoadedModel, load_transformers
from converter.model import PortableModel, portable, require_final_layernorm, require_options, without_contact_head
from converter.vocabulary import to_tokenizer
from proteinlm.errors import InputError
from proteinlm.files import write_json
from proteinlm.model_dir.esm.common import INV_FREQ, computed_inv_freq
from proteinlm.model_dir.esm.esmc import FINAL_BIAS, MODEL_TYPE, TOKEN_IDS, esmc_config_of, read_esmc, to_file_names
from proteinlm.model_dir.files import CONFIG_NAME
from proteinlm.model_dir.weights import write_weights
from proteinlm.tokenizer import ESM_SPECIALS, ESMC_TOKENS

FAMILY, WHO = "Esmc", "Hugging Face's ESM C"
# Of ModelConfig, and in no EsmcConfig: they matter in training alone, or not at all where there is no token dropout.
NOT_THERE = {"hidden_dropout": 0.0, "output_dropout": True, "mask_token_id": None}


def read_hf_esmc(directory: Path, options: ReadOptions) -> PortableModel:
    return portable(read_esmc(directory), str(directory))


def prepare_hf_esmc(model: PortableModel, options: WriteOptions) -> PortableModel:
    """The model on ESM C's 64 rows; InputError for one of another form, whatever differs being named."""
    require_final_layernorm(model, f"{WHO} always applies")
    model = to_tokenizer(without_contact_head(model, WHO), "esmc", divisible_by=1)
    if model.config.hidden_dropout:
        model = model.noted(f"hidden_dropout {model.config.hidden_dropout:g} is left out: {WHO} has none")
    require_options(model, {"token_dropout": False}, WHO)  # which needs the mask_token_id that goes now
    model = model.with_config(**NOT_THERE)
    require_options(model, asdict(esmc_config_of(_config_json(model, model.dtype), "config.json")), WHO)
    if model.tensors[FINAL_BIAS].any():
        raise InputError(f"{model.origin}: {FINAL_BIAS} is not zeros; {WHO} has no bias in its final norm")
    if not torch.equal(model.tensors[INV_FREQ].float(), computed_inv_freq(model.config)):
        base = f"{model.config.rotary_base:g}"
        raise InputError(f"{model.origin}: {INV_FREQ} is not that of rotary_base {base}, which {WHO} computes")
    return model


def write_hf_esmc(model: PortableModel, directory: Path, options: WriteOptions) -> None:
    """Weights, then tokenizer, then config.json: a directory with a config.json is complete."""

    def translate(name: str, tensor: Tensor) -> dict[str, Tensor]:
        return to_file_names(name, tensor, model.config.num_attention_heads)

    write_weights(directory, model.tensors, translate, options.dtype, options.torch_file)
    names = {f"{token[1:-1]}_token": token for token in ESM_SPECIALS}
    tokenizer = {"tokenizer_class": "EsmcTokenizer", **names, "bos_token": "<cls>", "chain_break_token": "|"}
    write_json(directory / "tokenizer_config.json", tokenizer)
    write_json(directory / CONFIG_NAME, _config_json(model, options.dtype or model.dtype))


def _config_json(model: PortableModel, dtype: torch.dtype) -> dict:
    config = model.config
    return {
        "architectures": [f"{FAMILY}{'ForMaskedLM' if model.has_lm_head else 'Model'}"],
        "model_type": MODEL_TYPE,
        "vocab_size": config.vocab_size,
        **TOKEN_IDS,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_attention_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.ffn_hidden_size,
        "hidden_act": "silu",
        "attention_bias": config.add_bias_linear,
        "mlp_bias": config.add_bias_linear,
        "attention_dropout": float(config.attention_dropout),
        "initializer_range": float(config.init_method_std),
        "max_position_embeddings": config.max_position_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(config.rotary_base)},
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "converted_from": model.origin,
    }


def load_hf_esmc(directory: Path, model: PortableModel) -> LoadedModel | None:
    loaded = load_transformers(directory, model, FAMILY, ESMC_TOKENS)
    return loaded and replace(loaded, lm_head_act=None)  # its head has GELU, whatever the MLP has


ESMC = Format(
    "esmc",
    has_model_type(MODEL_TYPE),
    read_hf_esmc,
    prepare_hf_esmc,
    write_hf_esmc,
    load_hf_esmc,
    model_type=MODEL_TYPE,
    has_torch_file=True,
)
