"""Where each protein of the stream begins, and what a backend derives from that once for all layers.

Legend: T tokens of the stream, B proteins in it, D head size; a bucket holds n proteins padded to S tokens.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

# Lengths are rounded up to a vector of a CPU, 16 floats in AVX-512: SDPA over 60 keys takes twice as long as over 64.
BUCKET_MULTIPLE = 16
# A bucket's shortest protein is at least this fraction of its longest, both rounded.
BUCKET_RATIO = 0.9
# The most n * S, where n is not 1: what the steps of attention hand on to each other stays in the caches.
BUCKET_TOKENS = 2048


@dataclass(frozen=True)
class Bucket:
    """n proteins padded to S. A slot is a place in the padded batch, counted [n, S]."""

    length: int  # S
    lengths: tuple[int, ...]  # n, at most S
    gather: Tensor  # [n * S] the stream's row of every slot; a slot of padding has its protein's first
    scatter: Tensor  # [n * S] the same, but T for a slot of padding
    padding: Tensor | None = None  # the slots that are none of a protein's; None for none
    bias: Tensor | None = None  # fp32 [n, 1, 1, S], -inf where a protein has ended; None where all have S tokens
    turns: Tensor | None = None  # complex [n, 1, S, D / 2]: cos + i sin of the rotary angles

    @property
    def proteins(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class AttentionPlan:
    """Protein boundaries (`cu_seqlens` [B+1], int32) and what the chosen backend derives from them."""

    backend: str
    cu_seqlens: Tensor
    max_seqlen: int
    buckets: tuple[Bucket, ...] = field(default=())
    rotary: tuple[Tensor, Tensor] | None = None  # (cos, sin), each [T, 1, D / 2], of queries and keys


def with_rotary(plan: AttentionPlan, cos: Tensor, sin: Tensor) -> AttentionPlan:
    """The plan for queries and keys that are to be turned by the angles [T, 1, D / 2] of their tokens."""
    if not plan.buckets:
        return replace(plan, rotary=(cos, sin))
    turns = torch.complex(cos, sin)
    buckets = (
        replace(bucket, turns=turns[bucket.gather].view(bucket.proteins, 1, bucket.length, -1))
        for bucket in plan.buckets
    )
    return replace(plan, rotary=(cos, sin), buckets=tuple(buckets))


def bucket_plan(cu_seqlens: Tensor) -> AttentionPlan:
    """The plan of `buckets`; empty proteins are in none."""
    bounds = cu_seqlens.to("cpu", torch.int64)
    starts, lengths = bounds[:-1], bounds.diff()
    order = torch.argsort(lengths, descending=True, stable=True)
    order = order[lengths[order] > 0]
    buckets = tuple(
        _bucket(starts[members], lengths[members], int(bounds[-1]), cu_seqlens.device)
        for members in _split_by_length(order, lengths)
    )
    return AttentionPlan("buckets", cu_seqlens, int(lengths.max()), buckets)


def _bucket(starts: Tensor, lengths: Tensor, tokens: int, device: torch.device) -> Bucket:
    size = _rounded(int(lengths[0]))
    offsets = torch.arange(size)
    real = offsets < lengths[:, None]  # [n, S]
    index = starts[:, None] + torch.where(real, offsets, 0)
    gather, scatter = index.flatten().to(device), index.masked_fill(~real, tokens).flatten().to(device)
    own = tuple(lengths.tolist())
    if min(own) == size:
        return Bucket(size, own, gather, scatter)
    bias = torch.zeros(real.shape).masked_fill(~real, -torch.inf)[:, None, None, :]
    padding = torch.nonzero(~real.flatten()).flatten()
    return Bucket(size, own, gather, scatter, padding.to(device), bias.to(device))


def _rounded(length: int) -> int:
    return -(-length // BUCKET_MULTIPLE) * BUCKET_MULTIPLE


def _split_by_length(order: Tensor, lengths: Tensor) -> list[Tensor]:
    """Cut protein numbers, longest first, into runs of like length."""
    sizes = [_rounded(length) for length in lengths[order].tolist()]
    groups, begin = [], 0
    for i, size in enumerate(sizes):
        full = (i - begin + 1) * sizes[begin] > BUCKET_TOKENS
        if i > begin and (full or size < BUCKET_RATIO * sizes[begin]):
            groups.append(order[begin:i])
            begin = i
    groups.append(order[begin:])
    return groups
