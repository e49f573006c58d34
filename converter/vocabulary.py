"""Embedding rows are moved by token name, never by position: each neighbour numbers its tokens differently."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from converter.model import VOCABULARY_TENSORS, PortableModel
from converter.names import PRETRAIN_TO_TAPE_TOKENS
from proteinlm.errors import InputError
from proteinlm.tokenizer import Tokenizer, build_tokenizer

TAPE_TO_PRETRAIN_TOKENS = {theirs: ours for ours, theirs in PRETRAIN_TO_TAPE_TOKENS.items()}


def canonical(tokens: Sequence[str]) -> list[str]:
    """The tokens with the pretraining vocabulary's spelling of the special ones."""
    return [TAPE_TO_PRETRAIN_TOKENS.get(token, token) for token in tokens]


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


def take_rows(
    tensors: dict[str, Tensor], source: Sequence[str], tokenizer: Tokenizer, divisible_by: int, origin: str
) -> tuple[dict[str, Tensor], list[str]]:
    """`tensors` with their vocabulary rows (row r: token source[r]) in `tokenizer`'s order, padded with zeros to a
    multiple of `divisible_by`; and notes of what was dropped or came out as zeros."""
    ours, theirs = canonical(tokenizer.tokens), canonical(source)
    rows = -(-len(ours) // divisible_by) * divisible_by
    tensors, notes = dict(tensors), []
    for name in VOCABULARY_TENSORS:
        if name in tensors:
            whole = tensors[name]
            if whole.dim() == 0 or len(whole) < len(theirs):
                found = f"has shape {tuple(whole.shape)}"
                raise InputError(f"{origin}: {name} {found}; its vocabulary has {len(theirs)} tokens")
            tensors[name] = remap_rows(whole, theirs, ours, rows)
            if name == VOCABULARY_TENSORS[0] and len(whole) > len(theirs) and whole[len(theirs) :].any():
                count = len(whole) - len(theirs)
                notes.append(f"{count} padding rows of the vocabulary dropped (they stand for no token)")
    lost, absent = [t for t in theirs if t not in ours], [t for t in ours if t not in theirs]
    if lost:
        notes.append(f"rows of {', '.join(lost)} left out: no such token in the {tokenizer.name} vocabulary")
    if absent:
        notes.append(f"rows of {', '.join(absent)} are zeros: the source's vocabulary does not have them")
    return tensors, notes


def to_tokenizer(model: PortableModel, name: str, divisible_by: int) -> PortableModel:
    """The model on the vocabulary `name` ('iupac' or 'tape')."""
    if not model.tokenizer.one_to_one:
        raise InputError(
            f"{model.origin}: its vocabulary ({model.tokenizer.name}) does not map residues one to one, which this "
            "target needs; pretrain with --tokenizer-type iupac, or convert with --target dcp"
        )
    tokenizer = build_tokenizer(name)
    tensors, notes = take_rows(model.tensors, model.vocabulary, tokenizer, divisible_by, model.origin)
    config = replace(model.config, vocab_size=tokenizer.vocab_size, make_vocab_size_divisible_by=divisible_by)
    return replace(model, config=config, tokenizer=tokenizer, tensors=tensors).noted(*notes)
