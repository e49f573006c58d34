"""Checkpoints: what is saved comes back bit for bit, a kill at any step leaves the previous one, faults are named."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from pretrain.checkpoint import files as checkpoint
from pretrain.checkpoint.files import latest_iteration, load_checkpoint, load_meta, read_model_tensors, save_checkpoint
from proteinlm.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
META = {"model_config": {"hidden_size": 8}, "counters": {"iteration": 1}}


def make_state(seed: int, rows: int = 6) -> dict:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, 4, generator=generator)
    return {
        "model": {
            "layers.0.weight": weight,
            "layers.0.bias": torch.randn(6, generator=generator),
            "lm.bias": weight[0],
        },
        "optimizer": {"exp_avg": {"layers.0.weight": weight / 3}, "step": {"layers.0.weight": torch.tensor(7.0)}},
        "rng": {"cpu": torch.get_rng_state()},
    }


def zeros_like(state: dict) -> dict:
    return {k: zeros_like(v) if isinstance(v, dict) else torch.zeros_like(v) for k, v in state.items()}


def flat(state: dict, prefix: str = "") -> dict:
    out = {}
    for key, value in state.items():
        out |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return out


def assert_equal(a: dict, b: dict) -> None:
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


def save(directory: Path, iteration: int, **kwargs) -> dict:
    state = make_state(iteration)
    save_checkpoint(directory, iteration, state, META, **kwargs)
    return state


def assert_loads(directory: Path, iteration: int) -> None:
    assert latest_iteration(directory) == iteration
    loaded = load_checkpoint(directory, iteration, zeros_like(make_state(0)))
    assert_equal(
        {k: loaded[k] for k in ("model", "optimizer")}, {k: make_state(iteration)[k] for k in ("model", "optimizer")}
    )


def test_round_trip(tmp_path):
    state = save(tmp_path, 1000)
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "1000"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["iter_0001000", "latest_checkpointed_iteration.txt"]
    template = zeros_like(state)
    tensors = flat(template)
    load_checkpoint(tmp_path, 1000, template)
    assert_equal(template, state)
    assert all(flat(template)[name] is tensor for name, tensor in tensors.items())  # filled in place
    iteration, meta = load_meta(tmp_path)
    assert iteration == 1000 and meta["model_config"] == META["model_config"]
    model = read_model_tensors(tmp_path, 1000)
    assert_equal(model, state["model"])


def test_dcp_itself_reads_what_we_save(tmp_path):
    state = save(tmp_path, 5)
    template = zeros_like(state)
    dcp.load(template, checkpoint_id=tmp_path / "iter_0000005", no_dist=True)
    assert_equal(template, state)


def test_only_some_keys_and_byte_entries(tmp_path):
    state = make_state(1) | {"extra": {"count": 3, "name": "x", "list": [1, 2.5]}}
    save_checkpoint(tmp_path, 1, state, META)
    template = zeros_like(make_state(1))
    load_checkpoint(tmp_path, 1, {"model": template["model"]})
    assert_equal(template["model"], state["model"])
    assert not template["optimizer"]["exp_avg"]["layers.0.weight"].any()
    loaded = load_checkpoint(tmp_path, 1, {"extra": {"count": 0, "name": "", "list": [0, 0]}})
    assert loaded["extra"] == state["extra"]


def test_no_tracker_is_a_fresh_start(tmp_path):
    assert latest_iteration(tmp_path) is None
    assert latest_iteration(tmp_path / "absent") is None
    with pytest.raises(InputError, match="holds no checkpoint"):
        load_meta(tmp_path)


def test_keep_last(tmp_path):
    for iteration in (1, 2, 3, 4):
        save(tmp_path, iteration, keep_last=2)
    assert sorted(p.name for p in tmp_path.glob("*")) == ["iter_0000003", "iter_0000004", checkpoint.TRACKER]
    (tmp_path / checkpoint.TRACKER).write_text("3")
    save(tmp_path, 2, keep_last=1)  # a run that went back: its own is never removed
    assert_loads(tmp_path, 2)
    assert [p.name for p in tmp_path.glob("iter_*")] == ["iter_0000002"]


def test_saving_the_same_iteration_again(tmp_path):
    save(tmp_path, 7)
    state = make_state(8)
    save_checkpoint(tmp_path, 7, state, META)
    assert_equal(read_model_tensors(tmp_path), state["model"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["iter_0000007", checkpoint.TRACKER]


def test_stale_temporaries_are_cleared(tmp_path):
    (tmp_path / ".iter_0000003.tmp").mkdir()
    (tmp_path / ".iter_0000003.tmp" / "half").write_text("x")
    save(tmp_path, 4)
    assert not list(tmp_path.glob(".iter_*"))


# a crash at each step


# renames of one save: meta.json, [the old checkpoint aside,] the directory, the tracker
STEPS = ["dcp", "write_json", "fsync_path", "write_text", "replace 1", "replace 2", "replace 3"]
CRASHES = [(step, again) for step in STEPS for again in (False, True)] + [("replace 4", True)]


@pytest.mark.parametrize(("step", "again"), CRASHES)
def test_crash_at_each_step_leaves_the_previous(tmp_path, monkeypatch, step, again):
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        if step.startswith("replace"):
            _fail_at_replace(patch, int(step[-1]))
        elif step == "dcp":
            patch.setattr(checkpoint.dcp, "save", _raise)
        else:
            patch.setattr(checkpoint, step, _raise)
        patch.setattr(checkpoint.shutil, "rmtree", lambda *a, **k: None)  # a killed process tidies nothing
        with pytest.raises(Crash):
            save_checkpoint(tmp_path, 1 if again else 2, make_state(1), META)
    assert_loads(tmp_path, 1)
    save(tmp_path, 3)
    assert_loads(tmp_path, 3)
    assert_loads_from(tmp_path, 1)
    assert not list(tmp_path.glob(".iter_*"))


def assert_loads_from(directory: Path, iteration: int) -> None:
    assert_equal(read_model_tensors(directory, iteration), make_state(iteration)["model"])


class Crash(Exception):
    pass


def _raise(*args, **kwargs):
    raise Crash


def _fail_at_replace(patch, nth: int) -> None:
    real, calls = os.replace, []

    def replace(source, destination):
        calls.append(source)
        if len(calls) == nth:
            raise Crash
        return real(source, destination)

    patch.setattr(os, "replace", replace)


SAVER = """
import sys, torch
from pretrain.checkpoint.files import save_checkpoint
torch.set_num_threads(1)
n = int(sys.argv[2])
while True:
    n += 1
    state = {"model": {"w": torch.full((50_000,), float(n)), "b": torch.full((3,), float(n))}}
    save_checkpoint(sys.argv[1], n, state, {"n": n}, keep_last=2)
    print(n, flush=True)
