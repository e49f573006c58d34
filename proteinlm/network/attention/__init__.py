"""Packed attention: many proteins in one stream of tokens, each attending only to itself, with no dense mask.

Legend: T tokens of the stream, B proteins in it, H heads, D head size; a bucket holds n proteins padded to S tokens.

`packed_attention(qkv, plan, dropout_p)` is the one function. A plan is made once per forward pass and shared by all
layers. Backends compute the same maths:
  flash      CUDA from compute capability 8.0 on, fp16/bf16: the flash operator straight on the stream, with its
             dropout; FlashAttention 3 instead of 2 where `activate_flash3` has been called
  efficient  other CUDA devices in fp16, and fp32: the memory-efficient operator on the stream, with its dropout
  buckets    CPU, and CUDA in fp64: proteins of like length gathered into padded batches for SDPA
  reference  one protein at a time, written out; the tests' yardstick
Dropout is never left out silently: a backend that cannot do it is not chosen.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from proteinlm.network.attention.buckets import attend_in_buckets
from proteinlm.network.attention.cuda import activate_flash3, efficient_attention, flash3_is_active, flash_attention
from proteinlm.network.attention.plan import AttentionPlan, bucket_plan, with_rotary
from proteinlm.network.rotary import rotate_queries_keys

__all__ = ["AttentionPlan", "activate_flash3", "choose_backend", "make_plan", "packed_attention", "with_rotary"]

FLASH_HEAD_SIZE = 256  # the largest that the flash operator takes; the memory-efficient one takes all
# Compute capabilities whose shared memory is too small for flash's backward beyond heads of 192.
SMALL_SHARED_MEMORY = ((8, 6), (8, 9), (12, 0), (12, 1))


def choose_backend(
    device: torch.device,
    dtype: torch.dtype,
    dropout_p: float,
    head_size: int = 64,
    capability: tuple[int, int] | None = None,
) -> str:
    """The fastest backend that computes exactly what was asked on this device and dtype.

    dtype: of the queries, keys and values. capability: of a CUDA device; by default the device is asked.
    """
    if device.type != "cuda" or dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return "buckets"
    if dtype == torch.float32:
        return "efficient"
    capability = capability or torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return "efficient" if dtype == torch.float16 else "buckets"  # no kernel for bf16 there
    if head_size > (192 if capability in SMALL_SHARED_MEMORY else FLASH_HEAD_SIZE):
        return "efficient"
    if dropout_p and flash3_is_active():  # for the whole process, and it has no dropout
        return "efficient"
    return "flash"


def make_plan(cu_seqlens: Tensor, backend: str, max_seqlen: int | None = None) -> AttentionPlan:
    """Prepare `cu_seqlens` for `backend`. `max_seqlen`: any upper bound; None asks the device (a sync).

    On CUDA no protein may be empty: FlashAttention 3 can hang on one, so where it runs the device checks, and
    nothing waits for the answer.
    """
    if len(cu_seqlens) == 1:  # no protein at all: a batch of padding
        return AttentionPlan(backend, cu_seqlens, 0)
    if backend == "buckets":
        return bucket_plan(cu_seqlens)
    if backend == "flash" and cu_seqlens.is_cuda and flash3_is_active():
        torch._assert_async(cu_seqlens.diff().gt(0).all(), "cu_seqlens: a protein without tokens")
    if max_seqlen is None:
        max_seqlen = int(cu_seqlens.diff().max())
    return AttentionPlan(backend, cu_seqlens, max_seqlen)


def packed_attention(qkv: Tensor, plan: AttentionPlan, dropout_p: float = 0.0) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V within each protein of the stream, Q and K turned first if the plan says so.

    qkv: [T, H, 3, D], Megatron's row order of `query_key_value`. dropout_p: dropout of the attention probabilities
    (0 outside training). Returns [T, H, D].
    """
    if len(plan.cu_seqlens) == 1:
        return qkv[:, :, 2]
    if plan.backend == "buckets":
        return attend_in_buckets(qkv, plan, dropout_p)
    if plan.rotary is not None:
        qkv = rotate_queries_keys(qkv, *plan.rotary)
    return _ON_THE_STREAM[plan.backend](qkv, plan, dropout_p)


def _reference(qkv: Tensor, plan: AttentionPlan, dropout_p: float) -> Tensor:
    outputs = []
    for protein in qkv.split(plan.cu_seqlens.diff().tolist()):
        query, key, value = (part.transpose(0, 1) for part in protein.unbind(2))  # [H, S, D]
        scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
        probabilities = F.dropout(scores.softmax(-1), dropout_p)
        outputs.append((probabilities @ value).transpose(0, 1))
    return torch.cat(outputs)


_ON_THE_STREAM = {"flash": flash_attention, "efficient": efficient_attention, "reference": _reference}
