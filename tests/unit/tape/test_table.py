"""tape-table: our numbers beside the published ones, seeds together, differences named."""

import json
import os
from pathlib import Path

import pytest

from proteinlm import errors
from proteinlm.errors import InputError
from tape import table
from tape.reporting import results_table
from tape.reporting.results_table import COLUMNS, build_table


def result(path: Path, value: float | None, seed: int = 0, task: str = "stability", **changes) -> Path:
    """A result file as tape-eval writes it, with some keys changed."""
    metric = {"contact_prediction": "precision_at_l5", "stability": "spearmanr", "fluorescence": "spearmanr"}
    record = {
        "task": task,
        "split": "test",
        "metric": metric.get(task, "accuracy"),
        "value": value,
        "interval": {"low": 0.6, "high": 0.8},
        "n_examples": 12851,
        "head": "tape",
        "run": None,
        "seed": seed,
        "truncated": {"max_length": 2174, "proteins_cropped": 0},
        "checkpoint": {"weights_sha256": "f" * 64, "from_pretrained": {"weights_sha256": "a" * 64}},
    } | changes
    directory = path / f"{task}-{record['split']}-{len(list(path.iterdir())) if path.exists() else 0}"
    directory.mkdir(parents=True)
    (directory / f"{task}-{record['split']}.json").write_text(json.dumps(record))
    return directory


def rows(*paths: Path) -> list[dict[str, str]]:
    return [dict(zip(COLUMNS, row, strict=True)) for row in build_table(paths)]


RANDOM = {"weights_sha256": "e" * 64, "from_pretrained": None}


def test_seeds_share_a_line_with_mean_and_spread(tmp_path):
    for seed, value in enumerate((0.70, 0.72, 0.74)):
        result(tmp_path, value, seed)
        result(tmp_path, value - 0.3, seed, checkpoint=RANDOM)
    table = rows(tmp_path)
    assert [(row["weights"], row["ours"], row["runs"]) for row in table] == [
        ("pretrained", "0.720 ± 0.020", "3"),
        ("random", "0.420 ± 0.020", "3"),
    ]
    assert table[0]["proteins"] == "12,851"
    assert [table[0][name] for name in ("TAPE Transformer", "ProteinLM-200M", "ProteinLM-3B")] == [
        "0.73",
        "0.77",
        "0.79",
    ]


def test_one_run_shows_its_interval(tmp_path):
    result(tmp_path, 0.7)
    assert rows(tmp_path)[0]["ours"] == "0.700 [0.600, 0.800]"


def test_heads_splits_and_models_are_not_mixed(tmp_path):
    result(tmp_path, 0.1)
    result(tmp_path, 0.2, head="proteinlm")
    result(tmp_path, 0.3, split="valid")
    result(tmp_path, 0.4, checkpoint={"weights_sha256": "1", "from_pretrained": {"weights_sha256": "b" * 64}})
    result(tmp_path, 0.5, run="slow recipe")
    table = rows(tmp_path)
    assert len(table) == 5
    assert {row["weights"] for row in table} == {"pretrained aaaaaaaa", "pretrained bbbbbbbb", "slow recipe"}


def test_model_types_and_recipes_are_not_mixed(tmp_path):
    """Different experiments are never averaged as if they were seeds of one."""
    result(tmp_path, 0.7, checkpoint=RANDOM, model_type="transformer", args={"learning_rate": 1e-4, "seed": 0})
    result(tmp_path, 0.1, checkpoint=RANDOM, model_type="onehot", args={"learning_rate": 1e-4, "seed": 0})
    result(tmp_path, 0.5, 1, checkpoint=RANDOM, model_type="transformer", args={"learning_rate": 1e-3, "seed": 1})
    result(tmp_path, 0.9, 1, checkpoint=RANDOM, model_type="transformer", args={"learning_rate": 1e-4, "seed": 1})
    table = {(row["weights"], row["ours"].split()[0], row["runs"]) for row in rows(tmp_path)}
    assert table == {("onehot", "0.100", "1"), ("random", "0.500", "1"), ("random", "0.800", "2")}


