"""One split held in memory for training or evaluation: examples tokenised once, batches collated as they are asked for.

What must hold: a batch is a function of (epoch, indices); nothing is left out of a split, and `truncated` counts what
was cut.
"""

import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from proteinlm.errors import InputError
from tape.data.examples import TapeBatch, collate_with
from tape.data.records import find_data_file
from tape.data.users_code import UsersCodeError, calling
from tape.datasets import TapeDataset
from tape.tasks import Task
from tape.tokenizers import TAPETokenizer

CACHE_BYTES = 1 << 30  # examples kept ready; beyond that they are made anew each time
Request = tuple[int, np.ndarray]  # epoch, indices of the proteins of one batch


class SplitData:
    """A dataset, or the part of it named by `indices`, that collates batches. Index space: 0 ... len(self) - 1."""

    def __init__(self, dataset: TapeDataset, indices: np.ndarray | None = None, cache: dict | None = None):
        self.dataset = dataset
        self.indices = np.arange(len(dataset)) if indices is None else indices
        self.lengths = dataset.lengths[self.indices]
        self._cache: dict[int, tuple] = {} if cache is None else cache
        self._room = CACHE_BYTES
        self.states: Any = None  # of a frozen encoder (tape.finetuning.frozen.States): batches then have `states`

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_cache": {}}  # a worker process makes its own

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def sequences(self) -> list[str]:
        """Whole sequences, as they are on disk."""
        return [self.dataset.record(int(index))["primary"] for index in self.indices]

    @property
    def classes(self) -> np.ndarray | None:
        """int64 [N] of a classification task; None where a protein has no class."""
        classes = getattr(self.dataset, "class_of", None)
        return None if classes is None else classes[self.indices]

    @property
    def truncated(self) -> dict:
        """What --max_length did to the proteins of this part."""
        cropped = np.zeros(0, np.int64)
        if self.dataset.too_long == "crop":
            cropped = self.dataset.whole_lengths[self.indices] - self.lengths
        return {
            "max_length": self.dataset.max_length,
            "too_long": self.dataset.too_long,
            "proteins_cropped": int((cropped > 0).sum()),
            "residues_cropped": int(cropped.sum()),
        }

    def subset(self, indices: np.ndarray) -> "SplitData":
        """The proteins at these places, sharing what is in memory."""
        part = SplitData(self.dataset, self.indices[indices], self._cache)
        part._room, part.states = self._room, self.states
        return part

    def check(self) -> None:
        """InputError for a record that would stop the work later. Examples that are made for it are kept."""
        if isinstance(self.dataset, TapeDataset):  # a plugin's may be anything
            dear = type(self.dataset).check is not TapeDataset.check
            for index in self.indices.tolist():
                with calling(self.dataset, f"__getitem__({index})"):
                    self.dataset.check(index) if dear else self._example(index)

    def _example(self, index: int) -> tuple:
        example = self._cache.get(index)
        if example is None:
            with calling(self.dataset, f"__getitem__({index})"):
                example = self.dataset[index]
            parts = example if isinstance(example, tuple) else (example,)
            size = sum(value.nbytes for value in parts if isinstance(value, np.ndarray))
            if self._room >= size and not hasattr(self.dataset, "set_epoch"):
                self._cache[index] = example
                self._room -= size
        return example

    def check_ids(self, config: object) -> None:
        """InputError for a token id of a user's dataset that a model with this configuration does not have."""
        tokens = getattr(config, "vocab_size", None)
        if tokens is not None and hasattr(self.dataset, "check_ids"):
            self.dataset.check_ids(tokens)

    def __getitem__(self, request: Request) -> TapeBatch:
        """The batch of (epoch, indices): input_ids, input_mask, targets, ids, protein_length ...

        To what a user's collate_fn makes come `ids` and `target_shapes`: each target's shape in a batch of one, where
        nothing is padded.
        """
        epoch, indices = request
        if hasattr(self.dataset, "set_epoch"):  # masked residues change with the epoch
            self.dataset.set_epoch(epoch)
        numbers, collate_fn = self.indices[indices].tolist(), self.dataset.collate_fn
        examples = [self._example(number) for number in numbers]
        if collate_fn.__module__.startswith("tape."):
            batch = collate_fn(examples)
            if self.states is not None:
                batch.extra["states"] = self.states.of(numbers)
            return batch
        batch = collate_with(collate_fn, examples)
        extra = {
            "ids": [getattr(example, "id", str(n)) for n, example in zip(numbers, examples, strict=True)],
            "target_shapes": [tuple(collate_with(collate_fn, [e])["targets"].shape[1:]) for e in examples],
        }
        return TapeBatch(dict(batch), getattr(batch, "extra", {}) | extra)


