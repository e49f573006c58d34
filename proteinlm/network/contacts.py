"""Which residues touch, from the attention maps: the logistic regression over all of them that ESM models come with.

    maps = contact_probabilities(model, regression, tokens, positions, bounds)     # [L, L] of each protein

A map is symmetrised and corrected for what its rows and columns have in common (APC: a_ij - a_i. a_.j / a_..). All of
that but the map itself is linear in sums over rows, so layers are added up one after the other.

What must hold: equal to Hugging Face's `EsmForMaskedLM.predict_contacts`; no more than MAX_SCORES attention scores of
one layer, or those of one head, are in memory at a time (twice, while softmax runs).

Legend: T tokens of the stream, S tokens of a protein, L = S - 2 its residues, H heads, n of them, D head size.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from proteinlm.network.model import ProteinBert

MAX_SCORES = 1 << 22  # 16 MiB in fp32, which suits caches: 4 heads of a protein of 1,000 residues


@dataclass(frozen=True, eq=False)
class ContactRegression:
    """Logistic regression on attention maps. weight [1, layers * H], layer after layer; bias [1]."""

    weight: Tensor
    bias: Tensor


def contact_probabilities(
    model: ProteinBert, regression: ContactRegression, tokens: Tensor, position_ids: Tensor, cu_seqlens: Tensor
) -> list[Tensor]:
    """[L, L] of each protein, at least fp32: the probability that residues i and j are in contact.

    tokens, position_ids [T] and cu_seqlens [B+1] as in `ProteinBert.forward`; a protein is `<cls> residues <eos>`.
    """
    bounds = cu_seqlens.tolist()
    proteins = [slice(begin, end) for begin, end in itertools.pairwise(bounds)]
    dtype = torch.promote_types(model.word_embeddings.weight.dtype, torch.float32)
    weights = regression.weight.to(tokens.device, dtype).reshape(model.config.num_layers, -1)
    bias = regression.bias.to(tokens.device, dtype)
    logits = [bias.repeat(span.stop - span.start - 2, span.stop - span.start - 2) for span in proteins]
    layers = model.queries_keys_values(tokens, position_ids, cu_seqlens)
    for layer_weights, qkv in zip(weights, layers, strict=False):
        with torch.autocast(tokens.device.type, enabled=False):
            for own_logits, protein in zip(logits, proteins, strict=True):
                query, key, _ = qkv[protein].to(dtype).permute(2, 1, 0, 3)  # each [H, S, D]
                _add_layer(own_logits, query, key, layer_weights)
    return [own_logits.sigmoid_() for own_logits in logits]


def _add_layer(logits: Tensor, query: Tensor, key: Tensor, weights: Tensor) -> None:
    """Add to logits [L, L] what a layer's maps contribute, each times its weight; query, key [H, S, D], weights [H]."""
    tokens, size = query.shape[1:]
    heads = max(1, MAX_SCORES // tokens**2)
    parts = zip(query.split(heads), key.split(heads), weights.split(heads), strict=True)
    for some_queries, some_keys, some_weights in parts:
        maps = (some_queries * size**-0.5 @ some_keys.transpose(1, 2)).softmax(-1)  # [n, S, S]
        mixed = (some_weights @ maps.flatten(1)).view(tokens, tokens)[1:-1, 1:-1]
        residues = maps[:, 1:-1, 1:-1]
        sums = residues.sum(-1) + residues.sum(-2)  # [n, L]: of the rows of the symmetrised maps
        totals = sums.sum(-1)
        # Attention that never falls on a residue leaves 0 / 0, which is NaN there and nothing to correct here.
        corrections = torch.where(totals > 0, some_weights / totals, 0.0)
        logits += mixed + mixed.T - (sums.T * corrections) @ sums
