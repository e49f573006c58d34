"""Which device a `device` argument or a --device flag means."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from proteinlm.errors import InputError


def choose_device(name: str | torch.device | None, local_rank: int | None = None) -> torch.device:
    """The device of "auto" or None (a GPU if there is one), "cpu", "cuda", "cuda:1" ...; InputError if it is not there.

    local_rank: of a process that may share its machine with others, the GPU that `cuda` means. Where one alone is
    visible, a scheduler has given each process its own (Slurm's --gpus-per-task=1), and it is that one.
    """
    if name is None or name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    types = ("cpu", "cuda", "mps") if torch.backends.mps.is_available() else ("cpu", "cuda")
    if device is None or device.type not in types:
        raise InputError(f"device {str(name)!r}: should be auto, cpu or cuda (cuda:1 ...)")
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise InputError(f"device {str(name)!r}: this machine has no CUDA device; should be cpu")
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise InputError(f"device {str(name)!r}: there are {torch.cuda.device_count()} CUDA devices, from cuda:0")
    if local_rank is None:
        return device
    if device.index is not None:
        raise InputError(f"device {str(name)!r}: several processes would share one GPU; should be cuda")
    count = torch.cuda.device_count()
    if local_rank >= count > 1:
        raise InputError(f"process {local_rank} of this machine has no GPU: there are {count}")
    return torch.device("cuda", local_rank if count > 1 else 0)


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """CPU numbers smaller than 1.2e-38 count as 0 inside, in this thread and the threads that computing starts.

    A trained encoder's attention is full of probabilities that small, and x86 processors take a hundred times as long
    for each: attention's backward pass took ten times as long as with zeros. Entered before the first computation: a
    pool of threads inherits it as it is made, and keeps it.
    """
    smallest = torch.finfo(torch.float32).tiny
    before = float(torch.tensor(smallest) / 2) == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
