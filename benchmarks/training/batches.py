"""Proteins as each arm is fed them: packed rows, one stream, or a padded rectangle; 15% of the residues masked."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pretrain.data.loader import Batch
from pretrain.data.packing import pack
from pretrain.interval import training_flops
from proteinlm.encoder import make_stream
from proteinlm.loss import IGNORE
from proteinlm.network.config import ModelConfig
from proteinlm.tokenizer import Tokenizer


class Masked:
    """Proteins as one stream, `<cls> residues <eos>` each. Which residues are masked depends on `seed` and the lengths
    alone, and all of the masked ones are shown as the mask token."""

    def __init__(self, proteins: Sequence[str], tokenizer: Tokenizer, seed: int):
        self.stream = make_stream(proteins, tokenizer)
        rng = np.random.default_rng((seed, *self.stream.sizes))
        residues = self.stream.residues
        self.places = residues[rng.random(len(residues)) < 0.15]
        self.labels = self.stream.tokens[self.places]
        self.ids = self.stream.tokens.copy()
        self.ids[self.places] = tokenizer.mask_id


@dataclass(frozen=True)
class Fed:
    """What an arm gets for a step, on the host, and how much of it is what. `tokens` counts padding too."""

    inputs: Batch | dict[str, Tensor]
    proteins: int
    residues: int
    real_tokens: int
    tokens: int
    sum_squared_lengths: int
    masked: int

    def flops(self, config: ModelConfig) -> float:
        """Of a step, over real tokens only (`pretrain.interval.training_flops`)."""
        return training_flops(config, self.real_tokens, self.sum_squared_lengths, self.masked)

    def to(self, device: torch.device) -> Batch | dict[str, Tensor]:
        if isinstance(self.inputs, Batch):
            return self.inputs.to(device)
        return {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()}

    def pinned(self) -> "Fed":
        """In page-locked memory, from which a GPU copies while the host goes on."""
        inputs = self.inputs
        if isinstance(inputs, Batch):
            inputs = inputs.pin_memory()
        else:
            inputs = {name: tensor.pin_memory() for name, tensor in inputs.items()}
        return Fed(inputs, *(getattr(self, name) for name in list(self.__dataclass_fields__)[1:]))


def _fed(inputs: Batch | dict[str, Tensor], tokens: int, parts: Sequence[Masked]) -> Fed:
    sizes = np.concatenate([part.stream.sizes for part in parts])
    masked = sum(len(part.places) for part in parts)
    real = int(sizes.sum())
    return Fed(inputs, len(sizes), real - 2 * len(sizes), real, tokens, int((sizes * sizes).sum()), masked)


def packed(rows: Sequence[Sequence[str]], length: int | None, tokenizer: Tokenizer, seed: int = 0) -> Fed:
    """Rows of whole proteins, each filled up to `length` tokens with a padding tail; None: one row of what is there."""
    parts = [Masked(row, tokenizer, seed) for row in rows]
    length = length or len(parts[0].ids)
    tokens = np.full((len(rows), length), tokenizer.pad_id)
    positions = np.zeros((len(rows), length), np.int64)
    bounds, places = [], []
    for number, (row, part) in enumerate(zip(tokens, parts, strict=True)):
        used = len(part.ids)
        row[:used] = part.ids
        positions[number, :used], positions[number, used:] = part.stream.positions, np.arange(length - used)
        bounds.append(number * length + part.stream.bounds[: None if used < length else -1])
        places.append(number * length + part.places)
    fed = _fed({}, tokens.size, parts)
    batch = Batch(
        tokens=torch.from_numpy(tokens),
        position_ids=torch.from_numpy(positions),
        cu_seqlens=torch.from_numpy(np.append(np.concatenate(bounds), tokens.size).astype(np.int32)),
        masked_positions=torch.from_numpy(np.concatenate(places)),
        labels=torch.from_numpy(np.concatenate([part.labels for part in parts])),
        num_masked=fed.masked,
        num_real_tokens=fed.real_tokens,
        num_proteins=fed.proteins,
        sum_squared_lengths=fed.sum_squared_lengths,
    )
    return _fed(batch, tokens.size, parts)


def rectangle(proteins: Sequence[str], tokenizer: Tokenizer, seed: int = 0) -> Fed:
    """A batch as Hugging Face's models take it, padded to its longest protein."""
    part = Masked(proteins, tokenizer, seed)
    mask = np.arange(part.stream.sizes.max()) < part.stream.sizes[:, None]
    ids, labels = np.full(mask.shape, tokenizer.pad_id), np.full(mask.shape, IGNORE)
    flat = np.full(len(part.ids), IGNORE)
    flat[part.places] = part.labels
    ids[mask], labels[mask] = part.ids, flat
    arrays = {"input_ids": ids, "attention_mask": mask.astype(np.int64), "labels": labels}
    return _fed({name: torch.from_numpy(array) for name, array in arrays.items()}, mask.size, [part])


def micro_batches(lengths: np.ndarray, row_length: int, rows: int, seed: int = 0) -> list[list[np.ndarray]]:
    """Proteins of `lengths` residues packed as in pretraining, `rows` rows a micro-batch; an incomplete last one is
    left out, so that all shapes are the same. ValueError where there is none."""
    index = pack(lengths + 2, row_length, seed)
    whole = index.num_rows // rows * rows
    if not whole:
        raise ValueError(
            f"{len(lengths)} proteins fill {index.num_rows} rows of {row_length}; {rows} are a micro-batch"
        )
    return [[index.row(first + row) for row in range(rows)] for first in range(0, whole, rows)]


def stream_batches(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Whole proteins in file order, at most `tokens` a batch unless one is longer."""
    batches, begin, used = [], 0, 0
    for i, size in enumerate((lengths + 2).tolist()):
        if i > begin and used + size > tokens:
            batches.append(np.arange(begin, i))
            begin, used = i, 0
        used += size
    return [*batches, np.arange(begin, len(lengths))]
