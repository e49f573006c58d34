"""Rotary position embedding (Su et al. 2021) in the form that ESM-2 and GPT-NeoX use: the two halves of a head turn.

The inverse frequencies are a buffer of the model, saved with it: trained checkpoints hold values rounded to fp16, so
they are never computed anew from the base. Angles are taken in fp32 whatever the model's dtype, as Hugging Face's ESM.
"""

import torch
from torch import Tensor, nn


class RotaryEmbedding(nn.Module):
    """inv_freq [D / 2]: what a pair of features turns by from one position to the next, in radians."""

    def __init__(self, head_size: int, base: float):
        super().__init__()
        self.head_size, self.base = head_size, base
        self.register_buffer("inv_freq", self.initial(torch.get_default_device()))

    def initial(self, device: torch.device | None = None) -> Tensor:
        """fp32 [D / 2]: base^(-2i / D)."""
        exponents = torch.arange(0, self.head_size, 2, dtype=torch.float32, device=device) / self.head_size
        return 1.0 / self.base**exponents

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) of positions [T], each fp32 [T, D]: the cosines twice over, the sines negative and positive."""
        angles = position_ids.float()[:, None] * self.inv_freq.float()
        return angles.cos().repeat(1, 2), torch.cat((-angles.sin(), angles.sin()), -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., D] turned by cos and sin, which broadcast against it; fp32 at least."""
    x = x.to(torch.promote_types(x.dtype, cos.dtype))
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def rotate_queries_keys(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """qkv [T, H, 3, D], its queries and keys turned by the angles [T, D] of their tokens; in the dtype of qkv."""
    turned = rotate(qkv[:, :, :2], cos[:, None, None], sin[:, None, None]).to(qkv.dtype)
    return torch.cat((turned, qkv[:, :, 2:]), 2)