def load_split(
    task: Task, data_dir: str | Path, split: str, tokenizer: TAPETokenizer, max_length: int | None, too_long: str
) -> SplitData:
    """Open a split, read it whole and look at every record. max_length: residues the model may see (None: any number of
    them); too_long: "crop" or "error"."""
    with calling(task.dataset, "__init__"):
        dataset = task.dataset(data_dir, split, tokenizer, in_memory=True, max_length=max_length, too_long=too_long)
    with calling(dataset, "__len__"):
        count = len(dataset)
    if not count:
        raise InputError(f"{dataset.path}: holds no proteins")
    split = SplitData(dataset)
    split.check()
    return split


def has_split(task: Task, data_dir: str | Path, split: str) -> bool:
    """Whether the data directory holds this split of the task."""
    dataset = task.dataset
    try:
        if isinstance(dataset, type) and issubclass(dataset, TapeDataset):
            find_data_file(data_dir, dataset.folder, dataset.folder, split)
            return split in dataset.splits
        dataset(data_dir, split, TAPETokenizer())  # a plugin's dataset alone knows where its files are
    except UsersCodeError:
        raise
    except (InputError, FileNotFoundError):
        return False
    return True


def evaluation_splits(task: Task, names: Sequence[str]) -> list[str]:
    """The names with `all` replaced by every evaluation split of the task, each once."""
    return list(dict.fromkeys(n for name in names for n in (("valid", *task.splits) if name == "all" else (name,))))


def choose_splits(task: Task, data_dir: str | Path, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """(splits to score, splits that `all` means but that are not there). One asked for by name is never left out."""
    splits = evaluation_splits(task, names)
    absent = [name for name in splits if name not in names and not has_split(task, data_dir, name)]
    present = [name for name in splits if name not in absent]
    if not present:
        raise InputError(f"{data_dir}: --split all found none of {', '.join(absent)} of {task.name}")
    return present, absent


def batches(data: SplitData, plan: Iterable[Request], num_workers: int = 0) -> Iterator[TapeBatch]:
    """The batches of the plan, in order; prepared by worker processes if num_workers > 0."""
    if num_workers == 0:
        return (data[request] for request in plan)
    loader = torch.utils.data.DataLoader(_Worker(data), batch_size=None, sampler=plan, num_workers=num_workers)
    return _from_workers(loader)


class _Worker(torch.utils.data.Dataset):
    """A SplitData in another process, which hands on what is wrong as a value: torch would raise it again with all of
    its traceback as the message."""

    def __init__(self, data: SplitData):
        self.data = data

    def __getitem__(self, request: Request) -> TapeBatch | InputError:
        try:
            return self.data[request]
        except InputError as error:
            error.add_note(traceback.format_exc())  # a traceback itself does not travel
            return error


def _from_workers(loader: torch.utils.data.DataLoader) -> Iterator[TapeBatch]:
    try:
        for batch in loader:
            if isinstance(batch, InputError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        text = "--num_workers: one of them was killed (too little memory, or a plugin that ends its process)"
        raise InputError(text) from error
