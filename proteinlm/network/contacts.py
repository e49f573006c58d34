"""Which residues touch, from the attention maps: the logistic regression over all of them that ESM models come with.

    maps = contact_probabilities(model, regression, tokens, positions, bounds)     # [L, L] of each protein

A map is symmetrised and corrected for what its rows and columns have in common (APC: a_ij - a_i. a_.j / a_..). All of
that but the map itself is linear in sums over rows, so heads are added up one after the other, and several regressions
share their maps.

What must hold: equal to Hugging Face's `EsmForMaskedLM.predict_contacts`.

Legend: L residues of a protein, n heads, M = layers * H maps, K regressions, P pairs of residues.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from proteinlm.network.attention.maps import AttentionMaps


@dataclass(frozen=True, eq=False)
class ContactRegression:
    """Logistic regression on attention maps. weight [1, layers * H], layer after layer; bias [1]."""

    weight: Tensor
    bias: Tensor


def contact_probabilities(model: nn.Module, regression: ContactRegression, *stream: Tensor) -> list[Tensor]:
    """[L, L] of each protein, at least fp32: the probability that residues i and j are in contact.

    model: with `attention_sums`; stream: tokens, position_ids [T] and cu_seqlens [B+1], as in its forward.
    """
    return [own[0].sigmoid_() for own in contact_logits(model, regression.weight, regression.bias, *stream)]


def contact_logits(model: nn.Module, weight: Tensor, bias: Tensor, *stream: Tensor) -> list[Tensor]:
    """[K, L, L] of each protein: the log-odds of K regressions, weight [K, M] and bias [K]."""

    def reduce(maps: AttentionMaps) -> Tensor:
        some = weight[:, maps.heads].to(maps.weights.device, maps.weights.dtype)
        return weighted_sum(maps, some)

    sums = model.attention_sums(reduce, *stream)
    return [own + bias.to(own.device, own.dtype)[:, None, None] for own in sums]


def weighted_sum(maps: AttentionMaps, weights: Tensor) -> Tensor:
    """[K, L, L]: the symmetrised and corrected maps, each times its weight; weights [K, n]."""
    tokens = maps.weights.shape[-1]
    mixed = (weights @ maps.weights.flatten(1)).view(-1, tokens, tokens)[:, maps.own, maps.own]
    sums, shares = _row_sums(maps)
    common = (sums.T * (weights * shares)[:, None]) @ sums
    return mixed + mixed.transpose(1, 2) - common


def pair_features(maps: AttentionMaps, first: Tensor, second: Tensor) -> Tensor:
    """[n, P]: the symmetrised and corrected maps at the pairs of residues (first [P], second [P])."""
    residues = maps.residues
    sums, shares = _row_sums(maps)
    common = sums[:, first] * sums[:, second] * shares[:, None]
    return residues[:, first, second] + residues[:, second, first] - common


def _row_sums(maps: AttentionMaps) -> tuple[Tensor, Tensor]:
    """([n, L]: of the rows of the symmetrised maps, [n]: 1 / their totals)."""
    residues = maps.residues
    sums = residues.sum(-1) + residues.sum(-2)
    totals = sums.sum(-1)
    # Attention that never falls on a residue leaves 0 / 0, which is NaN there and nothing to correct here.
    return sums, 1.0 / torch.where(totals > 0, totals, torch.inf)
