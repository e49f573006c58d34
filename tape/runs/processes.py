"""The processes that share one run of `tape`: rank and size, objects exchanged, tensors and gradients summed.

torchrun starts them (`tape-train-distributed` starts torchrun); without it there is one process and torch.distributed
is never touched. gloo between CPUs, nccl between GPUs; Python objects always travel over gloo. What must hold: every
rank calls the same methods in the same order, and every result that ranks share is identical on all of them.
"""

import os
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from proteinlm import errors
from proteinlm.devices import choose_device
from proteinlm.errors import InputError
from proteinlm.optim import copy_in_place
from tape.runs.flags import precision_name

TIMEOUT = timedelta(hours=2)  # rank 0 may read a large data set or write results while the others wait
BUCKET_BYTES = 64 << 20  # gradients are summed in pieces of about this size
Value = TypeVar("Value")


class SharedInputError(InputError):
    """A mistake that every process of the run knows of, so that one of them prints it."""


@dataclass(frozen=True)
class Processes:
    """One process among `size`. All methods return at once, and change nothing, when size is 1."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    objects: Any = None  # the gloo group that Python objects travel over; None: the default group

    @property
    def is_main(self) -> bool:
        """Rank 0, the only one that writes files and prints."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This rank's indices of 0 ... count - 1: rank, rank + size, ... (items sorted by length spread evenly)."""
        return range(self.rank, count, self.size)

    def all_gather(self, value: Any) -> list:
        """Every rank's value, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values: list = [None] * self.size
        dist.all_gather_object(values, value, group=self.objects)
        return values

    def gather(self, value: Any) -> list | None:
        """Every rank's value, in rank order, on rank 0; None elsewhere."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.is_main else None
        dist.gather_object(value, values, dst=0, group=self.objects)
        return values

    def together(self, work: Callable[[], Value]) -> Value:
        """work() on every rank; one rank's InputError or OSError is raised on all, so that none waits for a dead one.

        `work` must not communicate.
        """
        if self.size == 1:
            return work()
        value, problem, cause = None, None, None
        try:
            value = work()
        except InputError as error:
            problem, cause = str(error), error
        except OSError as error:
            problem, cause = f"{error.filename}: {error.strerror}" if error.filename else str(error), error
        problems = self.all_gather(problem)
        for rank, problem in enumerate(problems):
            if problem is not None:
                raise SharedInputError(problem if rank == 0 else f"process {rank}: {problem}") from cause
        return value

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.objects)
        return box[0]

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The tensor added up over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Each number added up over the ranks, in fp64 (fp32 where the device has no fp64)."""
        if self.size == 1:
            return list(values)
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return self.all_reduce(torch.tensor(values, dtype=dtype, device=device)).tolist()

    def same_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite every tensor by rank 0's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.data, src=0)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by the sum over ranks. One that a rank lacks counts as zero there."""
        if self.size == 1:
            return
        trainable = [p for p in parameters if p.requires_grad]
        present = torch.tensor([p.grad is not None for p in trainable], dtype=torch.int32, device=trainable[0].device)
        live = [p for p, n in zip(trainable, self.all_reduce(present).tolist(), strict=True) if n]
        for p in live:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        for bucket in _buckets([p.grad for p in live]):
            flat = self.all_reduce(torch.cat([gradient.reshape(-1) for gradient in bucket]))
            parts = flat.split([gradient.numel() for gradient in bucket])
            copy_in_place(bucket, [part.view_as(g) for part, g in zip(parts, bucket, strict=True)])

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier(group=self.objects)

    def close(self) -> None:
        """Leave the group. The last call of a process."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def _buckets(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """The gradients in order, in groups of one dtype and about BUCKET_BYTES."""
    groups: list[list[Tensor]] = []
    room = 0
    for gradient in gradients:
        if not groups or room < gradient.nbytes or groups[-1][0].dtype != gradient.dtype:
            groups.append([])
            room = BUCKET_BYTES
        groups[-1].append(gradient)
        room -= gradient.nbytes
    return groups


def start(device_name: str) -> tuple[Processes, torch.device]:
    """Join the run that torchrun started, or be alone. device_name: auto, cpu, cuda, cuda:1 ... -> (processes, device).

    Under torchrun `auto` and `cuda` mean the GPU of this process's local rank.
    """
    size, rank, local_rank = (int(os.environ.get(n, d)) for n, d in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
    device = choose_device(device_name, local_rank if size > 1 else None)
    if size == 1:
        return Processes(), device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    # NCCL would stage objects through GPU memory and stop at its own watchdog; gloo waits as long as TIMEOUT says
    objects = dist.new_group(backend="gloo", timeout=TIMEOUT) if device.type == "cuda" else None
    return Processes(rank, size, local_rank, objects), device


def choose_precision(fp16: bool, bf16: bool, device: torch.device) -> torch.dtype:
    """The autocast dtype; float32 means none."""
    precision_name(fp16, bf16)
    if fp16 and device.type not in ("cuda", "cpu"):
        raise InputError(f"--fp16 needs a CUDA device or a CPU, this run is on {device.type}")
    if fp16:
        return torch.float16
    return torch.bfloat16 if bf16 else torch.float32


def run_together(device_name: str, work: Callable[[Processes, torch.device], int | None], debug: bool = False) -> int:
    """The frame of a command: join the run, work, leave. Returns the exit status, which is work's (None: 0).

    debug: the process whose mistake it was shows its traceback. A mistake that all ranks know of is printed by rank 0,
    and none leaves before that: torchrun ends the others as soon as one has failed. Any other exception leaves at once,
    without a barrier that other ranks might not reach; a process that waits for one that left so is told what happened.
    """
    processes, device = start(device_name)
    try:
        status = work(processes, device) or 0
    except SharedInputError as error:
        if debug and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        status = errors.tell(str(error)) if processes.is_main else errors.EXIT_USAGE
        processes.barrier()
    except RuntimeError as error:
        what = errors.lost_peer(error) if processes.size > 1 else None
        if what is None:
            raise
        raise InputError(f"{what}, which may have said why; what is saved is whole, and can be gone on from") from error
    processes.close()
    return status
