"""The inverse frequencies of the rotation, of which ESM's files have one copy or one a layer."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from proteinlm.errors import InputError
from proteinlm.model_dir.files import same


def same_inv_freq(copies: Mapping[str, Tensor], path: Path) -> Tensor:
    """The one tensor that all `copies` are; InputError for different ones, and for what are no frequencies."""
    (first, value), *others = copies.items()
    for name, other in others:
        if not same(value, other):
            raise InputError(f"{path}: {name} is not {first}; a model has one inv_freq for all layers")
    if not value.is_floating_point() or not (torch.isfinite(value) & (value > 0)).all():
        raise InputError(f"{path}: {first} holds what are no frequencies; positive numbers are needed")
    return value
