"""Masked-LM loss: summed over masked residues, divided once by their global count. Never a mean of means."""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # the label of a place that has nothing to predict, torch's default ignore_index


def masked_lm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of cross-entropies in nats over the labelled positions.

    logits: [M, V], padding rows -inf; labels: int64 [M], -100 where a slot is unused. The sum is taken in fp32 whatever
    the logits' dtype, in fp64 when they are fp64. Divide by the number of labels of the whole global batch.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")


def num_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of the labelled positions have their label as the most likely token, int64 []. As `masked_lm_loss`."""
    return ((logits.argmax(-1) == labels) & (labels != IGNORE)).sum()
