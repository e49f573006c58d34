"""Attention maps, a few heads of one protein at a time, for what is reduced to a smaller thing at once.

    sums = sums_over_heads(model.queries_keys_values(tokens, positions, bounds), bounds, reduce)

What must hold: no more than MAX_SCORES attention scores of one layer, or those of one head, are in memory at a time
(twice, while softmax runs); in training each piece is computed again in the backward pass instead of being kept.

Legend: T tokens of the stream, S tokens of a protein, L its residues, H heads, n of them, D head size.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MAX_SCORES = 1 << 22  # 16 MiB in fp32, which suits caches: 4 heads of a protein of 1,000 residues


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Some heads' attention within one protein, at least fp32: a row a query, which sums to 1 over the keys."""

    protein: int  # which one of the batch
    first: int  # layer * H + head of the first map
    weights: Tensor  # [n, S, S]
    own: slice  # which of the S tokens are residues

    @property
    def heads(self) -> slice:
        """Their numbers among layers * H maps."""
        return slice(self.first, self.first + len(self.weights))

    @property
    def residues(self) -> Tensor:
        """[n, L, L], a view: from residue i to residue j."""
        return self.weights[:, self.own, self.own]


# What becomes of some maps: a tensor to be added up over all heads, or None where it went elsewhere.
Reduce = Callable[[AttentionMaps], Tensor | None]


def sums_over_heads(layers: Iterable[Tensor], cu_seqlens: Tensor, reduce: Reduce) -> list[Tensor | None]:
    """What `reduce` makes of the maps, added up over all heads of all layers: one sum a protein.

    layers: [T, H, 3, D] of each layer in turn, queries and keys as they are multiplied; cu_seqlens int32 [B + 1]; a
    protein is `<cls> residues <eos>`. `reduce` runs without autocast.
    """
    proteins = [slice(*pair) for pair in itertools.pairwise(cu_seqlens.tolist())]
    sums: list[Tensor | None] = [None] * len(proteins)
    for layer, qkv in enumerate(layers):
        with torch.autocast(qkv.device.type, enabled=False):
            wide = torch.promote_types(qkv.dtype, torch.float32)
            for number, protein in enumerate(proteins):
                query, key, _ = qkv[protein].to(wide).permute(2, 1, 0, 3)  # each [H, S, D]
                for value in _pieces(query, key, number, layer * qkv.shape[1], reduce):
                    sums[number] = added(sums[number], value)
    return sums


def added(total: Tensor | None, value: Tensor | None) -> Tensor | None:
    return value if total is None else total + value


def _pieces(query: Tensor, key: Tensor, protein: int, first: int, reduce: Reduce) -> Iterable[Tensor | None]:
    """`reduce` of so many heads at a time as MAX_SCORES allows."""
    tokens, size = query.shape[1:]

    def piece(queries: Tensor, keys: Tensor, begin: int) -> Tensor | None:
        weights = (queries * size**-0.5 @ keys.transpose(1, 2)).softmax(-1)
        return reduce(AttentionMaps(protein, begin, weights, slice(1, tokens - 1)))

    heads = max(1, MAX_SCORES // tokens**2)
    for begin, some in zip(itertools.count(first, heads), zip(query.split(heads), key.split(heads), strict=True)):
        if torch.is_grad_enabled():
            yield checkpoint(piece, *some, begin, use_reentrant=False, preserve_rng_state=False)
        else:
            yield piece(*some, begin)
