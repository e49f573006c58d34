"""Packed attention: many proteins in one stream of tokens, each attending only to itself, with no dense mask.

Legend: T tokens of the stream, B proteins in it, H heads, D head size; a bucket holds n proteins padded to S tokens.

`packed_attention(qkv, plan, dropout_p)` is the one function. A plan is made once per forward pass and shared by all
layers. Backends compute the same maths:
  varlen     CUDA, fp16/bf16, no dropout: `torch.nn.attention.varlen` flash attention straight on the stream
  jagged     CUDA, fp16/bf16, dropout > 0: SDPA on jagged nested tensors (varlen_attn knows no dropout)
  buckets    CPU, and CUDA in fp32/fp64: proteins of like length gathered into padded batches for SDPA
  reference  one protein at a time, written out; the tests' yardstick
Dropout is never left out silently: a backend that cannot do it is not chosen.
"""

import math
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from proteinlm.network.rotary import rotate_pairs, rotate_queries_keys

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
    mask: Tensor | None  # [n, 1, 1, S], False where a protein has ended
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


def choose_backend(device: torch.device, dtype: torch.dtype, dropout_p: float) -> str:
    """The fastest backend that computes exactly what was asked on this device and dtype."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return "buckets"
    return "varlen" if dropout_p == 0.0 else "jagged"


def make_plan(cu_seqlens: Tensor, backend: str, max_seqlen: int | None = None) -> AttentionPlan:
    """Prepare `cu_seqlens` for `backend`. `max_seqlen`: any upper bound; None asks the device (a sync)."""
    if len(cu_seqlens) == 1:  # no protein at all: a batch of padding
        return AttentionPlan(backend, cu_seqlens, 0)
    if backend == "buckets":
        return _bucket_plan(cu_seqlens)
    if max_seqlen is None:
        max_seqlen = int(cu_seqlens.diff().max())
    return AttentionPlan(backend, cu_seqlens, max_seqlen)


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


def _bucket_plan(cu_seqlens: Tensor) -> AttentionPlan:
    bounds = cu_seqlens.to("cpu", torch.int64)
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
        mask = None if bool(real.all()) else real[:, None, None, :].to(cu_seqlens.device)
        buckets.append(Bucket(len(members), size, mask))
        gather.append(index.flatten())
        slot += index.numel()
    device = cu_seqlens.device
    return AttentionPlan(
        "buckets", cu_seqlens, int(lengths.max()), torch.cat(gather).to(device), scatter.to(device), tuple(buckets)
    )


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


def packed_attention(qkv: Tensor, plan: AttentionPlan, dropout_p: float = 0.0) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V within each protein of the stream, Q and K turned first if the plan says so.

    qkv: [T, H, 3, D], Megatron's row order of `query_key_value`. dropout_p: dropout of the attention probabilities
    (0 outside training). Returns [T, H, D].
    """
    if len(plan.cu_seqlens) == 1:
        return qkv[:, :, 2]
    return _BACKENDS[plan.backend](qkv, plan, dropout_p)


def _buckets(qkv: Tensor, plan: AttentionPlan, dropout_p: float) -> Tensor:
    tokens, heads, _, size = qkv.shape
    # The backward of SDPA in half precision takes up to five times as long as in fp32 on a CPU; the forward does not.
    dtype = torch.promote_types(qkv.dtype, torch.float32) if qkv.requires_grad else qkv.dtype
    padded = qkv.reshape(tokens, -1).index_select(0, plan.gather)
    outputs = []
    with torch.autocast(qkv.device.type, enabled=False):
        for rows, bucket in zip(padded.split([b.slots for b in plan.buckets]), plan.buckets, strict=True):
            parts = rows.view(bucket.proteins, bucket.length, heads, 3, size).permute(3, 0, 2, 1, 4)  # [3, n, H, S, D]
            parts = parts.to(dtype)
            query_key, value = parts.split((2, 1))
            if bucket.turns is not None:
                query_key = rotate_pairs(query_key, bucket.turns).to(dtype)
            query, key = query_key.unbind()
            mixed = F.scaled_dot_product_attention(query, key, value[0], attn_mask=bucket.mask, dropout_p=dropout_p)
            outputs.append(mixed.transpose(1, 2).reshape(-1, heads * size).to(qkv.dtype))
    return torch.cat(outputs).index_select(0, plan.scatter).view(tokens, heads, size)


def _varlen(qkv: Tensor, plan: AttentionPlan, dropout_p: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    assert dropout_p == 0.0, "varlen_attn has no dropout; choose_backend gives 'jagged'"
    query, key, value = (part.contiguous() for part in _rotated(qkv, plan).unbind(2))
    return varlen_attn(query, key, value, plan.cu_seqlens, plan.cu_seqlens, plan.max_seqlen, plan.max_seqlen)


def _jagged(qkv: Tensor, plan: AttentionPlan, dropout_p: float) -> Tensor:
    offsets = plan.cu_seqlens.to(torch.int64)
    query, key, value = (
        torch.nested.nested_tensor_from_jagged(part.contiguous(), offsets, max_seqlen=plan.max_seqlen).transpose(1, 2)
        for part in _rotated(qkv, plan).unbind(2)
    )
    mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p)
    return mixed.transpose(1, 2).values()


def _reference(qkv: Tensor, plan: AttentionPlan, dropout_p: float) -> Tensor:
    outputs = []
    for protein in _rotated(qkv, plan).split(plan.cu_seqlens.diff().tolist()):
        query, key, value = (part.transpose(0, 1) for part in protein.unbind(2))  # [H, S, D]
        scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
        probabilities = F.dropout(scores.softmax(-1), dropout_p)
        outputs.append((probabilities @ value).transpose(0, 1))
    return torch.cat(outputs)


def _rotated(qkv: Tensor, plan: AttentionPlan) -> Tensor:
    return qkv if plan.rotary is None else rotate_queries_keys(qkv, *plan.rotary)


_BACKENDS = {"buckets": _buckets, "varlen": _varlen, "jagged": _jagged, "reference": _reference}
