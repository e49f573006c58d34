"""Micro-batches of packed rows, step by step, from worker processes that read ahead.

    loader = PackedLoader(train, micro_batch_size=4, batch_schedule=lambda consumed: 128, consumed_samples=0)
    for micro_batches in loader:      # list[Batch]: this data-parallel rank's share of the next global batch
        ...

Global batch k is the next `batch_schedule(consumed)` samples of the dataset, in order. Micro-batch j of a step on rank
r holds its rows [(j * dp_size + r) * micro_batch_size, ... + micro_batch_size). Must hold: what a global batch contains
depends on nothing else, neither on the number of workers, the micro-batch size, the ranks, nor on where a run was
resumed; and loading draws nothing from torch's global random generator.
"""

import atexit
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from pretrain.data.dataset import Dataset, Request, Row, RowReader
from pretrain.torch_internals import stop_workers
from proteinlm.errors import InputError
from proteinlm.loss import IGNORE
from proteinlm.masking import num_to_mask

SHUTDOWN_GRACE_S = 60


def default_workers(device: torch.device) -> int:
    """Worker processes of a run that names no number.

    On a CPU a batch takes a thousandth of the step that it is for (benchmarks/loader.py), and workers would take
    their turns on the cores that compute it.
    """
    return 2 if device.type == "cuda" else 0


