"""Embedding rows are moved by token name, never by position: each neighbour numbers its tokens differently."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.errors import InputError

# The tensors whose first dimension is the vocabulary.
VOCABULARY_TENSORS = ("word_embeddings.weight", "lm_head.bias")


def remap_rows(tensor: Tensor, source: Sequence[str], target: Sequence[str], rows: int) -> Tensor:
    """Rows of `tensor` ([>= len(source), ...], row r belongs to token source[r]) in `target`'s order, padded to `rows`.

    A token that the source does not have, and every padding row, becomes zeros.
    """
    if len(tensor) < len(source):
        raise InputError(f"a vocabulary of {len(source)} tokens, but the tensor has {len(tensor)} rows")
    row_of = {token: row for row, token in enumerate(source)}
    result = torch.zeros((rows, *tensor.shape[1:]), dtype=tensor.dtype)
    for row, token in enumerate(target):
        if token in row_of:
            result[row] = tensor[row_of[token]]
    return result


def lost_tokens(source: Sequence[str], target: Sequence[str]) -> list[str]:
    """Tokens whose rows the target has no place for."""
    return [token for token in source if token not in set(target)]
