"""PortableModel <-> a directory of Hugging Face's `MegatronBertForMaskedLM`: the same network under other names.

Neither reading nor writing needs `transformers`; `--verify` does.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from converter.doors import Door, transformers_door
from converter.formats import Format, ReadOptions, WriteOptions
from converter.huggingface.tokenizer import read_vocabulary, write_tokenizer
from converter.model import (
    VOCABULARY_TENSORS,
    PortableModel,
    check_layers,
    expected_shapes,
    make_config,
    require_final_layernorm,
)
from converter.names import HF_LEFT_OUT, HF_NAMES, HF_TIED, HF_TOKEN_TYPES, MODEL_CONFIG_TO_HF, fuse
from converter.streams import WeightFiles, read_json, read_model_config, write_weights
from converter.vocabulary import (
    MEGATRON_PADDING,
    WIDEST_PADDING,
    canonical,
    fold_token_types,
    take_rows,
    to_pretraining,
)
from proteinlm.errors import InputError
from proteinlm.files import write_json
from proteinlm.model import ModelConfig
from proteinlm.model_dir.files import CONFIG_NAME
from proteinlm.tokenizer import PRETRAIN_TOKENS, RESIDUES, build_tokenizer

MODEL_TYPE, FAMILY = "megatron-bert", "MegatronBert"
# Keys of config.json that change what the model computes, and their only known value.
ONLY = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}


def recognises_megatron_bert(path: Path) -> bool:
    config = read_model_config(path) or {}
    return config.get("model_type", MODEL_TYPE if FAMILY in str(config.get("architectures")) else None) == MODEL_TYPE


def prepare_megatron_bert(model: PortableModel, options: WriteOptions) -> PortableModel:
    """The model as `write_megatron_bert` stores it: the 31 pretraining tokens without padding rows."""
    require_final_layernorm(model, "Hugging Face's MegatronBert always applies")
    model = to_pretraining(model, divisible_by=1)
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
        parts = HF_NAMES.split(name, tensor, model.config.num_attention_heads)
        if model.has_lm_head:
            parts |= {copies[hf_name]: part for hf_name, part in parts.items() if hf_name in copies}
        if name == "word_embeddings.weight":
            parts[HF_TOKEN_TYPES] = tensor.new_zeros(2, model.config.hidden_size)
        return parts

    write_weights(directory, model.tensors, translate, options.dtype, options.torch_file)
    write_tokenizer(directory, model.vocabulary, model.config.max_position_embeddings)
    write_json(directory / CONFIG_NAME, _config_json(model, options.dtype or model.dtype))


def _config_json(model: PortableModel, dtype: torch.dtype) -> dict:
    return {
        "architectures": [f"{FAMILY}{'ForMaskedLM' if model.has_lm_head else 'Model'}"],
        "model_type": MODEL_TYPE,
        **{key: getattr(model.config, field) for field, key in MODEL_CONFIG_TO_HF.items()},
        "type_vocab_size": 2,
        "pad_token_id": model.tokenizer.pad_id,
        "tie_word_embeddings": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "converted_from": model.origin,
    }


def megatron_bert_door(directory: Path, model: PortableModel) -> Door | None:
    return transformers_door(directory, model, FAMILY, read_vocabulary(directory) or ())


# ---- reading


def read_megatron_bert(directory: Path, options: ReadOptions) -> PortableModel:
    """A directory of config.json, weights (safetensors or .bin, one file or several) and, if there, a vocabulary."""
    where = str(directory / CONFIG_NAME)
    stored = read_json(directory / CONFIG_NAME)
    for key, only in ONLY.items():
        if stored.get(key, only) != only:
            raise InputError(f"{where}: {key} {ascii(stored[key])[:40]} is another network; only {only} is converted")
    values = {"hidden_act": "gelu", "make_vocab_size_divisible_by": 1}  # HF's default is the erf form
    values |= {field: stored[key] for field, key in MODEL_CONFIG_TO_HF.items() if key in stored}
    config = make_config({"lm_head_act": values["hidden_act"]} | values, where)
    tensors, notes = _read_tensors(WeightFiles(directory), config)
    tokens = _vocabulary(directory, config.vocab_size, notes)
    for name in VOCABULARY_TENSORS:
        if name in tensors and tensors[name].shape[:1] != (config.vocab_size,):
            shape = tuple(tensors[name].shape)
            raise InputError(f"{where}: vocab_size {config.vocab_size}, but {name} has shape {shape}")
    tokenizer = build_tokenizer()
    tensors, dropped = take_rows(tensors, tokens, tokenizer, 1, str(directory))
    config = replace(config, vocab_size=tokenizer.vocab_size)
    return PortableModel(config, tokenizer, tensors, str(directory), (*notes, *dropped)).checked()


def _read_tensors(weights: WeightFiles, config: ModelConfig) -> tuple[dict[str, Tensor], list[str]]:
    """(tensors under our names, notes); every tensor of the files is used or noted."""
    unused, notes, tensors = set(weights.files), [], {}
    if not any(name.startswith("bert.") for name in unused):
        raise InputError(f"{weights.directory}: its weights have no names below 'bert.'; not a MegatronBert model")

    def take(name: str) -> Tensor:
        if name not in unused:
            raise InputError(f"{weights.directory}: {name} is missing")
        unused.remove(name)
        return weights.get(name)

    check_layers(config, len(unused), str(weights.directory))
    has_head = HF_NAMES.whole["lm_head.dense.weight"] in unused
    for name, shape in expected_shapes(config, has_head).items():
        parts = {hf_name: take(hf_name) for hf_name in HF_NAMES.names_of(name)}
        if len(parts) > 1:
            _check_alike(parts, (shape[0] // 3, *shape[1:]), weights)
            tensors[name] = fuse([*parts.values()], config.num_attention_heads)
        else:
            (tensors[name],) = parts.values()
    for copy, original in HF_TIED.items():
        if copy in unused and not torch.equal(take(copy), weights.get(original)):
            notes.append(f"{copy} is not {original}: the embedding and cls.predictions.bias are kept, as tied")
    if HF_TOKEN_TYPES in unused:
        types, positions = take(HF_TOKEN_TYPES), tensors["position_embeddings.weight"]
        tensors["position_embeddings.weight"], note = fold_token_types(types, positions, str(weights.directory))
        notes.append(note)
    unknown = sorted(name for name in unused if not name.startswith(HF_LEFT_OUT))
    if unknown:
        raise InputError(f"{weights.directory}: {unknown[0][:80]} is not a name of MegatronBertForMaskedLM")
    if unused:
        notes.append(f"{', '.join(sorted(unused))} left out: not part of a masked language model")
    return tensors, notes


def _check_alike(parts: dict[str, Tensor], shape: tuple[int, ...], weights: WeightFiles) -> None:
    """Query, key and value have this shape and one dtype."""
    dtype = next(iter(parts.values())).dtype
    for name, part in parts.items():
        if tuple(part.shape) != shape or part.dtype != dtype:
            stored = f"shape {tuple(part.shape)} and {part.dtype}, not {shape} and {dtype}"
            raise InputError(f"{weights.files[name]}: {name} has {stored}")


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
    megatron_bert_door,
    model_type=MODEL_TYPE,
    has_torch_file=True,
)
