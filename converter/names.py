"""Name tables, pure data: what one tensor, token or setting is called in each neighbour's files.

TAPE's names are in `proteinlm/model_dir`, which reads those files for the tasks too.
"""

from proteinlm.model_dir.config import CONFIG_KEYS

# Special tokens by role: pretraining vocabulary -> TAPE. Letters have the same name in both; [unused1] is ours alone.
PRETRAIN_TO_TAPE_TOKENS = {
    "[PAD]": "<pad>",
    "[MASK]": "<mask>",
    "[CLS]": "<cls>",
    "[SEP]": "<sep>",
    "[UNK]": "<unk>",
}

# Fields of proteinlm.model.ModelConfig -> keys of Hugging Face's config.json, which are TAPE's. lm_head_act is ours
# alone: HF uses hidden_act in its head too.
NOT_IN_HF = ("final_layernorm", "output_dropout")
MODEL_CONFIG_TO_HF = {field: key for field, key in CONFIG_KEYS.items() if field not in NOT_IN_HF}

# ---- Hugging Face MegatronBert: our name within a layer -> theirs, each for .weight and .bias.
HF_LAYER_NAMES = {
    "input_layernorm": "attention.ln",
    "attention.dense": "attention.output.dense",
    "post_attention_layernorm": "ln",
    "mlp.dense_h_to_4h": "intermediate.dense",
    "mlp.dense_4h_to_h": "output.dense",
}
HF_QKV = tuple(f"attention.self.{part}" for part in ("query", "key", "value"))
HF_NAMES = {
    "word_embeddings.weight": "bert.embeddings.word_embeddings.weight",
    "position_embeddings.weight": "bert.embeddings.position_embeddings.weight",
    "final_layernorm.weight": "bert.encoder.ln.weight",
    "final_layernorm.bias": "bert.encoder.ln.bias",
    "lm_head.dense.weight": "cls.predictions.transform.dense.weight",
    "lm_head.dense.bias": "cls.predictions.transform.dense.bias",
    "lm_head.layernorm.weight": "cls.predictions.transform.LayerNorm.weight",
    "lm_head.layernorm.bias": "cls.predictions.transform.LayerNorm.bias",
    "lm_head.bias": "cls.predictions.bias",
}
HF_TOKEN_TYPES = "bert.embeddings.token_type_embeddings.weight"
HF_TIED = {  # written out beside the tensor that they are
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
# Parts of HF's pretraining class that a masked language model has no use for.
HF_LEFT_OUT = ("bert.pooler.", "cls.seq_relationship.", "bert.embeddings.position_ids")

# ---- Megatron: dotted name in the nested `model` dict -> ours. Layers' names within the transformer are ours.
MEGATRON_NAMES = {
    "language_model.embedding.word_embeddings.weight": "word_embeddings.weight",
    "language_model.embedding.position_embeddings.weight": "position_embeddings.weight",
    "lm_head.dense.weight": "lm_head.dense.weight",
    "lm_head.dense.bias": "lm_head.dense.bias",
    "lm_head.layernorm.weight": "lm_head.layernorm.weight",
    "lm_head.layernorm.bias": "lm_head.layernorm.bias",
    "lm_head.bias": "lm_head.bias",
}
MEGATRON_TRANSFORMERS = ("language_model.transformer.", "language_model.encoder.")
MEGATRON_TOKEN_TYPES = "language_model.embedding.tokentype_embeddings.weight"
MEGATRON_HEAD_EMBEDDING = "word_embeddings_for_head.weight"  # last stage's copy of the word embedding
# Of the next-sentence task, which this model does not have.
MEGATRON_LEFT_OUT = ("language_model.pooler.", "binary_head.")

# The dimension that tensor parallelism cuts, by our name within a layer or whole name; all else is on every rank.
TENSOR_PARALLEL_DIM = {
    "word_embeddings.weight": 0,
    "lm_head.bias": 0,
    "attention.query_key_value.weight": 0,
    "attention.query_key_value.bias": 0,
    "attention.dense.weight": 1,
    "mlp.dense_h_to_4h.weight": 0,
    "mlp.dense_h_to_4h.bias": 0,
    "mlp.dense_4h_to_h.weight": 1,
}

# Fields of `args` -> fields of ModelConfig, where they mean the same.
MEGATRON_ARGS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_layers",
    "num_attention_heads": "num_attention_heads",
    "ffn_hidden_size": "ffn_hidden_size",
    "max_position_embeddings": "max_position_embeddings",
    "layernorm_epsilon": "layernorm_epsilon",
    "hidden_dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "init_method_std": "init_method_std",
    "make_vocab_size_divisible_by": "make_vocab_size_divisible_by",
}
