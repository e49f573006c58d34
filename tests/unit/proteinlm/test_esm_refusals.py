"""Damaged and hostile ESM files: each is one line that names the file and what is wrong, and nothing runs."""

import argparse
import json
import os
import shutil
from pathlib import Path

import esm_writer
import pytest
import torch
from damage import Attack
from esm_writer import fair_arguments, random_weights, write_fair, write_hf
from safetensors.torch import load_file, save_file

import proteinlm
from proteinlm.errors import InputError
from proteinlm.tokenizer import ESM_TOKENS

LAYER = "esm.encoder.layer.1"
INV_FREQ = "esm.rotary_embeddings.inv_freq"
CONTACTS = "esm.contact_head.regression"
WORDS = "esm.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    home = tmp_path_factory.mktemp("good")
    (
        write_hf(home / "esm2"),
        write_hf(home / "esm1b", "esm1b"),
        write_fair(home / "fair"),
        write_fair(home / "1b", "esm1b"),
    )
    return home


def one_line(path: Path) -> str:
    with pytest.raises(InputError) as refused:
        proteinlm.load(path, device="cpu")
    message = str(refused.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 500
    return message


# ---- config.json

CONFIGS = {
    "no relative positions": (
        {"position_embedding_type": "relative_key"},
        "'relative_key' is not one of absolute, rot",
    ),
    "positions of a wrong type": ({"position_embedding_type": 3}, "position_embedding_type 3 is not one of"),
    "one layer too many": ({"num_hidden_layers": 3}, "esm.encoder.layer.2.attention.LayerNorm.weight is missing"),
    "one layer too few": ({"num_hidden_layers": 1}, "weight has shape [1, 4], but config.json gives [1, 2]"),
    "layers beyond all bounds": ({"num_hidden_layers": 1000}, "cannot be the 1000 layers"),
    "other heads": ({"num_attention_heads": 4}, "weight has shape [1, 4], but config.json gives [1, 8]"),
    "heads that do not divide": ({"num_attention_heads": 3}, "num_attention_heads 3 must divide hidden_size 8"),
    "pairs that cannot turn": ({"num_attention_heads": 8}, "must be even"),
    "hidden size as text": ({"hidden_size": "8"}, "hidden_size is '8'; a positive whole number"),
    "no hidden size": ({"hidden_size": None}, "hidden_size is missing"),
    "another hidden size": ({"hidden_size": 16}, "has shape"),
    "epsilon as text": ({"layer_norm_eps": "1e-5"}, "layer_norm_eps is '1e-5'"),
    "dropout of a list": ({"hidden_dropout_prob": [0.1]}, "hidden_dropout_prob [0.1] must be"),
    "token dropout as a number": ({"token_dropout": 1}, "token_dropout 1 is not one of True, False"),
    "norm before as text": ({"emb_layer_norm_before": "no"}, "emb_layer_norm_before 'no' is not one of"),
    "epsilon of zero": ({"layer_norm_eps": 0}, "layer_norm_eps is 0; a small positive number"),
    "zero for false": ({"is_decoder": 0}, "is_decoder 0 is another network"),
    "base of zero": ({"rope_theta": 0}, "rope_theta is 0; a positive number"),
    "another mask token": ({"mask_token_id": 4}, "mask_token_id is 4; <mask> is 32"),
    "mask token as text": ({"mask_token_id": "32"}, "mask_token_id is '32'; <mask> is 32"),
    "no mask token": ({"mask_token_id": None}, "token_dropout is true and mask_token_id is missing"),
    "another padding": ({"pad_token_id": 0}, "pad_token_id is 0; <pad> is 1"),
    "another vocabulary": ({"vocab_size": 446}, "vocab_size 446; only ESM's vocabulary of 33 tokens"),
    "tokens in another order": ({"vocab_list": [*reversed(ESM_TOKENS)]}, "vocab_list is not ESM's 33 tokens"),
    "tokens as text": ({"vocab_list": "L A G"}, "vocab_list is not ESM's 33 tokens"),
    "ESMFold": ({"is_folding_model": True}, "is_folding_model True is another network"),
    "a decoder": ({"is_decoder": True}, "is_decoder True is another network"),
    "another activation": ({"hidden_act": "relu"}, "hidden_act 'relu' is another network"),
    "pruned heads": ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
    "learned positions that are not there": (
        {"position_embedding_type": "absolute"},
        "position_embeddings.weight is mi",
    ),
    "a norm that is not there": ({"emb_layer_norm_before": True}, "esm.embeddings.layer_norm.weight is missing"),
    "a decoder that is not there": ({"tie_word_embeddings": False}, "lm_head.decoder.weight is missing"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config_that_cannot_be(good, tmp_path, name):
    changes, message = CONFIGS[name]
    directory = shutil.copytree(good / "esm2", tmp_path / "model")
    stored = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(stored))
    assert message in one_line(directory)


def test_too_few_positions_and_another_vocabulary(good, tmp_path):
    directory = shutil.copytree(good / "esm1b", tmp_path / "model")
    stored = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(stored | {"max_position_embeddings": 2}))
    assert "max_position_embeddings 2; the first 2 rows are no position's" in one_line(directory)
    (directory / "config.json").write_text(json.dumps(stored))
    (directory / "vocab.txt").write_text("\n".join(["<cls>", "<pad>", "<eos>", "<unk>", "A", "L", *ESM_TOKENS[6:]]))
    assert "vocab.txt, line 5: token 'A' where the vocabulary has 'L'" in one_line(directory)


# ---- weights of a directory

WEIGHTS = {
    "missing": ({f"{LAYER}.output.dense.bias": None}, "layer.1.output.dense.bias is missing"),
    "part of the head missing": ({"lm_head.dense.weight": None}, "lm_head.dense.weight is missing"),
    "word embedding missing": ({WORDS: None}, f"{WORDS} is missing"),
    "wrong shape": ({f"{LAYER}.attention.self.key.weight": torch.zeros(8, 4)}, "has shape [8, 4]"),
    "unknown": ({"esm.other.weight": torch.zeros(1)}, "esm.other.weight does not belong to the model"),
    "whole numbers": ({f"{LAYER}.LayerNorm.bias": torch.zeros(8, dtype=torch.int64)}, "holds torch.int64"),
    "frequencies too many": ({INV_FREQ: torch.ones(3)}, "inv_freq has shape [3], but config.json gives [2]"),
    "frequencies of none": ({INV_FREQ: torch.ones(())}, "inv_freq has shape []"),
    "frequencies NaN": ({INV_FREQ: torch.tensor([1.0, float("nan")])}, "holds what are no frequencies"),
    "frequencies negative": ({INV_FREQ: torch.tensor([1.0, -1.0])}, "holds what are no frequencies"),
    "frequencies whole": ({INV_FREQ: torch.ones(2, dtype=torch.int32)}, "holds what are no frequencies"),
    "two frequencies": (
        {f"{LAYER}.attention.self.rotary_embeddings.inv_freq": torch.ones(2)},
        "a model has one inv_freq for all layers",
    ),
    "NaN": ({WORDS: torch.full((33, 8), torch.nan)}, f"{WORDS} holds NaN or infinity"),
    "contacts infinite": ({f"{CONTACTS}.bias": torch.tensor([torch.inf])}, "regression.bias holds NaN or infinity"),
    "contacts too wide": ({f"{CONTACTS}.weight": torch.ones(1, 6)}, "regression.weight has shape [1, 6]"),
    "contacts without bias": ({f"{CONTACTS}.bias": None}, "regression.bias is missing"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_cannot_be(good, tmp_path, name):
    changes, message = WEIGHTS[name]
    directory = shutil.copytree(good / "esm2", tmp_path / "model")
    tensors = load_file(directory / "model.safetensors") | changes
    tensors = {name: value for name, value in tensors.items() if value is not None}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    assert message in one_line(directory)


def test_cut_short(good, tmp_path):
    directory = shutil.copytree(good / "esm2", tmp_path / "model")
    whole = (directory / "model.safetensors").read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        (directory / "model.safetensors").write_bytes(whole[:size])
        assert "not a whole safetensors file" in one_line(directory)
    path = shutil.copytree(good / "fair", tmp_path / "fair") / "esm2_t2.pt"
    whole = path.read_bytes()
    for size in (4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "damaged, truncated" in one_line(path) or "zip" in one_line(path)


# ---- fair-esm's files


def arguments(kind: str, **changes) -> dict:
    whole = fair_arguments(kind)
    values = whole["cfg"]["model"] if kind == "esm2" else whole["args"]
    for name, value in changes.items():
        setattr(values, name, value) if value is not None else delattr(values, name)
    return whole


FAIR = {
    "ESM-1": ("esm1b", arguments("esm1b", arch="protein_bert_base"), {}, "arch 'protein_bert_base' is ESM-1, with"),
    "MSA": ("esm1b", arguments("esm1b", arch="msa_transformer"), {}, "is an MSA Transformer; ESM-2, ESM-1b and ESM-1v"),
    "another arch": ("esm1b", arguments("esm1b", arch=[1]), {}, "arch 'list' is another network"),
    "no args": ("esm2", {"cfg": 3}, {}, "cfg or args is not a namespace of options"),
    "no cfg.model": ("esm2", {"cfg": {}}, {}, "cfg or args is not a namespace of options"),
    "keys of numbers": ("esm2", {"cfg": {"model": {1: 2}}}, {}, "cfg or args is not a namespace of options"),
    "layers missing": ("esm2", arguments("esm2", encoder_layers=None), {}, "arguments lack layers"),
    "layers as text": ("esm2", arguments("esm2", encoder_layers="6"), {}, "layers is '6'; a positive whole number"),
    "layers as a tensor": ("esm2", arguments("esm2", encoder_layers=torch.ones(9, 9)), {}, "layers is 'Tensor'"),
    "layers beyond all": ("esm2", arguments("esm2", encoder_layers=1000), {}, "cannot be the 1000 layers"),
    "a layer too many": (
        "esm2",
        arguments("esm2", encoder_layers=3),
        {},
        "layers.2.self_attn.rot_emb.inv_freq is missing",
    ),
    "a layer too few": (
        "esm2",
        arguments("esm2", encoder_layers=1),
        {},
        "does not belong to the model (its arguments)",
    ),
    "other heads": ("esm2", arguments("esm2", encoder_attention_heads=4), {}, "has shape [1, 4], but its"),
    "other width": ("esm2", arguments("esm2", encoder_embed_dim=16), {}, "has shape"),
    "token dropout as text": ("esm2", arguments("esm2", token_dropout="yes"), {}, "token_dropout 'yes' is not one of"),
    "no token dropout": ("esm2", arguments("esm2", token_dropout=None), {}, "arguments lack token_dropout"),
    "other positions": ("esm1b", arguments("esm1b", max_positions=41), {}, "embed_positions.weight"),
    "missing": ("esm2", None, {"layers.1.fc1.bias": None}, "layers.1.fc1.bias is missing"),
    "no head": ("esm2", None, {"lm_head.weight": None}, "lm_head.weight is not embed_tokens.weight"),
    "two matrices": ("esm2", None, {"lm_head.weight": torch.ones(33, 8)}, "fair-esm has one matrix for both"),
    "rows too few": (
        "esm1b",
        None,
        {"embed_tokens.weight": torch.ones(30, 8)},
        "embed_tokens.weight has shape [30, 8]",
    ),
    "a number": ("esm2", None, {"layers.1.fc1.bias": 3}, "fc1.bias is a int, not a tensor"),
    "frequencies of two kinds": (
        *("esm2", None, {"layers.1.self_attn.rot_emb.inv_freq": torch.ones(2)}),
        "layers.1.self_attn.rot_emb.inv_freq is not layers.0.self_attn.rot_emb.inv_freq",
    ),
    "frequencies infinite": (
        *(
            "esm2",
            None,
            dict.fromkeys([f"layers.{i}.self_attn.rot_emb.inv_freq" for i in (0, 1)], torch.tensor([1, torch.inf])),
        ),
        "holds what are no frequencies",
    ),
    "NaN": ("esm2", None, {"layers.1.fc1.bias": torch.full((32,), torch.nan)}, "fc1.bias holds NaN or infinity"),
    "a name twice": ("esm2", None, {"encoder.layers.1.fc1.bias": torch.ones(32)}, "layers.1.fc1.bias is there twice"),
}


@pytest.mark.parametrize("name", FAIR)
def test_fair_esm_that_cannot_be(tmp_path, name):
    kind, changed, tensors, message = FAIR[name]
    weights = random_weights(kind) | tensors
    content = {"model": {name: value for name, value in weights.items() if value is not None}}
    path = tmp_path / f"{kind}.pt"
    torch.save((changed or fair_arguments(kind)) | content, path)
    assert message in one_line(path)


@pytest.mark.parametrize("content", [[], 5, {}, {"model": {}}, {"cfg": {}}, {"cfg": {}, "model": [1]}, {1: 2}])
def test_other_things_in_a_file(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    message = one_line(tmp_path / "other.pt")
    assert "not fair-esm's; a dict of model" in message or "model is not a state dict" in message


CONTACT_FILES = {
    "too wide": ({"model": {"contact_head.regression.weight": torch.ones(1, 5)}}, "regression.weight has shape [1, 5]"),
    "other tensors": (
        {"model": {"embed_tokens.weight": torch.ones(33, 8)}},
        "embed_tokens.weight is no part of a contact",
    ),
    "no model": ({"weights": {}}, "not a contact regression of fair-esm"),
    "a list": ([1], "not a contact regression of fair-esm"),
}


@pytest.mark.parametrize("name", CONTACT_FILES)
def test_contact_regression_that_cannot_be(tmp_path, name):
    content, message = CONTACT_FILES[name]
    path = write_fair(tmp_path)
    beside = tmp_path / "esm2_t2-contact-regression.pt"
    whole = torch.load(beside)
    if name == "too wide":
        content["model"] = whole["model"] | content["model"]
    torch.save(content, beside)
    with pytest.raises(InputError) as refused:
        proteinlm.load(path, device="cpu")
    assert message in str(refused.value)
    assert str(refused.value).startswith(str(path if name == "too wide" else beside))


# ---- attacks


def attacks(marker: Path, kind: str) -> dict[str, dict]:
    """Files that run a command when Python opens them, in every place where a fair-esm file has something."""
    attack = Attack(os.system, f"touch {marker}")
    weights, options = random_weights(kind), fair_arguments(kind)
    namespace = argparse.Namespace(**{"encoder_layers": attack})
    return {
        "arguments": {**({"cfg": {"model": namespace}} if kind == "esm2" else {"args": namespace}), "model": weights},
        "namespace": {**({"cfg": {"model": attack}} if kind == "esm2" else {"args": attack}), "model": weights},
        "a tensor": options | {"model": weights | {"layers.0.fc1.bias": attack}},
        "beside": options | {"model": weights, "extra": [attack]},
    }


@pytest.mark.parametrize("place", ["arguments", "namespace", "a tensor", "beside"])
@pytest.mark.parametrize("kind", esm_writer.KINDS)
@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_hidden_runs(tmp_path, kind, place, legacy):
    marker, path = tmp_path / "ran", tmp_path / "esm2.pt"
    torch.save(attacks(marker, kind)[place], path, _use_new_zipfile_serialization=not legacy)
    assert "refused, nothing was run" in one_line(path) and not marker.exists()
    shutil.copy(path, tmp_path / "good-contact-regression.pt")
    good = write_fair(tmp_path, contacts=False).rename(tmp_path / "good.pt")
    with pytest.raises(InputError, match="refused, nothing was run"):
        proteinlm.load(good, device="cpu")
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # control: the command does run where nothing guards


def test_nothing_hidden_runs_in_a_directory(good, tmp_path):
    directory, marker = shutil.copytree(good / "esm2", tmp_path / "model"), tmp_path / "ran"
    (directory / "model.safetensors").unlink()
    torch.save({WORDS: Attack(os.system, f"touch {marker}")}, directory / "pytorch_model.bin")
    assert "refused, nothing was run" in one_line(directory) and not marker.exists()
