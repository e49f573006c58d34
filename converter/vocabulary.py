"""Embedding rows are moved by token name, never by position: each format numbers its tokens differently."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from converter.model import VOCABULARY_TENSORS, PortableModel
from proteinlm.errors import InputError
from proteinlm.tokenizer import PRETRAIN_SPECIALS, TAPE_SPECIALS, Tokenizer, build_tokenizer

# Special tokens by role; letters are the same in every vocabulary, and [unused1] is the pretraining one's alone.
SPECIAL_TOKENS = dict(zip(TAPE_SPECIALS, PRETRAIN_SPECIALS, strict=True))
MEGATRON_PADDING = 128  # what Megatron pads a vocabulary to a multiple of, where nothing says otherwise
WIDEST_PADDING = 64 * MEGATRON_PADDING  # rows of a 31-token vocabulary on 64 ranks; more must be another vocabulary


def canonical(tokens: Sequence[str]) -> list[str]:
    """The tokens with the pretraining vocabulary's spelling of the special ones."""
    return [SPECIAL_TOKENS.get(token, token) for token in tokens]


def remap_rows(tensor: Tensor, source: Sequence[str], target: Sequence[str], rows: int) -> Tensor:
    """Rows of `tensor` ([>= len(source), ...], row r belongs to token source[r]) in `target`'s order, padded to `rows`.

    A token that the source does not have, and every padding row, becomes zeros.
    """
    row_of = {token: row for row, token in enumerate(source)}
    result = torch.zeros((rows, *tensor.shape[1:]), dtype=tensor.dtype)
    for row, token in enumerate(target):
        if token in row_of:
            result[row] = tensor[row_of[token]]
    return result


def take_rows(
    tensors: dict[str, Tensor], tokens: Sequence[str], tokenizer: Tokenizer, divisible_by: int, origin: str
) -> tuple[dict[str, Tensor], list[str]]:
    """`tensors` with their vocabulary rows (row r: tokens[r]) in `tokenizer`'s order, padded with zeros to a multiple
    of `divisible_by`; and notes of what was dropped or came out as zeros."""
    source, target = canonical(tokens), canonical(tokenizer.tokens)
    rows = -(-len(target) // divisible_by) * divisible_by
    tensors, notes = dict(tensors), []
    for name in VOCABULARY_TENSORS:
        if name in tensors:
            whole = tensors[name]
            if whole.dim() == 0 or len(whole) < len(source):
                shape = tuple(whole.shape)
                raise InputError(f"{origin}: {name} has shape {shape}; its vocabulary has {len(source)} tokens")
            tensors[name] = remap_rows(whole, source, target, rows)
            if name == VOCABULARY_TENSORS[0] and whole[len(source) :].any():
                count = len(whole) - len(source)
                notes.append(f"{count} padding rows of the vocabulary dropped (they stand for no token)")
    left_out = [token for token in source if token not in target]
    absent = [token for token in target if token not in source]
    if left_out:
        notes.append(f"rows of {', '.join(left_out)} left out: no such token in the {tokenizer.name} vocabulary")
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
    tensors, notes = take_rows(model.tensors, model.tokenizer.tokens, tokenizer, divisible_by, model.origin)
    model = replace(model, tokenizer=tokenizer, tensors=tensors).noted(*notes)
    return model.with_config(vocab_size=tokenizer.vocab_size, make_vocab_size_divisible_by=divisible_by)


def to_pretraining(model: PortableModel, divisible_by: int | None = None) -> PortableModel:
    """The model on the pretraining vocabulary, with dropout where Megatron has it, as pretraining and HF do.

    divisible_by: of the rows (None: as the config says, or Megatron's where that is without padding).
    """
    stored = model.config.make_vocab_size_divisible_by
    padded = MEGATRON_PADDING if stored == 1 else stored
    return to_tokenizer(model, "iupac", divisible_by or padded).with_config(output_dropout=True)


def fold_token_types(types: Tensor, positions: Tensor, where: str) -> tuple[Tensor, str]:
    """Token type 0 is added at every position, so it is added to the position embedding; other types have no use.

    Returns (position embedding, note).
    """
    if types.dim() != 2 or positions.dim() != 2 or len(types) == 0 or types.shape[1] != positions.shape[1]:
        raise InputError(f"{where}: token types have shape {tuple(types.shape)}, positions {tuple(positions.shape)}")
    rest = f"; types 1 to {len(types) - 1} left out" if types[1:].any() else ""
    if not types[0].any():
        return positions, f"token types left out: type 0, which proteins have, is zeros{rest}"
    folded = (positions.float() + types[0].float()).to(positions.dtype)
    return folded, f"token type 0 is not zeros: it was added to every position embedding, which is the same{rest}"
