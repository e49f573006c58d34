"""What ESM's files have in common: where positions begin, LayerNorm's epsilon, the rotation's inverse frequencies."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from proteinlm.errors import InputError
from proteinlm.model_dir.files import same
from proteinlm.network.config import ModelConfig
from proteinlm.network.rotary import RotaryEmbedding
from proteinlm.tokenizer import ESM_TOKENS

FIRST_POSITION = ESM_TOKENS.index("<pad>") + 1  # the row of <cls> in a table of learned positions, as in RoBERTa
EPSILON = 1e-5  # torch's default for LayerNorm, which the classes of fair-esm and ESM C have
INV_FREQ = "rotary_embeddings.inv_freq"  # of ProteinBert


def computed_inv_freq(config: ModelConfig) -> Tensor:
    """fp32 [D / 2], from the base: for a file that holds none."""
    return RotaryEmbedding(config.head_size, config.rotary_base).initial()


def same_inv_freq(copies: Mapping[str, Tensor], path: Path) -> Tensor:
    """The one tensor that all `copies` are; InputError for different ones, and for what are no frequencies."""
    (first, value), *others = copies.items()
    for name, other in others:
        if not same(value, other):
            raise InputError(f"{path}: {name} is not {first}; a model has one inv_freq for all layers")
    if not value.is_floating_point() or not (torch.isfinite(value) & (value > 0)).all():
        raise InputError(f"{path}: {first} holds what are no frequencies; positive numbers are needed")
    return value
