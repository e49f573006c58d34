"""Kills, full disks and silent peers: a few of what `make test-kill KILLS=50` tries on every command that writes."""

import json
import os
import signal
import sys
from functools import partial
from types import SimpleNamespace

import kill_commands
import kill_harness
import kill_torchrun
import numpy as np
import pytest
import starve_commands
import torch
from small_disk import SmallDisk
from writing_commands import COMMANDS, ForkedCommands, end_of, make_world, preload, start_forked

from proteinlm.errors import InputError
from tape.finetuning import frozen
from tape.inference.parts import PartStore
from tape.runs import jobs

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SimpleNamespace:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "subprocess", ForkedCommands)
        preload()
        yield make_world(tmp_path_factory.mktemp("faults") / "world")


@pytest.fixture(scope="module")
def may_mount(tmp_path_factory) -> None:
    if not starve_commands.can_mount(tmp_path_factory.mktemp("mount")):
        pytest.skip("no disk of one's own on this system")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kills"),
    {
        "preprocess": 3,
        "convert_tape": 4,
        "embed_h5": 4,
        "contacts_fit": 4,
        "tune": 3,
        "pretrain_fsdp2_async": 2,
    }.items(),
)
def test_a_killed_command_goes_on_and_ends_as_the_undisturbed_one(name, kills, world, tmp_path):
    assert kill_commands.kill_and_compare(name, kills, world, tmp_path, seed=1).kills == kills


@pytest.mark.slow
def test_a_run_that_ended_before_its_moment_came_is_gone_on_with_too(world, tmp_path, monkeypatch):
    """Say where a process that writes nothing was to be killed about to write: the run is done, which --resume sees."""

    def comes_too_late(command, world, cwd, honest, rng, again, tally):
        assert end_of(start_forked(command, world, cwd, again)) == 0
        tally.moments["never"] += 1  # or it would be tried again
        return False

    monkeypatch.setattr(kill_commands, "strike", comes_too_late)
    kill_commands.kill_and_compare("train_table", 1, world, tmp_path, seed=0)


@pytest.mark.slow
def test_a_process_that_torchrun_starts_again(tmp_path):
    assert kill_torchrun.kill_and_compare("dp2", 1, tmp_path, seed=1).total() == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["preprocess", "convert_dcp", "embed_per_protein", "predict", "train_table", "pretrain_async", "variants"]
)
def test_a_full_disk_is_told_in_a_line_and_the_work_goes_on(name, world, tmp_path, may_mount):
    outcomes = starve_commands.starve(name, world, tmp_path, shares=(0.6,))
    assert outcomes == {starve_commands.FULL: 1, starve_commands.READ_ONLY: 1}


@pytest.mark.slow
def test_a_peer_that_stops_in_the_middle_of_a_save_is_not_waited_for(world, tmp_path):
    kill_commands.fall_silent("pretrain_fsdp2_async", world, tmp_path)


def test_states_on_a_full_disk_do_not_end_the_process(tmp_path, may_mount):
    """Stored through a mapped file they did, by SIGBUS and without a word."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            disk = SmallDisk(tmp_path / "disk", 1 << 20)
            store = PartStore(disk.place / "states.npy", {})
            store.save(0, {"seq": np.ones((1500, 100), np.float32)})
            store.finish({store.output: lambda path: frozen._join(store, "seq", (1500, 100), 1, path)})
        except InputError as error:
            status = 0 if str(error) == f"{store.output}: cannot be written: no space left on device" else 2
        finally:
            os._exit(status)
    assert end_of(pid) == 0


def test_what_is_lost_or_left_is_seen(tmp_path):
    """The negative controls of the checks after a kill."""
    command, place = COMMANDS["table"], tmp_path / "cwd"
    place.mkdir()
    (place / "table.html").write_text("<html></html>\n")
    honest = kill_commands.Undisturbed(kill_commands.values_of(place, command), 0.0, {})
    kill_commands.check_visible(place, command, honest)
    (place / "table.html").write_text("<html>\n")  # half of it under its final name
    with pytest.raises(AssertionError, match="not what an undisturbed run has"):
        kill_commands.check_visible(place, command, honest)
    assert kill_commands.differences(kill_commands.values_of(place, command), honest.files, command) == ["table.html"]
    (place / "table.html").rename(place / ".table.html.x.tmp")
    assert kill_commands.differences(kill_commands.values_of(place, command), honest.files, command) == ["table.html"]
    assert [name for name in kill_commands.files_of(place) if kill_commands.is_hidden(name)] == [".table.html.x.tmp"]
    for text, wrong in (
        ("error: out: cannot be written: no space left on device", ""),
        ("error: a: no space left on device (2 of 2 runs of preset full are not done; out/table.md names them)", ""),
        ("error: .out.x.tmp/a: cannot be written: no space left on device", "a hidden file is named"),
        ("error: out: cannot be written", "lines"),
        ("Traceback (most recent call last):\nerror: out: no space left on device", "status 2"),
    ):
        assert starve_commands.complaint(2, text, starve_commands.FULL).startswith(wrong)
        assert bool(wrong) == bool(starve_commands.complaint(2, text, starve_commands.FULL))


def test_a_difference_of_one_bit_is_seen():
    weights = {"a": torch.ones(3), "b": torch.ones(3)}
    other = {**weights, "a": torch.nextafter(weights["a"], torch.tensor(2.0))}
    assert kill_torchrun.differences(weights, weights) == []
    assert kill_torchrun.differences(weights, other) == ["a"]
    assert kill_torchrun.differences(weights, {"a": weights["a"]}) == ["b"]


def test_kills_are_dealt_out():
    names = [*COMMANDS, *kill_harness.UNDER_TORCHRUN]
    for kills in (50, 1000):
        shares = kill_harness.deal(kills, names)
        assert sum(shares.values()) == kills and shares.keys() == set(names)
        assert sum(shares[name] for name in kill_harness.UNDER_TORCHRUN) == round(
            kills * kill_harness.SHARE_OF_TORCHRUN
        )
    assert kill_harness.deal(3, ["torchrun_dp2"]) == {"torchrun_dp2": 3}


def test_what_was_done_is_recorded_and_not_done_again(tmp_path, monkeypatch, capsys):
    """And what is not as it should be is told, without ending the rest."""
    done, record = [], tmp_path / "kills.json"

    def work(name: str, wrong: bool = False) -> dict:
        done.append(name)
        assert not wrong, "a file is lost"
        return {"kills": 2, "signals": {"SIGKILL": 2}}

    def works(*_, wrong: bool = False):
        yield "killed", "embed", lambda: work("embed", wrong)
        yield "killed", "table", lambda: work("table")

    for name in ("make_world", "preload"):
        monkeypatch.setattr(kill_harness, name, lambda *_: None)
    monkeypatch.setattr(jobs, "subprocess", jobs.subprocess)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda *_: None)
    monkeypatch.setattr(kill_harness, "works", partial(works, wrong=True))
    monkeypatch.setattr(sys, "argv", ["kill_harness.py", "--record", str(record)])
    assert kill_harness.main() == 1
    printed = capsys.readouterr().out
    assert "embed (killed): a file is lost" in printed and printed.endswith("NOT as it should be: embed (killed)\n")
    assert json.loads(record.read_text())["killed"].keys() == {"table"}
    monkeypatch.setattr(kill_harness, "works", works)
    sys.argv += ["--resume", str(record)]
    assert kill_harness.main() == 0 and done == ["embed", "table", "embed"]
    recorded = json.loads(record.read_text())
    assert recorded["kills"] == 4 and recorded["killed"]["embed"]["commit"] == recorded["commit"]
