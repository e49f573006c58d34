"""What follows a conversion starts from the converted weights: finetuning on a task, and continued pretraining."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from megatron_writer import random_weights, write_megatron

from converter import __main__ as convert
from converter import sources
from pretrain.checkpoint import files as checkpoint
from proteinlm.errors import run

POSITIONS = 128
DATA = ("--seq-length", 128, "--split", "80,20,0", "--seed", 7, "--global-batch-size", 4)


def command(main, *words: object) -> None:
    assert run(main, [str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def megatron_dir(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("megatron")
    write_megatron(directory, random_weights(positions=POSITIONS), 2, 2, 1.0)
    return directory


@pytest.mark.parametrize(("rate", "moves"), [(0.0, False), (1e-3, True)])
def test_finetuning_starts_from_the_converted_weights(tmp_path, megatron_dir, tiny_tape_data, rate, moves):
    """A run whose learning rate is 0 ends where it began: at the source's weights. With another rate it does not."""
    from proteinlm.model_dir.files import load_tape_dir
    from tape.train import main

    command(convert.main, "--load", megatron_dir, "--save", tmp_path / "tape", "--target", "tape")
    flags = ("--batch_size", 4, "--num_train_epochs", 1, "--max_steps", 1, "--learning_rate", rate, "--warmup_steps", 0)
    words = ("--from_pretrained", tmp_path / "tape", "--data_dir", tiny_tape_data, "--output_dir", tmp_path / "run")
    command(main, "transformer", "fluorescence", *words, *flags)
    state = load_tape_dir(tmp_path / "run").state
    source = sources.read(megatron_dir).tensors
    for name in (
        "layers.0.attention.query_key_value.weight",
        "layers.3.mlp.dense_4h_to_h.bias",
        "final_layernorm.bias",
    ):
        assert torch.equal(state[name], source[name]) != moves, name


@pytest.fixture(scope="module")
def shard(tmp_path_factory, tiny_fasta, run_command) -> Path:
    prefix = tmp_path_factory.mktemp("shard") / "tiny"
    run_command("python", "-m", "pretrain.preprocess", "--input", tiny_fasta, "--output-prefix", prefix)
    return Path(f"{prefix}_text_document")


def first_loss(shard: Path, load: Path, save: Path, *flags: object) -> float:
    from pretrain.__main__ import main

    shape = ("--num-layers", 4, "--hidden-size", 32, "--num-attention-heads", 4, "--max-position-embeddings", POSITIONS)
    quiet = ("--hidden-dropout", 0, "--attention-dropout", 0, "--device", "cpu", "--log-interval", 1)
    steps = ("--micro-batch-size", 2, "--train-iters", 1, "--lr", 1e-3, "--eval-iters", 1)
    command(main, "--data-path", shard, "--load", load, "--save", save, *shape, *quiet, *steps, *DATA, *flags)
    lines = [json.loads(line) for line in (save / "metrics.jsonl").read_text().splitlines()]
    return next(line["lm_loss"] for line in lines if "lm_loss" in line)


@pytest.mark.slow
def test_continued_pretraining_starts_at_the_predicted_loss(tmp_path, megatron_dir, shard, capsys):
    words = ("--load", megatron_dir, "--save", tmp_path / "dcp", "--target", "dcp", "--verify", "--data-path", shard)
    command(convert.main, *words, *DATA)
    predicted = float(re.search(r"loss of the first step: ([\d.]+)", capsys.readouterr().out)[1])
    assert first_loss(shard, tmp_path / "dcp", tmp_path / "run", "--finetune") == pytest.approx(predicted, abs=2e-6)
    fresh = first_loss(shard, tmp_path / "nothing_there", tmp_path / "fresh")
    assert abs(fresh - predicted) > 1e-2  # negative control: the loss shows which weights it is of
    assert abs(fresh - math.log(31)) < 0.2


@pytest.mark.slow
def test_a_converted_checkpoint_goes_on_at_its_iteration(tmp_path, megatron_dir, shard, capsys):
    """Without --finetune: its counters go on, from its weights. What it does not hold is waived by flags, all named."""
    command(convert.main, "--load", megatron_dir, "--save", tmp_path / "dcp", "--target", "dcp")
    with pytest.raises(AssertionError):
        first_loss(shard, tmp_path / "dcp", tmp_path / "plain")
    message = "holds no optimizer and no rng state; to start afresh there: --no-load-optim --no-load-rng\n"
    assert message in capsys.readouterr().err
    meta = checkpoint.load_meta(tmp_path / "dcp")[1]
    iteration, samples = (meta["counters"][name] for name in ("iteration", "consumed_train_samples"))
    flags = ("--no-load-optim", "--no-load-rng", "--train-iters", samples // 4 + 1)
    loss = first_loss(shard, tmp_path / "dcp", tmp_path / "run", *flags)
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert iteration > 0 and (line["iteration"], line["consumed_train_samples"]) == (iteration + 1, samples + 4)
    assert abs(loss - first_loss(shard, tmp_path / "nothing_there", tmp_path / "fresh")) > 1e-2


def test_the_error_for_a_megatron_directory_names_the_conversion(tmp_path, megatron_dir, shard, capsys):
    from pretrain.__main__ import main

    words = ("--data-path", shard, "--load", megatron_dir, "--save", tmp_path / "run", "--finetune", "--device", "cpu")
    shape = ("--num-layers", 4, "--hidden-size", 32, "--num-attention-heads", 4, "--max-position-embeddings", POSITIONS)
    steps = ("--micro-batch-size", 2, "--train-iters", 1, "--lr", 1e-3)
    assert run(main, [str(word) for word in (*words, *shape, *steps, *DATA)]) == 2
    assert "python -m converter" in capsys.readouterr().err
