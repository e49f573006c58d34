"""tape-train on toy tasks: it learns, it resumes bit by bit, it stops in time, and it reports mistakes in one line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_data import FOLDERS, write_config, write_data, write_split

from proteinlm import errors
from tape import train
from tape.finetuning.trainer import Trainer
from tape.tasks import TASKS


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with data of every task and config.json."""
    root = tmp_path_factory.mktemp("world")
    for task in FOLDERS:
        write_data(root, task, train=24 if task == "contact_prediction" else 64)
    write_config(root / "config.json")
    return root


def run(world: Path, task: str, out: Path, *flags: object, random: bool = True) -> int:
    """tape-train as the console command runs it."""
    base = ["transformer", task, "--data_dir", world, "--output_dir", out, "--device", "cpu", "--head", "tape"]
    base += ["--model_config_file", world / "config.json"] if random else []
    return errors.run(train.main, [str(word) for word in (*base, "--batch_size", 8, *flags)])


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("task", sorted(FOLDERS))
def test_every_task_trains(world, tmp_path, task):
    assert run(world, task, tmp_path / "run", "--max_steps", 3, "--num_log_iter", 1) == 0
    log = lines(tmp_path / "run")
    assert [line["iteration"] for line in log if "grad_norm" in line] == [1, 2, 3]
    assert TASKS[task].metric in log[-1]
    args = json.loads((tmp_path / "run" / "args.json").read_text())
    assert args["best_step"] == 3 and args["from_pretrained"] is None and args["args"]["task"] == task
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["finetuning_task"] == task and config["head"] == "tape"


def test_it_learns(world, tmp_path):
    """Labels that follow from the residue: from a third right to nearly all."""
    flags = ("--num_train_epochs", 12, "--learning_rate", 1e-2, "--eval_freq", 12, "--num_log_iter", 1)
    assert run(world, "secondary_structure", tmp_path / "run", *flags) == 0
    log = lines(tmp_path / "run")
    assert log[0]["loss"] > 1.0 > 0.3 > log[-2]["loss"]
    assert log[-1]["accuracy"] > 0.9


def test_labels_that_mean_nothing_are_not_learned(world, tmp_path):
    """The negative control: contacts of random chains stay at chance in validation."""
    assert run(world, "contact_prediction", tmp_path / "run", "--max_steps", 10, "--learning_rate", 1e-2) == 0
    assert lines(tmp_path / "run")[-1]["precision_at_l5"] < 0.5


def test_the_seed_is_the_run(world, tmp_path):
    flags = ("--max_steps", 5)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(world, "stability", tmp_path / name, *flags, "--seed", seed) == 0
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


@pytest.mark.parametrize("task", ["stability", "secondary_structure", "masked_language_modeling"])
def test_a_resumed_run_is_the_uninterrupted_one(world, tmp_path, monkeypatch, task):
    """Killed between two evaluations: the steps since the last saved state are done again, and nothing differs."""
    flags = ("--max_steps", 14, "--eval_steps", 5, "--num_log_iter", 4, "--gradient_accumulation_steps", 2)
    assert run(world, task, tmp_path / "whole", *flags) == 0

    class Killed(Exception):
        pass

    step = Trainer.train_step

    def killed_at_12(self, parts, share):
        if self.progress.step == 12:
            raise Killed
        return step(self, parts, share)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "train_step", killed_at_12)
        run(world, task, tmp_path / "cut", *flags)
    assert lines(tmp_path / "cut")[-1]["iteration"] == 12
    assert run(world, task, tmp_path / "cut", *flags, "--resume") == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    timing = ("seconds", "seconds_per_step")
    whole, cut = (
        [{key: value for key, value in line.items() if key not in timing} for line in lines(tmp_path / name)]
        for name in ("whole", "cut")
    )
    assert whole == cut
    # Resuming a finished run changes nothing.
    before = weights(tmp_path / "cut")
    assert run(world, task, tmp_path / "cut", *flags, "--resume") == 0
    assert same(before, weights(tmp_path / "cut"))


