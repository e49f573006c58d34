"""Processes that are started once and play many jobs: `Ranks().run(4, function, *arguments)`.

Each job is a process group of its own (gloo, over a file) of the first n processes. They are forked from one server
that has imported torch and the trainer, which takes seconds where eight starts would take a minute.
"""

import gc
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

# PyTorch's caches hold on to the groups of every mesh that a process has seen, and each group's threads wake a hundred
# times a second; after so many jobs new processes take over.
JOBS = 10
TIMEOUT_S = 240  # a job takes a second; eight processes that wait in turns for one busy core take minutes


class Ranks:
    """Idle processes of one thread each, started when first needed."""

    def __init__(self):
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["pretrain.trainer", "torch.distributed.pipelining"])
        self._pipes, self._processes, self._jobs = [], [], 0

    def _start(self) -> None:
        parent_end, child_end = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(child_end,), daemon=True)
        process.start()
        self._pipes.append(parent_end)
        self._processes.append(process)

    def run(self, size: int, function: Callable, *arguments) -> list:
        """`function(*arguments)` on processes 0 ... size - 1 of a job of `size`; what each returned, in order.

        A job of one has no process group, as without torchrun. The first process's exception is raised here.
        """
        if self._jobs >= JOBS:
            self.close()
        self._jobs += 1
        while len(self._pipes) < size:
            self._start()
        with tempfile.TemporaryDirectory() as folder:
            for rank in range(size):
                self._pipes[rank].send((function, arguments, rank, size, os.path.join(folder, "meeting")))
            answers = []
            for rank in range(size):
                if not self._pipes[rank].poll(TIMEOUT_S + 30):
                    self.close()  # a late answer would be taken for the next job's
                    raise TimeoutError(f"process {rank} of {size} does not answer")
                answers.append(self._pipes[rank].recv())
        for rank, (good, value) in enumerate(answers):
            assert good, f"process {rank} of {size}:\n{value}"
        return [value for _, value in answers]

    def close(self) -> None:
        """End the processes; a later job starts new ones."""
        for process in self._processes:
            process.kill()
            process.join()
        self._pipes, self._processes, self._jobs = [], [], 0


def _serve(pipe) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # the collection after each job then looks at what the job made, not at all of PyTorch
    while True:
        function, arguments, rank, size, meeting = pipe.recv()
        try:
            if size > 1:
                store = dist.FileStore(meeting, size)
                dist.init_process_group(
                    "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=TIMEOUT_S)
                )
            answer = True, function(*arguments)
        except BaseException:
            answer = False, traceback.format_exc()
        if dist.is_initialized():
            dist.destroy_process_group()
        gc.collect()
        pipe.send(answer)
