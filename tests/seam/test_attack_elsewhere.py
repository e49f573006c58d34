"""Pickles that hold calls, brought to commands that open files from elsewhere: refused in one line, nothing runs."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from damage import Attack
from megatron_writer import random_weights, write_megatron
from tape_lmdb import put_lmdb

from converter import __main__ as convert
from proteinlm.errors import run


def attack(marker: Path, how: str) -> object:
    call = Attack(os.system, f"touch {marker}")
    return {"call": call, "nested": {"primary": [("M", {"deep": call})]}, "field": {"primary": "MKV", "x": call}}[how]


def refused(main, words: list, capsys, marker: Path, message: str) -> None:
    assert run(main, [str(word) for word in words]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1 and message in error, error
    assert not marker.exists()


@pytest.fixture(scope="module")
def tape_dir(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write_megatron(directory / "in", random_weights(hidden=8, heads=2, layers=1, positions=128))
    words = ["--load", str(directory / "in"), "--save", str(directory / "tape"), "--target", "tape"]
    assert run(convert.main, words) == 0
    return directory / "tape"


@pytest.mark.parametrize("how", ["call", "nested", "field"])
@pytest.mark.parametrize("key", [b"0", b"num_examples"])
def test_lmdb(tmp_path, capsys, tape_dir, tiny_tape_data, how, key):
    from tape.train import main

    place, marker = "fluorescence/fluorescence_train.lmdb", tmp_path / "ran"
    shutil.copytree(tiny_tape_data / "fluorescence", tmp_path / "data/fluorescence")
    put_lmdb(tmp_path / "data" / place, {key: attack(marker, how)})
    words = ["transformer", "fluorescence", "--from_pretrained", tape_dir, "--data_dir", tmp_path / "data"]
    refused(main, [*words, "--output_dir", tmp_path / "run"], capsys, marker, "refused")


def test_lmdb_as_pretraining_input(tmp_path, capsys, tiny_tape_data):
    from pretrain.data.preprocess import main

    marker = tmp_path / "ran"
    shutil.copytree(tiny_tape_data / "pfam/pfam_train.lmdb", tmp_path / "x.lmdb")
    put_lmdb(tmp_path / "x.lmdb", {b"3": attack(marker, "field")})
    words = ["--input", tmp_path / "x.lmdb", "--output-prefix", tmp_path / "out/x"]
    refused(main, words, capsys, marker, "refused")
    assert not list(tmp_path.glob("out/*"))


def test_finetuned_weights_and_results(tmp_path, capsys, tape_dir, tiny_tape_data):
    from tape import evaluate, table

    marker, directory = tmp_path / "ran", tmp_path / "run"
    shutil.copytree(tape_dir, directory)
    (directory / "model.safetensors").unlink()
    torch.save({"bert.x": attack(marker, "call")}, directory / "pytorch_model.bin")
    words = ["transformer", "fluorescence", directory, "--data_dir", tiny_tape_data, "--split", "test"]
    refused(evaluate.main, words, capsys, marker, "refused")
    (tmp_path / "results.pkl").write_bytes(pickle.dumps(attack(marker, "call")))
    refused(table.main, [tmp_path / "results.pkl"], capsys, marker, "results.pkl")