def test_a_run_of_any_length_begins_at_once(world, tmp_path, monkeypatch):
    """The steps are planned as they come: a billion of them take no memory and no time."""
    losses = iter([0.5, 0.4])

    def step(self, parts, share):
        self.progress.step += 1
        return next(losses), 1.0

    monkeypatch.setattr(Trainer, "train_step", step)
    with pytest.raises((StopIteration, RuntimeError)):
        run(world, "stability", tmp_path / "run", "--max_steps", 10**9, "--num_log_iter", 1)
    assert [line["loss"] for line in lines(tmp_path / "run")] == [0.5, 0.4]


def test_resume_with_nothing_saved_starts_afresh(world, tmp_path, capsys):
    assert run(world, "stability", tmp_path / "run", "--max_steps", 2, "--resume") == 0
    assert "starting afresh" in capsys.readouterr().out


def test_a_directory_in_a_files_place_is_refused_before_the_first_step(world, tmp_path, capsys):
    (tmp_path / "run/last/state.pt").mkdir(parents=True)
    assert run(world, "stability", tmp_path / "run", "--max_steps", 2, "--resume") == 2
    assert "state.pt: a directory; the output is a file" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == ["last", "state.pt"]


def test_a_link_to_nothing_is_no_fresh_start(world, tmp_path, capsys):
    (tmp_path / "run/last").mkdir(parents=True)
    (tmp_path / "run/last/state.pt").symlink_to(tmp_path / "gone.pt")
    assert run(world, "stability", tmp_path / "run", "--max_steps", 2, "--resume") == 2
    assert "state.pt: a link to nothing" in capsys.readouterr().err


