"""What the models' outputs are made of: masks of tokens, the stream of real tokens, means, sums of losses, metrics.

What must hold: padding and targets of -1 are in no sum and no count.

Legend: B proteins, N tokens of the longest (residues + 2), h hidden size, C classes, T real tokens of the batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from proteinlm.errors import InputError
from tape import metrics

PAD_ID = 0  # <pad> of TAPE's vocabulary


def real_tokens(input_ids: Tensor, input_mask: Tensor | None) -> Tensor:
    """bool [B, N]: which positions hold a token; without a mask, those that are not <pad>."""
    mask = input_ids != PAD_ID if input_mask is None else input_mask.bool()
    if mask.shape != input_ids.shape or mask.dim() != 2:
        raise ValueError(f"input_ids {list(input_ids.shape)} and input_mask {list(mask.shape)} must be equal, [B, N]")
    return mask


def check_positions(mask: Tensor, limit: int | None) -> None:
    """InputError if a protein of mask [B, N] has more tokens than the model has positions (None: any number)."""
    if limit is not None and mask.shape[1] > limit and (longest := int(mask.sum(1).max())) > limit:
        raise InputError(
            f"a protein of {longest} tokens (residues + 2) is longer than the model's max_position_embeddings {limit}; "
            "crop or leave out long proteins (--max_length)"
        )


def flatten_tokens(input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The real tokens of input_ids and mask [B, N] as one stream: (tokens [T], their positions in their protein [T],
    bounds of the proteins int32 [B + 1], indices [T] of the tokens among the B * N)."""
    where = mask.flatten().nonzero().squeeze(1)
    lengths = mask.sum(1)
    bounds = F.pad(lengths[lengths > 0].cumsum(0), (1, 0)).to(torch.int32)
    return input_ids.flatten()[where], (mask.cumsum(1) - 1).flatten()[where], bounds, where


def scatter(stream: Tensor, where: Tensor, mask: Tensor) -> Tensor:
    """[T, h] -> [B, N, h], zeros at padding."""
    padded = stream.new_zeros(mask.numel(), stream.shape[-1])
    return padded.index_copy(0, where, stream).view(*mask.shape, -1)


def no_padding(states: Tensor, mask: Tensor) -> Tensor:
    """states [B, N, h] with zeros at padding."""
    return states * mask.unsqueeze(2).to(states.dtype)


def residues_only(mask: Tensor) -> Tensor:
    """bool [B, N]: real tokens without the first (<cls>) and the last (<sep>) of each protein."""
    places = mask.cumsum(1)
    return mask & (places > 1) & (places < places[:, -1:])


def first_state(states: Tensor, mask: Tensor) -> Tensor:
    """[B, h]: the state of each protein's first token, of states [B, N, h]."""
    first = mask.int().argmax(1)
    return states[torch.arange(len(first), device=first.device), first]


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """[B, h]: the mean of states [B, N, h] where mask [B, N] is true; 0 where it nowhere is.

    Added up in fp32 at least: fp16 overflows on a long protein, and bf16 cannot count beyond 256.
    """
    weights = mask.unsqueeze(2).to(torch.promote_types(states.dtype, torch.float32))
    return ((states * weights).sum(1) / weights.sum(1).clamp(min=1)).to(states.dtype)


def mean_of_residues(states: Tensor, mask: Tensor) -> Tensor:
    """pooled_output [B, h] of pooling "mean": states [B, N, h] over the residues, <cls> and <sep> left out."""
    return masked_mean(states, residues_only(mask))


def squared_error_sum(logits: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """(sum of squared errors, number of values) of logits and targets [B, 1]."""
    return F.mse_loss(logits.float(), targets.float(), reduction="sum"), targets.numel()


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of cross-entropies in nats, how many targets are not -1) of logits [..., C] and targets [...]."""
    flat = logits.reshape(-1, logits.shape[-1]).float()
    total = F.cross_entropy(flat, targets.reshape(-1), ignore_index=metrics.IGNORE, reduction="sum")
    return total, (targets != metrics.IGNORE).sum()


def mean(total: Tensor, count: Tensor | int) -> Tensor:
    """total / count, 0 where nothing was counted."""
    return total / torch.as_tensor(count, device=total.device).clamp(min=1)


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of the targets other than -1 at which logits [..., C] are highest."""
    counted = targets != metrics.IGNORE
    return mean(((logits.argmax(-1) == targets) & counted).sum().float(), counted.sum())


def precision_at_l5(logits: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """Mean P@L/5 of a batch's proteins, as a number to watch; tape.tasks scores whole splits."""
    scores = (logits[..., 1] - logits[..., 0]).detach().float().cpu().numpy()
    labels = targets.cpu().numpy()
    proteins = [(scores[b, :n, :n], labels[b, :n, :n]) for b, n in enumerate(lengths.tolist())]
    return torch.tensor(metrics.mean_over_proteins(metrics.precision_table(proteins)["precision_at_l5"])[0])
