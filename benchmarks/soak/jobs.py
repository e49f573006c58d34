"""What soak/measure.py runs: pretraining, finetuning and embedding as a user starts them, each longer than the time.

Not run by itself. Random proteins and weights, seed 0: memory does not depend on what is learned. Every cycle that a
long run has comes round many times: epochs, evaluations, checkpoints of which the oldest is removed, part files.
"""

import csv
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import proteinlm
from benchmarks.comparison import random_proteins
from pretrain.data.preprocess import main as preprocess
from proteinlm.model_dir.config import CONFIG_KEYS
from proteinlm.model_dir.files import write_tape_dir
from proteinlm.network.config import ModelConfig
from proteinlm.network.model import ProteinBert, initialize

SMALL, WIDE = (2, 64, 4), (6, 320, 20)  # layers, hidden size, heads
POSITIONS = 512
FOREVER = "1000000"  # steps or epochs; the jobs are ended from outside


def write_model(directory: Path, shape: tuple[int, int, int]) -> Path:
    """A model directory with random weights."""
    layers, width, heads = shape
    config = ModelConfig(width, layers, heads, POSITIONS, vocab_size=30, make_vocab_size_divisible_by=1)
    model = ProteinBert(config)
    initialize(model, 0)
    write_tape_dir(directory, {key: getattr(config, name) for name, key in CONFIG_KEYS.items()}, model.state_dict())
    return directory


def write_fasta(path: Path, proteins: Sequence[str]) -> Path:
    path.write_text("".join(f">protein_{number}\n{protein}\n" for number, protein in enumerate(proteins)))
    return path


def short_proteins(number: int) -> list[str]:
    return [protein[: POSITIONS - 2] for protein in random_proteins(number)]


def pretraining(folder: Path, seconds: float) -> list[str]:
    """An epoch is 2,000 proteins; saved in the background."""
    shard = folder / "corpus"
    fasta = write_fasta(folder / "corpus.fasta", short_proteins(2000))
    assert preprocess(["--input", str(fasta), "--output-prefix", str(shard)]) == 0
    layers, width, heads = map(str, SMALL)
    return [
        *("-m", "pretrain", "--data-path", f"{shard}_text_document", "--save", str(folder / "run"), "--device", "cpu"),
        *("--num-layers", layers, "--hidden-size", width, "--num-attention-heads", heads, "--seq-length", "512"),
        *("--max-position-embeddings", str(POSITIONS), "--micro-batch-size", "4", "--global-batch-size", "8"),
        *("--lr", "1e-4", "--train-iters", FOREVER, "--split", "90,10,0", "--eval-interval", "50", "--eval-iters", "4"),
        *("--save-interval", "50", "--async-save", "--keep-last", "2", "--log-interval", "10"),
    ]


def finetuning(folder: Path, seconds: float) -> list[str]:
    """An epoch is 200 proteins, and each is evaluated and saved."""
    table = folder / "table.csv"
    numbers = np.random.default_rng(0).normal(size=250)
    with table.open("w", newline="") as file:
        rows = zip(short_proteins(250), numbers, ["train"] * 200 + ["valid"] * 50, strict=True)
        csv.writer(file).writerows([("sequence", "value", "split"), *rows])
    return [
        *("-m", "tape.train", "transformer", str(table), "--target", "value", "--device", "cpu"),
        *("--from_pretrained", str(write_model(folder / "model", SMALL)), "--output_dir", str(folder / "run")),
        *("--no-freeze_encoder", "--num_train_epochs", FOREVER, "--patience", "-1", "--batch_size", "16"),
    ]


def embedding(folder: Path, seconds: float) -> list[str]:
    """As many proteins as one core could embed in the time and a half, 256 a part file."""
    model, proteins = write_model(folder / "model", WIDE), short_proteins(300)
    encoder = proteinlm.load(model)
    encoder.embed(proteins[:50])
    began = time.process_time()
    encoder.embed(proteins)
    number = int(1.5 * seconds * len(proteins) / (time.process_time() - began)) + 1000
    fasta = write_fasta(folder / "proteins.fasta", short_proteins(number))
    words = ("--part_proteins", "256", "--device", "cpu")
    return ["-m", "tape.embed", "transformer", str(fasta), str(folder / "vectors.h5"), str(model), *words]


JOBS: dict[str, Callable[[Path, float], list[str]]] = {
    "pretraining": pretraining,
    "finetuning": finetuning,
    "embedding": embedding,
}


def command(words: Sequence[str]) -> list[str]:
    """The words of a job as a process is started."""
    return [sys.executable, *words]
