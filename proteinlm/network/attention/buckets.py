"""Attention over padded batches of proteins of like length, for CPUs and for what CUDA's operators do not take.

On a CPU without dropout it is one autograd function for all buckets: nothing between the projection and its output is
recorded, and what is kept has the dtype of the projection. Forward is SDPA's flash kernel, which adds up in fp32.
Backward is the same kernel's in fp32, for in half precision it takes two to seven times as long. (Products in bf16
round a softmax, over as many heads at a time as stay in the cache, were no faster in a step, with AMX either.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from proteinlm.network.attention.plan import AttentionPlan, Bucket
from proteinlm.network.rotary import rotate_pairs, unrotate_pairs

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def attend_in_buckets(qkv: Tensor, plan: AttentionPlan, dropout_p: float) -> Tensor:
    """[T, H, 3, D] -> [T, H, D]."""
    with torch.autocast(qkv.device.type, enabled=False):
        if dropout_p or qkv.device.type != "cpu":
            return _recorded(qkv, plan, dropout_p)
        if torch.is_grad_enabled() and qkv.requires_grad:
            return _BucketAttention.apply(qkv, plan)
        return _forward(qkv, plan)[0]


def _recorded(qkv: Tensor, plan: AttentionPlan, dropout_p: float) -> Tensor:
    """SDPA as it is, with what autograd records of it."""
    tokens, heads, _, size = qkv.shape
    dtype = torch.promote_types(qkv.dtype, torch.float32) if qkv.requires_grad else qkv.dtype
    padded = qkv.index_select(0, torch.cat([bucket.gather for bucket in plan.buckets]))
    outputs = []
    for bucket, rows in zip(plan.buckets, padded.split([len(b.gather) for b in plan.buckets]), strict=True):
        query_key, value = _by_head(rows, bucket).to(dtype).split((2, 1))
        if bucket.turns is not None:
            query_key = rotate_pairs(query_key, bucket.turns).to(dtype)
        query, key = query_key.unbind()
        bias = None if bucket.bias is None else bucket.bias.to(dtype)
        mixed = F.scaled_dot_product_attention(query, key, value[0], attn_mask=bias, dropout_p=dropout_p)
        outputs.append(_by_token(mixed).to(qkv.dtype))
    slots = torch.cat([bucket.scatter for bucket in plan.buckets])
    output = qkv.new_zeros(tokens + 1, heads * size).index_copy(0, slots, torch.cat(outputs))
    return output[:tokens].view(tokens, heads, size)


class _BucketAttention(torch.autograd.Function):
    """The buckets one after the other, each from the stream and back to it while it is in the cache."""

    @staticmethod
    def forward(ctx, qkv: Tensor, plan: AttentionPlan) -> Tensor:
        output, parts, sums = _forward(qkv, plan)
        ctx.plan = plan
        ctx.save_for_backward(output, *parts, *sums)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        plan, (output, *saved) = ctx.plan, ctx.saved_tensors
        tokens, heads, size = output.shape
        result = output.new_empty(tokens + 1, heads * 3 * size)
        for i, bucket in enumerate(plan.buckets):
            shape = (bucket.proteins, bucket.length, heads, size)
            grad = gradient.index_select(0, bucket.gather)
            if bucket.padding is not None:  # no gradient: what the other tensors hold there is nobody's
                grad.index_fill_(0, bucket.padding, 0.0)
            out = output.index_select(0, bucket.gather)
            grad, out = (part.view(shape).transpose(1, 2) for part in (grad, out))
            grads = _backward(grad, saved[i], out, saved[len(plan.buckets) + i], bucket)
            result.index_copy_(0, bucket.scatter, _rows(grads, bucket, result.dtype))
        return result[:tokens].view(tokens, heads, 3, size), None


def _forward(qkv: Tensor, plan: AttentionPlan) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """([T, H, D]; of each bucket its queries, keys and values [3, n, H, S, D], and its log-sum-exp [n, H, S])."""
    tokens, heads, _, size = qkv.shape
    output = qkv.new_empty(tokens + 1, heads * size)  # the last row is for the slots of padding
    saved, sums = [], []
    for bucket in plan.buckets:
        parts = _by_head(qkv.index_select(0, bucket.gather), bucket)
        if bucket.turns is not None:
            parts[:2] = rotate_pairs(parts[:2], bucket.turns)
        mixed, logsumexp = _flash(*parts.unbind(), attn_mask=_expanded(bucket, parts.dtype))
        output.index_copy_(0, bucket.scatter, _by_token(mixed))
        saved.append(parts)
        sums.append(logsumexp)
    return output[:tokens].view(tokens, heads, size), saved, sums


def _backward(grad: Tensor, parts: Tensor, out: Tensor, logsumexp: Tensor, bucket: Bucket) -> tuple[Tensor, ...]:
    """Gradients of the queries, keys and values of a bucket, each [n, H, S, D], from that of its output."""
    wide = torch.promote_types(parts.dtype, torch.float32)
    query, key, value = parts.to(wide).unbind()
    grad, out = grad.to(wide), out.to(wide)
    return _flash_backward(grad, query, key, value, out, logsumexp, 0.0, False, attn_mask=_expanded(bucket, wide))


def _rows(grads: tuple[Tensor, ...], bucket: Bucket, dtype: torch.dtype) -> Tensor:
    """[n * S, H * 3 * D] of the gradients [n, H, S, D] of queries, keys and values, the first two turned back."""
    proteins, heads, length, size = grads[0].shape
    rows = grads[0].new_empty(proteins, length, heads, 3, size, dtype=dtype)
    for i, grad in enumerate(grads):
        if bucket.turns is not None and i < 2:
            grad = unrotate_pairs(grad, bucket.turns)
        rows[:, :, :, i] = grad.transpose(1, 2)
    return rows.view(proteins * length, -1)


def _by_head(rows: Tensor, bucket: Bucket) -> Tensor:
    """[n * S, H, 3, D] -> [3, n, H, S, D], a view."""
    return rows.view(bucket.proteins, bucket.length, *rows.shape[1:]).permute(3, 0, 2, 1, 4)


def _by_token(mixed: Tensor) -> Tensor:
    """[n, H, S, D] -> [n * S, H * D]."""
    return mixed.transpose(1, 2).flatten(2).flatten(0, 1)


def _expanded(bucket: Bucket, dtype: torch.dtype) -> Tensor | None:
    """[n, 1, S, S]: the flash kernel does not broadcast over queries by itself. It wants fp32 with halves."""
    if bucket.bias is None:
        return None
    return bucket.bias.to(torch.promote_types(dtype, torch.float32)).expand(-1, -1, bucket.length, -1)
