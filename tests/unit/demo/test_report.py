"""The report: verdicts from paired bootstrap intervals, and one HTML file that needs no other."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from demo import report, run
from demo.budget import BUDGETS, TASKS, TEST_SPLIT
from demo.paths import STARTS, Paths
from proteinlm.errors import InputError
from tape.runs.flags import flag_words

ROOT = Path(__file__).parents[3]


def _save(directory, task, split, kind, columns):
    directory.mkdir(parents=True, exist_ok=True)
    np.savez(directory / f"{task}-{split}.npz", kind=np.array(kind), columns=np.asarray(columns, float))


def _accuracy(tmp_path, pretrained, baseline):
    for name, share in (("a", pretrained), ("b", baseline)):
        right = (np.arange(100) < share * 100).astype(float)
        _save(tmp_path / name, "remote_homology", "test_fold_holdout", "ratio", np.stack([right, np.ones(100)], axis=1))
    return report.compare("remote_homology", "test_fold_holdout", tmp_path / "a", tmp_path / "b")


def test_a_clear_gain_excludes_zero(tmp_path):
    comparison = _accuracy(tmp_path, 0.9, 0.5)
    assert comparison.proteins == 100
    assert comparison.difference["value"] == pytest.approx(0.4)
    # 40 of 100 pairs differ by 1: standard error sqrt(0.4 * 0.6 / 100) = 0.049, so the interval is about 0.4 +-
    # 0.096.
    assert comparison.difference["low"] == pytest.approx(0.304, abs=0.02)
    assert comparison.excludes_zero and "better" in comparison.verdict


@pytest.mark.parametrize(
    ("pretrained", "baseline", "word"), [(0.52, 0.5, "includes 0"), (0.5, 0.5, "includes 0"), (0.4, 0.8, "WORSE")]
)
def test_no_gain_is_reported(tmp_path, pretrained, baseline, word):
    comparison = _accuracy(tmp_path, pretrained, baseline)
    assert not comparison.excludes_zero and word in comparison.verdict


def _comparison(task, low, high):
    interval = {"value": (low + high) / 2, "low": low, "high": high}
    return report.Comparison(task, "test", 50, interval, interval, interval)


def test_the_last_line_names_what_failed():
    good = [_comparison(task, 0.1, 0.2) for task in report.MUST_EXCEED]
    assert report.verdict_lines([*good, _comparison("fluorescence", -0.1, 0.1)])[-1].startswith("passed")
    bad = [_comparison("stability", -0.01, 0.2), _comparison("contact_prediction", -0.2, -0.1), *good[1:3]]
    last = report.verdict_lines(bad)[-1]
    assert last.startswith("FAILED") and "stability" in last and "contact_prediction" in last and "remote" not in last


def test_unigram_entropy_by_hand(tmp_path):
    (tmp_path / "x.fasta").write_text(">a\nAAAC\n>b\nACGG\n")  # A 4/8, C 2/8, G 2/8
    assert report.unigram_entropy(tmp_path / "x.fasta") == pytest.approx(1.5 * np.log(2))


@pytest.fixture
def paths(tmp_path, monkeypatch) -> Paths:
    """A run's corpus and pretraining log, and contacts that need no model."""
    paths = Paths(tmp_path)
    paths.data.mkdir()
    (paths.data / "corpus.fasta").write_text(">a\nMKVLA\n>b\nMKTLA\n")
    paths.checkpoint.mkdir()
    lines = [{"iteration": i, "lm_loss": 3.0 / (i + 1)} for i in range(5)] + [{"iteration": 4, "valid_loss": 0.7}]
    (paths.checkpoint / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    scores = np.random.default_rng(0).normal(size=(9, 9))
    prediction = SimpleNamespace(scores=scores, labels=np.eye(9), id="p<1>")
    task = SimpleNamespace(per_protein=lambda predictions: np.array([0.5, np.nan, 0.2]))
    monkeypatch.setattr(report, "predict_contacts", lambda paths, start: ([prediction] * 3, task))
    return paths


def test_picture_of_the_front_page(paths):
    paths.model.mkdir()
    (paths.model / "config.json").write_text('{"num_hidden_layers": 3, "hidden_size": 128}')
    draw = runpy.run_path(str(ROOT / "benchmarks/front_page.py"))["draw"]
    figure = draw(paths, {"seed": 7})
    caption = figure.subfigs[1].get_supxlabel()
    assert "seed 7" in caption and "3 layers and width 128" in caption
    curve, (true, predicted, *_) = figure.subfigs[0].axes[0], figure.subfigs[1].axes
    assert [line.get_label() for line in curve.lines][:2] == ["training", "validation"]
    assert np.array_equal(true.images[0].get_array(), np.eye(9))
    assert "0.20" in predicted.get_title()  # the median of 0, 0.2 and 0.5


@pytest.mark.slow
def test_the_front_page_is_drawn_from_any_folder(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks/front_page.py"), "absent", "picture.png"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True)
    assert "No such file or directory: 'absent/facts.json'" in done.stderr  # it got as far as reading the demo


def test_the_surest_pairs_are_those_that_the_metric_counts():
    """Ten residues, so two pairs: the two highest above the diagonal among those that are counted."""
    from matplotlib.figure import Figure

    labels, values = np.zeros((10, 10)), np.zeros((10, 10))
    labels[0, 8], labels[2, 3] = 1, -1
    values[0, 8], values[1, 9], values[2, 3], values[8, 0] = 0.9, 0.8, 1.0, 1.0  # not counted; below the diagonal
    axis = Figure().subplots()
    report._mark_surest(axis, values, labels)
    marked = {dots.get_label(): dots.get_offsets().tolist() for dots in axis.collections}
    assert marked == {"top L/5: a contact": [[8, 0]], "top L/5: no contact": [[9, 1]]}


@pytest.mark.slow
def test_report_is_one_file_that_refers_to_no_other(paths, tmp_path):
    rng = np.random.default_rng(0)
    for task, split in TEST_SPLIT.items():
        for start in STARTS:
            directory = paths.run(task, start)
            if task in ("fluorescence", "stability"):
                truth = rng.normal(size=60)
                noise = 0.3 if start == "pretrained" else 3.0
                _save(
                    directory, task, split, "spearman", np.stack([truth + noise * rng.normal(size=60), truth], axis=1)
                )
            else:
                right = rng.random(60) < (0.9 if start == "pretrained" else 0.3)
                _save(directory, task, split, "ratio", np.stack([right, np.ones(60)], axis=1))
            result = {
                "task": task,
                "split": split,
                "metric": "accuracy",
                "value": 0.5,
                "n_examples": 60,
                "head": "tape",
            }
            result |= {"checkpoint": {"from_pretrained": None}, "seed": 1, "run": start}
            (directory / f"{task}-{split}.json").write_text(json.dumps(result))
    facts = {"budget": "small", "seed": 0, "cores": 2, "counts": {"corpus.fasta": 2}, "seconds": {"pretrain": 1.25}}
    verdicts = report.write_report(paths, facts)
    text = (tmp_path / "report.html").read_text()
    assert verdicts[-1].startswith("passed") and verdicts[-1].replace("|", "") in text
    assert len(re.findall(r'<img [^>]*src="data:image/png;base64,', text)) == 3
    assert not re.findall(r'(?:src|href)="(?!data:)', text) and "<script" not in text
    assert "head <code>tape</code>" in text and all(task in text for task in TEST_SPLIT)
    rows = json.loads((tmp_path / "comparisons.json").read_text())
    assert [row["task"] for row in rows] == list(TEST_SPLIT) and rows[0]["difference"]["low"] > 0


def test_commands_have_the_same_budget_from_both_starts():
    paths, budget = Paths(Path("out")), BUDGETS["full"]
    for task in TASKS:
        pretrained, baseline = (run.finetune_words(paths, budget, task, start, 1, {"bf16": True}) for start in STARTS)
        differ = set(pretrained[0]) ^ set(baseline[0])
        directories = {str(paths.run(task, start)) for start in STARTS}
        assert differ == {"--from_pretrained", "--model_config_file", *STARTS, *directories}
        assert pretrained[0][pretrained[0].index("--head") + 1] == "tape" and pretrained[0][-1] == "--bf16"
    assert set(budget.finetune) == set(TASKS) == set(TEST_SPLIT)


def test_flag_words():
    assert flag_words({"lr": 0.001, "bf16": True, "data-path": Path("a b")}) == [
        "--lr",
        "0.001",
        "--bf16",
        "--data-path",
        "a b",
    ]


def test_output_must_be_new_or_empty(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match="not an empty directory"):
        run.prepare(tmp_path)
    assert run.prepare(tmp_path / "new").logs.is_dir()


def test_a_failing_command_names_its_log(tmp_path):
    with pytest.raises(InputError, match=r"status [12].*x\.log"):
        run.command("pretrain.no_such_module", [], tmp_path / "x.log", 1)
