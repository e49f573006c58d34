"""The shape and the maths of an encoder: `ModelConfig`, which every checkpoint carries.

The defaults are the published ProteinLM recipe, Megatron-LM's BERT. Other values make the encoders that people have:
ESM-2 (rotary positions, token dropout), ESM-1b and 1v (learned positions, a LayerNorm on the embedding), ESM C (SwiGLU,
no biases, normalised queries and keys, an untied head) and AMPLIFY (RMSNorm, SwiGLU, a head of one matrix). Shared
layers and a factorised embedding (ALBERT) train fewer weights; written out, such a model is one of the others.
"""

from dataclasses import dataclass, fields

# Names as Hugging Face and TAPE write them in config.json. "gelu" is the erf form, "gelu_new" the tanh approximation.
ACTIVATIONS = ("gelu", "gelu_new", "relu", "swish")
POSITION_EMBEDDING_TYPES = ("learned_absolute", "rope", "none")  # Megatron's names
NORMALIZATIONS = ("LayerNorm", "RMSNorm")
MOST_LAYERS = 1000  # DeepNet's (Wang 2022), the deepest there is; a larger number is a slip
CHOICES = {
    "hidden_act": ACTIVATIONS,
    "lm_head_act": ACTIVATIONS,
    "position_embedding_type": POSITION_EMBEDDING_TYPES,
    "normalization": NORMALIZATIONS,
}


@dataclass(frozen=True)
class ModelConfig:
    """The shape and the maths of one encoder; everything a checkpoint must carry to be rebuilt."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    max_position_embeddings: int  # longest protein in tokens where positions are learned
    vocab_size: int = 31
    ffn_hidden_size: int | None = None  # None: 4 * hidden_size; with swiglu two thirds of it, in 64s, as Megatron
    layernorm_epsilon: float = 1e-12
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    hidden_act: str = "gelu_new"  # inside the MLP; Megatron's fused bias-GELU is the tanh form
    lm_head_act: str = "gelu"
    init_method_std: float = 0.02
    make_vocab_size_divisible_by: int = 128
    final_layernorm: bool = True  # False reproduces the original TAPE fork, which computed it and threw it away
    output_dropout: bool = True  # False = TAPE fork: no dropout after attention.dense and dense_4h_to_h
    position_embedding_type: str = "learned_absolute"
    rotary_base: float = 10000.0  # of the inverse frequencies that a new model begins with
    position_offset: int = 0  # rows of the position embedding before the first token's; ESM-1b: 2
    token_dropout: bool = False  # ESM: rows of the mask token are 0, the others scaled for their absence
    mask_token_id: int | None = None  # token_dropout needs it
    embedding_layernorm: bool = False  # ESM-1b: before the first layer
    normalization: str = "LayerNorm"
    add_bias_linear: bool = True  # in attention and MLP
    swiglu: bool = False  # MLP: silu(gate x) * (up x), then down
    qk_layernorm: bool = False  # over all heads of the queries, and of the keys, before the rotation; no bias (ESM C)
    residual_scale: float = 1.0  # on what attention and MLP add; ESM C: sqrt(36 / num_layers)
    untie_embeddings_and_output_weights: bool = False
    lm_head_transform: bool = True  # dense, activation and norm before the decoder; AMPLIFY has none
    share_layers: bool = False  # one layer's weights in the place of every layer's (ALBERT)
    embedding_size: int | None = None  # the word embedding is a product of matrices this wide inside (ALBERT)

    def __post_init__(self):
        for field in fields(self):  # 0 and 0.0 in a file are the same network, and have the same digest
            if field.type is float and type(getattr(self, field.name)) is int:
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        if self.swiglu:
            object.__setattr__(self, "hidden_act", "swish")
        if self.ffn_hidden_size is None:
            width = 4 * self.hidden_size
            object.__setattr__(self, "ffn_hidden_size", max(1, width * 2 // 3 // 64) * 64 if self.swiglu else width)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num-attention-heads {self.num_attention_heads} must divide hidden-size {self.hidden_size}"
            )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {', '.join(choices)}")
        if self.position_embedding_type == "rope" and self.head_size % 2:
            raise ValueError(
                f"position_embedding_type rope rotates pairs: hidden-size {self.hidden_size} / num-attention-heads "
                f"{self.num_attention_heads} = {self.head_size} must be even"
            )
        if self.token_dropout and self.mask_token_id is None:
            raise ValueError("token_dropout needs mask_token_id, the mask token's id")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def max_tokens(self) -> int | None:
        """The longest protein in tokens; None where no table of positions ends."""
        return self.max_position_embeddings if self.position_embedding_type == "learned_absolute" else None

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the word embedding: the vocabulary rounded up, the same for every parallel layout."""
        return -(-self.vocab_size // self.make_vocab_size_divisible_by) * self.make_vocab_size_divisible_by

    def num_parameters(self, lm_head: bool = True) -> int:
        """Trainable parameters of `ProteinBert(self, lm_head)`, a tied decoder counted once."""
        h, ffn, bias = self.hidden_size, self.ffn_hidden_size, int(self.add_bias_linear)
        norm = 2 * h if self.normalization == "LayerNorm" else h
        attention = 4 * h * h + bias * 4 * h + (2 * h if self.qk_layernorm else 0)
        mlp = (3 if self.swiglu else 2) * h * ffn + bias * ((2 if self.swiglu else 1) * ffn + h)
        embeddings = self.padded_vocab_size * h
        if self.embedding_size is not None:
            embeddings = (self.padded_vocab_size + h) * self.embedding_size
        embeddings += norm if self.embedding_layernorm else 0
        if self.position_embedding_type == "learned_absolute":
            embeddings += (self.max_position_embeddings + self.position_offset) * h
        head = 0
        if lm_head:
            head = self.padded_vocab_size + (h * h + h + norm if self.lm_head_transform else 0)
            head += self.padded_vocab_size * h if self.untie_embeddings_and_output_weights else 0
        layers = (1 if self.share_layers else self.num_layers) * (attention + mlp + 2 * norm)
        return embeddings + layers + (norm if self.final_layernorm else 0) + head
