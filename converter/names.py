"""Name tables, pure data: what one tensor, token or setting is called in each neighbour's files."""

# Special tokens by role: pretraining vocabulary -> TAPE. Letters have the same name in both; [unused1] is ours alone.
PRETRAIN_TO_TAPE_TOKENS = {
    "[PAD]": "<pad>",
    "[MASK]": "<mask>",
    "[CLS]": "<cls>",
    "[SEP]": "<sep>",
    "[UNK]": "<unk>",
}

# Fields of pretrain.model.ModelConfig -> keys of TAPE's config.json.
MODEL_CONFIG_TO_TAPE = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "ffn_hidden_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "lm_head_act": "lm_head_act",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "max_position_embeddings": "max_position_embeddings",
    "init_method_std": "initializer_range",
    "layernorm_epsilon": "layer_norm_eps",
    "final_layernorm": "final_layernorm",
}
