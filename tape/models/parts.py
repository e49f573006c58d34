"""What the LSTM and the ResNet share: checks of config.json, the language models' outputs, pooling over residues."""

import torch
from torch import Tensor

from proteinlm.errors import InputError
from tape.models.base import ProteinConfig
from tape.models.config import POOLING
from tape.models.kinds import check_probability
from tape.models.modeling_bert import cross_entropy_sum, masked_mean, outputs_with_loss, residues_only


def check_sizes(config: ProteinConfig, sizes: tuple[str, ...]) -> None:
    """InputError unless `sizes` are positive whole numbers."""
    for key in sizes:
        value = getattr(config, key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{type(config).__name__}: {key} is {value!r}; a positive whole number is needed")


def check_config(config: ProteinConfig, sizes: tuple[str, ...]) -> None:
    """InputError unless `sizes` are positive whole numbers, the dropout is in [0, 1) and pooling is known."""
    name = type(config).__name__
    check_sizes(config, sizes)
    check_probability(config, "hidden_dropout_prob")
    for key in ("initializer_range", "layer_norm_eps"):
        value = getattr(config, key, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise InputError(f"{name}: {key} is {value!r}; a positive number is needed")
    check_pooling(config)


def check_pooling(config: ProteinConfig) -> None:
    """InputError unless config.pooling is known."""
    if config.pooling not in POOLING:
        raise InputError(f"{type(config).__name__}: pooling {config.pooling!r} is not one of {', '.join(POOLING)}")


def mean_of_residues(states: Tensor, mask: Tensor) -> Tensor:
    """pooled_output [B, h] of pooling "mean": states [B, N, h] over the residues, <cls> and <sep> left out."""
    return masked_mean(states, residues_only(mask))


def language_model_outputs(logits: Tensor, targets: Tensor | None, rest: tuple) -> tuple:
    """(logits, ...), or with targets [B, N] (-1 ignored) ((loss, {"perplexity"}), logits, ...); logits [B, N, V]."""
    if targets is None:
        return outputs_with_loss(logits, None, {}, rest)
    total, count = cross_entropy_sum(logits, targets)
    perplexity = torch.exp(total.detach() / count.clamp(min=1))
    return outputs_with_loss(logits, (total, count), {"perplexity": perplexity}, rest)
