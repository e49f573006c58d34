"""Attention over padded batches of proteins of like length, for CPUs and for what CUDA's operators do not take.

On a CPU without dropout it is one autograd function for all buckets: nothing between the projection and its output is
recorded, and queries and keys are kept turned, head by head, in the dtype that they came in. Forward is SDPA's flash
kernel. Backward is the same kernel's in fp32, for in half precision it takes up to seven times as long; in bf16 with
heads of `WIDE` and more it is four products in bf16 around an fp32 softmax, over as many heads at a time as stay in
the cache.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from proteinlm.network.attention.plan import AttentionPlan, Bucket
from proteinlm.network.rotary import rotate_pairs, unrotate_pairs

# Head size from which bf16 products beat SDPA's fp32 backward: 2.1 to 1.8 ns a score at 16, 2.0 to 2.7 at 24 and
# 2.5 to 3.0 at 32 (2 MB of cache, AMX).
WIDE = 24
CHUNK_BYTES = 2**21  # of bf16 scores that are worked on at a time: a core's second-level cache

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
_softmax_backward = torch.ops.aten._softmax_backward_data.out


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
    padded = qkv.reshape(tokens, -1).index_select(0, plan.gather)
    outputs = []
    for rows, bucket in zip(padded.split([b.slots for b in plan.buckets]), plan.buckets, strict=True):
        parts = _by_head(rows, bucket, size).to(dtype)
        query_key, value = parts.split((2, 1))
        if bucket.turns is not None:
            query_key = rotate_pairs(query_key, bucket.turns).to(dtype)
        query, key = query_key.unbind()
        bias = None if bucket.bias is None else bucket.bias.to(dtype)
        mixed = F.scaled_dot_product_attention(query, key, value[0], attn_mask=bias, dropout_p=dropout_p)
        outputs.append(mixed.transpose(1, 2).reshape(-1, heads * size).to(qkv.dtype))
    return torch.cat(outputs).index_select(0, plan.scatter).view(tokens, heads, size)


class _BucketAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv: Tensor, plan: AttentionPlan) -> Tensor:
        output, parts, sums = _forward(qkv, plan)
        ctx.plan = plan
        ctx.save_for_backward(output, *parts, *sums)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        plan, (output, *kept) = ctx.plan, ctx.saved_tensors
        tokens, heads, size = output.shape
        slots = [bucket.slots for bucket in plan.buckets]
        # A slot of padding hands nothing back, whatever the other tensors hold there.
        padded = gradient.new_zeros(sum(slots), heads * size).index_copy_(0, plan.scatter, gradient.flatten(1))
        outputs = output.view(tokens, -1).index_select(0, plan.gather)
        result = gradient.new_empty(sum(slots), heads * 3 * size)
        buckets = zip(plan.buckets, padded.split(slots), outputs.split(slots), result.split(slots), strict=True)
        for i, (bucket, *rows, own) in enumerate(buckets):
            shape = (bucket.proteins, bucket.length, heads, size)
            grad, out = (part.view(shape).transpose(1, 2) for part in rows)
            grads = _backward(grad, kept[i], out, kept[len(slots) + i], bucket)
            _store(grads, own.view(*shape[:3], 3, size), bucket)
        return result.index_select(0, plan.scatter).view(tokens, heads, 3, size), None


def _forward(qkv: Tensor, plan: AttentionPlan) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """([T, H, D]; of each bucket its queries, keys and values [3, n, H, S, D], and its log-sum-exp [n, H, S])."""
    tokens, heads, _, size = qkv.shape
    slots = [bucket.slots for bucket in plan.buckets]
    padded = qkv.reshape(tokens, -1).index_select(0, plan.gather)
    output = padded.new_empty(len(padded), heads * size)
    kept, sums = [], []
    for bucket, rows, own in zip(plan.buckets, padded.split(slots), output.split(slots), strict=True):
        parts = _by_head(rows, bucket, size).contiguous()
        if bucket.turns is not None:
            parts[:2] = rotate_pairs(parts[:2], bucket.turns)
        mixed, logsumexp = _flash(*parts.unbind(), attn_mask=_expanded(bucket, parts.dtype))
        own.view(bucket.proteins, bucket.length, heads, size).copy_(mixed.transpose(1, 2))
        kept.append(parts)
        sums.append(logsumexp)
    return output.index_select(0, plan.scatter).view(tokens, heads, size), kept, sums


def _backward(grad: Tensor, parts: Tensor, out: Tensor, logsumexp: Tensor, bucket: Bucket) -> tuple[Tensor, ...]:
    """Gradients of the queries, keys and values of a bucket, each [n, H, S, D], from that of its output."""
    if parts.dtype == torch.bfloat16 and parts.shape[-1] >= WIDE and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return _products_backward(grad, parts, bucket)
    wide = torch.promote_types(parts.dtype, torch.float32)
    query, key, value = parts.to(wide).unbind()
    grad, out = grad.to(wide), out.to(wide)
    return _flash_backward(grad, query, key, value, out, logsumexp, 0.0, False, attn_mask=_expanded(bucket, wide))


def _products_backward(grad: Tensor, parts: Tensor, bucket: Bucket) -> tuple[Tensor, ...]:
    """bf16 products, the softmax between them computed anew."""
    _, proteins, heads, length, size = parts.shape
    query, key, value = parts.flatten(1, 2).unbind()  # [n * H, S, D]
    grad = grad.reshape(-1, length, size)
    grads = torch.empty_like(parts).flatten(1, 2)
    scale = 1 / math.sqrt(size)
    chunk = max(1, CHUNK_BYTES // (2 * length * length))
    scores, probabilities = query.new_empty(2, min(chunk, len(query)), length, length)
    for begin in range(0, len(query), chunk):
        part = slice(begin, min(begin + chunk, len(query)))
        s, p = scores[: part.stop - begin], probabilities[: part.stop - begin]
        q, k, v, g = query[part], key[part], value[part], grad[part]
        dq, dk, dv = grads[:, part].unbind()
        torch.baddbmm(s, q, k.mT, beta=0, alpha=scale, out=s)
        for protein in range(part.start // heads, -(-part.stop // heads)):
            own = slice(max(protein * heads - begin, 0), (protein + 1) * heads - begin)
            s[own, :, bucket.lengths[protein] :] = -torch.inf
        torch.softmax(s, -1, out=p)
        torch.bmm(p.mT, g, out=dv)
        torch.bmm(g, v.mT, out=s)
        _softmax_backward(s, p, -1, s.dtype, grad_input=s)
        torch.baddbmm(dq, s, k, beta=0, alpha=scale, out=dq)
        torch.baddbmm(dk, s.mT, q, beta=0, alpha=scale, out=dk)
    return grads.unflatten(1, (proteins, heads)).unbind()


def _store(grads: tuple[Tensor, ...], rows: Tensor, bucket: Bucket) -> None:
    """Write gradients [n, H, S, D] of queries, keys and values into rows [n, S, H, 3, D], turned back."""
    for i, grad in enumerate(grads):
        if bucket.turns is not None and i < 2:
            grad = unrotate_pairs(grad, bucket.turns)
        rows[:, :, :, i] = grad.transpose(1, 2)


def _by_head(rows: Tensor, bucket: Bucket, size: int) -> Tensor:
    """[n * S, H * 3 * D] -> [3, n, H, S, D], a view."""
    return rows.view(bucket.proteins, bucket.length, -1, 3, size).permute(3, 0, 2, 1, 4)


def _expanded(bucket: Bucket, dtype: torch.dtype) -> Tensor | None:
    """[n, 1, S, S]: the flash kernel does not broadcast over queries by itself. It wants fp32 with halves."""
    if bucket.bias is None:
        return None
    return bucket.bias.to(torch.promote_types(dtype, torch.float32)).expand(-1, -1, bucket.length, -1)
