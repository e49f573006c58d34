"""Weights that are no numbers: refused with the tensor's name and count at every door that computes with them; a
conversion, which copies, keeps their bits and says how many there are."""

import shutil
from pathlib import Path

import pytest
import torch
from damage import SMALL
from megatron_writer import random_weights, write_megatron
from safetensors.torch import load_file, save_file
from toy_esm import esm_model, esmc_model
from toy_huggingface import write_family
from toy_model import write_model

import proteinlm
from proteinlm import errors
from proteinlm.errors import InputError
from proteinlm.model_dir.files import count_not_finite
from tape import ProteinBertModel, ProteinLSTMConfig, ProteinLSTMModel, embed, evaluate, predict, train
from tape.models.modeling_huggingface import HuggingFaceModel

QUERY = {
    "tape": "bert.encoder.layer.1.attention.self.query.weight",
    "esm": "esm.encoder.layer.1.attention.self.query.weight",
    "esmc": "esmc.layers.1.mlp.down_proj.weight",
    "protbert": "bert.encoder.layer.1.attention.self.query.weight",
}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A model directory of each kind."""
    home = tmp_path_factory.mktemp("good")
    write_model(home / "tape", base_model="transformer")
    esm_model().save_pretrained(home / "esm")
    esmc_model().save_pretrained(home / "esmc")
    write_family("ProtBert", home / "protbert")
    return home


def spoiled(source: Path, target: Path, name: str = "", values=(float("nan"), float("inf"), -float("inf"))) -> Path:
    """A copy with some numbers of a tensor replaced."""
    shutil.copytree(source, target)
    path = target / "model.safetensors"
    tensors = load_file(path)
    name = name or QUERY[source.name]
    name = next(own for own in tensors if own.endswith(name))
    tensors[name].view(-1)[: len(values)] = torch.tensor(values, dtype=tensors[name].dtype)
    save_file(tensors, path, {"format": "pt"})
    return target


def line(path: Path, name: str, count: int = 3) -> str:
    return f"{path}/model.safetensors: {name} holds NaN or infinity ({count} numbers): a diverged run or a damaged file"


@pytest.mark.parametrize("kind", QUERY)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_load(good, tmp_path, kind, value):
    proteinlm.load(good / kind, device="cpu")  # control
    path = spoiled(good / kind, tmp_path / kind, values=[value])
    with pytest.raises(InputError) as caught:
        proteinlm.load(path, device="cpu")
    assert str(caught.value) == line(path, QUERY[kind], 1)


@pytest.mark.parametrize("kind", ["tape", "esm", "esmc", "protbert"])
def test_the_classes_of_tape(good, tmp_path, kind):
    model = HuggingFaceModel if kind == "protbert" else ProteinBertModel
    model.from_pretrained(good / kind)
    path = spoiled(good / kind, tmp_path / kind)
    with pytest.raises(InputError) as caught:
        model.from_pretrained(path)
    assert str(caught.value) == line(path, QUERY[kind])


def test_tapes_other_models(tmp_path):
    ProteinLSTMModel(ProteinLSTMConfig(input_size=8, hidden_size=8, num_hidden_layers=1)).save_pretrained(
        tmp_path / "a"
    )
    path = spoiled(tmp_path / "a", tmp_path / "b", "bias_hh_l0")
    with pytest.raises(InputError, match=r"bias_hh_l0 holds NaN or infinity \(3 numbers\)"):
        ProteinLSTMModel.from_pretrained(path)


COMMANDS = {
    "tape-embed": (embed.main, "transformer {0}/one.fasta {0}/out.npz {1} --device cpu"),
    "tape-predict": (predict.main, "{1} {0}/one.fasta {0}/out.tsv --task stability --device cpu"),
    "tape-eval": (evaluate.main, "transformer stability {1} --data_dir {0}/data --device cpu"),
    "tape-train": (train.main, "transformer stability --data_dir {0}/data --output_dir {0}/run --from_pretrained {1}"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command(good, tmp_path, tiny_tape_data, capsys, command):
    (tmp_path / "one.fasta").write_text(">a\nMKV\n")
    (tmp_path / "data").symlink_to(tiny_tape_data)
    path = spoiled(good / "tape", tmp_path / "model")
    before = sorted(tmp_path.iterdir())
    main, words = COMMANDS[command]
    assert errors.run(main, words.format(tmp_path, path).split()) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {line(path, QUERY['tape'])}"
    assert sorted(tmp_path.iterdir()) == before


def test_several_tensors_are_counted(good, tmp_path):
    path = spoiled(spoiled(good / "tape", tmp_path / "a"), tmp_path / "b", "embeddings.position_embeddings.weight")
    with pytest.raises(InputError, match=r" \(3 numbers, and 1 more tensors\): a diverged run"):
        proteinlm.load(path, device="cpu")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn])
def test_a_sum_that_is_too_large_is_no_fault(dtype):
    """Of finite numbers; it is what is looked at first."""
    ends = torch.finfo(dtype).max, torch.finfo(dtype).min
    largest, smallest = (torch.full((99,), end, dtype=torch.float64) for end in ends)
    mixed = largest.clone()
    mixed[3:5] = float("nan")
    largest, smallest, mixed = (tensor.to(dtype) for tensor in (largest, smallest, mixed))
    assert count_not_finite({"a": largest, "b": smallest, "c": torch.empty(0), "d": torch.arange(5)}) == {}
    assert count_not_finite({"a": mixed}) == {"a": 2}
    opposite = torch.tensor([float("inf"), -float("inf"), 1.0])
    assert count_not_finite({"a": opposite}) == {"a": 2}


# ---- conversions


@pytest.mark.parametrize(("kind", "target"), [("tape", "hf"), ("tape", "dcp"), ("tape", "megatron"), ("esm", "tape")])
def test_a_conversion_keeps_them(good, tmp_path, convert_to, kind, target):
    path = spoiled(good / kind, tmp_path / kind)
    written, printed = convert_to(path, "out", "--target", target, "--verify")
    note = f"note: {path}/model.safetensors: 3 numbers of 1 tensors are NaN or infinity, first in {QUERY[kind]}"
    assert f"{note}: a diverged run or a damaged file; kept as they are\n" in printed
    assert "tensors read back are equal, bit for bit" in printed
    assert "no protein was run through it: 3 numbers of its weights are NaN or infinity" in printed
    back, printed = convert_to(written, "back", "--target", "esm" if kind == "esm" else "tape")
    assert "3 numbers of 1 tensors are NaN or infinity" in printed
    own, again = (load_file(directory / "model.safetensors") for directory in (path, back))
    name = next(own_name for own_name in again if own_name.endswith(QUERY[kind]))
    bits = [tensor.view(torch.int32) for tensor in (own[name], again[name])]
    assert torch.equal(*bits) and not torch.isfinite(again[name].view(-1)[:3]).any()


def test_a_rounded_one_too(good, tmp_path, convert_to):
    path = spoiled(good / "tape", tmp_path / "tape")
    written, printed = convert_to(path, "half", "--target", "hf", "--dtype", "fp16")
    assert "3 numbers of 1 tensors are NaN or infinity" in printed
    assert sum(count_not_finite(load_file(written / "model.safetensors")).values()) == 3


def test_a_megatron_checkpoint_keeps_them(tmp_path, convert_to):
    def change(content: dict, tensor_rank: int, pipeline_rank: int) -> None:
        layers = content["model"]["language_model"]["transformer"]
        layers["layers.0.input_layernorm.weight"].view(-1)[0] = float("nan")  # both halves have it

    write_megatron(tmp_path / "megatron", random_weights(1, **SMALL), 2, 1, change=change)
    written, printed = convert_to(tmp_path / "megatron", "tape", "--target", "tape", "--verify")
    assert "1 numbers of 1 tensors are NaN or infinity, first in layers.0.input_layernorm.weight" in printed
    assert sum(count_not_finite(load_file(written / "model.safetensors")).values()) == 1


def test_weights_too_large_to_compute_with_are_compared_as_tensors(good, tmp_path, convert_to):
    state = load_file(good / "tape" / "model.safetensors")
    shutil.copytree(good / "tape", tmp_path / "tape")
    state["mlm.transform.dense.weight"].fill_(3e38)
    save_file(state, tmp_path / "tape" / "model.safetensors")
    written, printed = convert_to(tmp_path / "tape", "out", "--target", "tape", "--verify")
    assert "logits nan (through tape)" in printed and "the source's own outputs are NaN or infinity" in printed
    assert torch.equal(
        load_file(written / "model.safetensors")["mlm.transform.dense.weight"], state["mlm.transform.dense.weight"]
    )
