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
    """n proteins padded to S: the next n * S rows of the gathered stream."""

    proteins: int
    length: int
    lengths: tuple[int, ...]  # n, at most S
    bias: Tensor | None  # fp32 [n, 1, 1, S], -inf where a protein has ended; None where all have S tokens
    turns: Tensor | None = None  # complex [n, 1, S, D / 2]: cos + i sin of the rotary angles

    @property
    def slots(self) -> int:
        return self.proteins * self.length


@dataclass(frozen=True)
class AttentionPlan:
    """Protein boundaries (`cu_seqlens` [B+1], int32) and what the chosen backend derives from them."""

    backend: str
    cu_seqlens: Tensor
    max_seqlen: int
    gather: Tensor | None = None  # [padded tokens] stream index of every bucketed slot
    scatter: Tensor | None = None  # [T] bucketed slot of every stream token
    buckets: tuple[Bucket, ...] = field(default=())
    rotary: tuple[Tensor, Tensor] | None = None  # (cos, sin), each [T, 1, D / 2], of queries and keys


def with_rotary(plan: AttentionPlan, cos: Tensor, sin: Tensor) -> AttentionPlan:
    """The plan for queries and keys that are to be turned by the angles [T, 1, D / 2] of their tokens."""
    if not plan.buckets:
        return replace(plan, rotary=(cos, sin))
    turns = torch.complex(cos, sin)[plan.gather].split([bucket.slots for bucket in plan.buckets])
    buckets = (
        replace(bucket, turns=rows.view(bucket.proteins, 1, bucket.length, -1))
        for bucket, rows in zip(plan.buckets, turns, strict=True)
    )
    return replace(plan, rotary=(cos, sin), buckets=tuple(buckets))


def bucket_plan(cu_seqlens: Tensor) -> AttentionPlan:
    """The plan of `buckets`; empty proteins are in none."""
    device, bounds = cu_seqlens.device, cu_seqlens.to("cpu", torch.int64)
    starts, lengths = bounds[:-1], bounds.diff()
    order = torch.argsort(lengths, descending=True, stable=True)
    order = order[lengths[order] > 0]
    gather, buckets, slot = [], [], 0
    scatter = torch.empty(int(bounds[-1]), dtype=torch.int64)
    for members in _split_by_length(order, lengths):
        size = _rounded(int(lengths[members[0]]))
        offsets = torch.arange(size)
        real = offsets < lengths[members, None]  # [n, S]
        index = starts[members, None] + torch.where(real, offsets, 0)  # padding repeats token 0, its key masked
        scatter[index[real]] = slot + torch.nonzero(real.flatten()).flatten()
        own = tuple(lengths[members].tolist())
        buckets.append(Bucket(len(members), size, own, _bias(real).to(device) if min(own) < size else None))
        gather.append(index.flatten())
        slot += index.numel()
    return AttentionPlan(
        "buckets", cu_seqlens, int(lengths.max()), torch.cat(gather).to(device), scatter.to(device), tuple(buckets)
    )


def _bias(real: Tensor) -> Tensor:
    return torch.zeros(real.shape).masked_fill(~real, -torch.inf)[:, None, None, :]


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
