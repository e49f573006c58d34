"""The contact head on attention maps: Hugging Face's predict_contacts is the reference; trained, saved, refused."""

import numpy as np
import pytest
import torch
from toy_data import TINY, write_split
from toy_esm import esm_model
from toy_huggingface import write_family

import proteinlm
from proteinlm.errors import InputError
from proteinlm.files import write_json
from proteinlm.network.attention import maps as attention_maps
from proteinlm.untrusted.json_files import read_json
from tape import evaluate, predict, train
from tape.models import modeling_bert, modeling_huggingface, modeling_lstm
from tape.models.kinds import ATTENTION_SCALE
from tape.registry import resolve_task
from tape.tokenizers import TAPETokenizer

PROTEINS = ["MKTAYIAKQRQISFVKSHFSRQ", "MKVLAAGIVG"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    for split, count in (("train", 6), ("valid", 3), ("test", 3)):
        write_split(root, "contact_prediction", split, count=count, seed=len(split))
    esm_model(num_hidden_layers=2).save_pretrained(root / "esm")
    write_json(root / "config.json", TINY)
    return root


def batch_of(proteins):
    tokenizer = TAPETokenizer()
    ids = torch.zeros(len(proteins), max(map(len, proteins)) + 2, dtype=torch.long)
    for row, protein in zip(ids, proteins, strict=True):
        row[: len(protein) + 2] = torch.from_numpy(np.asarray(tokenizer.encode(protein)))
    return ids, ids != 0


def contact_model(directory, module=modeling_bert, name="ProteinBertForContactPrediction", **keys):
    return getattr(module, name).from_pretrained(directory, head="attention", **keys)


def test_begins_as_the_directory_s_own_regression(world):
    """In a padded batch, to the probability that Encoder.contacts (tested against transformers) gives."""
    model = contact_model(world / "esm")
    expected = proteinlm.load(world / "esm", device="cpu").contacts(PROTEINS, quiet=True)
    with torch.no_grad():
        logits = model(*batch_of(PROTEINS))[0]
    assert logits.shape == (2, 22, 22, 2) and not any("regression" in note for note in model.load_report)
    for own, right in zip(logits.softmax(-1)[..., 1].numpy(), expected, strict=True):
        assert own[: len(right), : len(right)] == pytest.approx(right, abs=1e-5)
    assert float(expected[0].max() - expected[0].min()) > 0.05
    with torch.no_grad():
        model.predict.regression.weight[0, 0] += 0.1
        assert abs(model(*batch_of(PROTEINS))[0] - logits).max() > 1e-2


def gradients(model, proteins):
    model.zero_grad()
    model(*batch_of(proteins))[0].double().pow(2).mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_reach_every_layer_and_recomputing_pieces_changes_none(world, monkeypatch):
    model = contact_model(world / "esm").train()
    whole = gradients(model, PROTEINS)
    for part in ("word_embeddings", "layers.0.mlp", "layers.1.attention.query_key_value", "predict.regression"):
        assert any(part in name and float(grad.abs().max()) > 0 for name, grad in whole.items()), part
    monkeypatch.setattr(attention_maps, "MAX_SCORES", 1)  # a head at a time
    pieces = gradients(model, PROTEINS)
    monkeypatch.setattr(attention_maps, "checkpoint", lambda function, *some, **_: function(*some))
    kept = gradients(model, PROTEINS)
    assert whole.keys() == pieces.keys() == kept.keys()
    for name, grad in whole.items():
        scale = float(grad.abs().max()) + 1e-12
        assert float((grad - pieces[name]).abs().max()) < 1e-4 * scale, name
        assert torch.equal(pieces[name], kept[name])


def test_a_run_learns_the_regression_alone_and_is_scored(world, tmp_path, capsys):
    """Frozen: the encoder is saved as it was, with a regression on its maps; tape-eval and tape-predict open it."""
    flags = ("--head", "attention", "--from_pretrained", world / "esm", "--freeze_encoder", "--max_steps", 3)
    words = ("transformer", "contact_prediction", "--data_dir", world, "--output_dir", tmp_path / "run", *flags)
    assert train.cli(list(map(str, (*words, "--device", "cpu", "--batch_size", 2, "--learning_rate", 1e-3)))) == 0
    scored = ("transformer", "contact_prediction", tmp_path / "run", "--data_dir", world, "--device", "cpu")
    assert evaluate.cli(list(map(str, scored))) == 0
    assert read_json(tmp_path / "run/contact_prediction-test.json")["head"] == "attention"
    (tmp_path / "in.fasta").write_text(f">P1\n{PROTEINS[0]}\n")
    words = (tmp_path / "run", tmp_path / "in.fasta", tmp_path / "out.npz", "--device", "cpu", "--no-png")
    assert predict.cli(list(map(str, words))) == 0
    weights = proteinlm.load(tmp_path / "run", device="cpu")
    model = contact_model(tmp_path / "run", require_head=True)
    regression = model.predict.regression
    first = contact_model(world / "esm").predict.regression
    assert float((regression.weight - first.weight).detach().abs().max()) > 1e-4
    with torch.no_grad():
        head = proteinlm.network.contacts.ContactRegression(
            regression.weight * ATTENTION_SCALE, regression.bias * ATTENTION_SCALE
        )
    weights.set_contacts(head)
    with np.load(tmp_path / "out.npz") as archive:
        assert archive["P1"] == pytest.approx(weights.contacts(PROTEINS[0], quiet=True)[0], abs=1e-5)


def test_encoders_of_transformers(world, tmp_path):
    for family in ("ProtBert", "ProtT5", "ProtXLNet"):
        directory = write_family(family, tmp_path / family)
        model = contact_model(directory, modeling_huggingface, "HuggingFaceForContactPrediction").train()
        found = gradients(model, PROTEINS)
        assert any("trunk" in name and float(grad.abs().max()) > 0 for name, grad in found.items()), family
        model.save_pretrained(tmp_path / f"{family}-run")
        again = contact_model(tmp_path / f"{family}-run", modeling_huggingface, "HuggingFaceForContactPrediction")
        ids, mask = batch_of(PROTEINS)
        with torch.no_grad():
            assert torch.allclose(again(ids, mask)[0], model.eval()(ids, mask)[0], atol=1e-6)


def test_refusals(world, tmp_path):
    with pytest.raises(InputError, match="head attention: lstm gives no attention maps"):
        modeling_lstm.ProteinLSTMForContactPrediction(modeling_lstm.ProteinLSTMConfig(head="attention"))
    with pytest.raises(InputError, match="head attention: is for contacts; should be proteinlm or tape"):
        resolve_task("stability", "transformer").model.from_pretrained(None, head="attention", **TINY)
    with pytest.raises(InputError, match="head is 'attention', but 'tape' was asked for"):
        contact_model(world / "esm").save_pretrained(tmp_path / "run")
        modeling_bert.ProteinBertForContactPrediction.from_pretrained(tmp_path / "run", head="tape")
    directory = write_family("ProtBert", tmp_path / "bert")
    model = contact_model(directory, modeling_huggingface, "HuggingFaceForContactPrediction").train()
    model.trunk.encoder.recompute = True
    with pytest.raises(InputError, match="omit --recompute"):
        model(*batch_of(PROTEINS))
