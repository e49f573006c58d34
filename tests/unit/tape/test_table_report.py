"""results.json and its pages from runs whose scores are made up: means, intervals, pairs, reasons, what is missing."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from proteinlm.errors import InputError
from tape.reporting import collect as report
from tape.reporting import pages
from tape.runs.jobs import RECORD, Arm, Job
from tape.scoring import bootstrap
from tape.scoring.bootstrap import paired_difference
from tape.scoring.files import load_scores, save_predictions
from tape.tasks import TASKS, Prediction

RNG = np.random.default_rng(0)
TRUTH = RNG.normal(size=60)
ARMS = ("pretrained", "random", "onehot")


def fake(root: Path, arm: str, seed: int, noise: float, split: str = "test", cropped: int = 0, **recipe) -> Job:
    """A finished run of stability whose predictions are the truth and noise."""
    directory = root / arm / f"seed{seed}"
    directory.mkdir(parents=True, exist_ok=True)
    predictions = [Prediction(str(i), 40, np.array(t + noise * RNG.normal()), np.array(t)) for i, t in enumerate(TRUTH)]
    save_predictions(directory / f"stability-{split}.npz", TASKS["stability"], split, predictions)
    metrics = TASKS["stability"].score(predictions)
    result = {
        "task": "stability", "model_type": "transformer", "split": split, "metric": "spearmanr", "metrics": metrics,
        "value": metrics["spearmanr"], "n_examples": 60, "head": "tape", "seed": seed, "parameters": 1000,
        "args": {"batch_size": 8, "max_steps": 2}, "training": {"total_steps": 2, "best_step": 1, "residues": 640},
        "truncated": {"max_length": 30, "proteins_cropped": cropped}, "precision": "float32", "device_name": "a CPU",
        "validation": {"method": "clusters", "train": 50_000, "held_out": 3_614},
        "checkpoint": {"weights_sha256": "f" * 64, "from_pretrained": None},
    }  # fmt: skip
    (directory / f"stability-{split}.json").write_text(json.dumps(result))
    record = {"train_command": "python -m tape.train", "train_minutes": 1.5, "eval_minutes": 0.5, "recipe": recipe}
    (directory / RECORD).write_text(json.dumps({"source": ""} | record))
    return Job(Arm(arm, "transformer", ()), "stability", seed, directory, recipe, (), (), (split,))


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch):
    monkeypatch.setitem(bootstrap.RESAMPLES, "spearman", 300)


@pytest.fixture
def jobs(tmp_path) -> list[Job]:
    noises = {"pretrained": 0.5, "random": 1.0, "onehot": 3.0}
    return [fake(tmp_path, arm, seed, noises[arm]) for arm in ARMS for seed in (0, 1)]


def collect(jobs: list[Job], **failed: str) -> dict:
    return report.collect(jobs, failed, {"command": "bash scripts/reproduce_table.sh model <data>"})


def test_a_row_is_the_mean_over_seeds_with_an_interval_over_proteins(jobs):
    row = collect(jobs)["rows"][0]
    columns = [np.load(job.directory / "stability-test.npz")["columns"] for job in jobs[:2]]
    each = [stats.spearmanr(*pair.T).statistic for pair in columns]
    assert row["arm"] == "pretrained" and row["per_seed"] == pytest.approx(each)
    assert row["value"] == pytest.approx(np.mean(each)) and row["spread"] == pytest.approx(np.std(each, ddof=1))
    draws = np.random.default_rng(1).integers(60, size=(500, 60))
    means = [np.mean([stats.spearmanr(*pair[draw].T).statistic for pair in columns]) for draw in draws]
    assert [row["interval"]["low"], row["interval"]["high"]] == pytest.approx(
        np.percentile(means, [2.5, 97.5]), abs=0.03
    )
    assert (row["steps"], row["residues_seen"], row["train_minutes"]) == ([2, 2], [640, 640], [1.5, 1.5])
    assert row["train_proteins"] == 53_614  # the held-out part is of train


@pytest.mark.parametrize(("change", "message"), [("fewer", "59 scores of 59 proteins"), ("others", "other proteins")])
def test_scores_of_other_proteins_are_named(jobs, change, message):
    file = jobs[1].directory / "stability-test.npz"
    arrays = dict(np.load(file))
    per_protein = [name for name, array in arrays.items() if array.shape[:1] == (60,)]
    changed = {name: arrays[name][:59] for name in per_protein} if change == "fewer" else {"ids": arrays["ids"][::-1]}
    np.savez(file, **arrays | changed)
    with pytest.raises(InputError, match=rf"stability-test\.npz: {message}"):
        collect(jobs)


def test_pairs_are_the_first_arm_minus_each_other(jobs):
    results = collect(jobs)
    assert [(d["arm"], d["minus"]) for d in results["differences"]] == [
        ("pretrained", "random"),
        ("pretrained", "onehot"),
    ]
    values = {row["arm"]: row["value"] for row in results["rows"]}
    for difference in results["differences"]:
        assert difference["value"] == pytest.approx(values["pretrained"] - values[difference["minus"]])
        assert difference["low"] < difference["value"] < difference["high"]
    assert results["differences"][1]["low"] > 0  # noise of 0.5 against 3


def test_one_run_agrees_with_the_plain_paired_difference(tmp_path):
    jobs = [fake(tmp_path, "pretrained", 0, 0.5), fake(tmp_path, "random", 0, 1.0)]
    scores = [load_scores(job.directory / "stability-test.npz") for job in jobs]
    expected = paired_difference(*scores)
    difference = collect(jobs)["differences"][0]
    assert {key: difference[key] for key in expected} == pytest.approx(expected)


def test_what_makes_two_numbers_incomparable_is_reported(tmp_path):
    jobs = [fake(tmp_path, "pretrained", 0, 0.5, cropped=4), fake(tmp_path, "random", 1, 1.0, learning_rate=0.1)]
    results = collect(jobs)
    assert "4 proteins cropped to 30 residues" in results["rows"][0]["warnings"]
    warnings = results["differences"][0]["warnings"]
    assert warnings == [
        "seeds: pretrained [0], random [1]",
        "recipe: learning_rate None against 0.1",
        "length: cropped at different lengths",
    ]
    reasons = results["rows"][0]["published"]["ProteinLM-3B"]["reasons"]
    assert [reason.split(":")[0] for reason in reasons] == [
        "proteins",
        "head",
        "length",
        "seeds",
        "training",
        "encoder",
    ]


def test_other_proteins_have_no_paired_difference(tmp_path):
    jobs = [fake(tmp_path, "pretrained", 0, 0.5), fake(tmp_path, "random", 0, 1.0)]
    path = jobs[1].directory / "stability-test.npz"
    stored = dict(np.load(path))
    np.savez(path, **(stored | {"ids": stored["ids"][::-1]}))
    difference = collect(jobs)["differences"][0]
    assert difference["value"] is None and "different proteins" in difference["warnings"][0]


def test_what_is_missing_is_named_everywhere(jobs):
    lost = dataclasses.replace(jobs[-1], seed=7, directory=jobs[-1].directory.parent / "seed7")
    results = collect([*jobs, lost], **{"onehot stability seed 7": "out of <memory>"})
    assert results["not_run"] == [
        {"task": "stability", "arm": "onehot", "seed": 7, "splits": ["test"], "why": "out of <memory>"}
    ]
    assert "onehot stability seed 7: test (out of <memory>)" in pages.to_markdown(results)
    assert "out of &lt;memory&gt;" in pages.to_html(results)


def test_pages(jobs, tmp_path):
    results = collect(jobs)
    pages.write_pages(results, tmp_path)
    text = (tmp_path / "table.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| stability | test"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:6] == ["Spearman's rho", "tape", "60", "2"]
    assert [cell.split(" ")[0] for cell in cells[-4:]] == ["0.19", "0.73", "0.77", "0.79"]
    assert all("(" in cell for cell in cells[-4:])  # never without the notes
    notes = [line for line in text.splitlines() if line.startswith("1. ")]
    assert notes and "| 2 x 8 | 1 | 640 |" in text
    page = (tmp_path / "table.html").read_text()
    assert page.count("<svg") == 1 and page.count("<table>") == 2 and "<data>" not in page
    assert not [word for word in ("<script", "<img", "<link", "url(http") if word in page]
    pages.write_pages(collect(jobs), tmp_path)
    assert (tmp_path / "table.html").read_text() == page  # a function of the results alone
