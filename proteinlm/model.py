"""Megatron's pre-LN BERT for proteins, as single-device maths. Parallelism is applied from outside.

Legend: T tokens of the stream, B proteins, h hidden size, H heads, D = h / H head size, V padded vocabulary, M masked
positions, L layers. A micro-batch [b, s] of packed rows is one stream of T = b * s tokens; proteins are told apart by
`cu_seqlens` (int32 [B+1]) and position ids that restart at every [CLS].

Architecture (Megatron-LM's BertModel without its pooler and token types; Shoeybi et al. 2019, Narayanan et al. 2021):
word + learned position embedding, dropout, L x (x + attention(LN(x)); x + mlp(LN(x))), final LN; LM head: dense, GELU,
LN, decoder tied to the word embedding, bias. Heads are inferred with -1 and absent modules are skipped, so the same
class runs as a tensor-parallel shard and as a pipeline stage.
"""

import contextlib
import hashlib
import itertools
import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from proteinlm.attention import AttentionPlan, choose_backend, make_plan, packed_attention

# Names as Hugging Face and TAPE write them in config.json. "gelu" is the erf form, "gelu_new" the tanh approximation.
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "swish": F.silu,
}


@dataclass(frozen=True)
class ModelConfig:
    """The shape and the maths of one encoder; everything a checkpoint must carry to be rebuilt."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    vocab_size: int = 31
    ffn_hidden_size: int | None = None  # 4 * hidden_size when None
    layernorm_epsilon: float = 1e-12
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    hidden_act: str = "gelu_new"  # inside the MLP; Megatron's fused bias-GELU is the tanh form
    lm_head_act: str = "gelu"
    init_method_std: float = 0.02
    make_vocab_size_divisible_by: int = 128
    final_layernorm: bool = True  # False reproduces the original TAPE fork, which computed it and threw it away
    output_dropout: bool = True  # False = TAPE fork: no dropout after attention.dense and dense_4h_to_h

    def __post_init__(self):
        if self.ffn_hidden_size is None:
            object.__setattr__(self, "ffn_hidden_size", 4 * self.hidden_size)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num-attention-heads {self.num_attention_heads} must divide hidden-size {self.hidden_size}"
            )
        for name in ("hidden_act", "lm_head_act"):
            if getattr(self, name) not in ACTIVATIONS:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {', '.join(ACTIVATIONS)}")

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the word embedding: the vocabulary rounded up, the same for every parallel layout."""
        return -(-self.vocab_size // self.make_vocab_size_divisible_by) * self.make_vocab_size_divisible_by

    def num_parameters(self, lm_head: bool = True) -> int:
        """Trainable parameters of `ProteinBert(self, lm_head)`, the tied decoder counted once."""
        h, ffn = self.hidden_size, self.ffn_hidden_size
        layer = 4 * h * h + 4 * h + 2 * h * ffn + ffn + h + 4 * h  # attention, MLP, two norms
        head = h * h + h + 2 * h + self.padded_vocab_size if lm_head else 0
        embeddings = (self.padded_vocab_size + self.max_position_embeddings) * h
        return embeddings + self.num_layers * layer + (2 * h if self.final_layernorm else 0) + head


class Attention(nn.Module):
    """Self-attention within each protein. query_key_value's rows are [H, 3, D], Megatron's order since version 2.0."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_size = config.hidden_size // config.num_attention_heads
        self.dropout = config.attention_dropout
        self.dropout_rng = contextlib.nullcontext  # a shard of the heads draws from a generator of its own
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, plan: AttentionPlan) -> Tensor:
        qkv = self.query_key_value(x).unflatten(-1, (-1, 3, self.head_size))  # [T, H, 3, D]
        dropout = self.dropout if self.training else 0.0
        with self.dropout_rng() if dropout else contextlib.nullcontext():
            mixed = packed_attention(qkv, plan, dropout)
        return self.dense(mixed.flatten(1))  # [T, h]


class MLP(nn.Module):
    """h -> ffn -> h with the configured GELU."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.ffn_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_4h_to_h(self.activation(self.dense_h_to_4h(x)))


class TransformerLayer(nn.Module):
    """One pre-LN block on the stream: [T, h] -> [T, h]."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = Attention(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout if config.output_dropout else 0.0)

    def forward(self, x: Tensor, plan: AttentionPlan) -> Tensor:
        x = x + self.dropout(self.attention(self.input_layernorm(x), plan))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class LMHead(nn.Module):
    """dense, GELU, LN, then the decoder whose matrix the caller hands in (it is the word embedding)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.bias = nn.Parameter(torch.zeros(config.padded_vocab_size))
        self.activation = ACTIVATIONS[config.lm_head_act]

    def forward(self, hidden: Tensor, decoder: Tensor) -> Tensor:
        return F.linear(self.layernorm(self.activation(self.dense(hidden))), decoder, self.bias)


class ProteinBert(nn.Module):
    """The encoder, with the masked-LM head unless `lm_head=False`."""

    def __init__(self, config: ModelConfig, lm_head: bool = True):
        super().__init__()
        self.config = config
        self.recompute = False  # activation checkpointing of every layer; the trainer sets it
        self.vocab_start = 0  # the vocabulary's row that the first of these logits belongs to (a shard has a part)
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.embedding_dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleDict({str(i): TransformerLayer(config) for i in range(config.num_layers)})
        norm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.final_layernorm = norm if config.final_layernorm else None
        self.lm_head = LMHead(config) if lm_head else None

    def forward(
        self, tokens: Tensor, position_ids: Tensor, cu_seqlens: Tensor, masked_positions: Tensor | None = None
    ) -> Tensor:
        """Encode packed proteins.

        tokens: int64 [b, s] or flat [T] (a later pipeline stage gets hidden states [T, h] instead);
        position_ids: int64, shaped like tokens; cu_seqlens: int32 [B+1] over the T flattened tokens, covering all.
        Without masked_positions: hidden states [b, s, h] or [T, h]. With masked_positions (int64 [M], indices into the
        flattened tokens): logits [M, V], -inf for the padding rows of the vocabulary; a stage without the head passes
        the stream [T, h] on.
        """
        hidden = self.state_after(len(self.layers), tokens, position_ids, cu_seqlens)
        if masked_positions is None:
            return hidden.view(*position_ids.shape, hidden.shape[-1])
        if self.lm_head is None:
            return hidden
        return self.lm_logits(hidden.index_select(0, masked_positions))

    def state_after(self, depth: int, tokens: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
        """[T, h]: the state after the first `depth` layers (0: the embedding), after all of them with the final LN."""
        hidden, plan = self._embed(tokens, position_ids, cu_seqlens)
        for layer in itertools.islice(self.layers.values(), depth):
            hidden = self._run(layer, hidden, plan)
        return self._normalise(hidden) if depth == len(self.layers) else hidden

    def hidden_states(self, tokens: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> list[Tensor]:
        """L+1 tensors shaped [..., h]: the embedding, then each layer's output, the last one after the final LN."""
        hidden, plan = self._embed(tokens, position_ids, cu_seqlens)
        states = [hidden]
        for layer in self.layers.values():
            states.append(self._run(layer, states[-1], plan))
        states[-1] = self._normalise(states[-1])
        return [state.view(*position_ids.shape, state.shape[-1]) for state in states]

    def lm_logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., h] -> logits [..., V]."""
        logits = self.lm_head(hidden, self.word_embeddings.weight)
        rows = torch.arange(self.vocab_start, self.vocab_start + logits.shape[-1], device=logits.device)
        padding = rows >= self.config.vocab_size
        return logits.masked_fill(padding, -torch.inf)

    def _embed(self, tokens: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, AttentionPlan]:
        """(the stream [T, h] that the first layer reads, how attention runs over it)."""
        plan = self._plan(cu_seqlens.flatten(), position_ids)
        if self.position_embeddings is None:  # a later pipeline stage
            return tokens.flatten(0, -2), plan
        words = self.word_embeddings(tokens.flatten())
        return self.embedding_dropout(words + self.position_embeddings(position_ids.flatten())), plan

    def _run(self, layer: nn.Module, x: Tensor, plan: AttentionPlan) -> Tensor:
        if self.recompute and self.training:
            return checkpoint(layer, x, plan, use_reentrant=False)
        return layer(x, plan)

    def _normalise(self, x: Tensor) -> Tensor:
        return self.final_layernorm(x) if self.final_layernorm else x

    def _plan(self, cu_seqlens: Tensor, position_ids: Tensor) -> AttentionPlan:
        device = cu_seqlens.device
        dtype = next(self.parameters()).dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        backend = choose_backend(device, dtype, self.config.attention_dropout if self.training else 0.0)
        # The row length bounds every protein of a packed batch: no need to ask the device for the longest.
        return make_plan(cu_seqlens, backend, position_ids.shape[1] if position_ids.dim() > 1 else None)


def initialize(model: ProteinBert, seed: int) -> None:
    """Give every parameter its `initial_weight`."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_weight(name, parameter.shape, model.config, seed))


def initial_weight(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> Tensor:
    """Megatron's initial weights, each a function of (seed, its name) alone, so that no layout changes them.

    N(0, init_method_std); attention.dense and dense_4h_to_h N(0, std / sqrt(2 L)); biases 0, norms 1 and 0; padding
    rows of the word embedding 0. fp32 on the CPU.
    """
    if len(shape) < 2:
        return torch.full(shape, 1.0 if "layernorm" in name and name.endswith("weight") else 0.0)
    scaled = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
    spread = config.init_method_std / (math.sqrt(2 * config.num_layers) if scaled else 1.0)
    value = torch.empty(shape, dtype=torch.float32).normal_(0.0, spread, generator=_rng(seed, name))
    if name == "word_embeddings.weight":
        value[config.vocab_size :] = 0.0
    return value


def _rng(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