def test_what_is_not_comparable_is_reported(tmp_path):
    result(tmp_path, 0.3, split="valid", task="contact_prediction")
    result(tmp_path, 0.7, truncated={"max_length": 30, "proteins_cropped": 4})
    result(tmp_path, 0.7, seed=0)
    result(tmp_path, 5.0, task="masked_language_modeling", split="holdout", metric="perplexity")
    by_task = {row["task"]: row for row in rows(tmp_path)}
    note = by_task["contact_prediction"]["note"]
    assert "split: ours valid, published test (TAPE Transformer, ProteinLM-200M, ProteinLM-3B)" in note
    assert "contacts pooled over a batch" in note and "head: ours tape, published proteinlm (ProteinLM-200M" in note
    assert by_task["contact_prediction"]["metric"].startswith("P@L/5, separation >= 6")
    assert "4 proteins cropped to 30 residues" in by_task["stability"]["note"]
    assert "some runs share a seed" in by_task["stability"]["note"]
    assert by_task["masked_language_modeling"]["ProteinLM-3B"] == "-"


def test_published_columns_are_the_published_table(tmp_path):
    splits = {"contact_prediction": "test", "remote_homology": "test_fold_holdout", "secondary_structure": "cb513"}
    splits |= {"fluorescence": "test", "stability": "test"}
    for task, split in splits.items():
        result(tmp_path, 0.5, task=task, split=split)
    table = rows(tmp_path)
    assert [row["task"] for row in table] == list(splits)
    assert [row["ProteinLM-200M"] for row in table] == ["0.52", "0.26", "0.75", "0.68", "0.77"]
    assert not [row for row in table if "split: " in row["note"]]


def test_undefined_values_are_shown(tmp_path):
    result(tmp_path, None, interval={"low": None, "high": None})
    assert rows(tmp_path)[0]["ours"] == "nan"


def test_a_file_named_twice_counts_once(tmp_path):
    directory = result(tmp_path, 0.7)
    assert rows(directory, directory / "stability-test.json", tmp_path)[0]["runs"] == "1"


def test_forms(tmp_path, capsys):
    directory = str(result(tmp_path / "runs", 0.7, run="<b>|bold|</b>"))
    assert table.main([directory, "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| task | split |") and lines[1].startswith("| --- |")
    assert "<b>\\|bold\\|</b>" in lines[2]
    assert table.main([directory, "--html", "--output", str(tmp_path / "table.html")]) == 0
    page = (tmp_path / "table.html").read_text()
    assert page.startswith("<table>") and page.count("<tr>") == 2 and "&lt;b&gt;" in page
    assert table.main([directory]) == 0
    assert "(1)" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("content", "message"),
    [("{not json", "not JSON"), ("{}", "key 'task' is missing"), ("[1]", "a JSON object was expected, found list")],
)
def test_files_that_are_no_results(tmp_path, capsys, content, message):
    path = tmp_path / "stability-test.json"
    path.write_text(content)
    assert errors.run(table.main, [str(path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0] and str(path) in lines[0]


def test_missing_and_empty_directories(tmp_path, capsys):
    assert errors.run(table.main, [str(tmp_path / "none")]) == 2
    assert errors.run(table.main, [str(tmp_path)]) == 2
    assert "no result of tape-eval below it" in capsys.readouterr().err


def test_an_undefined_seed_is_shown_not_a_crash(tmp_path):
    """A constant predictor has no rank correlation; its seed's NaN must not stop the table of all the others."""
    result(tmp_path, 0.7)
    result(tmp_path, None, 1)
    assert rows(tmp_path)[0]["ours"] == "nan ± nan"


def test_results_of_a_plugins_task_are_found_below_a_directory(tmp_path):
    result(tmp_path, 0.5, task="num_mutations")
    (tmp_path / "other-notes.json").write_text("[]")
    assert [row["task"] for row in rows(tmp_path)] == ["num_mutations"]


def test_a_pipe_is_read_once(tmp_path, monkeypatch):
    """Where it lies among the files of a run."""
    os.mkfifo(tmp_path / "stability-valid.json")
    os.mkfifo(tmp_path / "other-file.json")
    monkeypatch.setattr(results_table, "read_json", None)
    assert results_table.find_results([tmp_path]) == [tmp_path / "stability-valid.json"]


@pytest.mark.parametrize("damage", ["[" * 100_000, '{"task": "mine", "split": "test"}', ""])
def test_a_damaged_result_beside_a_good_one_is_named(tmp_path, damage):
    """Of one's own table, whose name nobody knows before."""
    result(tmp_path, 0.7, task="mine")
    path = result(tmp_path, 0.8, task="mine") / "mine-test.json"
    (path.parent / "args.json").write_text("{}")
    assert rows(tmp_path)[0]["runs"] == "2"
    path.write_text(damage)
    with pytest.raises(InputError, match=f"^{path}: "):
        rows(tmp_path)
