"""What a run leaves behind: several seeds, best and last, overwriting, no evaluations, names, and what is recorded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_data import write_config, write_data

from proteinlm import errors
from tape import evaluate, train
from tape.finetuning.trainer import Trainer
from tape.models.modeling_bert import ProteinBertForValuePrediction
from tape.tasks.protein_values import ValueTask


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_data(root, "stability", train=32, valid=12)
    write_config(root / "config.json")
    return root


def run(world: Path, *flags: object, status: int = 0) -> None:
    words = ["transformer", "stability", "--data_dir", world, "--device", "cpu", "--head", "tape", "--batch_size", 8]
    words += ["--model_config_file", world / "config.json", "--max_steps", 4, *flags]
    assert errors.run(train.main, [str(word) for word in words]) == status


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_several_seeds_are_ordinary_runs_and_resume_as_a_whole(world, tmp_path, monkeypatch, capsys):
    run(world, "--output_dir", tmp_path / "alone", "--seed", 5)
    step, done = Trainer.train_step, []

    def killed(self, parts, share):
        done.append(0)
        if len(done) == 7:
            raise KeyboardInterrupt
        return step(self, parts, share)

    flags = ("--output_dir", tmp_path / "three", "--seeds", 4, 5, 6)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", killed)
        run(world, *flags, status=130)
    first = (tmp_path / "three" / "seed4" / "args.json").read_bytes()
    assert not (tmp_path / "three" / "seed6" / "model.safetensors").exists()
    capsys.readouterr()
    run(world, *flags, "--resume")
    assert "3 seeds: best spearmanr" in capsys.readouterr().out
    assert same(tmp_path / "alone", tmp_path / "three" / "seed5")
    assert not same(tmp_path / "three" / "seed4", tmp_path / "three" / "seed5")
    assert (tmp_path / "three" / "seed4" / "args.json").read_bytes() == first, "a finished run stays as it is"
    args = json.loads((tmp_path / "three" / "seed6" / "args.json").read_text())
    assert args["args"]["seed"] == 6 and args["args"]["seeds"] is None
    words = ["transformer", "stability", tmp_path / "three" / "seed6", "--data_dir", world, "--split", "valid"]
    assert errors.run(evaluate.main, [str(word) for word in (*words, "--device", "cpu")]) == 0
    run(world, *flags, status=2)
    assert "already holds a run" in capsys.readouterr().err


def test_best_and_last_are_both_directories(world, tmp_path, monkeypatch):
    scores = iter([0.9, 0.1])
    monkeypatch.setattr(ValueTask, "score", lambda self, predictions: {"spearmanr": next(scores), "n_examples": 1})
    run(world, "--output_dir", tmp_path / "run", "--eval_steps", 2, "--learning_rate", 1e-2)
    assert not same(tmp_path / "run", tmp_path / "run" / "last")
    for directory in (tmp_path / "run", tmp_path / "run" / "last"):
        ProteinBertForValuePrediction.from_pretrained(directory, require_head=True)
    state = torch.load(tmp_path / "run" / "last" / "state.pt", weights_only=True)
    assert state["progress"]["step"] == 4 and state["progress"]["best_step"] == 2
    assert json.loads((tmp_path / "run" / "args.json").read_text())["best_step"] == 2


def test_what_it_took_is_recorded(world, tmp_path):
    run(world, "--output_dir", tmp_path / "run", "--max_steps", 8, "--time_or_name", "arm")
    args = json.loads((tmp_path / "run" / "args.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert args["steps"] == 8 == lines[-1]["iteration"] and args["finished"] == "all steps done"
    from tape.datasets import StabilityDataset

    assert args["residues"] == 2 * int(StabilityDataset(world, "train").lengths.sum()), "two epochs"
    assert args["minutes"] >= 0 and args["device"] == "cpu" and args["processes"] == 1
    assert args["recipe"]["from"]["max_steps"] == "flag" and args["recipe"]["values"]["max_steps"] == 8
    assert args["command"].startswith("tape-train transformer stability --data_dir")


def test_no_evaluations_keep_the_newest_weights(world, tmp_path):
    only_train = tmp_path / "data"
    (only_train / "stability").mkdir(parents=True)
    (only_train / "stability" / "stability_train.lmdb").symlink_to(world / "stability" / "stability_train.lmdb")
    flags = ("--eval_freq", 0, "--data_dir", only_train)
    run(world, "--output_dir", tmp_path / "run", *flags)
    assert same(tmp_path / "run", tmp_path / "run" / "last")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert not any("dataset" in line for line in lines)
    args = json.loads((tmp_path / "run" / "args.json").read_text())
    assert args["best"] is None and args["best_step"] == 4 and args["validation"]["method"] == "none"
    run(world, "--output_dir", tmp_path / "run", *flags, "--resume")


def test_force_save_begins_a_started_run_anew(world, tmp_path):
    out = tmp_path / "run"
    run(world, "--output_dir", out, "--seed", 1)
    before = weights(out)
    (out / "stability-test.json").write_text("{}")
    (out / "notes.txt").write_text("mine")
    run(world, "--output_dir", out, "--seed", 2, "--force_save")
    assert any(not torch.equal(value, before[name]) for name, value in weights(out).items())
    assert not (out / "stability-test.json").exists() and (out / "notes.txt").exists()
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2, "no line of the run before"


def test_force_save_with_a_directory_writes_the_untrained_model(world, tmp_path, capsys):
    run(world, "--force_save", tmp_path / "shape", "--output_dir", tmp_path / "never")
    assert "untrained model ->" in capsys.readouterr().out
    model = ProteinBertForValuePrediction.from_pretrained(tmp_path / "shape")
    assert model.config.hidden_size == 16 and not (tmp_path / "never").exists()


def test_names_of_directories(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(world, "--max_steps", 1)
    run(world, "--max_steps", 1, "--time_or_name", "mine")
    run(world, "--max_steps", 1, "--output_dir", "out", "--exp_name", "theirs")
    names = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert names[1] == "stability-transformer-mine" and names[0].startswith("stability-transformer-2")
    assert (tmp_path / "out" / "theirs" / "model.safetensors").is_file()


def test_other_weights_than_the_run_began_with_are_refused(world, tmp_path, capsys):
    run(world, "--output_dir", tmp_path / "a", "--learning_rate", 0)
    run(world, "--output_dir", tmp_path / "run", "--from_pretrained", tmp_path / "a")
    run(world, "--output_dir", tmp_path / "a", "--force_save", "--seed", 9)
    run(world, "--output_dir", tmp_path / "run", "--from_pretrained", tmp_path / "a", "--resume", status=2)
    assert "is not the one that" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [("--fp16",), ("--fp16", "--loss_scale", 128), ("--bf16",), ("--recompute",)])
def test_half_precision_and_recomputation_run(world, tmp_path, flags):
    run(world, "--output_dir", tmp_path / "run", "--num_log_iter", 1, *flags)
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["loss"] == line["loss"] and line["loss_scale"] == (128 if len(flags) == 3 else line["loss_scale"])


def test_recomputation_changes_nothing(world, tmp_path):
    off = write_config(tmp_path / "off.json", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    for name, flags in (("plain", ()), ("again", ("--recompute",))):
        run(world, "--output_dir", tmp_path / name, "--model_config_file", off, *flags)
    assert same(tmp_path / "plain", tmp_path / "again")


def test_a_run_that_starts_afresh_moves_the_earlier_log_aside(world, tmp_path, capsys):
    """--resume where a kill came before the first saved state: nothing is gone on from, and nothing is lost."""
    out = tmp_path / "run"
    run(world, "--output_dir", out)
    before = (out / "metrics.jsonl").read_text()
    (out / "last" / "state.pt").unlink()
    run(world, "--output_dir", out, "--resume")
    assert f"the log of an earlier run is now {out}/metrics.jsonl.1" in capsys.readouterr().out
    assert (out / "metrics.jsonl.1").read_text() == before
    assert len((out / "metrics.jsonl").read_text().splitlines()) == len(before.splitlines())


def test_the_command_of_a_run_that_was_cut_off_goes_on(world, tmp_path, monkeypatch, capsys):
    """Without --resume: before the first saved state it begins anew, after it it ends where an undisturbed run does."""
    flags = ("--eval_steps", 1, "--learning_rate", 1e-2)
    run(world, "--output_dir", tmp_path / "whole", *flags)
    step = Trainer.train_step

    def interrupted(self, parts, share):
        if self.progress.step == at:
            raise KeyboardInterrupt
        return step(self, parts, share)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    for at in (0, 2):
        run(world, "--output_dir", tmp_path / "cut", *flags, status=130)
        assert capsys.readouterr().err.startswith("interrupted; the same command")
        assert (tmp_path / "cut").exists() == (at > 0), "nothing is left of a run without a step"
    monkeypatch.setattr(Trainer, "train_step", step)
    run(world, "--output_dir", tmp_path / "cut", *flags, "--seed", 5, status=2)
    assert "already holds a run" in capsys.readouterr().err
    run(world, "--output_dir", tmp_path / "cut", *flags)
    assert "which was cut off; going on" in capsys.readouterr().out
    assert same(tmp_path / "whole", tmp_path / "cut")
    run(world, "--output_dir", tmp_path / "cut", *flags, status=2)
    assert "already holds a run" in capsys.readouterr().err


def test_a_run_that_is_begun_anew_in_vain_keeps_what_it_had(world, tmp_path):
    run(world, "--output_dir", tmp_path / "run")
    before = weights(tmp_path / "run")
    run(world, "--output_dir", tmp_path / "run", "--force_save", "--data_dir", tmp_path / "absent", status=2)
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path / "run").items())
    assert (tmp_path / "run" / "args.json").is_file() and (tmp_path / "run" / "metrics.jsonl").is_file()
