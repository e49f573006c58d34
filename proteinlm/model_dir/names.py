"""TAPE's names beside ours: one table, and the functions that go from one to the other. No files here.

What must hold: to TAPE's names and back gives every tensor bit for bit (tests). Names are those of the original
project's TAPE fork, a pre-LN BERT; the fused query_key_value has rows [heads, 3, head size], as in proteinlm.model.
"""

import logging
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# TAPE's name -> ours, within one layer; each stands for .weight and .bias. Query, key and value become one matrix.
LAYER_NAMES = {
    "input_ln": "input_layernorm",
    "attention.dense": "attention.dense",
    "post_attn_ln": "post_attention_layernorm",
    "mlp.dense_h_4h": "mlp.dense_h_to_4h",
    "mlp.dense_4h_h": "mlp.dense_4h_to_h",
}
QKV = ("query", "key", "value")
FUSED = "attention.query_key_value"
ENCODER_NAMES = {
    "embeddings.word_embeddings.weight": "word_embeddings.weight",
    "embeddings.position_embeddings.weight": "position_embeddings.weight",
}
FINAL_NORM = {f"encoder.final_ln.{kind}": f"final_layernorm.{kind}" for kind in ("weight", "bias")}
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
MLM_NAMES = {
    "transform.dense.weight": "dense.weight",
    "transform.dense.bias": "dense.bias",
    "transform.LayerNorm.weight": "layernorm.weight",
    "transform.LayerNorm.bias": "layernorm.bias",
    "bias": "bias",
}
# In every file of the original, random and used by nothing there.
UNUSED_THERE = "bert_tail_dense."


def encoder_shapes(config: Mapping) -> dict[str, tuple[int, ...]]:
    """TAPE's names below `bert.` -> shape, without token types (optional in a file)."""
    h, ffn = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], h),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], h),
    }
    outputs = {"input_ln": (h, 0), "attention.dense": (h, h), "post_attn_ln": (h, 0)}
    outputs |= {f"attention.self.{part}": (h, h) for part in QKV}
    outputs |= {"mlp.dense_h_4h": (ffn, h), "mlp.dense_4h_h": (h, ffn)}
    for layer in range(config["num_hidden_layers"]):
        for name, (rows, columns) in outputs.items():
            shapes[f"encoder.layer.{layer}.{name}.weight"] = (rows, columns) if columns else (rows,)
            shapes[f"encoder.layer.{layer}.{name}.bias"] = (rows,)
    if config.get("final_layernorm", True):
        shapes |= dict.fromkeys(FINAL_NORM, (h,))
    return shapes


def mlm_shapes(config: Mapping) -> dict[str, tuple[int, ...]]:
    """TAPE's names below `mlm.` -> shape, the decoder apart (it is the embedding)."""
    h = config["hidden_size"]
    return {name: (h, h) if name.endswith("dense.weight") else (h,) for name in MLM_NAMES} | {
        "bias": (config["vocab_size"],)
    }


def encoder_to_pretrain(tensors: Mapping[str, Tensor], heads: int, notes: list[str], where: str) -> dict[str, Tensor]:
    """TAPE's names (below `bert.`) -> ProteinBert's. Rows of the fused matrix are [heads, 3, head size].

    Incomplete input stays incomplete; unknown names are kept as they are, for the caller (strict loading) to report.
    Token types other than 0: TAPE adds row 0 at every position, so it is added to the position embedding here.
    """
    tensors = dict(tensors)
    types = tensors.pop(TOKEN_TYPES, None)
    state = {}
    for name, value in tensors.items():
        layer = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", name)
        if layer is None:
            state[(ENCODER_NAMES | FINAL_NORM).get(name, name)] = value
            continue
        number, part, kind = layer.groups()
        if part in LAYER_NAMES:
            state[f"layers.{number}.{LAYER_NAMES[part]}.{kind}"] = value
        elif part == "attention.self.query":
            parts = [tensors.get(f"encoder.layer.{number}.attention.self.{which}.{kind}") for which in QKV]
            if all(tensor is not None for tensor in parts):
                split = [tensor.view(heads, -1, *tensor.shape[1:]) for tensor in parts]
                state[f"layers.{number}.{FUSED}.{kind}"] = torch.stack(split, 1).flatten(0, 2)
        elif part not in ("attention.self.key", "attention.self.value"):
            state[name] = value
    if types is not None and types[0].any() and "position_embeddings.weight" in state:
        state["position_embeddings.weight"] = state["position_embeddings.weight"] + types[0]
        notes.append(f"{where}: token type 0 is not zero; it was added to every position embedding, which is the same")
    return state


