"""One's own table through tape-train, tape-eval and tape-predict, each kind; and a frozen encoder's states."""

import csv
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import matthews_corrcoef
from toy_data import write_config
from toy_table import LABELS, toy_sequences, write_rows, write_table

from proteinlm import errors
from tape import embed, evaluate, predict, train, tune
from tape.finetuning import frozen, trainer
from tape.own_data.data import OwnData
from tape.own_data.kinds import KINDS
from tape.registry import own_data_task
from tape.runs.run_dir import RunProgress
from tape.scoring.files import load_scores

FAST = ("--device", "cpu", "--head", "tape", "--batch_size", 8)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table and a finished run of each kind, the encoder frozen."""
    root = tmp_path_factory.mktemp("own")
    write_config(root / "config.json")
    for kind in KINDS:
        write_table(root / f"{kind}.csv", kind)
        assert run(root, f"{kind}.csv", root / f"run_{kind}", "--num_train_epochs", 2) == 0
    return root


def run(world: Path, table: str, out: Path, *flags: object) -> int:
    """tape-train as the console command runs it, from random weights."""
    base = ["transformer", world / table, "--output_dir", out, "--model_config_file", world / "config.json", *FAST]
    return errors.run(train.main, [str(word) for word in (*base, *flags)])


def score(out: Path, *flags: object, kind: str = "") -> int:
    return errors.run(evaluate.main, [str(word) for word in ("transformer", out, "--device", "cpu", *flags)])


def log(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def rows(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.mark.parametrize("kind", KINDS)
def test_from_table_to_numbers_to_predictions(world, tmp_path, capsys, kind):
    """The run directory is all that scoring and prediction need: the table is gone meanwhile."""
    out, hidden = world / f"run_{kind}", world / "hidden.csv"
    (world / f"{kind}.csv").rename(hidden)
    try:
        assert score(out, "--split", "valid", "test", "--save_predictions") == 0
        table = write_rows(tmp_path / "new.csv", [(f"N{i}", s) for i, s in enumerate(toy_sequences(7, seed=5))],
                           ("name", "seq"))  # fmt: skip
        fasta = tmp_path / "new.fasta"
        fasta.write_text("".join(f">N{i}\n{s}\n" for i, s in enumerate(toy_sequences(7, seed=5))))
        for source, target in ((table, "a.csv"), (fasta, "b.tsv")):
            assert errors.run(predict.main, [str(out), str(source), str(tmp_path / target), "--device", "cpu"]) == 0
    finally:
        hidden.rename(world / f"{kind}.csv")
    printed = capsys.readouterr().out
    assert "leak check: 0 of 4 test proteins" in printed and f"{kind} test n=4" in printed
    result = json.loads((out / f"{kind}-test.json").read_text())
    task = own_data_task(OwnData.load(out), "transformer")
    assert set(result["requested"]) == set(result["intervals"]) == set(task.metrics)
    assert result["own_data"]["leak"]["test"]["relative_in_train"] == 0
    assert [row["class"] for row in result["own_data"]["per_class"]] == list(task.own.classes)
    stored = load_scores(out / f"{kind}-test.npz")
    assert len(stored.columns) == 4
    assert rows(tmp_path / "a.csv") == rows(tmp_path / "b.tsv")
    first = rows(tmp_path / "a.csv")[0]
    assert first["id"] == "N0" and {f"p_{name}" for name in task.own.classes} <= set(first)
    assert {row["target"] for row in rows(tmp_path / "a.csv")} - {""} or kind == "multilabel"


def test_predictions_are_the_runs_numbers(world, tmp_path):
    """The metric of tape-eval, made again from what tape-predict writes for the same proteins."""
    out = world / "run_classification"
    data = OwnData.load(out)
    test = [protein for protein in data.proteins if protein.split == "valid"]
    write_rows(tmp_path / "in.csv", [(p.id, p.sequence) for p in test], ("id", "sequence"))
    assert errors.run(predict.main, [str(out), str(tmp_path / "in.csv"), str(tmp_path / "out.csv")]) == 0
    assert score(out, "--split", "valid") == 0
    predicted = [row["target"] for row in rows(tmp_path / "out.csv")]
    expected = matthews_corrcoef([data.classes[p.target] for p in test], predicted)
    assert json.loads((out / "classification-valid.json").read_text())["metrics"]["mcc"] == pytest.approx(expected)


def test_regression_is_in_the_tables_units(world, tmp_path):
    """Targets lie around 108; a head that hardly learned predicts train's mean, not 0."""
    data = OwnData.load(world / "run_regression")
    assert 100 < data.mean < 120 and data.std > 1
    write_rows(tmp_path / "in.csv", [(p.id, p.sequence) for p in data.proteins[:5]], ("id", "sequence"))
    words = [str(world / "run_regression"), str(tmp_path / "in.csv"), str(tmp_path / "out.csv")]
    assert errors.run(predict.main, words) == 0
    values = [float(row["target"]) for row in rows(tmp_path / "out.csv")]
    assert all(abs(value - data.mean) < 3 * data.std for value in values)
    assert score(world / "run_regression", "--split", "valid") == 0
    result = json.loads((world / "run_regression" / "regression-valid.json").read_text())
    assert result["metrics"]["rmse"] < 3 * data.std < 100