def first_steps(world: Path, out: Path) -> dict[int, tuple[float, float]]:
    """(loss, gradient norm) of one step on all 64 proteins, by the number of parts it is computed in."""
    config = write_config(world / "no_dropout.json", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    results = {}
    for parts in (1, 5):
        flags = ("--max_steps", 1, "--batch_size", 64, "--gradient_accumulation_steps", parts, "--num_log_iter", 1)
        where = out / f"parts{parts}"
        assert run(world, "masked_language_modeling", where, *flags, "--model_config_file", config) == 0
        results[parts] = (lines(where)[0]["loss"], lines(where)[0]["grad_norm"])
    return results


def test_accumulation_changes_nothing(world, tmp_path, monkeypatch):
    """Sum, then divide once: parts with unequal numbers of hidden residues give the gradient of the whole batch."""
    results = first_steps(world, tmp_path / "sums")
    assert results[1] == pytest.approx(results[5], rel=1e-5)
    # The negative control: a mean of the parts' means is another loss.
    kind = type(TASKS["masked_language_modeling"])
    loss = kind.loss
    monkeypatch.setattr(kind, "loss", lambda *args: (loss(*args)[0] / loss(*args)[1], 1))
    results = first_steps(world, tmp_path / "means")
    assert results[1] != pytest.approx(results[5], rel=1e-4)


def test_patience_stops_and_the_best_weights_stay(world, tmp_path, monkeypatch):
    values = iter([0.1, 0.5, 0.4, float("nan"), 0.45, 0.9])
    real = Trainer.evaluate

    def scripted(self, log):
        object.__setattr__(self, "task", Scripted(self.task, next(values)))
        real(self, log)

    class Scripted:
        """A task whose metric is what the test says."""

        def __init__(self, task, value):
            self.task, self.value = getattr(task, "task", task), value

        def __getattr__(self, name):
            return getattr(self.task, name)

        def score(self, predictions):
            return {self.task.metric: self.value, "n_examples": len(predictions)}

    monkeypatch.setattr(Trainer, "evaluate", scripted)
    flags = ("--max_steps", 60, "--eval_steps", 2, "--patience", 3, "--learning_rate", 1e-2)
    assert run(world, "stability", tmp_path / "run", *flags) == 0
    args = json.loads((tmp_path / "run" / "args.json").read_text())
    assert (args["best_step"], args["best"]) == (4, 0.5)
    assert lines(tmp_path / "run")[-1]["iteration"] == 10
    values = iter([0.1])
    assert run(world, "stability", tmp_path / "short", "--max_steps", 4, "--eval_steps", 9, *flags[6:]) == 0


def test_holdout_never_opens_valid(world, tmp_path, capsys):
    only_train = tmp_path / "data"
    write_split(only_train, "stability", "train", 64, seed=1)
    flags = ("--max_steps", 2, "--holdout", 0.25, "--model_config_file", world / "config.json")
    assert run(only_train, "stability", tmp_path / "run", *flags, random=False) == 0
    assert "held out 16 of 64 proteins" in capsys.readouterr().out
    args = json.loads((tmp_path / "run" / "args.json").read_text())
    assert args["validation"]["held_out"] == 16 and args["validation"]["train"] == 48
    assert lines(tmp_path / "run")[-1]["n_examples"] == 16
    assert lines(tmp_path / "run")[-1]["dataset"] == "holdout"


def test_frozen_encoder_stays_as_it_was(world, tmp_path):
    assert run(world, "stability", tmp_path / "start", "--max_steps", 1, "--learning_rate", 0) == 0
    start = weights(tmp_path / "start")
    flags = ("--from_pretrained", tmp_path / "start", "--max_steps", 6, "--learning_rate", 1e-2)
    for name, extra in (("frozen", ["--freeze_encoder"]), ("slow", ["--encoder_learning_rate_scale", 0]), ("all", [])):
        assert run(world, "stability", tmp_path / name, *flags, *extra, random=False) == 0
        end = weights(tmp_path / name)
        encoder_moved = any(not torch.equal(start[key], end[key]) for key in start if key.startswith("bert."))
        assert encoder_moved == (name == "all")
        assert any(not torch.equal(start[key], end[key]) for key in start if key.startswith("predict."))


def test_learning_rate_warms_up_and_decays(world, tmp_path):
    flags = ("--max_steps", 10, "--warmup_steps", 4, "--learning_rate", 1e-3, "--num_log_iter", 1)
    assert run(world, "stability", tmp_path / "run", *flags) == 0
    rates = [line["learning_rate"] for line in lines(tmp_path / "run") if "learning_rate" in line]
    expected = [0.25, 0.5, 0.75, 1.0, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]
    assert rates == pytest.approx([1e-3 * value for value in expected])


def test_a_loss_that_is_not_finite_never_reaches_the_weights(world, tmp_path, monkeypatch, capsys):
    from tape.tasks.protein_values import ValueTask

    loss, calls = ValueTask.loss, []

    def sometimes_nan(self, logits, batch):
        calls.append(0)
        total, count = loss(self, logits, batch)
        return (total * float("nan"), count) if len(calls) % 2 == 0 else (total, count)

    monkeypatch.setattr(ValueTask, "loss", sometimes_nan)
    assert run(world, "stability", tmp_path / "run", "--max_steps", 4, "--num_log_iter", 1) == 0
    assert lines(tmp_path / "run")[-2]["skipped_steps"] == 2
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())
    monkeypatch.setattr(ValueTask, "loss", lambda *args: (loss(*args)[0] * float("nan"), 1))
    assert run(world, "stability", tmp_path / "never", "--max_steps", 40) == 2
    assert "not finite for 20 steps" in capsys.readouterr().err


def test_bf16_workers_and_tensorboard(world, tmp_path):
    flags = ("--max_steps", 3, "--bf16", "--log_dir", tmp_path / "tb")
    assert run(world, "secondary_structure", tmp_path / "a", *flags) == 0
    assert run(world, "secondary_structure", tmp_path / "b", *flags[:3], "--num_workers", 2) == 0
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert list((tmp_path / "tb").glob("events.*"))


