"""One protein as TAPE's tuple, many as TAPE's batch, and the padding between them.

What must hold: a batch's keys are TAPE's, so that `model(**batch)` works as in songlab's package; what our tasks need
beside them (`ids`, `protein_length`, `valid_mask`) is found by `batch[key]` all the same.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from tape.data.users_code import calling, refuse


def pad_sequences(sequences: Sequence, constant_value: float = 0, dtype=None) -> np.ndarray | torch.Tensor:
    """Arrays (or tensors) of one number of dimensions -> [B, longest ...], the rest filled with `constant_value`."""
    shape = [len(sequences), *np.max([sequence.shape for sequence in sequences], axis=0).tolist()]
    fill = torch.full if isinstance(sequences[0], torch.Tensor) else np.full
    padded = fill(shape, constant_value, dtype=dtype or sequences[0].dtype)
    for row, sequence in zip(padded, sequences, strict=True):
        row[tuple(slice(size) for size in sequence.shape)] = sequence
    return padded


class Example(tuple):
    """One protein as TAPE's tuple; beside it, the protein's name and its valid_mask (bool [L] or None)."""

    id: str
    valid: np.ndarray | None

    @classmethod
    def of(cls, record: dict, token_ids: np.ndarray, *rest: object, valid: np.ndarray | None = None) -> "Example":
        """(token_ids [N], input_mask [N], *rest) of a record, its `primary` as the model sees it."""
        example = cls((token_ids, np.ones_like(token_ids), *rest))
        example.id, example.valid = record["id"], valid
        return example


class TapeBatch(dict):
    """TAPE's dict of tensors. Iteration, `**batch` and `in` see TAPE's keys; `batch[key]` also finds `extra`."""

    def __init__(self, values: dict, extra: dict):
        super().__init__(values)
        self.extra = extra

    def __missing__(self, key: str):
        return self.extra[key]

    def get(self, key: str, default=None):
        return self[key] if key in self or key in self.extra else default

    def to(self, device: torch.device) -> "TapeBatch":
        """The batch with its tensors on `device`."""

        def move(values: dict) -> dict:
            return {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in values.items()}

        return TapeBatch(move(self), move(self.extra))


def collate_with(collate_fn: Callable, examples: Sequence) -> Mapping:
    """The batch that a user's collate_fn makes; InputError unless it is a dict with what every model needs."""
    number, returned = len(examples), "collate_fn should return a dict with"
    with calling(collate_fn, "collate_fn"):
        batch = collate_fn(examples)
    if not isinstance(batch, Mapping) or not {"input_ids", "targets"} <= set(batch):
        refuse(collate_fn, f"{returned} input_ids, input_mask and targets; it returned {summary(batch)}")
    ids, mask, targets = batch["input_ids"], batch.get("input_mask"), batch["targets"]
    if not torch.is_tensor(ids) or ids.dim() != 2 or ids.is_floating_point() or len(ids) != number or not ids.shape[1]:
        refuse(collate_fn, f"{returned} input_ids, whole numbers [{number}, N]; they are {summary(ids)}")
    if mask is not None and (not torch.is_tensor(mask) or mask.shape != ids.shape):
        refuse(collate_fn, f"{returned} input_mask {list(ids.shape)}; it is {summary(mask)}")
    if not torch.is_tensor(targets) or targets.dim() == 0 or len(targets) != number:
        refuse(collate_fn, f"{returned} targets, a tensor [{number}, ...]; they are {summary(targets)}")
    return batch


def summary(value: object) -> str:
    """ "int64 [4, 12]" of a tensor or an array; else what it is."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, value)) or 'nothing'}"
    size = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return "None" if value is None else f"a {type(value).__name__}{size}"
