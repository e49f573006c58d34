"""Another project's encoder behind the interface of ProteinBert: a stream of TAPE's tokens in, a state a token out.

    trunk = Trunk(model, table)                                  proteinlm.huggingface.directory makes both
    states = trunk(tokens, position_ids, cu_seqlens)             [T, h], T tokens of proteins `<cls> residues <sep>`

Within, each protein gets the family's own tokens around it, and the proteins of a batch become a padded rectangle with
its mask. Of the states that come back, residues keep their own; <cls> and <sep> get those of the family's tokens
(wherever they stand: XLNet's are both at the end), and where a family has none (T5 has no [CLS]) the mean of the
protein's residues. What must hold: padding changes nothing (1e-5 in fp32).

Padding is on the right for every family. XLNet's tokenizer pads on the left; its positions are relative, so that the
states of real tokens are the same.

Legend: B proteins, T tokens of the stream (residues + 2 each), N tokens of the longest protein with its family's own,
h hidden size, V vocabulary of the model.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from proteinlm.errors import InputError
from proteinlm.huggingface.attentions import map_values
from proteinlm.huggingface.tokens import TokenTable
from proteinlm.network.attention.maps import Reduce, added
from proteinlm.tokenizer import TAPE_TOKENS


@dataclass(frozen=True)
class TrunkConfig:
    """What proteinlm.encoder has to know. max_tokens: residues + 2 of the longest protein, None for any length."""

    num_layers: int
    hidden_size: int
    max_tokens: int | None
    num_attention_heads: int = 0  # 0: unknown
    vocab_size: int = len(TAPE_TOKENS)


@dataclass(frozen=True)
class Rectangle:
    """A batch as the model reads it, and where the stream's tokens are in it."""

    ids: Tensor  # int64 [B, N]
    mask: Tensor  # int64 [B, N], 0 at padding
    rows: Tensor  # int64 [T]
    columns: Tensor  # int64 [T]; 0 where the family has no such token
    absent: Tensor  # bool [T], of which the family has no token
    residues: Tensor  # bool [T]


