"""Files where there is no room, and what killed processes leave: each reason in one line, with the file's own name."""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from proteinlm import errors, files
from proteinlm.errors import InputError, lost_peer
from proteinlm.files import atomic_directory, atomic_path, need_room, write_json, write_text, writing
from proteinlm.metrics_log import MetricsLog
from proteinlm.model_dir.weights import write_weights
from proteinlm.running.leftovers import sweep, temporary_beside

ROOM = 1 << 16  # bytes that a file may have
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the reasons are Linux's, and /proc is read")


def write_arrow(path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"a": np.random.default_rng(0).normal(size=1 << 17)}), path)


BIG = np.ones(1 << 17)
WRITERS = {
    "python": lambda path: path.write_bytes(bytes(1 << 20)),
    "torch": lambda path: torch.save({"a": torch.from_numpy(BIG)}, path),
    "numpy": lambda path: np.savez(path.open("wb"), a=BIG),
    "arrow": write_arrow,
}


def in_a_child(work) -> str:
    """What work() returns, done in a process of its own with little room; the text of its error otherwise."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))
        try:
            text = str(work())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return text


@linux
@pytest.mark.parametrize("name", WRITERS)
def test_no_room_is_told_by_name_whoever_writes(name, tmp_path):
    final = tmp_path / "out.file"
    final.write_text("earlier")

    def work():
        with atomic_path(final) as temporary:
            WRITERS[name](temporary)

    assert in_a_child(work) == f"InputError: {final}: cannot be written: file too large"
    assert final.read_text() == "earlier" and [path.name for path in tmp_path.iterdir()] == ["out.file"]


@linux
def test_a_file_of_a_directory_that_has_no_name_yet_is_told_under_its_final_name(tmp_path):
    def work():
        with atomic_directory(tmp_path / "model") as temporary:
            write_weights(temporary, {"a": torch.from_numpy(BIG)})

    assert in_a_child(work) == f"InputError: {tmp_path}/model/model.safetensors: cannot be written: file too large"
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_work_are_not_the_disks(tmp_path):
    with pytest.raises(ValueError, match=r"^a defect$"), atomic_path(tmp_path / "out"):
        raise ValueError("a defect")
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "out"):  # of what it reads
        (tmp_path / "input").read_text()
    with pytest.raises(InputError, match=r"^input: wrong$"), atomic_path(tmp_path / "out"):
        raise InputError("input: wrong")
    with pytest.raises(ValueError, match=r"^gone$"), writing(tmp_path / "out", tmp_path / ".out.tmp"):
        raise ValueError("gone")  # what was being written was removed meanwhile, and is not made by asking for room
    assert list(tmp_path.iterdir()) == []


def test_output_that_goes_to_a_full_disk(capsys):
    def main(argv):
        raise OSError(28, "No space left on device")  # of print: without a name

    assert errors.run(main) == 2
    assert capsys.readouterr().err == "error: the output cannot be written: No space left on device\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_that_is_found_wanting_at_the_end(capsys, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert errors.run(lambda argv: print("a line in a buffer")) == 2
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.flush()
        assert capsys.readouterr().err == "error: the output cannot be written: No space left on device\n"
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_output_that_nobody_reads(capsys, monkeypatch):
    here, there = os.pipe()
    os.close(here)
    with os.fdopen(there, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        assert errors.run(lambda argv: print("a line", flush=True)) == errors.EXIT_UNREAD
        print("and another", flush=True)
        monkeypatch.undo()
    assert capsys.readouterr().err == ""
    with pytest.raises(BrokenPipeError):  # of something else
        errors.run(lambda argv: (_ for _ in ()).throw(BrokenPipeError(32, "Broken pipe")))


def test_a_name_that_is_no_text_is_written(tmp_path):
    write_json(tmp_path / "a.json", {"caf\udce9": "é"})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"caf\udce9": "é"}


ROOT = Path(errors.__file__).parents[1]


def test_output_that_is_closed():
    line = "import sys; from proteinlm import errors; sys.exit(errors.run(lambda argv: sys.stdout.write('a') and 0))"
    shell = f'exec "{sys.executable}" -c "{line}" >&-'
    done = subprocess.run(["sh", "-c", shell], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"])
def test_what_no_launcher_sets(capsys, monkeypatch, name):
    monkeypatch.setenv(name, "two")
    assert errors.run(print) == 2
    assert capsys.readouterr().err.startswith(f"error: {name} is 'two' in the environment; should be a number")


def test_a_directory_that_is_gone(capsys, monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert errors.run(print) == 2
    assert capsys.readouterr().err.startswith("error: the current directory is gone")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_log_on_a_full_disk(tmp_path):
    message = f"{tmp_path}/metrics.jsonl: cannot be written: no space left on device"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"), contextlib.closing(MetricsLog(tmp_path)) as log:
        log._file = open("/dev/full", "a")  # noqa: SIM115
        log.write({"iteration": 1})


def test_a_disk_is_asked_before_hdf5_writes(tmp_path, monkeypatch):
    need_room(tmp_path / "out.h5", 1)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("usage", (), {"free": 999}))
    need_room(tmp_path / "out.h5", 999)
    with pytest.raises(InputError, match=r"out.h5: cannot be written: no space left"), writing(tmp_path / "out.h5"):
        need_room(tmp_path / "out.h5", 1000)


@linux
@pytest.mark.parametrize("name", ["out.csv", "x" * 250])
def test_what_a_killed_process_left_goes_and_what_is_being_written_stays(name, tmp_path):
    final, pids = tmp_path / name, {}

    def leave(directory, number):
        pid = os.fork()
        if not pid:
            temporary_beside(final, directory)
            os.kill(os.getpid(), number)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)  # a zombie: nobody has asked for its status yet
        pids[pid] = number

    try:
        leave(False, signal.SIGSTOP)
        for directory in (True, False):
            leave(directory, signal.SIGKILL)
        (tmp_path / ".mine.tmp").touch()
        sweep.cache_clear()
        write_text(final, "whole")
        (left,) = {path.name for path in tmp_path.iterdir()} - {name, ".mine.tmp"}
        assert f"-{next(iter(pids))}-" in left and final.read_text() == "whole"
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    sweep.cache_clear()
    write_text(final, "again")
    assert final.read_text() == "again" and len(list(tmp_path.iterdir())) == 2


@linux
def test_a_number_that_another_process_has_now_is_told_by_when_it_was_started(tmp_path):
    """A container's first process has the same number after each start."""
    left = temporary_beside(tmp_path / "out")
    process, started = left.name.split(".")[2].rsplit("-", 1)
    earlier = left.with_name(f".out.{process}-{int(started) - 1}.abc.tmp")
    elsewhere = left.with_name(f".out.{'0' * 8}{process[8:]}-1.abc.tmp")  # of another machine, on a disk of both
    for path in (earlier, elsewhere):
        path.touch()
    sweep.cache_clear()
    write_text(tmp_path / "out", "")
    assert not earlier.exists() and elsewhere.exists() and left.exists()


def test_words_for_a_lost_peer():
    assert "not answer" in lost_peer(RuntimeError("[gloo] Timed out waiting 6000ms for send operation to complete"))
    assert "ended" in lost_peer(RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:3"))
    assert lost_peer(RuntimeError("shape mismatch")) is None
