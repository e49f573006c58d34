"""The names of ProteinBert's tensors in ESM's files: tables only."""

import re

from proteinlm.model_dir.names import TensorNames

ESM_NAMES = TensorNames(
    {
        "word_embeddings": "esm.embeddings.word_embeddings",
        "position_embeddings": "esm.embeddings.position_embeddings",
        "rotary_embeddings": "esm.rotary_embeddings",
        "embedding_layernorm": "esm.embeddings.layer_norm",
        "layers.#.input_layernorm": "esm.encoder.layer.#.attention.LayerNorm",
        "layers.#.attention.dense": "esm.encoder.layer.#.attention.output.dense",
        "layers.#.post_attention_layernorm": "esm.encoder.layer.#.LayerNorm",
        "layers.#.mlp.dense_h_to_4h": "esm.encoder.layer.#.intermediate.dense",
        "layers.#.mlp.dense_4h_to_h": "esm.encoder.layer.#.output.dense",
        "final_layernorm": "esm.encoder.emb_layer_norm_after",
        "lm_head.dense": "lm_head.dense",
        "lm_head.layernorm": "lm_head.layer_norm",
        "lm_head": "lm_head",
        "lm_head.decoder": "lm_head.decoder",
    },
    tuple(f"esm.encoder.layer.#.attention.self.{part}" for part in ("query", "key", "value")),
)
WORDS, DECODER = "esm.embeddings.word_embeddings.weight", "lm_head.decoder.weight"
POSITIONS, INV_FREQ = "esm.embeddings.position_embeddings.weight", "esm.rotary_embeddings.inv_freq"
# How its name ends where a file has one a layer; transformers 5 saves one of them, of the layer "*".
LAYER_INV_FREQ = ".attention.self.rotary_embeddings.inv_freq"
NORM_KINDS = {"gamma": "weight", "beta": "bias"}  # as TensorFlow has them, and what transformers 5 saves
ESM_CONTACTS = "esm.contact_head.regression."  # weight, bias
ENCODER_PARTS = ("embeddings.", "encoder.", "rotary_embeddings.", "contact_head.", "pooler.")  # below `esm.`
UNUSED = ("esm.embeddings.position_ids",)  # the numbers 0, 1, 2 ... in older files
OTHER_HEADS = ("esm.pooler.", "classifier.")

# fair-esm's, after the prefixes of its training code.
FAIR_PREFIX = re.compile(r"(?:encoder\.)?(?:sentence_encoder\.)?")
FAIR_NAMES = TensorNames(
    {
        "word_embeddings": "embed_tokens",
        "position_embeddings": "embed_positions",
        "embedding_layernorm": "emb_layer_norm_before",
        "layers.#.input_layernorm": "layers.#.self_attn_layer_norm",
        "layers.#.attention.dense": "layers.#.self_attn.out_proj",
        "layers.#.post_attention_layernorm": "layers.#.final_layer_norm",  # before the MLP, in spite of its name
        "layers.#.mlp.dense_h_to_4h": "layers.#.fc1",
        "layers.#.mlp.dense_4h_to_h": "layers.#.fc2",
        "final_layernorm": "emb_layer_norm_after",
        "lm_head.dense": "lm_head.dense",
        "lm_head.layernorm": "lm_head.layer_norm",
        "lm_head": "lm_head",
    },
    tuple(f"layers.#.self_attn.{part}_proj" for part in "qkv"),
)
FAIR_WORDS, FAIR_DECODER = "embed_tokens.weight", "lm_head.weight"  # one matrix, written twice
FAIR_LAYER_INV_FREQ = ".self_attn.rot_emb.inv_freq"  # how its name ends, once a layer

# Hugging Face's ESM C.
ESMC_NAMES = TensorNames(
    {
        "word_embeddings": "esmc.embed_tokens",
        "rotary_embeddings": "esmc.rotary_emb",
        "layers.#.input_layernorm": "esmc.layers.#.input_layernorm",
        "layers.#.attention.q_layernorm": "esmc.layers.#.self_attn.q_norm",
        "layers.#.attention.k_layernorm": "esmc.layers.#.self_attn.k_norm",
        "layers.#.attention.dense": "esmc.layers.#.self_attn.o_proj",
        "layers.#.post_attention_layernorm": "esmc.layers.#.post_attention_layernorm",
        "layers.#.mlp.dense_h_to_4h_gate": "esmc.layers.#.mlp.gate_proj",
        "layers.#.mlp.dense_h_to_4h": "esmc.layers.#.mlp.up_proj",
        "layers.#.mlp.dense_4h_to_h": "esmc.layers.#.mlp.down_proj",
        "final_layernorm": "esmc.norm",
        "lm_head.dense": "lm_head.dense",
        "lm_head.layernorm": "lm_head.layer_norm",
        "lm_head": "lm_head.decoder",  # the bias
        "lm_head.decoder": "lm_head.decoder",  # the weight
    },
    tuple(f"esmc.layers.#.self_attn.{part}_proj" for part in "qkv"),
)
ESMC_NOT_STORED = ("esmc.norm.bias", "esmc.rotary_emb.inv_freq")
# A task's head, and frequencies, which Hugging Face computes from their base whatever a file has.
ESMC_UNUSED = ("classifier.", "score.", "esmc.rotary_emb.")
ESMC_PARTS = ("embed_tokens.", "layers.", "norm.", "rotary_emb.")  # below `esmc.`
