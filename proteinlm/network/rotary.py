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
        """(cos, sin), each fp32 [T, 1, D / 2], of positions [T]."""
        angles = position_ids.float()[:, None, None] * self.inv_freq.float()
        return angles.cos(), angles.sin()


def rotate_pairs(x: Tensor, turns: Tensor) -> Tensor:
    """x [..., D] turned by `turns`, complex [..., D / 2]; fp32 at least. The features come out in another order, those
    of a pair side by side, which no product of a query and a key depends on: one pass in the place of six."""
    first, second = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, -1)
    return torch.view_as_real(torch.complex(first, second) * turns).flatten(-2)


def unrotate_pairs(x: Tensor, turns: Tensor) -> Tensor:
    """The gradient of `rotate_pairs`: x [..., D], the features of a pair side by side, turned back and put in the order
    of two halves; fp32 at least."""
    pairs = torch.view_as_complex(x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2)).contiguous())
    turned = pairs * turns.conj()
    return torch.cat((turned.real, turned.imag), -1)


def rotate_queries_keys(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """qkv [T, H, 3, D], its queries and keys turned by the angles [T, 1, D / 2] of their tokens; computed in fp32 at
    least, returned in the dtype of qkv."""
    query_key, value = qkv.split((2, 1), 2)
    first, second = query_key.to(torch.promote_types(qkv.dtype, torch.float32)).chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    return torch.cat((turned.to(qkv.dtype), value), 2)
