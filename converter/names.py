"""What a tensor or a setting is called in each format's files: tables only. TAPE's are in `proteinlm/model_dir`."""

import re

from proteinlm.model_dir.names import TensorNames

LAYER = re.compile(r"layers\.(\d{1,6})\.(.+)")  # our name of a layer's tensor: its number, its name within the layer
FUSED = "attention.query_key_value"

# ---- Hugging Face MegatronBert
HF_NAMES = TensorNames(
    {
        "word_embeddings": "bert.embeddings.word_embeddings",
        "position_embeddings": "bert.embeddings.position_embeddings",
        "layers.#.input_layernorm": "bert.encoder.layer.#.attention.ln",
        "layers.#.attention.dense": "bert.encoder.layer.#.attention.output.dense",
        "layers.#.post_attention_layernorm": "bert.encoder.layer.#.ln",
        "layers.#.mlp.dense_h_to_4h": "bert.encoder.layer.#.intermediate.dense",
        "layers.#.mlp.dense_4h_to_h": "bert.encoder.layer.#.output.dense",
        "final_layernorm": "bert.encoder.ln",
        "lm_head.dense": "cls.predictions.transform.dense",
        "lm_head.layernorm": "cls.predictions.transform.LayerNorm",
        "lm_head": "cls.predictions",
    },
    tuple(f"bert.encoder.layer.#.attention.self.{part}" for part in ("query", "key", "value")),
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
    *("hidden_size", "num_layers", "num_attention_heads", "ffn_hidden_size", "max_position_embeddings"),
    *("layernorm_epsilon", "hidden_dropout", "attention_dropout", "init_method_std", "make_vocab_size_divisible_by"),
)
