"""A `python` that starts in milliseconds: one server, which has imported PyTorch, forks the process of each command.

    with warm_python(folder) as python:
        subprocess.run([python, "-m", "tape.train", ...])    # or PATH=folder, for scripts that say `python`

The command has its caller's words, environment, folder, streams and exit status; signals reach it, it is killed when
its caller is, and what it starts by `sys.executable` is warm too. What must hold: the server imports and does nothing
else, so that no thread and no random draw comes before a fork. What this cannot show: what a command itself imports,
and orders that hang on a process's hash seed. tests/e2e and tests/seam/test_faults.py start real processes.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from warm_client import NUMBER

LIBRARIES = "torch.distributed.run", "torch._dynamo", "torch.distributed.pipelining", "matplotlib.pyplot"
LIBRARIES += "pretrain.trainer", "converter.sources", "tape.finetuning.trainer", "tape.scoring.inference"


@contextlib.contextmanager
def warm_python(folder: Path) -> Iterator[Path]:
    """The path of that `python`, in `folder`. On Linux; elsewhere it is the real one."""
    path, place, client = folder / "python", folder / "socket", Path(__file__).with_name("warm_client.py")
    if not sys.platform.startswith("linux"):
        path.symlink_to(sys.executable)
        yield path
        return
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{client}" "{sys.executable}" "{place}" "$@"\n')
    path.chmod(0o755)
    words = [sys.executable, __file__, str(place), str(path)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as server:
        assert server.stdout.readline() == b"ready\n"
        yield path
        server.stdin.close()  # at which it ends


class Server:
    """Forks a process for each command; `serve` returns in those alone."""

    def __init__(self, place: str):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(place)
        self.listener.listen(64)
        self.running: dict[int, tuple[socket.socket, int]] = {}  # process -> its client's link, its descriptor
        self.events = selectors.PollSelector()
        self.events.register(sys.stdin, selectors.EVENT_READ, self.close)
        self.events.register(self.listener, selectors.EVENT_READ, self.start)

    def serve(self) -> list[str]:
        """The command of the process in which this returns."""
        while True:
            for key, _ in self.events.select():
                command = key.data()
                if command is not None:
                    return command

    def start(self) -> list[str] | None:
        """Fork: the command in the new process, None in the server."""
        link, _ = self.listener.accept()
        size, streams, _, _ = socket.recv_fds(link, NUMBER.size, 3)
        with link.makefile("rb") as file:
            command, folder, environment = json.loads(file.read(*NUMBER.unpack(size)))
        pid = os.fork()
        if pid == 0:
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            for descriptor in (*streams, link.fileno(), *(key.fd for key in self.events.get_map().values() if key.fd)):
                os.close(descriptor)
            os.setsid()
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            return command
        for stream in streams:
            os.close(stream)
        link.sendall(NUMBER.pack(pid))
        self.running[pid] = link, os.pidfd_open(pid)
        self.events.register(link, selectors.EVENT_READ, lambda: self.kill(pid))  # its end: the client is gone
        self.events.register(self.running[pid][1], selectors.EVENT_READ, lambda: self.answer(pid))
        return None

    def kill(self, pid: int) -> None:
        if pid in self.running:
            self.events.unregister(self.running[pid][0])
            os.kill(pid, signal.SIGKILL)

    def answer(self, pid: int) -> None:
        """Tell the client how its process ended."""
        link, descriptor = self.running.pop(pid)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(KeyError):
            self.events.unregister(link)
        with contextlib.suppress(OSError), link:
            link.sendall(NUMBER.pack(status))
        self.events.unregister(descriptor)
        os.close(descriptor)

    def close(self) -> None:
        for pid in self.running:
            os.kill(pid, signal.SIGKILL)
        os._exit(0)


def main(place: str, executable: str) -> None:
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    gc.freeze()  # a forked process then leaves their pages alone, also when it ends
    server = Server(place)
    os.write(1, b"ready\n")
    first, *words = server.serve()
    unbuffered = first == "-u" or "PYTHONUNBUFFERED" in os.environ
    if first == "-u":
        first, *words = words
    sys.executable = executable
    sys.stdout.reconfigure(line_buffering=unbuffered or os.isatty(1))
    if first == "-m":
        sys.argv, sys.path[0] = words, os.getcwd()
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [first, *words], str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