def test_masks_change_with_the_epoch(world, tmp_path):
    """Masked language modelling hides other residues in the second epoch; workers make the same ones."""
    flags = ("--num_train_epochs", 2, "--batch_size", 64, "--learning_rate", 0, "--num_log_iter", 1)
    config = ("--model_config_file", write_config(tmp_path / "still.json", hidden_dropout_prob=0.0,
              attention_probs_dropout_prob=0.0))  # fmt: skip
    for name, workers in (("a", 0), ("b", 2)):
        out = tmp_path / name
        assert run(world, "masked_language_modeling", out, *flags, *config, "--num_workers", workers) == 0
    losses = [[line["loss"] for line in lines(tmp_path / name) if "grad_norm" in line] for name in "ab"]
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][1]


@pytest.mark.parametrize(
    ("task", "flags", "message"),
    [
        ("stabilty", (), "is unknown; should be one of secondary_structure"),
        ("stability", ("--data_dir", "nowhere"), "nowhere/stability/stability_train.lmdb"),
        ("stability", ("--from_pretrained", "nowhere"), "nowhere"),
        ("stability", ("--valid_split", "nonsense"), "has no split 'nonsense'"),
        ("stability", ("--max_length", 30), "crop"),
        ("stability", ("--max_length", 70, "--too_long", "crop"), "at most 62 residues fit"),
        ("stability", ("--fp16", "--bf16"), "exclude each other"),
        ("stability", ("--gradient_accumulation_steps", 9), "at most --batch_size 8"),
        ("stability", ("--device", "abacus"), "should be auto, cpu or cuda"),
        ("stability", ("--holdout", 0.7), "between 0 and 0.5"),
        ("stability", ("--model_config_file", "missing.json"), "missing.json"),
    ],
)
def test_mistakes_are_reported_in_one_line(world, tmp_path, capsys, monkeypatch, task, flags, message):
    monkeypatch.chdir(tmp_path)
    assert run(world, task, tmp_path / "run", "--max_steps", 1, *flags) == 2
    messages = capsys.readouterr().err.strip().splitlines()
    assert message in messages[-1] and messages[-1].startswith("error: ")
    assert not [line for line in messages if "Traceback" in line]
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("flags", [("--batchsize", "8"), ("--patience", "0"), ("--head", "other")])
def test_wrong_flags_are_reported_in_one_line(world, tmp_path, capsys, flags):
    with pytest.raises(SystemExit) as stopped:
        run(world, "stability", tmp_path / "run", *flags)
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_directories_that_cannot_be_used(world, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("not a directory")
    assert run(world, "stability", file / "run", "--max_steps", 1) == 2
    assert run(world, "stability", tmp_path / "run", "--max_steps", 1) == 0
    assert run(world, "stability", tmp_path / "run", "--max_steps", 1) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert run(world, "stability", tmp_path / "run", "--max_steps", 2, "--resume") == 2
    assert "was started with --max_steps 1, not 2" in capsys.readouterr().err
    assert run(world, "stability", tmp_path / "run", "--from_pretrained", tmp_path / "run", random=False) == 2
    assert "would overwrite that model" in capsys.readouterr().err


def test_a_model_of_another_shape_is_refused(world, tmp_path, capsys):
    assert run(world, "stability", tmp_path / "start", "--max_steps", 1) == 0
    other = write_config(tmp_path / "other.json", hidden_size=32)
    flags = ("--from_pretrained", tmp_path / "start", "--model_config_file", other)
    assert run(world, "stability", tmp_path / "run", *flags, random=False) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "16" in message and "32" in message


def test_a_damaged_state_is_refused(world, tmp_path, capsys):
    assert run(world, "stability", tmp_path / "run", "--max_steps", 1) == 0
    state = tmp_path / "run" / "last" / "state.pt"
    state.write_bytes(state.read_bytes()[:500])
    assert run(world, "stability", tmp_path / "run", "--max_steps", 1, "--resume") == 2
    assert "state.pt" in capsys.readouterr().err
