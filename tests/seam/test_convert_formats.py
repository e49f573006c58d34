"""The table of formats: what recognises a checkpoint, reads it and writes it, whatever the format."""

import json
from dataclasses import replace

import pytest
import torch
from megatron_writer import random_weights, write_megatron

from converter.formats import Format
from converter.sources import FORMATS, read, recognise
from proteinlm.errors import InputError
from proteinlm.untrusted.safe_load import safe_torch_load


def assert_equal(a: dict, b: dict) -> None:
    assert set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


def test_source_can_be_overridden(megatron_dir, convert_to):
    tape, _ = convert_to(megatron_dir, "tape")
    config = json.loads((tape / "config.json").read_text()) | {"model_type": "bert"}
    (tape / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="model_type 'bert'"):
        recognise(tape)
    assert convert_to(tape, "again", "--source", "tape", "--verify")


def test_two_kinds_in_one_directory_are_not_guessed_at(megatron_dir, convert_to):
    path, _ = convert_to(megatron_dir, "both", "--target", "dcp")
    write_megatron(path, random_weights(), name="iter_0000500", tracker=None)
    with pytest.raises(InputError, match=r"holds checkpoints of dcp and megatron; say which with --source"):
        recognise(path)
    assert read(path, "dcp").counters["iteration"] == 1000


def test_a_format_is_one_row_of_the_table(megatron_dir, convert_to, monkeypatch):
    """Everything that the command does with a format goes through its row."""

    def write_toy(model, directory, options):
        torch.save(model.rounded_to(options.dtype).tensors, directory / "toy.pt")
        toy_models.append(model)

    def read_toy(path, options):
        return replace(toy_models[0], tensors=safe_torch_load(path / "toy.pt"))

    toy_models = []
    toy = Format("toy", lambda path: (path / "toy.pt").is_file(), read_toy, lambda model, options: model, write_toy)
    monkeypatch.setitem(FORMATS, "toy", toy)
    monkeypatch.setattr("converter.__main__.FORMATS", (*FORMATS,))  # the flag's names, which need no torch
    path, printed = convert_to(megatron_dir, "toy", "--target", "toy", "--verify", "--dtype", "bf16")
    assert "all 57 tensors read back are equal" in printed and "(through pretrain)" in printed
    assert recognise(path) == "toy" and read(path).dtype == torch.bfloat16
    assert_equal(read(convert_to(path, "back", "--target", "dcp")[0]).tensors, read(path).tensors)
    for flags in (("--bin",), ("--tensor-model-parallel-size", 2)):
        assert flags[0] in convert_to(megatron_dir, "no", "--target", "toy", *flags, status=2)[1]
    for flags in (("--iteration", 1000), ("--num-attention-heads", 4)):
        assert f"{flags[0]} {flags[1]}: " in convert_to(path, "no", *flags, status=2)[1]


def test_a_dcp_of_an_iteration(megatron_dir, convert_to):
    path, _ = convert_to(megatron_dir, "dcp", "--target", "dcp")
    assert (path / "iter_0001000/meta.json").is_file()
    one, other = read(path), read(path / "iter_0001000")
    assert_equal(one.tensors, other.tensors)
    assert one.counters["consumed_train_samples"] == 128000
    assert read(megatron_dir).counters == {"iteration": 1000, "consumed_train_samples": 128000}