class Trunk(nn.Module):
    """model: an encoder of transformers. lm_head: what makes logits [..., V] of its states, or None."""

    def __init__(self, model: nn.Module, table: TokenTable, lm_head: nn.Module | None = None):
        super().__init__()
        self.model, self.lm_head, self.table = model, lm_head, table
        self._recomputes = False
        limit = _position_limit(model)
        ends = len(table.prefix) + len(table.suffix)
        max_tokens = None if limit is None else limit - ends + 2
        heads = getattr(model.config, "num_attention_heads", 0)
        self.config = TrunkConfig(model.config.num_hidden_layers, model.config.hidden_size, max_tokens, heads)
        for name in ("ids", "columns", "prefix", "suffix"):
            self.register_buffer(f"_{name}", torch.tensor(getattr(table, name), dtype=torch.int64), persistent=False)

    @property
    def recompute(self) -> bool | None:
        """Whether layers are computed again in the backward pass; None where the model cannot."""
        return self._recomputes if self.model.supports_gradient_checkpointing else None

    @recompute.setter
    def recompute(self, value: bool) -> None:
        self._recomputes, options = value, {"use_reentrant": False}
        if not value:
            return
        if hasattr(self.model, "activation_checkpointing_enable"):
            self.model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        else:  # transformers before 5.24
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)

    def forward(self, tokens: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
        """[T, h], the last states. tokens int64 [T] of TAPE's vocabulary; position_ids [T], 0 at each <cls>;
        cu_seqlens int32 [B + 1]."""
        return self.states_after([self.config.num_layers], tokens, position_ids, cu_seqlens)[0]

    def states_after(
        self, depths: Sequence[int], tokens: Tensor, position_ids: Tensor, cu_seqlens: Tensor
    ) -> list[Tensor]:
        """[T, h] for each of `depths`: the state after so many layers (0: the embedding), the last one as the model
        gives it. All layers are computed, in one pass."""
        batch, last = self._rectangle(tokens, position_ids, cu_seqlens), self.config.num_layers
        every = any(depth < last for depth in depths)
        output = self.model(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=every)
        return [self._stream(output[0] if depth == last else output.hidden_states[depth], batch) for depth in depths]

    def attention_sums(
        self, reduce: Reduce, tokens: Tensor, position_ids: Tensor, cu_seqlens: Tensor
    ) -> list[Tensor | None]:
        """`ProteinBert.attention_sums`: each protein is read alone, and its maps are handed on as its layers run."""
        if self._recomputes and self.training:
            raise InputError("attention maps of an encoder of transformers cannot be computed again; omit --recompute")
        sums, bounds = [], cu_seqlens.tolist()
        for number, (begin, end) in enumerate(itertools.pairwise(bounds)):
            whole = cu_seqlens.new_tensor([0, end - begin])
            batch = self._rectangle(tokens[begin:end], position_ids[begin:end], whole)
            first = len(self._prefix)
            own, total = slice(first, first + end - begin - 2), None
            for value in map_values(self.model, batch.ids, batch.mask, number, own, reduce):
                total = added(total, value)
            sums.append(total)
        return sums

    def lm_logits(self, states: Tensor) -> Tensor:
        """states [..., h] -> logits [..., 30] of TAPE's tokens."""
        return self.to_tape(self.lm_head(states))

    def to_tape(self, logits: Tensor) -> Tensor:
        """[..., V] -> [..., 30]: those of TAPE's tokens; one that the family lacks has its unknown token's."""
        return logits[..., self._columns]

    def _rectangle(self, tokens: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> Rectangle:
        sizes = cu_seqlens.diff().long()
        lengths, before, after = sizes - 2, len(self._prefix), len(self._suffix)  # residues of each protein
        rows = torch.arange(len(sizes), device=tokens.device).repeat_interleave(sizes, output_size=len(tokens))
        is_first, is_last = position_ids == 0, position_ids == sizes[rows] - 1
        residues = ~(is_first | is_last)
        ends = before + lengths  # where the suffix begins
        ids = tokens.new_full((len(sizes), int(lengths.max()) + before + after), self.table.pad_id)
        ids[:, :before] = self._prefix
        columns = before + position_ids.long() - 1
        ids[rows[residues], columns[residues]] = self._ids[tokens[residues]]
        if after:
            ids.scatter_(1, ends[:, None] + torch.arange(after, device=ids.device), self._suffix.expand(len(ids), -1))
        mask = torch.arange(ids.shape[1], device=ids.device) < (ends + after)[:, None]
        absent = torch.zeros_like(residues)
        for place, chosen in ((self.table.cls, is_first), (self.table.sep, is_last)):
            if place is None:
                absent, columns = absent | chosen, columns.masked_fill(chosen, 0)
            else:
                column = torch.full_like(ends, place) if place < before else ends + place - before
                columns = torch.where(chosen, column[rows], columns)
        return Rectangle(ids, mask.long(), rows, columns, absent, residues)

    def _stream(self, states: Tensor, batch: Rectangle) -> Tensor:
        """[B, N, h] -> [T, h]."""
        stream = states[batch.rows, batch.columns]
        if self.table.cls is not None and self.table.sep is not None:
            return stream
        wide = torch.promote_types(states.dtype, torch.float32)  # fp16 overflows on a long protein
        sums = states.new_zeros(len(states), states.shape[2], dtype=wide)
        sums = sums.index_add(0, batch.rows[batch.residues], stream[batch.residues].to(wide))
        counts = torch.bincount(batch.rows[batch.residues], minlength=len(states)).clamp(min=1)
        means = (sums / counts[:, None]).to(states.dtype)
        return torch.where(batch.absent[:, None], means[batch.rows], stream)


def _position_limit(model: nn.Module) -> int | None:
    """Tokens for which the model has learned positions; None where positions are relative or rotated."""
    for name, part in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding):
            first = 0 if part.padding_idx is None else part.padding_idx + 1  # RoBERTa's and ESM-1b's begin there
            return part.num_embeddings - first
    return None
