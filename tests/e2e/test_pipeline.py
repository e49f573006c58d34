"""Every stage on random proteins, as a user runs them: FASTA, shards, checkpoint, TAPE model, five numbers, a table.

That the numbers mean something is for `make demo`; here every command must take what the one before it wrote.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from proteinlm import errors
from tape import evaluate, train

pytestmark = pytest.mark.slow

MODEL = ("--num-layers", 2, "--hidden-size", 32, "--num-attention-heads", 2, "--ffn-hidden-size", 64)
MODEL += ("--seq-length", 128, "--max-position-embeddings", 128, "--hidden-dropout", 0.1, "--attention-dropout", 0.1)
RUN = ("--micro-batch-size", 2, "--global-batch-size", 4, "--train-iters", 6, "--lr", 1e-3, "--min-lr", 1e-4)
RUN += ("--lr-decay-style", "linear", "--lr-decay-iters", 6, "--lr-warmup-iters", 1, "--split", "80,20,0")
RUN += ("--log-interval", 1, "--eval-interval", 3, "--save-interval", 3, "--device", "cpu")
METRICS = {
    "secondary_structure": ("cb513", "accuracy"),
    "contact_prediction": ("test", "precision_at_l5"),
    "remote_homology": ("test_fold_holdout", "accuracy"),
    "fluorescence": ("test", "spearmanr"),
    "stability": ("test", "spearmanr"),
}
ITERATIONS = 6


@pytest.fixture(scope="module")
def shard(tmp_path_factory, tiny_fasta, run_command) -> Path:
    prefix = tmp_path_factory.mktemp("shard") / "tiny"
    run_command("python", "-m", "pretrain.preprocess", "--input", tiny_fasta, "--output-prefix", prefix)
    return Path(f"{prefix}_text_document")


@pytest.fixture(scope="module")
def pretrain(shard, run_command):
    """Pretrain into a directory, going on from what is there."""

    def run(save: Path, *flags: object) -> list[dict]:
        words = ("--data-path", shard, "--save", save, "--load", save, *flags)
        words = ("--config", "pretrain/configs/debug.yaml", *MODEL, *RUN, *words)
        run_command("python", "-m", "pretrain", *words, warm=True)
        return [json.loads(line) for line in (save / "metrics.jsonl").read_text().splitlines()]

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, pretrain) -> Path:
    """A run that was never interrupted."""
    save = tmp_path_factory.mktemp("run") / "ckpt"
    pretrain(save)
    return save


@pytest.fixture(scope="module")
def half(tmp_path_factory, pretrain) -> Path:
    """The same run, stopped in the middle."""
    save = tmp_path_factory.mktemp("half") / "ckpt"
    pretrain(save, "--exit-interval", 3)
    return save


@pytest.fixture(scope="module")
def model(tmp_path_factory, checkpoint, run_command) -> Path:
    directory = tmp_path_factory.mktemp("model") / "tape"
    done = run_command(
        "python", "-m", "converter", "--load", checkpoint, "--save", directory, "--target", "tape", "--verify"
    )
    assert "difference" in done.stdout, "--verify prints how far apart the two are"
    return directory


@pytest.fixture(scope="module")
def results(tmp_path_factory, model, tiny_tape_data, run_command) -> Path:
    """The five tasks finetuned for two steps and evaluated: the first by commands, the others in this process."""
    runs = tmp_path_factory.mktemp("runs")
    for task, (split, metric) in METRICS.items():
        data = ("--data_dir", tiny_tape_data, "--batch_size", 4)
        schedule = (
            "--num_train_epochs",
            1,
            "--max_steps",
            2,
            "--learning_rate",
            1e-3,
            "--warmup_steps",
            1,
            "--seed",
            3,
        )
        words = ("--from_pretrained", model, "--output_dir", runs / task, *schedule, "--head", "tape")
        trained = ("transformer", task, *data, *words)
        scored = ("transformer", task, runs / task, *data, "--split", split, "--metrics", metric)
        for name, command, flags in (("tape-train", train, trained), ("tape-eval", evaluate, scored)):
            if task == "secondary_structure":
                run_command(name, *flags)
            else:
                assert errors.run(command.main, [str(flag) for flag in flags]) == 0
    return runs


def weights(save: Path, iteration: int) -> dict[str, torch.Tensor]:
    from pretrain.checkpoint.files import read_model_tensors

    return read_model_tensors(save, iteration)


def test_pretraining_logs_what_it_promises(checkpoint):
    lines = [json.loads(line) for line in (checkpoint / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "lm_loss" in line]
    assert [line["iteration"] for line in steps] == list(range(1, ITERATIONS + 1))
    promised = {"lm_loss", "grad_norm", "learning_rate", "loss_scale", "consumed_train_samples", "mfu"}
    promised |= {"tokens_per_second", "real_tokens_per_second"}
    assert all(promised <= line.keys() for line in steps)
    evaluations = [line for line in lines if "valid_loss" in line]
    assert [line["iteration"] for line in evaluations] == [3, 6]
    assert all("valid_perplexity" in line for line in evaluations)


def test_a_resumed_run_is_the_uninterrupted_one(checkpoint, half, pretrain, tmp_path):
    save = shutil.copytree(half, tmp_path / "ckpt")
    assert (save / "latest_checkpointed_iteration.txt").read_text().strip() == "3"
    resumed = pretrain(save)
    whole = [json.loads(line) for line in (checkpoint / "metrics.jsonl").read_text().splitlines()]
    for name in ("lm_loss", "grad_norm", "learning_rate", "consumed_train_samples", "valid_loss"):
        actual, expected = ([line[name] for line in lines if name in line] for lines in (resumed, whole))
        assert actual == expected, name
    actual, expected = weights(save, ITERATIONS), weights(checkpoint, ITERATIONS)
    assert actual.keys() == expected.keys()
    assert [name for name in actual if not torch.equal(actual[name], expected[name])] == []


def test_the_comparison_can_tell_runs_apart(checkpoint, half, pretrain, tmp_path):
    """Dropout's random state matters: forget it when resuming, and the run is another one."""
    shutil.copytree(half, tmp_path / "ckpt")
    pretrain(tmp_path / "ckpt", "--no-load-rng")
    actual, expected = weights(tmp_path / "ckpt", ITERATIONS), weights(checkpoint, ITERATIONS)
    assert any(not torch.equal(actual[name], expected[name]) for name in actual)


def test_the_model_is_one_that_tape_reads(model):
    config = json.loads((model / "config.json").read_text())
    assert config["num_hidden_layers"] == 2 and config["hidden_size"] == 32 and config["vocab_size"] == 30
    assert (model / "model.safetensors").is_file()


@pytest.mark.parametrize("task", METRICS)
def test_each_task_ends_in_a_number(task, results):
    split, metric = METRICS[task]
    report = json.loads((results / task / f"{task}-{split}.json").read_text())
    assert report["n_examples"] == 12
    assert metric in json.dumps(report)


def test_the_table_shows_our_numbers_beside_the_published(results, run_command):
    table = run_command("tape-table", results, "--markdown").stdout
    assert all(task in table for task in METRICS)
    assert "0.75" in table and "0.36" in table
