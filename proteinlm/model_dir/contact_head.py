"""The contact regression among the tensors of a file: PREFIX + "weight" and PREFIX + "bias", or neither."""

from collections.abc import Mapping

import torch
from torch import Tensor

from proteinlm.network.config import ModelConfig
from proteinlm.network.contacts import ContactRegression

CONTACTS = "contact_head.regression."  # fair-esm's name, and that of TAPE-format directories


def expected_contacts(tensors: Mapping[str, Tensor], config: ModelConfig, prefix: str = CONTACTS) -> dict[str, Tensor]:
    """Meta tensors of the contact regression, where a part of one is there."""
    if not any(name.startswith(prefix) for name in tensors):
        return {}
    shapes = {"weight": (1, config.num_layers * config.num_attention_heads), "bias": (1,)}
    return {prefix + kind: torch.empty(shape, device="meta") for kind, shape in shapes.items()}


def take_contacts(tensors: dict[str, Tensor], prefix: str = CONTACTS) -> ContactRegression | None:
    """The contact regression, removed from `tensors`; None where there is none, and for zeros, which stand for none."""
    if prefix + "weight" not in tensors:
        return None
    head = ContactRegression(tensors.pop(prefix + "weight"), tensors.pop(prefix + "bias"))
    return head if head.weight.any() or head.bias.any() else None


def contact_tensors(head: ContactRegression | None, prefix: str = CONTACTS) -> dict[str, Tensor]:
    """Its tensors as a file has them; none without one."""
    return {} if head is None else {prefix + "weight": head.weight, prefix + "bias": head.bias}


def no_contacts(config: ModelConfig, dtype: torch.dtype) -> ContactRegression:
    """The zeros that stand for none, for files that must have one."""
    maps = config.num_layers * config.num_attention_heads
    return ContactRegression(torch.zeros(1, maps, dtype=dtype), torch.zeros(1, dtype=dtype))
