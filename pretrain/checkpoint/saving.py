"""When a run's checkpoints are written: at once, or (--async-save) while training goes on.

Asynchronous: the state is copied to memory, and a thread on every process writes its shards and, when all have, the
first process's publishes the checkpoint. The threads talk over a process group of their own. The next save and the
run's end wait for the last one, and a failure is raised there, on every process.
"""

import threading

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from pretrain.checkpoint.files import save_checkpoint
from pretrain.config.options import Checkpoint
from pretrain.torch_internals import with_local
from proteinlm.muon import local_part


class Staging:
    """Copies of a state in CPU memory, which every save uses again; page-locked where the state is on a GPU, so that
    each process's own shards cross to the host once and the host does not wait for them."""

    def __init__(self):
        self._memory: dict[tuple[str, ...], Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def copy(self, state: dict) -> dict:
        """Begin to copy; the copy holds the state as it is now from when `wait` has returned."""
        copied = self._copy(state, ())
        if torch.cuda.is_initialized():
            self._copied = torch.cuda.Event()
            self._copied.record()  # training's next kernels are behind the copies
        return copied

    def wait(self) -> None:
        if self._copied is not None:
            self._copied.synchronize()

    def _copy(self, value: dict | Tensor, path: tuple[str, ...]) -> dict | Tensor:
        if isinstance(value, dict):
            return {name: self._copy(inner, (*path, name)) for name, inner in value.items()}
        local = local_part(value)
        memory = self._memory.get(path)
        if memory is None or memory.shape != local.shape or memory.dtype != local.dtype:
            pinned = local.is_cuda and local.numel() > 0
            memory = self._memory[path] = torch.empty(local.shape, dtype=local.dtype, pin_memory=pinned)
        memory.copy_(local.detach(), non_blocking=True)
        return with_local(value, memory) if isinstance(value, DTensor) else memory


class Saver:
    """Saves into `options.save`; `group` is what asynchronous saving talks over."""

    def __init__(self, options: Checkpoint, group: dist.ProcessGroup | None):
        self.options, self.group = options, group
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._staging = Staging()

    def save(self, iteration: int, state: dict, meta: dict, keep_last: int | None) -> None:
        """Write a checkpoint, or begin to. Every process calls it, each with its part of `state`."""
        self.wait()
        if not self.options.async_save:
            save_checkpoint(self.options.save, iteration, state, meta, keep_last, self.group)
            return
        arguments = (self.options.save, iteration, self._staging.copy(state), meta, keep_last, self.group)
        self._thread = threading.Thread(target=self._try, args=arguments, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until what was begun is in place; raises what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _try(self, *arguments) -> None:
        try:
            self._staging.wait()
            save_checkpoint(*arguments)
        except BaseException as failure:
            self._failure = failure