def encoder_to_tape(state: Mapping[str, Tensor], config: Mapping) -> dict[str, Tensor]:
    """ProteinBert's names (no lm_head) -> TAPE's below `bert.`, with token types of zeros."""
    back = {ours: theirs for theirs, ours in (ENCODER_NAMES | FINAL_NORM).items()}
    layer_back = {ours: theirs for theirs, ours in LAYER_NAMES.items()}
    heads, tensors = config["num_attention_heads"], {}
    for name, value in state.items():
        layer = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if layer is None:
            tensors[back.get(name, name)] = value
            continue
        number, part, kind = layer.groups()
        if part == FUSED:
            split = value.view(heads, 3, -1, *value.shape[1:])
            for i, which in enumerate(QKV):
                tensors[f"encoder.layer.{number}.attention.self.{which}.{kind}"] = split[:, i].flatten(0, 1)
        else:
            tensors[f"encoder.layer.{number}.{layer_back.get(part, part)}.{kind}"] = value
    tensors[TOKEN_TYPES] = torch.zeros(config.get("type_vocab_size", 1), config["hidden_size"])
    return tensors


def infer_head(head: Mapping[str, Tensor]) -> str | None:
    """'proteinlm' or 'tape', as a finetuned file's tensors show; None where both share the head (or there is none)."""
    for name, value in head.items():
        if ".ResidualBlock" in name:
            return "proteinlm"
        if name.endswith("main.0.weight_v") and value.dim() == 2:
            return {1024: "proteinlm", 512: "tape"}.get(value.shape[0])
    contact = head.get("predict.predict.1.weight")
    return "tape" if contact is not None and contact.dim() == 2 else None


def rename_encoder_in_place(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """load_state_dict pre-hook of ProteinBertModel: TAPE's names become ours."""
    theirs = (f"{prefix}embeddings.", f"{prefix}encoder.layer.", f"{prefix}encoder.final_ln.", prefix + UNUSED_THERE)
    tensors = {name[len(prefix) :]: state.pop(name) for name in list(state) if name.startswith(theirs)}
    unused = [name for name in tensors if name.startswith(UNUSED_THERE)]
    for name in unused:
        tensors.pop(name)
    notes = [f"{', '.join(unused)} left out deliberately: random and unused in the original too"] if unused else []
    if not module.config.final_layernorm:
        tensors = {name: value for name, value in tensors.items() if name not in FINAL_NORM}
        notes.append("encoder.final_ln.* left out: final_layernorm is false")
    renamed = encoder_to_pretrain(tensors, module.config.num_attention_heads, notes, "state dict")
    state.update({f"{prefix}encoder.{name}": value for name, value in renamed.items()})
    for note in notes if tensors else []:
        logger.info("%s", note)


def rename_mlm_in_place(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """load_state_dict pre-hook of ProteinBertForMaskedLM. A decoder that is not the embedding drops all of mlm.*, which
    strict loading then reports as missing."""
    embedding = state.get(f"{prefix}bert.embeddings.word_embeddings.weight")
    embedding = state.get(f"{prefix}bert.encoder.word_embeddings.weight") if embedding is None else embedding
    decoder = state.pop(f"{prefix}mlm.decoder.weight", None)
    names = [name for name in state if name.startswith(f"{prefix}mlm.")]
    if decoder is not None and embedding is not None and not torch.equal(decoder, embedding):
        logger.warning("mlm.decoder.weight differs from the word embedding: the embedding is kept, mlm.* dropped")
        for name in names:
            state.pop(name)
        return
    for name in names:
        short = name[len(prefix) + len("mlm.") :]
        state[f"{prefix}mlm.{MLM_NAMES.get(short, short)}"] = state.pop(name)
