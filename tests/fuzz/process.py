"""A command in a forked child: fresh state for the price of a fork, limits that the kernel keeps, and what came of it.

The parent has imported everything beforehand, so a case costs its own work only. Every case has a session of its own,
which is ended with it.
"""

import ctypes
import faulthandler
import importlib
import json
import os
import resource
import select
import signal
import stat
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from proteinlm import errors

CPU_S = 25.0  # the slowest undamaged command takes 2 to 3
GRACE_S = 3.0
IDLE_S = 20.0  # without any CPU time: it waits for something that does not come
WALL_S = 300.0  # a busy machine
MEMORY = 2 << 30  # address space beyond the parent's
FILE_SIZE = 1 << 28
DIGESTED = 1 << 26  # larger files (sparse ones) are told apart by their size
MARKER = "RAN"  # made in the working directory by what no input may run

Tree = dict[str, str]  # path -> what is there
Main = Callable[[list[str]], object]


def program(module: str) -> Main:
    """`python -m module` or its console command, in this process."""

    def main(words: list[str]) -> object:
        sys.argv = [module, *words]
        loaded = importlib.import_module(module)
        return loaded.cli() if hasattr(loaded, "cli") else errors.run(loaded.main, words)

    return main


@dataclass(frozen=True)
class Job:
    """prepare() runs in the child, in the working directory: it copies, damages, and returns the command's words."""

    number: int
    directory: Path
    main: Main
    prepare: Callable[[], list[str]]
    cpu: float = CPU_S


@dataclass
class Outcome:
    """What came of a job. status: None where a signal ended it; memory: bytes beyond what the child began with."""

    status: int | None
    signal: int = 0
    stopped: str = ""  # by the watch: why
    stdout: str = ""
    stderr: str = ""
    words: list[str] = field(default_factory=list)
    before: Tree = field(default_factory=dict)
    after: Tree = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)  # imported in the child
    memory: int = 0
    cpu: float = 0.0
    strays: int = 0  # processes that it left behind


def tree_of(root: Path) -> Tree:
    """Everything below root: d, l, p (a fifo), or a file's size and checksum."""
    tree = {}
    for folder, folders, files in os.walk(root):
        for name in sorted(folders) + sorted(files):
            path = Path(folder, name)
            state = path.lstat()
            kind = next((c for c, test in KINDS.items() if test(state.st_mode)), "")
            if not kind:
                digest = zlib.crc32(path.read_bytes()) if state.st_size <= DIGESTED else 0
                kind = f"{state.st_size} {digest}"
            tree[str(path.relative_to(root))] = kind
    return tree


KINDS = {"d": stat.S_ISDIR, "l": stat.S_ISLNK, "p": stat.S_ISFIFO}


