"""What one tensor or setting is called in each neighbour's files: tables, and the class that reads the longest of them.

TAPE's names are in `proteinlm/model_dir`, which reads those files for the tasks too.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from proteinlm.model_dir.config import CONFIG_KEYS

LAYER = re.compile(r"layers\.(\d{1,6})\.(.+)")  # our name of a layer's tensor: its number, its name within the layer
FUSED = "attention.query_key_value"

# Fields of proteinlm.model.ModelConfig -> keys of Hugging Face's config.json, which are TAPE's. lm_head_act is ours
# alone: HF uses hidden_act in its head too.
NOT_IN_HF = ("final_layernorm", "output_dropout")
MODEL_CONFIG_TO_HF = {field: key for field, key in CONFIG_KEYS.items() if field not in NOT_IN_HF}


@dataclass(frozen=True)
class TensorNames:
    """The names of a neighbour that keeps query, key and value apart, by ours."""

    whole: Mapping[str, str]  # our name -> theirs, outside the layers
    layer: str  # what a layer's tensors begin with there; {} stands for its number
    parts: Mapping[str, str]  # our name within a layer -> theirs, each for .weight and .bias
    query_key_value: tuple[str, str, str]

    def names_of(self, name: str) -> list[str]:
        """The neighbour's name of one of our tensors; three for the fused query_key_value."""
        layer = LAYER.fullmatch(name)
        if layer is None:
            return [self.whole[name]]
        part, _, kind = layer[2].rpartition(".")
        parts = self.query_key_value if part == FUSED else (self.parts[part],)
        return [f"{self.layer.format(layer[1])}{inner}.{kind}" for inner in parts]

    def split(self, name: str, tensor: Tensor, heads: int) -> dict[str, Tensor]:
        """One of our tensors under the neighbour's names; query_key_value's rows [heads, 3, size] are taken apart."""
        names = self.names_of(name)
        if len(names) == 1:
            return {names[0]: tensor}
        rows = tensor.reshape(heads, 3, -1, *tensor.shape[1:])
        return {part: rows[:, i].flatten(0, 1) for i, part in enumerate(names)}


def fuse(query_key_value: list[Tensor], heads: int) -> Tensor:
    """Query, key and value, each [heads * size, ...], as one tensor with rows [heads, 3, size]."""
    return torch.stack([part.reshape(heads, -1, *part.shape[1:]) for part in query_key_value], 1).flatten(0, 2)


# ---- Hugging Face MegatronBert
HF_NAMES = TensorNames(
    whole={
        "word_embeddings.weight": "bert.embeddings.word_embeddings.weight",
        "position_embeddings.weight": "bert.embeddings.position_embeddings.weight",
        "final_layernorm.weight": "bert.encoder.ln.weight",
        "final_layernorm.bias": "bert.encoder.ln.bias",
        "lm_head.dense.weight": "cls.predictions.transform.dense.weight",
        "lm_head.dense.bias": "cls.predictions.transform.dense.bias",
        "lm_head.layernorm.weight": "cls.predictions.transform.LayerNorm.weight",
        "lm_head.layernorm.bias": "cls.predictions.transform.LayerNorm.bias",
        "lm_head.bias": "cls.predictions.bias",
    },
    layer="bert.encoder.layer.{}.",
    parts={
        "input_layernorm": "attention.ln",
        "attention.dense": "attention.output.dense",
        "post_attention_layernorm": "ln",
        "mlp.dense_h_to_4h": "intermediate.dense",
        "mlp.dense_4h_to_h": "output.dense",
    },
    query_key_value=("attention.self.query", "attention.self.key", "attention.self.value"),
)
HF_TOKEN_TYPES = "bert.embeddings.token_type_embeddings.weight"
HF_TIED = {  # written out beside the tensor that they are
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
# Parts of HF's pretraining class that a masked language model has no use for.
HF_LEFT_OUT = ("bert.pooler.", "cls.seq_relationship.", "bert.embeddings.position_ids")

# ---- Megatron: dotted names in the nested `model` dict. Below these prefixes, and without one, they are ours.
MEGATRON_PREFIX = re.compile(r"language_model\.(embedding|transformer|encoder)\.")
MEGATRON_TOKEN_TYPES = "tokentype_embeddings.weight"
MEGATRON_HEAD_EMBEDDING = "word_embeddings_for_head.weight"  # last stage's copy of the word embedding
# Of the next-sentence task, which this model does not have.
MEGATRON_LEFT_OUT = ("language_model.pooler.", "binary_head.")

# The dimension that tensor parallelism cuts, by our name within a layer or whole name; all else is on every rank.
TENSOR_PARALLEL_DIM = {
    "word_embeddings.weight": 0,
    MEGATRON_HEAD_EMBEDDING: 0,
    "lm_head.bias": 0,
    "attention.query_key_value.weight": 0,
    "attention.query_key_value.bias": 0,
    "attention.dense.weight": 1,
    "mlp.dense_h_to_4h.weight": 0,
    "mlp.dense_h_to_4h.bias": 0,
    "mlp.dense_4h_to_h.weight": 1,
}

# Fields that Megatron's `args` and ModelConfig have in common.
MEGATRON_ARGS = (
    "hidden_size",
    "num_layers",
    "num_attention_heads",
    "ffn_hidden_size",
    "max_position_embeddings",
    "layernorm_epsilon",
    "hidden_dropout",
    "attention_dropout",
    "init_method_std",
    "make_vocab_size_divisible_by",
)
