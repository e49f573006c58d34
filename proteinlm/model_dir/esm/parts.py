"""What both kinds of ESM's files hold beside the network's own tensors: inverse frequencies, the contact regression."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from proteinlm.errors import InputError
from proteinlm.model_dir.files import same
from proteinlm.network.config import ModelConfig
from proteinlm.network.contacts import ContactRegression


def same_inv_freq(copies: Mapping[str, Tensor], path: Path) -> Tensor:
    """The one tensor that all `copies` are; InputError for different ones, and for what are no frequencies."""
    (first, value), *others = copies.items()
    for name, other in others:
        if not same(value, other):
            raise InputError(f"{path}: {name} is not {first}; a model has one inv_freq for all layers")
    if not value.is_floating_point() or not (torch.isfinite(value) & (value > 0)).all():
        raise InputError(f"{path}: {first} holds what are no frequencies; positive numbers are needed")
    return value


def expected_contacts(tensors: Mapping[str, Tensor], prefix: str, config: ModelConfig) -> dict[str, Tensor]:
    """Meta tensors of the contact regression, where a part of one is there."""
    if not any(name.startswith(prefix) for name in tensors):
        return {}
    shapes = {"weight": (1, config.num_layers * config.num_attention_heads), "bias": (1,)}
    return {prefix + kind: torch.empty(shape, device="meta") for kind, shape in shapes.items()}


def take_contacts(tensors: dict[str, Tensor], prefix: str) -> ContactRegression | None:
    """The contact regression, removed from `tensors`; None where there is none, and for zeros, which stand for none."""
    if prefix + "weight" not in tensors:
        return None
    head = ContactRegression(tensors.pop(prefix + "weight"), tensors.pop(prefix + "bias"))
    return head if head.weight.any() or head.bias.any() else None
