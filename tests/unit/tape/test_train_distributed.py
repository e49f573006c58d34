"""tape-train-distributed: real processes over gloo give one process's run, resume, and tell a mistake once."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_data import write_config, write_data

from proteinlm import errors
from proteinlm.errors import InputError
from proteinlm.running import launch
from tape import train_distributed

pytestmark = pytest.mark.slow

DIES = """
from pathlib import Path
import os
from tape.finetuning.trainer import Trainer
step = Trainer.train_step
def dies(self, *args):
    last = self.processes.rank == self.processes.size - 1
    if self.progress.step == 5 and last and not (self.output / "died").exists():
        (self.output / "died").touch()
        os._exit(7)
    return step(self, *args)
Trainer.train_step = dies
"""

TELLS_LATE = """
import time
from proteinlm import errors
tell = errors.tell
def late(*message):
    time.sleep(1.5)
    return tell(*message)
errors.tell = late
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("distributed")
    for task in ("fluorescence", "secondary_structure"):
        write_data(root, task, train=24, valid=9)
    write_config(root / "config.json", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return root


@pytest.fixture
def run(world, python):
    def run_it(task: str, out: Path, processes: int, *flags: object) -> subprocess.CompletedProcess:
        words = [python, "-m", "tape.train_distributed", "transformer", task, "--nproc_per_node", processes]
        words += ["--data_dir", world, "--output_dir", out, "--model_config_file", world / "config.json"]
        words += ["--device", "cpu", "--batch_size", 7, "--max_steps", 8, "--eval_steps", 2, "--num_log_iter", 1]
        words += ["--learning_rate", 1e-3, *flags]
        return subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=300)

    return run_it


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "last" / "model.safetensors")


@pytest.mark.slow
def test_two_processes_are_one(run, tmp_path):
    done = [run("fluorescence", tmp_path / str(n), n) for n in (1, 2)]
    assert [result.returncode for result in done] == [0, 0], done[1].stderr
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 2e-6
    lines = [(tmp_path / str(n) / "metrics.jsonl").read_text().splitlines() for n in (1, 2)]
    assert len(lines[0]) == len(lines[1]) == 8 + 4, "written by one process"
    assert json.loads((tmp_path / "2" / "args.json").read_text())["processes"] == 2
    assert done[1].stdout.count("step 8 spearmanr") == 1 and "2 processes" in done[1].stdout


@pytest.mark.slow
def test_a_run_whose_process_dies_resumes_bit_by_bit(run, tmp_path):
    flags = ("--gradient_accumulation_steps", 3)
    assert run("secondary_structure", tmp_path / "whole", 2, *flags).returncode == 0
    (tmp_path / "dies.py").write_text(DIES)
    flags = (*flags, "--plugin", tmp_path / "dies.py")
    assert run("secondary_structure", tmp_path / "cut", 2, *flags).returncode != 0
    assert not (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()[-1].startswith('{"iteration": 8')
    done = run("secondary_structure", tmp_path / "cut", 2, *flags, "--resume")
    assert done.returncode == 0, done.stderr
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    # The state belongs to no number of processes: one goes on where two stopped.
    assert run("secondary_structure", tmp_path / "cut", 1, *flags, "--resume").returncode == 0


@pytest.mark.slow
def test_a_mistake_of_all_processes_is_reported_once(run, tmp_path):
    (tmp_path / "slow.py").write_text(TELLS_LATE)  # torchrun ends the others when the first has failed
    (tmp_path / "fluorescence/fluorescence_train.lmdb").mkdir(parents=True)
    (tmp_path / "fluorescence/fluorescence_train.lmdb/data.mdb").write_bytes(b"what only the processes open")
    flags = ("--data_dir", tmp_path, "--plugin", tmp_path / "slow.py")
    done = run("fluorescence", tmp_path / "run", 2, *flags)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "fluorescence_train.lmdb" in errors[0] and "Traceback" not in done.stderr


def test_wrong_flags_are_reported_before_any_process_starts(monkeypatch, capsys):
    def never(*words):
        raise AssertionError("processes were started")

    monkeypatch.setattr(launch, "start_processes", never)
    assert errors.run(train_distributed.main, ["transformer", "stabilty"]) == 2
    assert errors.run(train_distributed.main, ["unirep", "stability"]) == 2
    messages = capsys.readouterr().err.splitlines()
    assert len(messages) == 2 and "left out" in messages[1]
    with pytest.raises(SystemExit):
        train_distributed.main(["transformer", "stability", "--batchsize", "3"])
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(InputError, match="--node_rank 2: should be below --nnodes 2"):
        train_distributed.main(["transformer", "stability", "--nnodes", "2", "--node_rank", "2"])
