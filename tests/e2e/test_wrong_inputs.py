"""What a user sees who made a mistake: one line on stderr that names the file, exit status 2, no traceback.

Most cases call the command's `cli` in this process, for speed; the last test sees the same from outside.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tape_lmdb import write_lmdb

PREPROCESS, PRETRAIN, CONVERTER = "pretrain.preprocess", "pretrain.__main__", "converter.__main__"
TAPE_TRAIN, TAPE_EVAL, TAPE_TABLE = "tape.train", "tape.evaluate", "tape.table"
PROTEIN = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"
TINY = (
    "--num-layers",
    1,
    "--hidden-size",
    16,
    "--num-attention-heads",
    2,
    "--seq-length",
    64,
    "--max-position-embeddings",
    64,
)
TINY += ("--micro-batch-size", 1, "--global-batch-size", 1, "--train-iters", 1, "--split", "100,0,0", "--lr", 1e-3)


@pytest.fixture
def command(monkeypatch, capfd) -> Callable[..., tuple[int, str]]:
    """Run a command in this process; returns its exit status and its stderr."""

    def run(module: str, *words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [module, *map(str, words)])
        capfd.readouterr()
        try:
            status = importlib.import_module(module).cli()
        except SystemExit as stopped:
            status = stopped.code
        return status or 0, capfd.readouterr().err

    return run


@pytest.fixture
def complaint(command) -> Callable[..., str]:
    """Run a command that must refuse; returns its one line."""

    def run(module: str, *words: object) -> str:
        status, stderr = command(module, *words)
        assert status == 2, f"status {status}: {stderr}"
        assert "Traceback" not in stderr
        assert len(stderr.strip().splitlines()) == 1, stderr
        return stderr

    return run


@pytest.fixture
def shard(tmp_path) -> Path:
    """The prefix of a good shard of 40 proteins."""
    from pretrain.data.indexed import IndexedWriter

    prefix = tmp_path / "good_text_document"
    with IndexedWriter(prefix) as writer:
        writer.add(np.full(40 * 30, 8, dtype=np.uint8), np.full(40, 30))
    return prefix


@pytest.fixture
def task_data(tmp_path) -> Callable[..., Path]:
    """Write one split of one task with the records given; returns the data directory."""

    def write(place: str, records: list[dict], split: str = "train", num_examples: bool = True) -> Path:
        write_lmdb(tmp_path / "tape" / f"{place}_{split}.lmdb", records, num_examples)
        return tmp_path / "tape"

    return write


# ---- preprocess


def test_missing_input(complaint, tmp_path):
    line = complaint(PREPROCESS, "--input", tmp_path / "absent.fasta", "--output-prefix", tmp_path / "out")
    assert "absent.fasta" in line


def test_empty_fasta(complaint, tmp_path):
    (tmp_path / "empty.fasta").touch()
    line = complaint(PREPROCESS, "--input", tmp_path / "empty.fasta", "--output-prefix", tmp_path / "out")
    assert "empty.fasta" in line
    assert list(tmp_path.glob("out*")) == []


def test_fasta_of_headers_alone(complaint, tmp_path):
    (tmp_path / "headers.fasta").write_text(">a\n>b\n\n")
    line = complaint(PREPROCESS, "--input", tmp_path / "headers.fasta", "--output-prefix", tmp_path / "out")
    assert "headers.fasta" in line


def test_strict_names_the_letter(complaint, tmp_path):
    (tmp_path / "odd.fasta").write_text(">a\nMKJ\n")
    line = complaint(PREPROCESS, "--strict", "--input", tmp_path / "odd.fasta", "--output-prefix", tmp_path / "out")
    assert "odd.fasta" in line and "J" in line


def test_unwritable_shard(complaint, tmp_path):
    (tmp_path / "good.fasta").write_text(f">a\n{PROTEIN}\n")
    (tmp_path / "file").touch()  # a file where a folder is wanted: refused to every user, root too
    line = complaint(PREPROCESS, "--input", tmp_path / "good.fasta", "--output-prefix", tmp_path / "file" / "out")
    assert str(tmp_path / "file") in line


def test_unknown_flag_suggests_the_nearest(complaint, tmp_path):
    line = complaint(PREPROCESS, "--inptu", tmp_path / "x.fasta", "--output-prefix", tmp_path / "out")
    assert "--inpt" in line or "--input" in line


# ---- pretrain


def test_pretrain_unknown_flag(complaint, tmp_path):
    line = complaint(PRETRAIN, *TINY, "--hiden-size", 3, "--data-path", "x", "--save", tmp_path)
    assert "--hiden-size" in line and "--hidden-size" in line


def test_missing_shard(complaint, tmp_path):
    line = complaint(PRETRAIN, *TINY, "--data-path", tmp_path / "absent_text_document", "--save", tmp_path / "run")
    assert "absent_text_document" in line


def test_truncated_bin(complaint, shard, tmp_path):
    path = Path(f"{shard}.bin")
    path.write_bytes(path.read_bytes()[:-7])
    line = complaint(PRETRAIN, *TINY, "--data-path", shard, "--save", tmp_path / "run")
    assert ".bin" in line and "1200" in line and "1193" in line


def test_truncated_idx(complaint, shard, tmp_path):
    path = Path(f"{shard}.idx")
    path.write_bytes(path.read_bytes()[:50])
    line = complaint(PRETRAIN, *TINY, "--data-path", shard, "--save", tmp_path / "run")
    assert ".idx" in line


def test_idx_of_another_format(complaint, shard, tmp_path):
    Path(f"{shard}.idx").write_bytes(b"TNTIDX\0\0" + bytes(500))
    line = complaint(PRETRAIN, *TINY, "--data-path", shard, "--save", tmp_path / "run")
    assert ".idx" in line


def test_impossible_combination_names_both_numbers(complaint, shard, tmp_path):
    line = complaint(PRETRAIN, *TINY, "--num-attention-heads", 3, "--data-path", shard, "--save", tmp_path / "run")
    assert "16" in line and "3" in line


def test_unwritable_save(complaint, shard, tmp_path):
    (tmp_path / "file").touch()
    line = complaint(PRETRAIN, *TINY, "--data-path", shard, "--save", tmp_path / "file" / "run")
    assert str(tmp_path / "file") in line


def test_checkpoint_of_another_shape(command, complaint, shard, tmp_path):
    run = ("--data-path", shard, "--save", tmp_path / "run")
    status, stderr = command(PRETRAIN, *TINY, *run)
    assert status == 0, stderr
    line = complaint(PRETRAIN, *TINY, *run, "--load", tmp_path / "run", "--hidden-size", 32)
    assert str(tmp_path / "run") in line and "16" in line and "32" in line


def test_tracker_without_its_checkpoint(complaint, shard, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("7")
    line = complaint(PRETRAIN, *TINY, "--data-path", shard, "--save", tmp_path / "new", "--load", tmp_path / "run")
    assert "iter_0000007" in line


# ---- converter


def test_nothing_to_convert(complaint, tmp_path):
    line = complaint(CONVERTER, "--load", tmp_path / "absent", "--save", tmp_path / "model", "--target", "tape")
    assert "absent" in line


def test_converter_unknown_target(complaint, tmp_path):
    line = complaint(CONVERTER, "--load", tmp_path, "--save", tmp_path / "model", "--target", "tap")
    assert "tap" in line


# ---- tape


def train(task: str, data: Path, output: Path) -> tuple:
    words = ("transformer", task, "--data_dir", data, "--output_dir", output, "--batch_size", 2)
    return (*words, "--num_train_epochs", 1, "--learning_rate", 1e-3, "--warmup_steps", 1)


def test_unknown_task(complaint, tmp_path):
    line = complaint(TAPE_TRAIN, *train("secondary_structur", tmp_path, tmp_path / "run"))
    assert "secondary_structur" in line and "secondary_structure" in line


def test_missing_data(complaint, tmp_path):
    line = complaint(TAPE_TRAIN, *train("stability", tmp_path / "absent", tmp_path / "run"))
    assert "absent" in line


def test_lmdb_without_num_examples(complaint, task_data, tmp_path):
    data = task_data("stability/stability", [{"primary": PROTEIN, "stability_score": [0.5]}], num_examples=False)
    line = complaint(TAPE_TRAIN, *train("stability", data, tmp_path / "run"))
    assert "stability_train.lmdb" in line and "num_examples" in line


def test_labels_shorter_than_the_protein(complaint, task_data, tmp_path):
    record = {"primary": PROTEIN, "ss3": np.zeros(len(PROTEIN) - 3, dtype=int)}
    data = task_data("secondary_structure/secondary_structure", [record] * 4)
    task_data("secondary_structure/secondary_structure", [record] * 4, split="valid")
    line = complaint(TAPE_TRAIN, *train("secondary_structure", data, tmp_path / "run"))
    assert "secondary_structure_train.lmdb" in line and str(len(PROTEIN)) in line and str(len(PROTEIN) - 3) in line


def test_unwritable_run(complaint, task_data, tmp_path):
    data = task_data("stability/stability", [{"primary": PROTEIN, "stability_score": [0.5]}] * 4)
    task_data("stability/stability", [{"primary": PROTEIN, "stability_score": [0.5]}] * 4, split="valid")
    (tmp_path / "file").touch()
    line = complaint(TAPE_TRAIN, *train("stability", data, tmp_path / "file" / "run"))
    assert str(tmp_path / "file") in line


def test_model_directory_without_a_model(complaint, task_data, tmp_path):
    data = task_data("stability/stability", [{"primary": PROTEIN, "stability_score": [0.5]}] * 4)
    (tmp_path / "model").mkdir()
    line = complaint(TAPE_TRAIN, *train("stability", data, tmp_path / "run"), "--from_pretrained", tmp_path / "model")
    assert str(tmp_path / "model") in line and "config.json" in line


def test_run_that_is_none(complaint, tmp_path):
    words = ("--data_dir", tmp_path, "--split", "test", "--metrics", "spearmanr", "--batch_size", 2)
    line = complaint(TAPE_EVAL, "transformer", "stability", tmp_path / "absent", *words)
    assert "absent" in line


def test_table_of_nothing(complaint, tmp_path):
    assert "absent" in complaint(TAPE_TABLE, tmp_path / "absent")


# ---- from outside


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "python -m pretrain.preprocess --input {0}/absent.fasta --output-prefix {0}/out",
        "python -m pretrain --num-layers 1 --hidden-size 16 --num-attention-heads 2 --seq-length 64"
        " --max-position-embeddings 64 --train-iters 1 --data-path {0}/absent --save {0}/run",
        "python -m converter --load {0}/absent --save {0}/model --target tape",
        "tape-train transformer stability --data_dir {0}/absent --output_dir {0}/run --batch_size 2",
        "tape-eval transformer stability {0}/absent --data_dir {0} --split test --metrics spearmanr --batch_size 2",
        "tape-table {0}/absent",
    ],
)
def test_real_processes_say_the_same(command, run_command, tmp_path):
    done = run_command(*command.format(tmp_path).split(), check=False)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "absent" in done.stderr