def test_it_learns_and_labels_that_mean_nothing_are_not_learned(world, tmp_path):
    """Lysines from the embeddings of a random encoder; and, the control, the same labels in another order."""
    sequences = toy_sequences(120, seed=3)
    labels = [float(LABELS["regression"](sequence)) for sequence in sequences]
    shuffled = np.random.default_rng(0).permutation(labels).tolist()
    best = {}
    for name, values in (("real", labels), ("shuffled", shuffled)):
        write_rows(
            tmp_path / f"{name}.csv", [(i, s, v) for i, (s, v) in enumerate(zip(sequences, values, strict=True))]
        )
        assert run(world, tmp_path / f"{name}.csv", tmp_path / name, "--num_train_epochs", 30) == 0
        scores = [line["spearmanr"] for line in log(tmp_path / name) if "spearmanr" in line]
        best[name] = scores[-1]
    assert best["real"] > 0.8 > 0.6 > best["shuffled"]


@pytest.mark.parametrize("kind", ["classification", "per_residue"])
def test_kept_states_change_no_number(world, tmp_path, kind, capsys):
    flags = ("--num_train_epochs", 2, "--embeddings_dir")
    assert run(world, f"{kind}.csv", tmp_path / "without", *flags, "none") == 0
    assert run(world, f"{kind}.csv", tmp_path / "with", *flags, tmp_path / "states") == 0
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("without", "with"))
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-5, rtol=1e-4)
    for a, b in zip(log(tmp_path / "without"), log(tmp_path / "with"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
    # the control: states of another encoder are seen in the numbers
    (path,) = (tmp_path / "states").glob("*.npy")
    np.save(path, np.load(path)[:, ::-1])
    assert run(world, f"{kind}.csv", tmp_path / "wrong", *flags, tmp_path / "states") == 0
    assert log(tmp_path / "wrong")[-1]["loss"] != pytest.approx(log(tmp_path / "with")[-1]["loss"], abs=1e-4)
    for damaged in (np.load(path)[1:], np.load(path) * np.nan):
        np.save(path, damaged)
        assert run(world, f"{kind}.csv", tmp_path / "not", *flags, tmp_path / "states") == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {path}: ")


def test_states_are_made_once(world, tmp_path, monkeypatch):
    """Another seed and another rate find them; another pooling, and labels of another table, do not share them."""
    calls = []
    original = frozen._compute
    monkeypatch.setattr(frozen, "_compute", lambda *rest: (calls.append(1), original(*rest)))
    flags = ("--max_steps", 2, "--embeddings_dir", tmp_path / "states")
    assert run(world, "regression.csv", tmp_path / "a", *flags) == 0
    assert run(world, "regression.csv", tmp_path / "b", *flags, "--learning_rate", 1e-4) == 0
    assert len(calls) == 1
    assert run(world, "regression.csv", tmp_path / "c", *flags, "--pooling", "first") == 0
    assert len(calls) == 2


def test_a_killed_run_goes_on_embedding(world, tmp_path, monkeypatch):
    """SIGKILL while a part is being written: the next run makes the parts that are missing, and the same file."""
    monkeypatch.setattr(frozen, "PART_PROTEINS", 8)
    flags = ("--max_steps", 2, "--embeddings_dir")
    save, saved = frozen.PartStore.save, []

    def counted(store: frozen.PartStore, part: int, arrays: dict) -> None:
        saved.append(part)
        if len(saved) == 3 and os.getpid() != parent:
            store.path(part).with_name("half.tmp").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        save(store, part, arrays)

    monkeypatch.setattr(frozen.PartStore, "save", counted)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        run(world, "regression.csv", tmp_path / "run", *flags, tmp_path / "states")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert run(world, "regression.csv", tmp_path / "run", *flags, tmp_path / "states", "--resume") == 0
    assert saved == [2, 3, 4]  # of 40 proteins in parts of 8; 0 and 1 were there
    saved.clear()
    assert run(world, "regression.csv", tmp_path / "whole", *flags, tmp_path / "other") == 0
    (resumed,), (whole,) = (list((tmp_path / name).iterdir()) for name in ("states", "other"))
    assert resumed.name == whole.name and resumed.read_bytes() == whole.read_bytes()


def test_parts_of_a_run_that_was_killed_when_its_states_were_there_go(world, tmp_path, monkeypatch):
    flags = ("--max_steps", 2, "--embeddings_dir", tmp_path / "states")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(frozen.PartStore, "_remove", lambda store: sys.exit(9))
        run(world, "regression.csv", tmp_path / "run", *flags)
    assert sorted(path.suffix for path in (tmp_path / "states").iterdir()) == [".npy", ".parts"]
    assert run(world, "regression.csv", tmp_path / "run", *flags) == 0
    assert [path.suffix for path in (tmp_path / "states").iterdir()] == [".npy"]


def test_the_best_head_is_written_though_epochs_pass_in_between(world, tmp_path, monkeypatch):
    """What is kept in memory until a state is due is what an immediate write leaves."""
    flags = ("--num_train_epochs", 6, "--learning_rate", 0.05)
    assert run(world, "classification.csv", tmp_path / "late", *flags) == 0
    monkeypatch.setattr(trainer, "STATES_SAVE_SECONDS", 0.0)
    assert run(world, "classification.csv", tmp_path / "at_once", *flags) == 0
    late, at_once = (load_file(tmp_path / name / "model.safetensors") for name in ("late", "at_once"))
    assert all(torch.equal(late[name], value) for name, value in at_once.items())
    args = [json.loads((tmp_path / name / "args.json").read_text()) for name in ("late", "at_once")]
    assert args[0]["best_step"] == args[1]["best_step"] > 0


@pytest.mark.parametrize(("breaks", "expected"), [(True, [True, False]), (False, [False, False])])
def test_of_equal_scores_the_lower_loss_is_better(breaks, expected):
    """A rare class that nothing is named by has MCC 0 epoch after epoch; TAPE's tasks keep their rule."""
    one = object.__new__(trainer.Trainer)
    one.task = SimpleNamespace(loss_breaks_ties=breaks, higher_is_better=True)
    one.progress = RunProgress(best=0.0, best_loss=0.6)
    assert [one._improves(0.0, loss) for loss in (0.5, 0.7)] == expected
    assert one._improves(0.1, 0.9) and not one._improves(-0.1, 0.1)


def test_a_tables_own_columns_serve_for_prediction_and_embedding(world, tmp_path):
    """Columns that the run's table had are found in the next one; tape-embed takes a table too."""
    sequences = toy_sequences(30, seed=4)
    rows_in = [(f"name {i}", s, i / 7, "x") for i, s in enumerate(sequences)]
    table = write_rows(tmp_path / "odd.csv", rows_in, ("who", "chain", "melting", "seq"))
    flags = ("--sequence", "chain", "--id", "who", "--target", "melting", "--max_steps", 1)
    assert run(world, table, tmp_path / "run", *flags) == 0
    assert errors.run(predict.main, [str(tmp_path / "run"), str(table), str(tmp_path / "out.csv")]) == 0
    predicted = rows(tmp_path / "out.csv")
    assert [row["id"] for row in predicted] == [f"name {i}" for i in range(30)] and "melting" in predicted[0]
    assert [int(row["length"]) for row in predicted] == list(map(len, sequences))
    fasta = tmp_path / "same.fasta"
    fasta.write_text("".join(f">name{i}\n{s}\n" for i, s in enumerate(sequences)))
    for source, out, more in ((table, "a.h5", ("--sequence", "chain", "--id", "none")), (fasta, "b.h5", ())):
        words = ["transformer", str(source), str(tmp_path / out), str(tmp_path / "run"), "--device", "cpu", *more]
        assert errors.run(embed.main, words) == 0
    with h5py.File(tmp_path / "a.h5") as a, h5py.File(tmp_path / "b.h5") as b:
        np.testing.assert_array_equal(a["avg"][:], b["avg"][:])
        assert a["ids"].asstr()[0] == "line2"


@pytest.mark.parametrize("flags", [("--lora", 2), ("--no-freeze_encoder",)])
def test_the_encoder_can_be_trained_too(world, tmp_path, flags):
    assert run(world, "classification.csv", tmp_path / "run", "--max_steps", 2, *flags) == 0
    args = json.loads((tmp_path / "run" / "args.json").read_text())
    assert args["args"]["freeze_encoder"] is False and args["trained_parameters"] > 1000
    assert score(tmp_path / "run", "--split", "test") == 0
    assert not (tmp_path / "run" / "embeddings").exists()


def test_another_table_is_scored_with_the_leak_said(world, tmp_path, capsys):
    out = world / "run_classification"
    train_protein = next(p for p in OwnData.load(out).proteins if p.split == "train")
    new = [(f"N{i}", s, LABELS["classification"](s)) for i, s in enumerate(toy_sequences(12, seed=9))]
    new += [("T", train_protein.sequence, "few"), ("U", "MKVLAW", "none of these")]
    table = write_rows(tmp_path / "valid.csv", new)
    assert score(out, "--csv", table) == 2
    assert "line 15, column target: 'none of these' is none of the run's classes" in capsys.readouterr().err
    assert score(out, "--csv", table, "--ignore", "none of these") == 0
    printed = capsys.readouterr().out
    assert "1 of 13 valid.csv proteins have a relative in train" in printed and "1 the same sequence" in printed
    assert "notice: 1 proteins labelled none of these left out" in printed
    result = json.loads((out / "classification-valid.csv.json").read_text())
    assert result["n_examples"] == 13 and result["split"] == "valid.csv"


def test_a_changed_table_is_said_and_never_resumed(world, tmp_path, capsys):
    table = write_table(tmp_path / "my.csv", "classification")
    flags = ("--max_steps", 2, "--eval_steps", 1)
    assert run(world, table, tmp_path / "run", *flags) == 0
    table.write_text(table.read_text() + "P99,MKVLAWQKKK,many\n")
    assert run(world, table, tmp_path / "run", *flags, "--resume") == 2
    assert "my.csv: has changed since the run in" in capsys.readouterr().err
    assert score(tmp_path / "run", "--split", "valid") == 0
    assert "my.csv has changed since the run was trained; the run's copy is scored" in capsys.readouterr().out


def test_a_grid_is_tuned_on_valid_and_shares_the_states(world, tmp_path, monkeypatch, capsys):
    """In-process: tune calls tape-train as a program, here as a function."""
    monkeypatch.setattr(tune, "call", lambda module, words, path: errors.run(train.main, list(words)) or 0.0)
    words = ["transformer", world / "regression.csv", "--model_config_file", world / "config.json", *FAST]
    words += ["--max_steps", 2, "--embeddings_dir", tmp_path / "states"]
    grid = [tmp_path / "out", "--grid", "learning_rate", 1e-3, 1e-2, "--", *words]
    assert errors.run(tune.main, [str(word) for word in grid]) == 0
    assert len(list((tmp_path / "states").glob("*.npy"))) == 1
    assert "freeze_encoder: true" in (tmp_path / "out" / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("stability", "--target", "x"), "--target: is of a table of one's own, and stability is none"),
        (("nowhere.csv",), "nowhere.csv: no such file"),
        (("a.csv", "--csv", "b.csv"), "one table at a time"),
        ((), "no task; should be one of"),
        (("classification.csv", "--kind", "clasification"), "invalid choice: 'clasification'"),
        (("classification.csv", "--kind", "regression"), "is not a finite number"),
        (("classification.csv", "--max_length", 30), "classification.csv line 2 (P0): 3"),
        (("classification.csv", "--lora", 2, "--freeze_encoder"), "give one"),
    ],
)
def test_mistakes_are_one_line(world, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(world)
    words = ["transformer", *words, "--output_dir", tmp_path / "run", "--model_config_file", "config.json", *FAST]
    try:
        status = errors.run(train.main, [str(word) for word in words])
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2 and message in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_table_can_be_a_flag_and_the_task_a_name(world, tmp_path):
    base = ["--model_config_file", world / "config.json", *FAST, "--max_steps", 1]
    words = ["transformer", "--csv", world / "regression.csv", "--output_dir", tmp_path / "a", *base]
    assert errors.run(train.main, [str(word) for word in words]) == 0
    words = ["transformer", *base, "--csv", world / "regression.csv", "--output_dir", tmp_path / "b", "melting"]
    assert errors.run(train.main, [str(word) for word in words]) == 0
    assert score(tmp_path / "b", "--split", "test") == 0 and (tmp_path / "b" / "melting-test.json").is_file()
    assert errors.run(evaluate.main, ["transformer", "stability", str(tmp_path / "b")]) == 2
