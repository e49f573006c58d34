"""A pre-LN BERT for proteins, as single-device maths. Parallelism is applied from outside.

Legend: T tokens of the stream, B proteins, h hidden size, H heads, D = h / H head size, V padded vocabulary, M masked
positions, L layers. A micro-batch [b, s] of packed rows is one stream of T = b * s tokens; proteins are told apart by
`cu_seqlens` (int32 [B+1]) and position ids that restart at every [CLS].

Architecture by default (Megatron-LM's BertModel without its pooler and token types; Shoeybi et al. 2019, Narayanan et
al. 2021): word + learned position embedding, dropout, L x (x + attention(LN(x)); x + mlp(LN(x))), final LN; LM head:
dense, GELU, LN, decoder tied to the word embedding, bias. `ModelConfig` has what else there is. Heads are inferred with
-1 and absent modules are skipped, so the same class runs as a tensor-parallel shard and as a pipeline stage.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from proteinlm.network.attention import AttentionPlan, choose_backend, make_plan, with_rotary
from proteinlm.network.attention.maps import Reduce, sums_over_heads
from proteinlm.network.config import ModelConfig
from proteinlm.network.layers import FactorisedEmbedding, LMHead, TransformerLayer, make_norm
from proteinlm.network.rotary import RotaryEmbedding

# The share of tokens that training shows as the mask token, which ESM's token dropout makes up for: 15% x 80%.
MASKED_IN_TRAINING = 0.15 * 0.8
# Weights with a row for each token of the padded vocabulary.
VOCABULARY_ROWS = ("word_embeddings.weight", "word_embeddings.factor", "lm_head.decoder.weight")


class ProteinBert(nn.Module):
    """The encoder, with the masked-LM head unless `lm_head=False`."""

    def __init__(self, config: ModelConfig, lm_head: bool = True):
        super().__init__()
        self.config = config
        self.recompute = False  # activation checkpointing of every layer; the trainer sets it
        self.stream_dtype: torch.dtype | None = None  # of the residual stream; None: as the embedding comes
        self.compute_dtype: torch.dtype | None = None  # of matrix products; None: autocast's, or else the weights'
        self.vocab_start = 0  # the vocabulary's row that the first of these logits belongs to (a shard has a part)
        self.own_tokens: Callable[[Tensor], Tensor] = _all_tokens  # under sequence parallelism a rank embeds a part
        self.is_first_stage = True
        if config.embedding_size is None:
            self.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        else:
            self.word_embeddings = FactorisedEmbedding(config)
        self.position_embeddings = self.rotary_embeddings = None
        if config.position_embedding_type == "learned_absolute":
            rows = config.max_position_embeddings + config.position_offset
            self.position_embeddings = nn.Embedding(rows, config.hidden_size)
        elif config.position_embedding_type == "rope":
            self.rotary_embeddings = RotaryEmbedding(config.head_size, config.rotary_base)
        self.embedding_layernorm = make_norm(config) if config.embedding_layernorm else None
        self.embedding_dropout = nn.Dropout(config.hidden_dropout)
        layers = [TransformerLayer(config) for _ in range(1 if config.share_layers else config.num_layers)]
        self.layers = nn.ModuleDict({str(i): layers[i % len(layers)] for i in range(config.num_layers)})
        self.final_layernorm = make_norm(config) if config.final_layernorm else None
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
        return self.states_after((depth,), tokens, position_ids, cu_seqlens)[0]

    def states_after(
        self, depths: Sequence[int], tokens: Tensor, position_ids: Tensor, cu_seqlens: Tensor
    ) -> list[Tensor]:
        """`state_after` of each of `depths`, in one pass that ends at the deepest."""
        hidden, plan = self._embed(tokens, position_ids, cu_seqlens)
        states = {0: hidden} if 0 in depths else {}
        for depth, layer in enumerate(itertools.islice(self.layers.values(), max(depths)), 1):
            hidden = self._run(layer, hidden, plan)
            if depth in depths:
                states[depth] = hidden
        if len(self.layers) in depths:
            states[len(self.layers)] = self._normalise(hidden)
        return [states[depth] for depth in depths]

    def hidden_states(self, tokens: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> list[Tensor]:
        """L+1 tensors shaped [..., h]: the embedding, then each layer's output, the last one after the final LN."""
        states = self.states_after(range(len(self.layers) + 1), tokens, position_ids, cu_seqlens)
        return [state.view(*position_ids.shape, state.shape[-1]) for state in states]

    def queries_keys_values(self, tokens: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> Iterator[Tensor]:
        """[T, H, 3, D] of each layer in turn, as its attention gets them: what attention maps are made of."""
        hidden, plan = self._embed(tokens, position_ids, cu_seqlens)
        for layer in self.layers.values():
            yield layer.attention.queries_keys_values(layer.input_layernorm(hidden), plan)
            hidden = self._run(layer, hidden, plan)

    def attention_sums(
        self, reduce: Reduce, tokens: Tensor, position_ids: Tensor, cu_seqlens: Tensor
    ) -> list[Tensor | None]:
        """What `reduce` makes of the attention maps, added up over all heads: one sum a protein. Layers follow each
        other; the maps are never all in memory."""
        layers = self.queries_keys_values(tokens, position_ids, cu_seqlens)
        return sums_over_heads(layers, cu_seqlens, reduce)

    def lm_logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., h] -> logits [..., V]."""
        tied = not self.config.untie_embeddings_and_output_weights
        logits = self.lm_head(hidden, self.word_embeddings.weight if tied else None)
        rows = torch.arange(self.vocab_start, self.vocab_start + logits.shape[-1], device=logits.device)
        padding = rows >= self.config.vocab_size
        return logits.masked_fill(padding, -torch.inf)

    def _embed(self, tokens: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, AttentionPlan]:
        """(the stream [T, h] that the first layer reads, how attention runs over it)."""
        plan = self._plan(cu_seqlens.flatten(), position_ids)
        if not self.is_first_stage:
            return tokens.flatten(0, -2), plan
        states = self.word_embeddings(tokens.flatten())
        if self.config.token_dropout:
            states = states * self.own_tokens(self._token_scale(tokens.flatten(), plan.cu_seqlens))
        if self.position_embeddings is not None:
            states = states + self.position_embeddings(position_ids.flatten() + self.config.position_offset)
        if self.embedding_layernorm is not None:
            states = self.embedding_layernorm(states)
        states = self.embedding_dropout(states)
        return states if self.stream_dtype is None else states.to(self.stream_dtype), plan

    def _token_scale(self, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
        """fp32 [T, 1]: ESM's token dropout, 0 at the mask token and (1 - 0.12) / (1 - share of mask tokens in the
        protein) elsewhere. The share is taken over all of a protein's tokens, so companions in a row change nothing."""
        masked = tokens == self.config.mask_token_id
        counts = torch.cat((masked.new_zeros(1, dtype=torch.int32), masked.cumsum(0, dtype=torch.int32)))
        sizes = cu_seqlens.diff()
        shares = counts[cu_seqlens[1:]].sub(counts[cu_seqlens[:-1]]).float() / sizes.clamp(min=1)
        scale = (1 - MASKED_IN_TRAINING) / (1 - shares).double()
        scale = scale.repeat_interleave(sizes, output_size=len(tokens)).masked_fill(masked, 0.0)
        return scale[:, None].to(self.word_embeddings.weight.dtype)

    def _run(self, layer: nn.Module, x: Tensor, plan: AttentionPlan) -> Tensor:
        if self.recompute and self.training:
            return checkpoint(layer, x, plan, use_reentrant=False, preserve_rng_state=self._draws)
        return layer(x, plan)

    @property
    def _draws(self) -> bool:
        """Whether layers draw random numbers, which recomputation would have to repeat."""
        return max(self.config.hidden_dropout, self.config.attention_dropout) > 0

    def _normalise(self, x: Tensor) -> Tensor:
        return self.final_layernorm(x) if self.final_layernorm else x

    def _plan(self, cu_seqlens: Tensor, position_ids: Tensor) -> AttentionPlan:
        device = cu_seqlens.device
        dtype = self.compute_dtype or next(self.parameters()).dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        dropout = self.config.attention_dropout if self.training else 0.0
        backend = choose_backend(device, dtype, dropout, self.config.head_size)
        # The row length bounds every protein of a packed batch: no need to ask the device for the longest.
        plan = make_plan(cu_seqlens, backend, position_ids.shape[1] if position_ids.dim() > 1 else None)
        if self.rotary_embeddings is None:
            return plan
        return with_rotary(plan, *self.rotary_embeddings(position_ids.flatten()))


