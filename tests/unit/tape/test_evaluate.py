"""tape-eval: whole-split numbers that do not depend on the batch size, and a file that says what they are."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats
from toy_data import FOLDERS, write_config, write_data, write_split

from proteinlm import errors
from tape import evaluate, train
from tape.scoring.bootstrap import confidence_interval, paired_difference
from tape.scoring.files import load_scores
from tape.scoring.inference import load_finetuned
from tape.tasks import TASKS


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of every task with one run each in runs/<task>, from a tiny pretrained model in model/."""
    root = tmp_path_factory.mktemp("world")
    config = write_config(root / "config.json")
    for task in FOLDERS:
        write_data(root, task, train=16, valid=24)
    flags = ["--model_config_file", config, "--data_dir", root, "--max_steps", 1, "--device", "cpu"]
    tune(root, "masked_language_modeling", root / "model", *flags)
    for task in FOLDERS:
        flags = ["--from_pretrained", root / "model", "--max_steps", 2, "--learning_rate", 1e-2, "--seed", 5]
        tune(root, task, root / "runs" / task, *flags, "--head", "tape", "--data_dir", root, "--device", "cpu")
    return root


def tune(world: Path, task: str, out: Path, *flags: object) -> None:
    words = ["transformer", task, "--output_dir", out, "--batch_size", 8, *flags]
    assert errors.run(train.main, [str(word) for word in words]) == 0


def score(world: Path, task: str, *flags: object, run: Path | None = None, split: str = "valid") -> dict | int:
    """The result file of one split; the status where the command failed."""
    run = run or world / "runs" / task
    words = ["transformer", task, run, "--data_dir", world, "--split", split, "--device", "cpu", *flags]
    status = errors.run(evaluate.main, [str(word) for word in words])
    return status or json.loads((run / f"{task}-{split}.json").read_text())


@pytest.mark.parametrize("task", sorted(FOLDERS))
@pytest.mark.slow
def test_the_number_does_not_depend_on_the_batch_size(world, task):
    results = [score(world, task, "--batch_size", size) for size in (1, 5, 24)]
    for result in results[1:]:
        assert result["metrics"] == pytest.approx(results[0]["metrics"], abs=1e-5, nan_ok=True)
        assert result["interval"] == pytest.approx(results[0]["interval"], abs=1e-5, nan_ok=True)
    assert results[0]["n_examples"] == 24


