"""PortableModel <-> a directory of Hugging Face's `MegatronBertForMaskedLM`: the same network under other names.

Neither reading nor writing needs `transformers`; `--verify` does.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from converter.huggingface import tokenizer as hf_tokenizer
from converter.megatron.layout import FUSED, LAYER
from converter.megatron.merge import fold_token_types
from converter.model import VOCABULARY_TENSORS, PortableModel, expected_shapes, make_config
from converter.names import (
    HF_LAYER_NAMES,
    HF_LEFT_OUT,
    HF_NAMES,
    HF_QKV,
    HF_TIED,
    HF_TOKEN_TYPES,
    MODEL_CONFIG_TO_HF,
)
from converter.streams import WeightFiles, read_json, write_safetensors, write_torch_file
from converter.vocabulary import canonical, take_rows, to_tokenizer
from proteinlm.errors import InputError
from proteinlm.files import write_json
from proteinlm.tokenizer import PRETRAIN_TOKENS, RESIDUES, build_tokenizer

MODEL_TYPE = "megatron-bert"
WIDEST_PADDING = 128 * 64  # rows of a 31-token vocabulary padded for 64 ranks
# Keys of config.json that change what the model computes, and their only known value.
ONLY = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}


def hf_names(name: str) -> list[str]:
    """Hugging Face's name of one of our tensors; three for the fused query_key_value."""
    layer = LAYER.fullmatch(name)
    if layer is None:
        return [HF_NAMES[name]]
    part, _, kind = layer[2].rpartition(".")
    theirs = HF_QKV if part == FUSED else [HF_LAYER_NAMES[part]]
    return [f"bert.encoder.layer.{layer[1]}.{each}.{kind}" for each in theirs]


def to_hf(name: str, tensor: Tensor, heads: int) -> dict[str, Tensor]:
    """One of our tensors under Hugging Face's names; query_key_value's rows [heads, 3, size] are taken apart."""
    names = hf_names(name)
    if len(names) == 1:
        return {names[0]: tensor}
    split = tensor.reshape(heads, 3, -1, *tensor.shape[1:])
    return {theirs: split[:, i].flatten(0, 1) for i, theirs in enumerate(names)}


def prepare(model: PortableModel) -> PortableModel:
    """The model as `write` stores it: the 31 pretraining tokens without padding rows."""
    if not model.config.final_layernorm:
        raise InputError(
            f"{model.origin}: final_layernorm is false, and Hugging Face's MegatronBert always applies that norm; "
            "remove the key from config.json to convert the model with it"
        )
    model = to_tokenizer(model, "iupac", divisible_by=1)
    if model.has_lm_head and model.config.lm_head_act != model.config.hidden_act:
        model = model.noted(
            f"Hugging Face has one activation for MLP and LM head: hidden_act {model.config.hidden_act} is kept, its "
            f"head computes that instead of {model.config.lm_head_act} (config.json keeps lm_head_act for us); hidden "
            "states agree, logits there differ by that much"
        )
    return replace(model, config=replace(model.config, output_dropout=True))


def write(model: PortableModel, directory: Path, dtype: torch.dtype | None = None, torch_file: bool = False) -> None:
    """Weights, then tokenizer, then config.json: a directory with a config.json is complete."""
    heads, hidden = model.config.num_attention_heads, model.config.hidden_size
    tied = {theirs: name for name, theirs in HF_TIED.items()}

    def translate(name: str, tensor: Tensor) -> dict[str, Tensor]:
        parts = to_hf(name, tensor, heads)
        if model.has_lm_head:
            parts |= {tied[theirs]: part for theirs, part in parts.items() if theirs in tied}
        if name == "word_embeddings.weight":
            parts[HF_TOKEN_TYPES] = tensor.new_zeros(2, hidden)
        return parts

    write_safetensors(directory / "model.safetensors", model.tensors, translate, dtype)
    if torch_file:
        write_torch_file(directory / "pytorch_model.bin", model.tensors, translate, dtype)
    hf_tokenizer.write(directory, model.vocabulary, model.config.max_position_embeddings)
    write_json(directory / "config.json", _config(model, dtype or model.dtype))


def _config(model: PortableModel, dtype: torch.dtype) -> dict:
    told = {theirs: getattr(model.config, ours) for ours, theirs in MODEL_CONFIG_TO_HF.items()}
    return {
        "architectures": ["MegatronBertForMaskedLM" if model.has_lm_head else "MegatronBertModel"],
        "model_type": MODEL_TYPE,
        **told,
        "type_vocab_size": 2,
        "pad_token_id": model.tokenizer.pad_id,
        "tie_word_embeddings": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "converted_from": model.origin,
    }


