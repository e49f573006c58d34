"""When a run's checkpoints are written: at once, or (--async-save) while training goes on.

Asynchronous: the state is copied to memory, and a thread on every process writes its shards and, when all have, the
first process's publishes the checkpoint. The threads talk over a process group of their own. The next save and the
run's end wait for the last one, and a failure is raised there, on every process.
"""

import threading

import torch.distributed as dist

from pretrain.checkpoint.files import save_checkpoint
from pretrain.config.options import Checkpoint
from pretrain.torch_internals import copy_to_cpu


class Saver:
    """Saves into `options.save`; `group` is what asynchronous saving talks over."""

    def __init__(self, options: Checkpoint, group: dist.ProcessGroup | None):
        self.options, self.group = options, group
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def save(self, iteration: int, state: dict, meta: dict, keep_last: int | None) -> None:
        """Write a checkpoint, or begin to. Every process calls it, each with its part of `state`."""
        self.wait()
        if not self.options.async_save:
            save_checkpoint(self.options.save, iteration, state, meta, keep_last, self.group)
            return
        arguments = (self.options.save, iteration, copy_to_cpu(state), meta, keep_last, self.group)
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
            save_checkpoint(*arguments)
        except BaseException as failure:
            self._failure = failure
