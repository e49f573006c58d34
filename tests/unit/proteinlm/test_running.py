"""Directories that come to nothing, locks of two runs, Ctrl-C, and which of several processes speaks."""

import ctypes
import errno
import fcntl
import os
import signal
import time
from functools import partial

import pytest

from proteinlm import errors
from proteinlm.errors import InputError
from proteinlm.files import atomic_path, check_writable, made_directory, write_text
from proteinlm.running import launch, locks
from proteinlm.running.locks import locked

# ---- directories


def test_what_came_to_nothing_leaves_no_directory(tmp_path):
    (tmp_path / "own").mkdir()
    for path in (tmp_path / "a/b/c", tmp_path / "own/d"):
        with pytest.raises(InputError), atomic_path(path / "file") as temporary:
            temporary.write_text("half")
            raise InputError("late")
    assert [path.name for path in tmp_path.rglob("*")] == ["own"]
    with pytest.raises(InputError), made_directory(tmp_path / "a/b"):
        (tmp_path / "a/kept").write_text("worth it")
        raise InputError("late")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "kept", "own"]
    with made_directory(tmp_path / "never/used"):
        pass
    assert not (tmp_path / "never").exists()


# ---- locks


@pytest.fixture
def holder(tmp_path):
    """Start a process that holds a directory, and that did `first` before; it ends with the test."""
    started = []

    def start(directory, first=lambda: None, then=signal.pause):
        here, there = os.pipe()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            with locked(directory, "--save"):
                first()
                os.write(there, b"1")
                then()
            os._exit(0)
        started.append(child)
        assert os.read(here, 1) == b"1"
        return child

    yield start
    for child in started:
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.1)
    directory = tmp_path / "ckpt"
    first = holder(directory)
    monkeypatch.setattr(locks, "missing_directories", lambda path: [path])  # as where both start at one moment
    with (
        pytest.raises(InputError, match=rf"{directory}: another run is writing here; .* give another --save"),
        locked(directory, "--save"),
    ):
        pass
    assert list(tmp_path.rglob("*")) == [directory], "no lock file, and the directory of the other stays"
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    with locked(directory, "--save"):
        (directory / "iter_1").mkdir()
    assert (directory / "iter_1").exists()