@dataclass(frozen=True, eq=False)
class Batch:
    """b packed rows of s tokens; n segments are the proteins and the padding tails of the rows that have one."""

    tokens: Tensor  # int64 [b, s]
    position_ids: Tensor  # int64 [b, s], from 0 in every segment
    cu_seqlens: Tensor  # int32 [n + 1], bounds of the segments in the flattened b * s tokens: 0 ... b * s
    masked_positions: Tensor  # int64 [b * m], into the flattened tokens; unused places point at their row's first token
    labels: Tensor  # int64 [b * m], -100 in unused places; m = round(mask_prob * s)
    num_masked: int
    num_real_tokens: int  # [CLS] included, padding not
    num_proteins: int
    sum_squared_lengths: int  # over the proteins, in tokens: what attention costs

    def labels_of_masks(self, mask_id: int) -> Tensor:
        """`labels` where the model is shown [MASK], -100 where it is shown a residue, the true one or another."""
        return torch.where(self.tokens.flatten()[self.masked_positions] == mask_id, self.labels, IGNORE)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`, copied without waiting where the memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory (DataLoader calls this)."""
        return self._map(lambda array: torch.as_tensor(array).pin_memory())

    def _map(self, function: Callable) -> "Batch":
        """Apply `function` to the tensors (numpy arrays on their way out of a worker)."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: function(value) for name, value in values.items() if not isinstance(value, int)})


def collate(rows: list[Row], mask_prob: float) -> Batch:
    """Rows of one length as a batch."""
    s = len(rows[0].tokens)
    most = num_to_mask(mask_prob, s)
    masked_positions = np.repeat(np.arange(len(rows)) * s, most).reshape(len(rows), most)
    labels = np.full((len(rows), most), IGNORE, np.int64)
    for i, row in enumerate(rows):
        masked_positions[i, : len(row.labels)] += row.masked_positions
        labels[i, : len(row.labels)] = row.labels
    bounds = [row.segment_starts + np.int32(i * s) for i, row in enumerate(rows)]
    return Batch(
        tokens=torch.from_numpy(np.stack([row.tokens for row in rows])),
        position_ids=torch.from_numpy(np.stack([row.position_ids for row in rows])),
        cu_seqlens=torch.from_numpy(np.concatenate([*bounds, np.array([len(rows) * s], np.int32)])),
        masked_positions=torch.from_numpy(masked_positions.reshape(-1)),
        labels=torch.from_numpy(labels.reshape(-1)),
        num_masked=sum(len(row.labels) for row in rows),
        num_real_tokens=sum(row.num_real_tokens for row in rows),
        num_proteins=sum(row.num_proteins for row in rows),
        sum_squared_lengths=sum(row.sum_squared_lengths for row in rows),
    )


@dataclass(frozen=True)
class _MicroBatches:
    """What a worker holds: requests for a micro-batch's rows in, the batch out."""

    readers: tuple[RowReader, ...]

    def __getitem__(self, requests: tuple[Request, ...]) -> Batch | InputError:
        try:
            rows = [self.readers[request.reader].read(request.sample, request.sequences) for request in requests]
            batch = collate(rows, max(reader.mask_prob for reader in self.readers))  # one shape for the whole run
            # Arrays cross the worker's pipe as plain bytes. Tensors would each be a file in /dev/shm, which containers
            # keep small, and a passed file descriptor: slower for batches of this size.
            return batch._map(Tensor.numpy) if get_worker_info() else batch
        except InputError as error:
            return error  # raised by the loader: the DataLoader would wrap its one line in a worker's traceback


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _ignore_signals(worker: int) -> None:
    """Let the main process end the workers: a terminal's Ctrl-C and a scheduler's SIGTERM reach the whole job.

    A worker that died of either would take its run down while it saves. It leaves when asked to, when the main process
    is gone (DataLoader's watchdog), or at the latest some time after SIGTERM.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SHUTDOWN_GRACE_S))
    torch.set_num_threads(1)


@dataclass(frozen=True)
class PackedLoader:
    """Iterating yields, for every optimizer step, this rank's micro-batches of the next global batch.

    batch_schedule(consumed samples) -> global batch size; it may grow. `num_samples` bounds the samples consumed since
    the run's very start; a step that would pass it is not taken (None: no end). Workers (`num_workers` processes of one
    thread, each `prefetch` micro-batches ahead) live as long as the iteration.
    """

    dataset: Dataset
    micro_batch_size: int
    batch_schedule: Callable[[int], int]
    consumed_samples: int = 0
    num_samples: int | None = None
    dp_rank: int = 0
    dp_size: int = 1
    num_workers: int = 0
    prefetch: int = 2
    pin_memory: bool = False  # for a GPU, which copies from page-locked memory without making the host wait
    start_method: str = "spawn"  # a fork of a process with CUDA, NCCL or threads in it may hang

    def __post_init__(self):
        for name, least in (("micro_batch_size", 1), ("num_workers", 0), ("prefetch", 1), ("consumed_samples", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name.replace('_', '-')} {getattr(self, name)} must be at least {least}")
        if len(self.dataset) == 0:
            raise InputError("the training set holds no protein")
        assert 0 <= self.dp_rank < self.dp_size, (self.dp_rank, self.dp_size)
        self._check(self.consumed_samples, self.batch_schedule(self.consumed_samples))  # an error before the first step

    def __iter__(self) -> Iterator[list[Batch]]:
        batches = iter(self._data_loader())
        stop = partial(stop_workers, batches)
        atexit.register(stop)  # should the run die of an exception, before multiprocessing waits for workers at exit
        try:
            for consumed, size in self._steps():
                self._check(consumed, size)
                count = size // (self.micro_batch_size * self.dp_size)
                yield [_received(next(batches)) for _ in range(count)]
        finally:
            atexit.unregister(stop)
            stop()

    def _data_loader(self) -> DataLoader:
        return DataLoader(
            _MicroBatches(self.dataset.readers),
            batch_size=None,
            sampler=self._requests(),
            collate_fn=_as_it_is,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # else it draws from the global one, and a resumed run's dropout differs
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch if self.num_workers else None,
            multiprocessing_context=self.start_method if self.num_workers else None,
            worker_init_fn=_ignore_signals,
        )

    def _steps(self) -> Iterator[tuple[int, int]]:
        """(samples consumed before, global batch size) of every step."""
        consumed = self.consumed_samples
        while True:
            size = self.batch_schedule(consumed)
            if self.num_samples is not None and consumed + size > self.num_samples:
                return
            yield consumed, size
            consumed += size

    def _check(self, consumed: int, size: int) -> None:
        unit = self.micro_batch_size * self.dp_size
        if size <= 0 or size % unit:
            raise InputError(
                f"global batch size {size} (at {consumed} consumed samples) must be a multiple of {unit} = "
                f"micro-batch-size {self.micro_batch_size} x data-parallel size {self.dp_size}"
            )

    def _requests(self) -> Iterator[tuple[Request, ...]]:
        """This rank's micro-batches in order, read ahead of the steps; ends at a step that `__iter__` will refuse."""
        rows = self.micro_batch_size
        for consumed, size in self._steps():
            if size <= 0 or size % (rows * self.dp_size):
                return
            for first in range(consumed + self.dp_rank * rows, consumed + size, rows * self.dp_size):
                yield tuple(self.dataset.locate(sample) for sample in range(first, first + rows))


def _received(batch: Batch | InputError) -> Batch:
    if isinstance(batch, InputError):
        raise batch
    return batch._map(torch.as_tensor)


def evaluation_batches(
    dataset: Dataset,
    rows: int,
    limit: int | None = None,
    dp_rank: int = 0,
    dp_size: int = 1,
    together: int = 1,
    same_shape: bool = False,
) -> Iterator[list[Batch]]:
    """This replica's micro-batches of `rows` rows, `together` at a time: every dp_size-th of a split in order.

    limit: the micro-batches of all replicas (None: every row). Every replica gets the same number, since they compute
    together. same_shape: so are their shapes, the last one's too; what is missing is filled with rows that have
    nothing to predict.
    """
    end = len(dataset) if limit is None else min(len(dataset), limit * rows)
    stride = rows * dp_size
    for start in range(0, end, stride * together):
        firsts = [start + dp_rank * rows + number * stride for number in range(together)]
        yield [_evaluation_batch(dataset, first, min(first + rows, end), rows if same_shape else 1) for first in firsts]


def _evaluation_batch(dataset: Dataset, first: int, end: int, fewest: int) -> Batch:
    rows = [dataset.sample(sample) for sample in range(first, end)]
    if len(rows) < fewest:
        row = dataset.sample(0)
        rows += [replace(row, masked_positions=row.masked_positions[:0], labels=row.labels[:0])] * (fewest - len(rows))
    return collate(rows, dataset.readers[0].mask_prob)
