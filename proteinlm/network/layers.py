"""The modules that the encoder is made of: norm, attention, MLP, block, masked-LM head.

Legend: T tokens of the stream, h hidden size, H heads, D = h / H head size, V padded vocabulary.
"""

import contextlib
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proteinlm.network.attention import AttentionPlan, packed_attention
from proteinlm.network.config import ModelConfig
from proteinlm.network.rotary import rotate_queries_keys

ACTIVATIONS = {  # by the names of proteinlm.network.config
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "swish": F.silu,
}


class LayerNorm(nn.LayerNorm):
    """Computes in the stream's dtype where its weights are narrower (FSDP2's copies), and returns theirs."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.itemsize >= x.itemsize:
            return super().forward(x)
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps).to(self.weight.dtype)


class RMSNorm(nn.RMSNorm):
    """The same for RMSNorm."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.itemsize >= x.itemsize:
            return super().forward(x)
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps).to(self.weight.dtype)


def make_norm(config: ModelConfig) -> nn.Module:
    """LayerNorm or RMSNorm over the hidden size."""
    kind = LayerNorm if config.normalization == "LayerNorm" else RMSNorm
    return kind(config.hidden_size, eps=config.layernorm_epsilon)


class Attention(nn.Module):
    """Self-attention within each protein. query_key_value's rows are [H, 3, D], Megatron's order since version 2.0."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_size = config.head_size
        self.dropout = config.attention_dropout
        self.dropout_rng = contextlib.nullcontext  # a shard of the heads draws from a generator of its own
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size, config.add_bias_linear)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, config.add_bias_linear)
        self.q_layernorm = self.k_layernorm = None
        if config.qk_layernorm:
            self.q_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon, bias=False)
            self.k_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon, bias=False)

    def forward(self, x: Tensor, plan: AttentionPlan) -> Tensor:
        qkv = self._project(x)
        dropout = self.dropout if self.training else 0.0
        with self.dropout_rng() if dropout else contextlib.nullcontext():
            mixed = packed_attention(qkv, plan, dropout)
        return self.dense(mixed.flatten(1))  # [T, h]

    def queries_keys_values(self, x: Tensor, plan: AttentionPlan) -> Tensor:
        """[T, H, 3, D]: queries and keys normalised and turned, as the configuration says."""
        qkv = self._project(x)
        return qkv if plan.rotary is None else rotate_queries_keys(qkv, *plan.rotary)

    def _project(self, x: Tensor) -> Tensor:
        """[T, H, 3, D], not turned yet: `packed_attention` does that."""
        qkv = self.query_key_value(x).unflatten(-1, (-1, 3, self.head_size))
        if self.q_layernorm is None:
            return qkv
        query, key, value = qkv.unbind(2)
        query = self.q_layernorm(query.flatten(1)).view_as(query).to(value.dtype)
        key = self.k_layernorm(key.flatten(1)).view_as(key).to(value.dtype)
        return torch.stack((query, key, value), 2)


class MLP(nn.Module):
    """h -> ffn -> h with the configured activation, gated with swiglu.

    Nothing here is recomputed to stay in a CPU's cache: in bf16 a second tanh GELU costs more than that saves, and the
    function written in fp32 passes over cached pieces is no faster than PyTorch's kernel.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        h, ffn, bias = config.hidden_size, config.ffn_hidden_size, config.add_bias_linear
        self.dense_h_to_4h_gate = nn.Linear(h, ffn, bias) if config.swiglu else None
        self.dense_h_to_4h = nn.Linear(h, ffn, bias)
        self.dense_4h_to_h = nn.Linear(ffn, h, bias)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        if self.dense_h_to_4h_gate is None:
            return self.dense_4h_to_h(self.activation(self.dense_h_to_4h(x)))
        return self.dense_4h_to_h(self.activation(self.dense_h_to_4h_gate(x)) * self.dense_h_to_4h(x))


class TransformerLayer(nn.Module):
    """One pre-LN block on the stream: [T, h] -> [T, h]."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.attention = Attention(config)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout if config.output_dropout else 0.0)
        self.scale = config.residual_scale

    def forward(self, x: Tensor, plan: AttentionPlan) -> Tensor:
        x = x + self._branch(self.attention(self.input_layernorm(x), plan))
        return x + self._branch(self.mlp(self.post_attention_layernorm(x)))

    def _branch(self, x: Tensor) -> Tensor:
        return self.dropout(x) if self.scale == 1.0 else self.dropout(x) * self.scale


class FactorisedEmbedding(nn.Module):
    """A word embedding [V, h] that is the product of `factor` [V, E] and `projection` [E, h].

    After ALBERT (Lan et al. 2020, section 3.1), whose decoder reads E features; here it is tied to the product, so that
    the product is all that another model needs.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.factor = nn.Parameter(torch.empty(config.padded_vocab_size, config.embedding_size))
        self.projection = nn.Parameter(torch.empty(config.embedding_size, config.hidden_size))

    @property
    def weight(self) -> Tensor:
        with torch.autocast(self.factor.device.type, enabled=False):
            return self.factor @ self.projection

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight)


class LMHead(nn.Module):
    """dense, activation, norm, then the decoder: its own matrix, or the word embedding that the caller hands in."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dense = self.layernorm = self.decoder = None
        if config.lm_head_transform:
            self.dense = nn.Linear(config.hidden_size, config.hidden_size)
            self.layernorm = make_norm(config)
        if config.untie_embeddings_and_output_weights:
            self.decoder = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.padded_vocab_size))
        self.activation = ACTIVATIONS[config.lm_head_act]

    def forward(self, hidden: Tensor, word_embeddings: Tensor | None = None) -> Tensor:
        """hidden [M, h] -> logits [M, V]. word_embeddings [V, h]: the decoder where it is tied."""
        if self.dense is not None:
            hidden = self.layernorm(self.activation(self.dense(hidden)))
        return F.linear(hidden, word_embeddings if self.decoder is None else self.decoder.weight, self.bias)