def test_a_model_that_says_the_same_of_all_is_named(world, tmp_path, capsys):
    """Its rank correlation is undefined; so is that of no other model."""
    assert score(world, "stability")["constant"] is None
    run = shutil.copytree(world / "runs/stability", tmp_path / "run")
    tensors = load_file(run / "model.safetensors")
    last = [name for name in tensors if name.startswith("predict.") and name.endswith((".weight", ".weight_g"))][-1]
    tensors[last].zero_()
    save_file(tensors, run / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    result = score(world, "stability", run=run)
    assert result["value"] is None and result["constant"].startswith("all 24 predictions are ")
    assert capsys.readouterr().out.endswith(f"stability-valid.json; {result['constant']}\n")


def test_the_file_says_what_was_measured(world):
    result = score(world, "stability", "--metrics", "spearmanr", "mse")
    assert result["task"] == "stability" and result["split"] == "valid" and result["metric"] == "spearmanr"
    assert set(result["requested"]) == {"spearmanr", "mse"}
    assert result["head"] == "tape" and result["seed"] == 5 and result["steps"] == 2
    for where, identity in (
        (world / "runs" / "stability", result["checkpoint"]),
        (world / "model", result["checkpoint"]["from_pretrained"]),
    ):
        digest = hashlib.sha256((where / "model.safetensors").read_bytes()).hexdigest()
        assert identity["weights_sha256"] == digest
    assert result["truncated"] == {
        "max_length": 62, "too_long": "error", "proteins_cropped": 0, "residues_cropped": 0,
    }  # fmt: skip
    assert result["interval"]["low"] <= result["value"] <= result["interval"]["high"]
    assert result["interval"]["resamples"] == 2000
    assert result["args"]["learning_rate"] == 0.01


def test_the_number_is_the_models(world):
    """Each protein alone through the model, and scipy."""
    task = TASKS["stability"]
    model = load_finetuned(task, world / "runs" / "stability").eval()
    data = task.dataset(world, "valid")
    with torch.no_grad():
        outputs = [model(torch.from_numpy(data[i][0])[None])[0].item() for i in range(len(data))]
    expected = stats.spearmanr(outputs, [data[i][2] for i in range(len(data))]).statistic
    assert score(world, "stability")["value"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("task", sorted(FOLDERS))
def test_saved_scores_give_the_value_back(world, task):
    """The columns that paired comparisons resample hold exactly the metric."""
    result = score(world, task, "--save_predictions")
    scores = load_scores(world / "runs" / task / f"{task}-valid.npz")
    difference = paired_difference(scores, scores, resamples=20)
    assert difference["value"] == difference["low"] == difference["high"] == 0
    assert confidence_interval(scores, 10)["value"] == pytest.approx(result["value"], abs=1e-9)
    stored = np.load(world / "runs" / task / f"{task}-valid.npz")
    assert stored["ids"].tolist() == [str(number) for number in range(24)]


def test_several_splits_at_once(world, capsys):
    write_split(world, "remote_homology", "test_fold_holdout", 9, seed=3)
    assert score(world, "remote_homology", "--split", "valid", "test_fold_holdout")["n_examples"] == 24
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[1:3] for line in printed] == [["valid", "n=24:"], ["test_fold_holdout", "n=9:"]]
    assert json.loads((world / "runs/remote_homology/remote_homology-test_fold_holdout.json").read_text())


def test_cropping_is_asked_for_and_counted(world, capsys):
    assert score(world, "secondary_structure", "--max_length", 25) == 2
    assert "max_length is 25" in capsys.readouterr().err
    result = score(world, "secondary_structure", "--max_length", 25, "--too_long", "crop")
    lengths = TASKS["secondary_structure"].dataset(world, "valid").lengths
    assert result["n_examples"] == 24
    assert result["truncated"]["proteins_cropped"] == (lengths > 25).sum() > 0
    assert result["truncated"]["residues_cropped"] == (lengths - 25).clip(0).sum()
    assert result["metrics"]["n_residues"] == lengths.clip(max=25).sum()


def test_bf16_is_close_and_said(world):
    exact, half = score(world, "secondary_structure"), score(world, "secondary_structure", "--bf16")
    assert (exact["precision"], half["precision"]) == ("float32", "bfloat16")
    assert half["value"] == pytest.approx(exact["value"], abs=0.05)


def test_all_splits_in_one_call_say_what_is_absent(world, capsys):
    write_split(world, "secondary_structure", "cb513", 9, seed=3)
    words = ["transformer", "secondary_structure", world / "runs/secondary_structure", "--data_dir", world]
    assert errors.run(evaluate.main, [str(word) for word in [*words, "--split", "all", "--device", "cpu"]]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("notice:") and "no split casp12, ts115 of secondary_structure: left out" in printed[0]
    assert [line.split()[1:3] for line in printed[1:]] == [["valid", "n=24:"], ["cb513", "n=9:"]]


def test_tapes_words_are_taken(world, capsys):
    """TAPE's flags, L5 under its canonical name, results.pkl only on request."""
    run = world / "runs/contact_prediction"
    flags = ("--metrics", "L5", "precision_at_l_long", "--no_cuda", "--seed", 3, "--log_level", "INFO", "--debug")
    result = score(world, "contact_prediction", *flags)
    assert set(result["requested"]) == set(result["intervals"]) == {"precision_at_l5", "precision_at_l_long"}
    assert result["requested"]["precision_at_l5"] == result["value"]
    assert "--seed means nothing here" in capsys.readouterr().err
    assert not (run / "results.pkl").exists()
    score(world, "contact_prediction", "--results_pkl", "--metrics", "L5")
    values, outputs = pickle.loads((run / "results.pkl").read_bytes())
    assert values == {"precision_at_l5": result["value"]} and len(outputs) == 24


def test_parquet_holds_the_same_columns(world):
    pytest.importorskip("pyarrow")
    score(world, "fluorescence", "--save_predictions")
    score(world, "fluorescence", "--save_predictions", "parquet")
    path = world / "runs/fluorescence/fluorescence-valid"
    npz, parquet = (load_scores(path.with_suffix(suffix)) for suffix in (".npz", ".parquet"))
    assert npz.kind == parquet.kind and np.array_equal(npz.columns, parquet.columns)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["contact_prediction", "stability"])
def test_two_processes_give_the_numbers_of_one(world, task, python):
    """torchrun with two gloo ranks; the JSON differs in the number of processes alone."""
    alone = score(world, task, "--batch_size", 5, "--save_predictions")
    stored = load_scores(world / "runs" / task / f"{task}-valid.npz").columns
    words = [*("transformer", task, world / "runs" / task, "--data_dir", world, "--split", "valid", "--device", "cpu")]
    words += ["--batch_size", 5, "--save_predictions"]
    command = [str(python), "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "tape.evaluate", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env=dict(os.environ, OMP_NUM_THREADS=str(torch.get_num_threads())),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("n=24") == 1  # one of them talks
    together = json.loads((world / "runs" / task / f"{task}-valid.json").read_text())
    assert (alone.pop("processes"), together.pop("processes")) == (1, 2)
    assert together == alone
    assert np.array_equal(load_scores(world / "runs" / task / f"{task}-valid.npz").columns, stored)


PLUGIN = """
from tape.registry import registry


@registry.register_metric("largest_error")
def largest_error(target, prediction):
    return max(abs(float(t) - float(p)) for t, p in zip(target, prediction))
"""


def test_a_plugins_metric(world, tmp_path):
    plugin = tmp_path / "my_metric.py"
    plugin.write_text(PLUGIN)
    result = score(world, "stability", "--plugin", plugin, "--metrics", "largest_error", "mse", "--save_predictions")
    columns = load_scores(world / "runs/stability/stability-valid.npz").columns
    assert result["requested"]["largest_error"] == pytest.approx(np.abs(columns[:, 0] - columns[:, 1]).max())


@pytest.mark.parametrize(
    ("task", "flags", "message"),
    [
        ("stability", ("--metrics", "accuracy"), "--metrics accuracy: stability has spearmanr, mse"),
        ("stability", ("--split", "nonsense"), "no split 'nonsense'"),
        ("stability", ("--split", "test"), "stability_test.lmdb"),
        ("stability", ("--data_dir", "nowhere"), "nowhere"),
        ("stabilty", (), "did you mean stability"),
    ],
)
def test_mistakes_are_reported_in_one_line(world, capsys, task, flags, message):
    run = world / "runs" / "stability"
    assert score(world, task, *flags, run=run) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_what_is_no_finetuned_run_is_refused(world, tmp_path, capsys):
    assert score(world, "stability", run=tmp_path / "none") == 2
    assert "no such directory" in capsys.readouterr().err
    assert score(world, "stability", run=world / "model") == 2  # pretrained, no head
    assert "head" in capsys.readouterr().err
    assert score(world, "fluorescence", run=world / "runs" / "stability") == 2  # the same head, another task
    assert "finetuned on stability, not on fluorescence" in capsys.readouterr().err
    assert score(world, "contact_prediction", run=world / "runs" / "stability") == 2