@pytest.mark.parametrize("forgotten", [False, True], ids=["as it is", "control"])
def test_a_worker_that_outlives_a_killed_run_does_not_hold_the_lock(tmp_path, holder, monkeypatch, forgotten):
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.1)
    pid = tmp_path / "pid"

    def fork_a_worker():
        if forgotten:  # the negative control: a fork that keeps the descriptor
            locks._locks.clear()
        worker = os.fork()
        if worker == 0:
            signal.pause()
            os._exit(0)
        pid.write_text(str(worker))

    first = holder(tmp_path / "ckpt", fork_a_worker)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    worker = int(pid.read_text())
    os.kill(worker, 0)
    try:
        if forgotten:
            with pytest.raises(InputError, match="another run"), locked(tmp_path / "ckpt", "--save"):
                pass
        else:
            with locked(tmp_path / "ckpt", "--save"):
                pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_run_may_wait_for_the_other(tmp_path, holder, monkeypatch, capsys):
    """The other removes the directory at its end, as one that failed does; the lock is then of the new one."""
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.1)
    holder(tmp_path / "states", then=lambda: time.sleep(0.4))
    with locked(tmp_path / "states", "--embeddings_dir", wait=True) as directory:
        assert directory.is_dir()
        with pytest.raises(BlockingIOError):
            fcntl.flock(os.open(directory, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert "waiting for its end" in capsys.readouterr().out


def test_a_file_system_without_locks_is_taken_as_it_is(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "nfs", "--save") as directory:
        assert directory.is_dir()


# ---- Ctrl-C, and several processes


def interrupted(argv):
    raise KeyboardInterrupt(*argv)


@pytest.mark.parametrize(
    ("argv", "resumes", "line"),
    [
        ([], True, "interrupted; the same command goes on"),
        ([], False, "interrupted; the same command starts again"),
        (["--load ckpt goes on"], True, "interrupted; --load ckpt goes on"),
    ],
)
def test_an_interrupt_is_one_line(capsys, argv, resumes, line):
    assert errors.run(interrupted, argv, resumes=resumes) == 130
    assert capsys.readouterr().err == f"{line}\n"


def test_an_interrupt_that_a_library_sat_out_is_still_one(capsys):
    """Waiting in C for a process that is gone ends in the library's error, with the signal not yet seen by Python."""
    signal_self = partial(getattr(ctypes.CDLL(None), "raise"), int(signal.SIGINT))

    def main(argv):  # no instruction of Python between the signal and the error
        list(map(partial.__call__, [signal_self, partial({}.__getitem__, "gone")]))

    before, came = signal.signal(signal.SIGINT, signal.default_int_handler), None
    try:
        try:  # the control: the error comes out first
            main([])
        except KeyError:
            came = KeyError
            time.sleep(0)
    except KeyboardInterrupt:
        pass
    assert came is KeyError
    assert errors.run(main) == 130
    assert capsys.readouterr().err == "interrupted; the same command starts again\n"
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def second(monkeypatch):
    """This process as the second of two; returns the seconds that it waited."""
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    waited = []
    monkeypatch.setattr(errors.time, "sleep", waited.append)
    return waited


def test_the_first_process_speaks(second, capsys, monkeypatch):
    def mistaken(argv):
        raise InputError("absent.idx: no such file")

    assert errors.run(mistaken) == 2
    assert capsys.readouterr().err == "process 1: error: absent.idx: no such file\n", "where it lives to say it"
    with pytest.raises(SystemExit, match="2"):
        errors.ArgumentParser("tape-train").parse_args(["--x"])
    assert second == [errors.FIRST_SPEAKS_SECONDS + 1] * 2
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    errors.run(interrupted, [])
    assert left == [130] and "interrupted" not in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    assert errors.run(mistaken) == 2 and len(second) == 2
    assert capsys.readouterr().err == "error: absent.idx: no such file\n"


def test_a_variable_named_rank_alone_says_nothing(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert errors.process_number() == 0


# ---- torchrun inside a command


def test_the_words_for_torchrun():
    words, rest, processes = launch.split_flags("x", ["transformer", "--nproc_per_node", "4", "--seed", "1"])
    assert words == ["--nproc-per-node=4", "--nnodes=1", "--node-rank=0", "--standalone"]
    assert rest == ["transformer", "--seed", "1"] and processes == 4
    several = ["--nnodes", "2", "--node-rank", "1", "--master_addr", "host", "--master-port", "5", "lstm"]
    words, rest, processes = launch.split_flags("x", several)
    assert words[1:] == ["--nnodes=2", "--node-rank=1", "--master-addr=host", "--master-port=5"]
    assert rest == ["lstm"] and processes == 2
    for wrong, message in (
        (["--nproc_per_node", "0"], "should be 1 or more"),
        (["--node_rank", "2"], "below --nnodes 1"),
    ):
        with pytest.raises(InputError, match=message):
            launch.split_flags("x", wrong)


# ---- one line


@pytest.mark.parametrize("quoted", ["A" * 70_000, "a\nb\r\n" * 9000, "\t"])
def test_whatever_a_message_quotes_it_is_a_line_with_the_file_and_the_advice(quoted, capsys):
    parser = errors.ArgumentParser("tape-x")
    parser.add_argument("--n", type=int)

    def main(argv):
        raise InputError(f"model/config.json: head {quoted} is none; should be tape")

    assert errors.run(main, []) == 2
    with pytest.raises(SystemExit):
        parser.parse_args(["--n", quoted])
    own, of_a_flag = capsys.readouterr().err.splitlines()
    assert own.startswith("error: model/config.json: head") and own.endswith("should be tape")
    assert of_a_flag.startswith("tape-x: error: argument --n") and of_a_flag.endswith("lists the flags)")
    assert max(len(own), len(of_a_flag)) <= errors.LONGEST


def test_what_is_no_file_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for write in (check_writable, lambda path: write_text(path, "x")):
        with pytest.raises(InputError, match="pipe: no regular file"):
            write(pipe)
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def test_words_that_are_no_text(capsys):
    assert errors.run(print, ["--save", "caf\udce9"]) == 2
    assert capsys.readouterr().err == (
        "error: 'caf\\udce9': is not UTF-8 text; should be a name that is (a link to the file will do)\n"
    )
    assert errors.run(lambda argv: print("caf\udce9"), ["--save", "café"]) == 0, "a name that a directory holds"
    assert capsys.readouterr().out == "caf\\udce9\n"


def test_a_message_of_usual_length_is_as_it_was(capsys):
    text = "x.csv, line 3: " + "y" * (errors.LONGEST - 30)
    errors.tell(text)
    assert capsys.readouterr().err == f"error: {text}\n"
