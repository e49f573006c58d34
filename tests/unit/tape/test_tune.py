"""tape.tune: the grid's best recipe on proteins held out of train; every mistake is reported before a trial starts."""

import json
import math
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from toy_data import write_config, write_split

from proteinlm import errors
from tape import train, tune
from tape.registry import TASKS
from tape.tune import Score, Trial, at_the_edge, ranked, read_grid


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A train split, and no other: whoever opens valid or test stops."""
    root = tmp_path_factory.mktemp("tune")
    write_split(root, "stability", "train", count=48, seed=0)
    write_config(root / "config.json", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return root


def words(world: Path, *more: object) -> list[str]:
    line = ["transformer", "stability", "--data_dir", world, "--model_config_file", world / "config.json"]
    line += ["--device", "cpu", "--recipe", "none", "--max_steps", 12, "--eval_steps", 6, "--batch_size", 8, *more]
    return [str(word) for word in line]


@pytest.fixture
def in_process(monkeypatch) -> list[list[str]]:
    """Trials run in this process; the words of each."""
    called: list[list[str]] = []

    def call(module, line, log):
        assert module == "tape.train"
        called.append(list(line))
        assert train.main(line) == 0

    monkeypatch.setattr(tune, "call", call)
    return called


def test_the_best_trial_becomes_a_recipe(world, tmp_path, in_process, capsys):
    out = tmp_path / "out"
    line = ["--grid", "learning_rate", "0", "1e-2", "--grid", "pooling", "mean", "--", *words(world, "--seeds", 0, 1)]
    assert tune.main([out, *line]) == 0
    report = json.loads((out / "trials.json").read_text())
    assert [trial["trial"]["learning_rate"] for trial in report["trials"]] == [0.01, 0.0], "best first"
    for trial in report["trials"]:
        assert len(trial["best"]) == len(trial["steps"]) == 2
        assert trial["mean"] == pytest.approx(sum(trial["best"]) / 2)
    assert report["trials"][0]["mean"] > report["trials"][1]["mean"] + 0.1, "a rate of 0 learns nothing"
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert recipe["learning_rate"] == 0.01 and recipe["pooling"] == "mean" and recipe["max_steps"] == 12
    assert "num_train_epochs" not in recipe and "learning_rate 0.01 is at the edge" in capsys.readouterr().out
    line_of_recipe = [*words(world), "--output_dir", str(tmp_path / "run"), "--holdout", "0.1"]
    line_of_recipe += ["--recipe", str(out / "recipe.yaml")]
    assert train.main(line_of_recipe) == 0

    # A longer grid finds the first trials done and leaves them as they are.
    state = out / "trials" / "learning_rate=0.01,pooling=mean" / "seed0" / "last" / "state.pt"
    before = state.stat().st_mtime_ns
    line[3] = "3e-2"
    assert tune.main([out, *line]) == 0
    line[3:4] = ["1e-2", "3e-2"]
    assert tune.main([out, *line]) == 0
    assert len(json.loads((out / "trials.json").read_text())["trials"]) == 3
    assert state.stat().st_mtime_ns == before


def test_every_trial_is_held_out_of_train(world, tmp_path, in_process):
    assert tune.main([tmp_path / "out", "--grid", "pooling", "first", "--", *words(world)]) == 0
    (line,) = in_process
    assert line[line.index("--holdout") + 1] == "0.1"
    record = json.loads((tmp_path / "out" / "trials" / "pooling=first" / "args.json").read_text())
    assert record["validation"]["fraction"] == 0.1 and record["validation"]["held_out"] > 0


@pytest.mark.parametrize(
    ("grid", "more", "message"),
    [
        (["learnin_rate", "1"], [], "learnin_rate: not a key of a recipe"),
        (["learning_rate"], [], "learning_rate: without values"),
        (["learning_rate", "fast"], [], "learning_rate fast: cannot be used"),
        (["learning_rate", "1e-3", "0.001"], [], "0.001: is given twice"),
        (["learning_rate", "-1"], [], "learning_rate -1: cannot be used (-1 should be at least 0)"),
        (["layer_decay", "nan"], [], "layer_decay nan: cannot be used (nan should be between 0 and 1)"),
        (["patience", "0"], [], "patience 0: cannot be used (0 should be at least 1, or -1 for never)"),
        (["pooling", "median"], [], "should be one of first, mean"),
        (["freeze_encoder", "yes"], [], "true or false"),
        (["batch_size", "4"], [], "--batch_size: is in the grid"),
        (["learning_rate", "1"], ["--output_dir", "x"], "--output_dir: each trial gets its own"),
        (["learning_rate", "1"], ["--holdout", "0"], "--holdout 0: a recipe is chosen on a part of train"),
        (["learning_rate", "1"], ["--max_step", "3"], "did you mean --max_steps"),
    ],
)
def test_mistakes_are_reported_before_a_trial_starts(world, tmp_path, in_process, capsys, grid, more, message):
    try:
        status = errors.run(tune.main, [tmp_path / "out", "--grid", *grid, "--", *words(world, *more)])
    except SystemExit as end:  # tape-train's parser
        status = end.code
    stderr = capsys.readouterr().err
    assert status == 2 and message in stderr and stderr.count("\n") == 1
    assert not in_process and not (tmp_path / "out").exists()


def test_words_that_are_missing(tmp_path, capsys):
    for line in ([tmp_path], [tmp_path, "--grid", "pooling", "mean"]):
        with pytest.raises(SystemExit, match="2"):
            tune.main(line)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "--grid" in lines[0] and "MODEL_TYPE TASK" in lines[1]


def test_a_trial_that_fails_ends_the_rest(world, tmp_path, monkeypatch):
    started = []

    def call(module, line, log):
        started.append(line)
        time.sleep(0.3)  # the main thread needs an instant to call the others off
        raise errors.InputError(f"{log}: {module} ended with status 2: because")

    monkeypatch.setattr(tune, "call", call)
    grid = ["--grid", "learning_rate", *(f"1e-{n}" for n in range(9))]
    assert errors.run(tune.main, [tmp_path / "out", *grid, "--", *words(world)]) == 2
    assert len(started) < 9 and not (tmp_path / "out" / "recipe.yaml").exists()


def test_trials_without_a_number_name_the_weights(world, tmp_path, monkeypatch, capsys):
    """Weights that overflow give one prediction for all: which ones did is said."""
    monkeypatch.setattr(tune, "run_trial", lambda trial: Score(trial, (math.nan,), (0,), 0.0))
    line = [tmp_path / "out", "--grid", "learning_rate", "1e-2", "--", *words(world)]
    for flags, of in ([], ""), (["--from_pretrained", str(world)], f" of {world}"):
        assert errors.run(tune.main, [*line, *flags]) == 2
        assert f"spearmanr is undefined in every trial{of} (predictions" in capsys.readouterr().err


def test_the_order_of_scores():
    def score(*best):
        return Score(Trial({}, Path(), (), None), best, (1,) * len(best), 1.0)

    scores = [score(0.1, 0.3), score(math.nan), score(0.25), score(0.1)]
    assert [s.best for s in ranked(scores, TASKS["stability"])][:3] == [(0.25,), (0.1, 0.3), (0.1,)]
    assert ranked(scores, TASKS["masked_language_modeling"])[0].best == (0.1,)  # perplexity: less is better
    assert math.isnan(ranked(scores, TASKS["stability"])[-1].mean)


def test_grids():
    grid = read_grid([["learning_rate", "1e-4", "1e-3", "1e-2"], ["freeze_encoder", "true", "false"]])
    assert grid == {"learning_rate": [1e-4, 1e-3, 1e-2], "freeze_encoder": [True, False]}
    assert at_the_edge(grid, {"learning_rate": 1e-3, "freeze_encoder": True}) == []
    assert at_the_edge(grid, {"learning_rate": 1e-2, "freeze_encoder": True}) == ["learning_rate"]
    assert tune.words_of({"freeze_encoder": False, "lr": 0.1}) == ["--no-freeze_encoder", "--lr", "0.1"]


@pytest.mark.slow
def test_as_a_command(world, tmp_path, python):
    line = ["--grid", "learning_rate", "1e-3", "1e-2", "--jobs", "2", "--", *words(world)]
    command = [str(python), "-m", "tape.tune", str(tmp_path / "out"), *line]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("spearmanr") == 3 and "recipe.yaml" in done.stdout
    assert "recipe:" in (tmp_path / "out" / "trials" / "learning_rate=0.01.txt").read_text()
