"""PortableModel <-> a directory of Hugging Face's `MegatronBertForMaskedLM`: the same network under other names.

Neither reading nor writing needs `transformers`; `--verify` does.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from converter.formats import Format, ReadOptions, WriteOptions, model_dir_config
from converter.huggingface.tokenizer import read_vocabulary, write_tokenizer
from converter.loaders import LoadedModel, load_transformers
from converter.model import PLAIN, PortableModel, require_final_layernorm, require_options, without_contact_head
from converter.names import HF_LEFT_OUT, HF_NAMES, HF_TIED, HF_TOKEN_TYPES
from converter.vocabulary import (
    MEGATRON_PADDING,
    WIDEST_PADDING,
    fold_token_types,
    to_pretraining,
)
from proteinlm.errors import InputError
from proteinlm.files import write_json
from proteinlm.model_dir.config import OPTIONAL_KEYS, config_values, model_config_of
from proteinlm.model_dir.files import CONFIG_NAME, check_layers, check_tensors, read_config, same
from proteinlm.model_dir.vocabulary import canonical, take_rows
from proteinlm.model_dir.weights import WeightFiles, write_weights
from proteinlm.network.config import ModelConfig
from proteinlm.tokenizer import PRETRAIN_TOKENS, RESIDUES, build_tokenizer

MODEL_TYPE, FAMILY = "megatron-bert", "MegatronBert"
# Keys of config.json that change what the model computes, and their only known value.
ONLY = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
ALWAYS = {"final_layernorm": True, "output_dropout": True}  # of ModelConfig, and no key there


def recognises_megatron_bert(path: Path) -> bool:
    config = model_dir_config(path) or {}
    model_type = config.get("model_type")
    return model_type == MODEL_TYPE or (model_type is None and FAMILY in str(config.get("architectures")))


def prepare_megatron_bert(model: PortableModel, options: WriteOptions) -> PortableModel:
    """The model as `write_megatron_bert` stores it: the 31 pretraining tokens without padding rows."""
    require_final_layernorm(model, "Hugging Face's MegatronBert always applies")
    require_options(model, PLAIN, "Hugging Face's MegatronBert")
    model = to_pretraining(without_contact_head(model, "MegatronBert"), divisible_by=1)
    if model.has_lm_head and model.config.lm_head_act != model.config.hidden_act:
        model = model.noted(
            f"Hugging Face has one activation for MLP and LM head: hidden_act {model.config.hidden_act} is kept, its "
            f"head computes that instead of {model.config.lm_head_act} (config.json keeps lm_head_act for us); hidden "
            "states agree, logits there differ by that much"
        )
    return model


def write_megatron_bert(model: PortableModel, directory: Path, options: WriteOptions) -> None:
    """Weights, then tokenizer, then config.json: a directory with a config.json is complete."""
    copies = {original: copy for copy, original in HF_TIED.items()}

    def translate(name: str, tensor: Tensor) -> dict[str, Tensor]:
        parts = HF_NAMES.rename({name: tensor}, model.config.num_attention_heads)
        if model.has_lm_head:
            parts |= {copies[hf_name]: part for hf_name, part in parts.items() if hf_name in copies}
        if name == "word_embeddings.weight":
            parts[HF_TOKEN_TYPES] = tensor.new_zeros(2, model.config.hidden_size)
        return parts

    write_weights(directory, model.tensors, translate, options.dtype, options.torch_file)
    write_tokenizer(directory, model.tokenizer.tokens, model.config.max_position_embeddings)
    write_json(directory / CONFIG_NAME, _config_json(model, options.dtype or model.dtype))


def _config_json(model: PortableModel, dtype: torch.dtype) -> dict:
    return {
        "architectures": [f"{FAMILY}{'ForMaskedLM' if model.has_lm_head else 'Model'}"],
        "model_type": MODEL_TYPE,
        **{key: value for key, value in config_values(model.config).items() if key not in (*ALWAYS, *OPTIONAL_KEYS)},
        "type_vocab_size": 2,
        "pad_token_id": model.tokenizer.pad_id,
        "tie_word_embeddings": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "converted_from": model.origin,
    }


def load_megatron_bert(directory: Path, model: PortableModel) -> LoadedModel | None:
    return load_transformers(directory, model, FAMILY, read_vocabulary(directory) or ())


# ---- reading


def read_megatron_bert(directory: Path, options: ReadOptions) -> PortableModel:
    """A directory of config.json, weights (safetensors or .bin, one file or several) and, if there, a vocabulary."""
    where = str(directory / CONFIG_NAME)
    stored = read_config(directory)
    for key, only in ONLY.items():
        if stored.get(key, only) != only:
            raise InputError(f"{where}: {key} {ascii(stored[key])[:40]} is another network; only {only} is converted")
    # Its head computes hidden_act; lm_head_act is a key that we add. Without hidden_act it is the erf form.
    config = model_config_of({"lm_head_act": stored.get("hidden_act", "gelu")} | stored | ALWAYS, where)
    tensors = WeightFiles(directory).get_all()
    check_layers(stored, tensors, directory)
    tensors, notes = _to_our_names(tensors, config, directory)
    tokens, tokenizer = _vocabulary(directory, config.vocab_size, notes), build_tokenizer()
    tensors, dropped = take_rows(tensors, tokens, tokenizer, 1, str(directory))
    config = replace(config, vocab_size=tokenizer.vocab_size)
    return PortableModel(config, tokenizer, tensors, str(directory), (*notes, *dropped)).checked()


def _to_our_names(
    tensors: dict[str, Tensor], config: ModelConfig, directory: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """(tensors under our names, notes); every tensor of the files is used up or noted."""
    if not any(name.startswith("bert.") for name in tensors):
        raise InputError(f"{directory}: its weights have no names below 'bert.'; not a MegatronBert model")
    notes = []
    for copy, original in HF_TIED.items():
        if copy in tensors and not same(tensors.pop(copy), tensors.get(original, torch.empty(0))):
            notes.append(f"{copy} is not {original}: the embedding and cls.predictions.bias are kept, as tied")
    left_out = sorted(name for name in tensors if name.startswith(HF_LEFT_OUT))
    if left_out:
        notes.append(f"{', '.join(left_out)} left out: not part of a masked language model")
    types = tensors.pop(HF_TOKEN_TYPES, None)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    has_head = "cls.predictions.transform.dense.weight" in tensors
    check_tensors(tensors, HF_NAMES.expected(config, has_head), directory)
    tensors = HF_NAMES.restore(tensors, config.num_attention_heads)
    if types is not None:
        folded, note = fold_token_types(types, tensors["position_embeddings.weight"], str(directory))
        tensors["position_embeddings.weight"] = folded
        notes.append(note)
    return tensors, notes


def _vocabulary(directory: Path, vocab_size: int, notes: list[str]) -> list[str]:
    """The tokens of the rows. Without vocabulary files they are taken for the pretraining tokens, if that can be."""
    tokens = read_vocabulary(directory)
    if tokens is None:
        padded = vocab_size % MEGATRON_PADDING == 0 and vocab_size <= WIDEST_PADDING
        if vocab_size != len(PRETRAIN_TOKENS) and not padded:
            raise InputError(
                f"{directory}: vocab_size {vocab_size} and neither vocab.txt nor tokenizer.json; put the vocabulary's "
                "tokens, one a line, into vocab.txt"
            )
        notes.append("no vocab.txt or tokenizer.json: rows are taken for the pretraining tokens in their order")
        return list(PRETRAIN_TOKENS)
    if len(tokens) > vocab_size:
        raise InputError(f"{directory}: its vocabulary has {len(tokens)} tokens, config.json says {vocab_size}")
    absent = [token for token in ("[PAD]", "[MASK]", "[CLS]", *RESIDUES[:1]) if token not in canonical(tokens)]
    if absent:
        raise InputError(f"{directory}: its vocabulary lacks {', '.join(absent)}; not a vocabulary of proteins")
    return tokens


MEGATRON_BERT = Format(
    "hf",
    recognises_megatron_bert,
    read_megatron_bert,
    prepare_megatron_bert,
    write_megatron_bert,
    load_megatron_bert,
    model_type=MODEL_TYPE,
    has_torch_file=True,
)