def _all_tokens(values: Tensor) -> Tensor:
    return values


def initialize(model: ProteinBert, seed: int) -> None:
    """Give every parameter its `initial_weight`, and the rotation its frequencies."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_weight(name, parameter.shape, model.config, seed))
    initialize_buffers(model)


def initialize_buffers(model: ProteinBert) -> None:
    """Fill what is saved with the weights and not trained; needed where memory came without values."""
    if model.rotary_embeddings is not None:
        model.rotary_embeddings.inv_freq.copy_(model.rotary_embeddings.initial())


def initial_weight(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> Tensor:
    """Megatron's initial weights, each a function of (seed, its name) alone, so that no layout changes them.

    N(0, init_method_std); attention.dense and dense_4h_to_h N(0, std / sqrt(2 L)); biases 0, norms 1 and 0; padding
    rows of the vocabulary 0. A factorised embedding's product is spread as the whole one is. fp32 on the CPU.
    """
    if len(shape) < 2:
        return torch.full(shape, 1.0 if "layernorm" in name and name.endswith("weight") else 0.0)
    scaled = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
    spread = config.init_method_std / (math.sqrt(2 * config.num_layers) if scaled else 1.0)
    if name == "word_embeddings.projection":
        spread = 1 / math.sqrt(config.embedding_size)
    value = torch.empty(shape, dtype=torch.float32).normal_(0.0, spread, generator=_rng(seed, name))
    if name.endswith(VOCABULARY_ROWS):
        value[config.vocab_size :] = 0.0
    return value


def _rng(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
