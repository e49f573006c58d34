"""What the LSTM and the ResNet share: checks of config.json, the language models' outputs, pooling over residues."""

import torch
from torch import Tensor

from pretrain.errors import InputError
from tape.config import POOLING
from tape.model import cross_entropy_sum, masked_mean, outputs_with_loss, residues_only
from tape.protein_model import ProteinConfig


def check_config(config: ProteinConfig, sizes: tuple[str, ...]) -> None:
    """InputError unless `sizes` are positive whole numbers, the dropout is in [0, 1) and pooling is known."""
    name = type(config).__name__
    for key in sizes:
        value = getattr(config, key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}: {key} is {value!r}; a positive whole number is needed")
    dropout = config.hidden_dropout_prob
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise InputError(f"{name}: hidden_dropout_prob {dropout!r} must be at least 0 and below 1")
    if config.pooling not in POOLING:
        raise InputError(f"{name}: pooling {config.pooling!r} is not one of {', '.join(POOLING)}")


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