"""


@pytest.mark.parametrize("round_", [0, 1])
@pytest.mark.slow
def test_kill_minus_nine_while_saving(tmp_path, round_):
    """The saver is killed at an arbitrary moment; whatever the tracker names must load and be of one save."""
    process = subprocess.Popen(
        [sys.executable, "-c", SAVER, str(tmp_path), "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    for _ in range(3):
        seen = int(process.stdout.readline())
    time.sleep(0.003 * (1 + 7 * round_))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    iteration = latest_iteration(tmp_path)
    assert iteration >= seen
    model = read_model_tensors(tmp_path, iteration)
    assert all((tensor == float(iteration)).all() for tensor in model.values())
    save_checkpoint(tmp_path, iteration + 1, {"model": model}, {}, keep_last=2)
    assert len(list(tmp_path.glob("iter_*"))) == 2 and not list(tmp_path.glob(".iter_*"))


# faults, each one line that names what is wrong


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.fixture
def two(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    return tmp_path


def load_two(directory: Path):
    load_checkpoint(directory, latest_iteration(directory), zeros_like(make_state(0)))


def truncate_a_shard(path):
    shard = next(path.glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-100])


def flip_a_bit(path):
    shard = next(path.glob("*.distcp"))
    raw = bytearray(shard.read_bytes())
    where = raw.find(make_state(2)["model"]["layers.0.weight"].numpy().tobytes())
    raw[where + 3] ^= 1
    shard.write_bytes(raw)


DAMAGES = {
    "no directory": shutil.rmtree,
    "no shard": lambda path: next(path.glob("*.distcp")).unlink(),
    "truncated shard": truncate_a_shard,
    "bit": flip_a_bit,
    "meta": lambda path: (path / "meta.json").write_text("{"),
    "meta list": lambda path: (path / "meta.json").write_text("[]"),
    # a pipe would give its content to one process, and the others would wait
    "meta pipe": lambda path: (path / "meta.json").unlink() or os.mkfifo(path / "meta.json"),
    "metadata": lambda path: (path / ".metadata").write_bytes(bytes((path / ".metadata").stat().st_size)),
    "no metadata": lambda path: (path / ".metadata").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named_and_the_other_offered(two, damage):
    load_two(two)  # control
    damage(two / "iter_0000002")
    with pytest.raises(InputError) as error:
        load_two(two)
    text = one_line(error)
    assert "iter_0000002" in text and "newest complete one is iteration 1" in text, text


def test_tracker_faults(two):
    (two / checkpoint.TRACKER).write_text("release")
    with pytest.raises(InputError, match=r"not an iteration number.*iteration 2"):
        latest_iteration(two)
    (two / checkpoint.TRACKER).write_text("9")
    with pytest.raises(InputError, match=r"names iteration 9, but .*iter_0000009 is missing.*iteration 2"):
        latest_iteration(two)


def test_other_shapes_and_names(tmp_path):
    save(tmp_path, 1)
    template = zeros_like(make_state(0, rows=8))
    with pytest.raises(InputError, match=r"layers.0.weight has shape \(6, 4\), this run's model needs \(8, 4\)"):
        load_checkpoint(tmp_path, 1, template)
    template = zeros_like(make_state(0))
    template["model"]["layers.1.weight"] = torch.zeros(2)
    with pytest.raises(InputError, match=r"lacks model.layers.1.weight"):
        load_checkpoint(tmp_path, 1, template)
    template = zeros_like(make_state(0))
    del template["model"]["layers.0.bias"]  # the checkpoint has more than the model: a shallower model
    with pytest.raises(InputError, match=r"holds model.layers.0.bias, for which"):
        load_checkpoint(tmp_path, 1, template)
    template = zeros_like(make_state(0))
    template["model"]["layers.0.bias"] = torch.zeros(6, dtype=torch.int64)
    with pytest.raises(InputError, match="dtype"):
        load_checkpoint(tmp_path, 1, template)


def test_absent_parts_name_the_flag(tmp_path):
    save_checkpoint(tmp_path, 1, {"model": make_state(1)["model"]}, META)
    both = "holds no optimizer and no rng state; to start afresh there: --no-load-optim --no-load-rng$"
    with pytest.raises(InputError, match=both):
        load_checkpoint(tmp_path, 1, zeros_like(make_state(0)))


def test_unwritable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="iter_0000001: cannot be written"):
        save(tmp_path / "file", 1)


# malicious directories


class Attack:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.system, (f"touch {self.marker}",))


def replace_file(path: Path, name: str, content: bytes) -> None:
    (path / name).write_bytes(content)
    meta = json.loads((path / "meta.json").read_text())
    meta["files"][name] = len(content)
    (path / "meta.json").write_text(json.dumps(meta))


def test_attack_in_metadata(tmp_path):
    save(tmp_path, 1)
    path, marker = tmp_path / "iter_0000001", tmp_path / "marker"
    metadata = pickle.loads((path / ".metadata").read_bytes())
    metadata.planner_data = Attack(marker)
    replace_file(path, ".metadata", pickle.dumps(metadata))
    with pytest.raises(InputError, match=r"names posix.system"):
        load_checkpoint(tmp_path, 1, zeros_like(make_state(0)))
    with pytest.raises(InputError, match=r"names posix.system"):
        read_model_tensors(tmp_path, 1)
    assert not marker.exists()
    dcp.FileSystemReader(path).read_metadata()  # control: DCP's own reader runs it
    assert marker.exists()


def test_attack_in_a_byte_entry(tmp_path):
    marker = tmp_path / "marker"
    save_checkpoint(tmp_path, 1, {"extra": {"x": Attack(marker)}}, META)
    assert not marker.exists()
    with pytest.raises(InputError, match=r"extra.x: names posix.system"):
        load_checkpoint(tmp_path, 1, {"extra": {"x": 0}})
    assert not marker.exists()
    dcp.load({"extra": {"x": 0}}, checkpoint_id=tmp_path / "iter_0000001", no_dist=True)
    assert marker.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry, info: setattr(entry, "size", torch.Size([2**50, 4])), "values in its chunks"),
        (lambda entry, info: setattr(entry.chunks[0], "sizes", torch.Size([2**50, 4])), "outside its shape"),
        (lambda entry, info: setattr(info, "relative_path", "../../etc/passwd"), "impossible place"),
        (lambda entry, info: setattr(info, "offset", -5), "impossible place"),
        (lambda entry, info: setattr(info, "offset", 10**9), "truncated"),
        (lambda entry, info: setattr(entry, "chunks", []), "0 values"),
    ],
)
def test_absurd_numbers_in_metadata(tmp_path, change, message):
    save(tmp_path, 1)
    path = tmp_path / "iter_0000001"
    metadata = pickle.loads((path / ".metadata").read_bytes())
    name = "model.layers.0.weight"
    info = next(value for key, value in metadata.storage_data.items() if key.fqn == name)
    change(metadata.state_dict_metadata[name], info)
    replace_file(path, ".metadata", pickle.dumps(metadata))
    with pytest.raises(InputError, match=message) as error:
        read_model_tensors(tmp_path, 1)
    one_line(error)
