"""Attention on CUDA, straight on the stream: PyTorch's own operators for sequences of varying length.

They are called by their aten names because the public functions lack dropout (`varlen_attn`) or take nested tensors
that ask the device for lengths (`scaled_dot_product_attention`). Autograd, fake tensors and compilation know them.
They have no rule for autocast, so queries, keys and values that are still fp32 under it are cast here.
"""

import math

import torch
import torch.nn.attention
import torch.nn.functional as F
from torch import Tensor

from proteinlm.network.attention.plan import AttentionPlan

HALVES = (torch.float16, torch.bfloat16)
ALIGNED = 8  # elements: what the kernels want a head size to be a multiple of


def flash_attention(qkv: Tensor, plan: AttentionPlan, dropout_p: float) -> Tensor:
    """[T, H, 3, D] -> [T, H, D], in fp16 or bf16."""
    query, key, value = _aligned(_half(qkv)).unbind(2)  # the last stride is 1, which is all that the kernel asks for
    bounds, longest = plan.cu_seqlens, plan.max_seqlen
    output = torch.ops.aten._flash_attention_forward(
        query, key, value, bounds, bounds, longest, longest, dropout_p, False, False, scale=_scale(qkv)
    )[0]
    return output[..., : qkv.shape[-1]]


def efficient_attention(qkv: Tensor, plan: AttentionPlan, dropout_p: float) -> Tensor:
    """[T, H, 3, D] -> [T, H, D], in fp32, fp16 or, from compute capability 8.0 on, bf16."""
    query, key, value = _aligned(_autocast(qkv)).unsqueeze(0).unbind(3)
    bounds, longest = plan.cu_seqlens, plan.max_seqlen
    no_bias, no_mask, keep_sums = None, 0, qkv.requires_grad
    output = torch.ops.aten._efficient_attention_forward(
        *(query, key, value, no_bias, bounds, bounds, longest, longest, dropout_p, no_mask, keep_sums),
        scale=_scale(qkv),
    )[0]
    return output[0, ..., : qkv.shape[-1]]


def flash3_is_active() -> bool:
    """Whether something in this process has put FlashAttention 3 or 4 in the place of FlashAttention 2."""
    current = getattr(torch.nn.attention, "current_flash_attention_impl", None)
    return current is not None and current() is not None


def activate_flash3(device: torch.device) -> bool:
    """Put FlashAttention 3 in the place of 2 for the whole process, if `device` is a Hopper GPU and the package
    `flash_attn_interface` is installed; whether it is active now. For runs without attention dropout: it has none."""
    activate = getattr(torch.nn.attention, "activate_flash_attention_impl", None)
    if activate is None or device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9:
        return False
    if not flash3_is_active():
        try:
            activate("FA3")
        except ImportError:  # of the package
            return False
    return True


def _autocast(qkv: Tensor) -> Tensor:
    device = qkv.device.type
    if qkv.dtype == torch.float32 and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return qkv.to(torch.get_autocast_dtype(device))
    return qkv


def _half(qkv: Tensor) -> Tensor:
    qkv = _autocast(qkv)
    assert qkv.dtype in HALVES, f"flash attention takes fp16 and bf16, not {qkv.dtype}; choose_backend gives another"
    return qkv


def _scale(qkv: Tensor) -> float | None:
    """Of the head size before padding; None, the operators' default, where there is none: the fake kernel of the
    memory-efficient backward takes no scale (torch 2.13)."""
    return 1 / math.sqrt(qkv.shape[-1]) if qkv.shape[-1] % ALIGNED else None


def _aligned(qkv: Tensor) -> Tensor:
    """Heads of another size get features that are 0: they change no product."""
    return F.pad(qkv, (0, -qkv.shape[-1] % ALIGNED))