# ---- reading


def read(directory: str | Path) -> PortableModel:
    """A directory of config.json, weights (safetensors or .bin, one file or several) and, if there, a vocabulary."""
    directory = Path(directory)
    where = str(directory / "config.json")
    told = read_json(directory / "config.json")
    for key, only in ONLY.items():
        if told.get(key, only) != only:
            raise InputError(f"{where}: {key} {ascii(told[key])[:40]} is another network; only {only} is converted")
    values = {ours: told[theirs] for ours, theirs in MODEL_CONFIG_TO_HF.items() if theirs in told}
    values = {"hidden_act": "gelu"} | values  # HF's default is the erf form
    values |= {"lm_head_act": values.get("lm_head_act", values["hidden_act"]), "make_vocab_size_divisible_by": 1}
    config = make_config(values, where)
    weights = WeightFiles(directory)
    tensors, notes = _ours(weights, config)
    tokens = _vocabulary(directory, config.vocab_size, notes)
    tensors = {name: _rows(name, tensor, config.vocab_size, where) for name, tensor in tensors.items()}
    tokenizer = build_tokenizer()
    tensors, dropped = take_rows(tensors, tokens, tokenizer, 1, str(directory))
    config = replace(config, vocab_size=tokenizer.vocab_size)
    return PortableModel(config, tokenizer, tensors, str(directory), (*notes, *dropped)).checked()


def _rows(name: str, tensor: Tensor, vocab_size: int, where: str) -> Tensor:
    if name in VOCABULARY_TENSORS and (tensor.dim() == 0 or len(tensor) != vocab_size):
        raise InputError(f"{where}: vocab_size {vocab_size}, but {name} has shape {tuple(tensor.shape)}")
    return tensor


def _ours(weights: WeightFiles, config) -> tuple[dict[str, Tensor], list[str]]:
    """(tensors under our names, notes); every tensor of the files is used or noted."""
    left, notes, tensors = dict(weights.files), [], {}
    if not any(name.startswith("bert.") for name in left):
        raise InputError(f"{weights.directory}: its weights have no names below 'bert.'; not a MegatronBert model")

    def take(name: str) -> Tensor:
        if name not in left:
            raise InputError(f"{weights.directory}: {name} is missing")
        del left[name]
        return weights.get(name)

    has_head = "cls.predictions.transform.dense.weight" in left
    for name, shape in expected_shapes(config, has_head):
        parts = {theirs: take(theirs) for theirs in hf_names(name)}
        fused = len(parts) > 1
        tensors[name] = (
            _fused(parts, config.num_attention_heads, shape, weights) if fused else next(iter(parts.values()))
        )
    for copy, original in HF_TIED.items():
        if copy in left and not torch.equal(take(copy), weights.get(original)):
            notes.append(f"{copy} is not {original}: the embedding and cls.predictions.bias are kept, as tied")
    if HF_TOKEN_TYPES in left:
        positions = tensors["position_embeddings.weight"]
        folded, note = fold_token_types(take(HF_TOKEN_TYPES), positions, str(weights.directory))
        tensors["position_embeddings.weight"] = folded
        notes.append(note)
    unknown = [name for name in left if not name.startswith(HF_LEFT_OUT)]
    if unknown:
        raise InputError(f"{weights.directory}: {unknown[0][:80]} is not a name of MegatronBertForMaskedLM")
    if left:
        notes.append(f"{', '.join(sorted(left))} left out: not part of a masked language model")
    return tensors, notes


def _fused(parts: dict[str, Tensor], heads: int, shape: tuple[int, ...], weights: WeightFiles) -> Tensor:
    """Query, key and value [h, ...] as one tensor with rows [heads, 3, size]."""
    wanted = (shape[0] // 3, *shape[1:])
    dtype = next(iter(parts.values())).dtype
    for name, part in parts.items():
        if tuple(part.shape) != wanted or part.dtype != dtype:
            found = f"shape {tuple(part.shape)} and {part.dtype}, not {wanted} and {dtype}"
            raise InputError(f"{weights.files[name]}: {name} has {found}")
    return torch.stack([part.reshape(heads, -1, *part.shape[1:]) for part in parts.values()], 1).flatten(0, 2)


def _vocabulary(directory: Path, vocab_size: int, notes: list[str]) -> list[str]:
    """The tokens of the rows. Without vocabulary files they are taken for the pretraining tokens, if that can be."""
    tokens = hf_tokenizer.read(directory)
    if tokens is None:
        padded = vocab_size % 128 == 0 and vocab_size <= WIDEST_PADDING
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