def resident(pid: int | str = "self", column: int = 1) -> int:
    """Bytes: column 0 the address space, 1 the resident set."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[column]) * resource.getpagesize()


def start(job: Job) -> int:
    """Fork; returns the child's id."""
    work = job.directory / "work"
    work.mkdir(parents=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        status = _child(job, work)
    except BaseException:
        (job.directory / "failed").write_text(traceback.format_exc())
    finally:
        os._exit(status)


def _child(job: Job, work: Path) -> int:
    os.setsid()
    os.chdir(work)
    faulthandler.disable()
    for descriptor, name in ((0, os.devnull), (1, job.directory / "stdout"), (2, job.directory / "stderr")):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout, sys.stderr = (
        os.fdopen(1, "w", closefd=False),
        os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False),
    )
    words = job.prepare()
    (job.directory / "before").write_text(json.dumps({"words": words, "tree": tree_of(work)}))
    for kind, limit in (
        (resource.RLIMIT_CPU, int(job.cpu)),
        (resource.RLIMIT_AS, resident(column=0) + MEMORY),
        (resource.RLIMIT_FSIZE, FILE_SIZE),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
    imported = set(sys.modules)
    status = run_main(job.main, words)
    (job.directory / "modules").write_text(json.dumps(sorted(set(sys.modules) - imported)))
    return status


def run_main(main: Main, words: list[str]) -> int:
    """The exit status that the interpreter would end with; a traceback goes to stderr, as it would."""
    status: object = 1
    try:
        status = main(words)
    except SystemExit as stop:
        status = stop.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
    for finish in (threading._shutdown, sys.stdout.flush, sys.stderr.flush):
        try:
            finish()
        except OSError:
            status = 120
    return status if isinstance(status, int) else 0


def children(pid: int) -> list[int]:
    """Processes whose parent is pid."""
    found = []
    try:
        for thread in os.scandir(f"/proc/{pid}/task"):
            found += map(int, Path(thread.path, "children").read_text().split())
    except OSError:
        pass  # it ended meanwhile
    return found


def cpu_of_tree(pid: int) -> float:
    """Seconds of CPU time of a process and all below it, ended ones counted where they were waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") + sum(map(cpu_of_tree, children(pid)))


def adopt_orphans() -> None:
    """Processes that outlive a case's child become children of this process, which then sees and ends them."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


@dataclass
class _Watched:
    job: Job
    pid: int
    handle: int  # a pidfd
    began: float = field(default_factory=time.monotonic)
    cpu: float = 0.0
    moved: float = field(default_factory=time.monotonic)  # when the CPU time last grew
    stopped: str = ""

    def look(self) -> None:
        """End the case where it takes too long or waits in vain."""
        now, cpu = time.monotonic(), cpu_of_tree(self.pid)
        if cpu > self.cpu + 0.02:
            self.cpu, self.moved = cpu, now
        reasons = {
            "CPU time": cpu > self.job.cpu,
            "waits": now - self.moved > IDLE_S,
            "time": now - self.began > WALL_S,
        }
        self.stopped = self.stopped or next((reason for reason, holds in reasons.items() if holds), "")
        if self.stopped:
            end_session(self.pid)


def end_session(pid: int) -> None:
    """The child and what it started; it leads a group of its own."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def run_jobs(jobs: Iterable[Job], workers: int = 1, beside: set[int] | None = None) -> Iterator[tuple[Job, Outcome]]:
    """Outcomes as they come; at most `workers` children at a time. beside: the children of all callers, kept here."""
    waiting, running, base = iter(jobs), {}, resident()
    beside = set() if beside is None else beside
    beside |= set(children(os.getpid()))  # of whoever calls: not a case's
    looked, job = time.monotonic(), next(waiting, None)
    try:
        while job or running:
            while job and len(running) < workers:
                pid = start(job)
                watched = _Watched(job, pid, os.pidfd_open(pid))
                running[watched.handle] = watched
                beside.add(pid)
                job = next(waiting, None)
            ready, _, _ = select.select(list(running), [], [], 1.0)
            for handle in ready:
                watched = running.pop(handle)
                os.close(handle)
                beside.discard(watched.pid)
                outcome = _reap(watched, base)
                outcome.strays = end_strays(beside)
                yield watched.job, outcome
            if time.monotonic() - looked > 1.0:
                looked = time.monotonic()
                for watched in running.values():
                    watched.look()
    finally:
        for watched in running.values():
            end_session(watched.pid)
            os.waitpid(watched.pid, 0)
            os.close(watched.handle)
            beside.discard(watched.pid)
        end_strays(beside)


def end_strays(running: set[int]) -> int:
    """End and count what ended cases left behind; helpers of libraries see that their parent is gone and end soon."""
    count, patience = 0, time.monotonic() + GRACE_S
    while strays := set(children(os.getpid())) - running:
        for pid in strays:
            if os.waitpid(pid, os.WNOHANG)[0] == 0 and time.monotonic() > patience:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                count += 1
        time.sleep(0.01)
    return count


def _reap(watched: _Watched, base: int) -> Outcome:
    _, code, usage = os.wait4(watched.pid, 0)
    end_session(watched.pid)
    folder = watched.job.directory
    if (folder / "failed").exists():
        raise RuntimeError(f"case {watched.job.number}: the fuzzer failed\n{(folder / 'failed').read_text()}")
    ended = os.waitstatus_to_exitcode(code)
    before = json.loads((folder / "before").read_text())
    modules = folder / "modules"
    return Outcome(
        status=ended if ended >= 0 else None,
        signal=max(0, -ended),
        stopped=watched.stopped or ("CPU time" if -ended == signal.SIGXCPU else ""),
        stdout=(folder / "stdout").read_text(errors="replace"),
        stderr=(folder / "stderr").read_text(errors="replace"),
        words=before["words"],
        before=before["tree"],
        after=tree_of(folder / "work"),
        modules=json.loads(modules.read_text()) if modules.exists() else [],
        memory=max(0, usage.ru_maxrss * 1024 - base),
        cpu=usage.ru_utime + usage.ru_stime,
    )
