"""Attention maps of every kind of encoder, against what transformers returns when it is asked for all of them."""

import numpy as np
import pytest
import torch
from esm_peers import esm_peer, packed, padded, proteins, same_network
from safetensors.torch import load_file, save_file
from toy_esm import esm_model
from toy_huggingface import FAMILIES, load_trunk, write_family

import proteinlm
from proteinlm.encoder import make_stream
from proteinlm.errors import InputError
from proteinlm.huggingface import attentions
from proteinlm.model_dir.regression import export_regression, read_regression, write_regression
from proteinlm.network.contacts import ContactRegression, pair_features, weighted_sum

FEW = ("ProtBert", "ProtXLNet", "ProstT5")  # of each way to hand maps on one
PROTEINS = ["MKVLAW", "ACDEFGHIKLMNPQRSTVWYACDXK", "G"]


def maps_of(run):
    """[M, L, L] of each protein; run(reduce) hands the maps on."""
    parts: dict[int, list] = {}
    run(lambda maps: parts.setdefault(maps.protein, []).append((maps.heads.start, maps.residues.clone())))
    return [torch.cat([own for _, own in sorted(some, key=lambda part: part[0])]) for _, some in sorted(parts.items())]


@torch.no_grad()
def test_esm_gives_hugging_face_s_maps(unrounded):
    peer, tokens = esm_peer(3, 5, 4), proteins()
    network = same_network(peer)
    own = maps_of(lambda reduce: network.attention_sums(reduce, *packed(tokens)))
    assert len(own) == len(tokens)
    for maps, ids in zip(own, tokens, strict=True):
        expected = torch.cat(peer(*padded([ids]), output_attentions=True).attentions, 1)[0, :, 1:-1, 1:-1]
        assert float((maps - expected).abs().max()) < 1e-12


@pytest.mark.parametrize(
    "family", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_encoders_of_transformers_give_theirs(family, tmp_path):
    encoder = load_trunk(write_family(family, tmp_path))
    encoder.model.double()
    stream = make_stream(PROTEINS, encoder.tokenizer)
    own, before = maps_of(lambda reduce: encoder.attention_sums(reduce, stream)), encoder.model.model
    kind = before.config._attn_implementation
    before.set_attn_implementation("eager")
    first = len(encoder.model.table.prefix)
    for maps, protein in zip(own, PROTEINS, strict=True):
        inputs = [torch.from_numpy(part) for part in make_streams(protein, encoder)]
        batch = encoder.model._rectangle(*inputs)
        with torch.no_grad():
            output = before(input_ids=batch.ids, attention_mask=batch.mask, output_attentions=True)
        expected = torch.cat(output.attentions, 1)[0][:, first:, first:][:, : len(protein), : len(protein)]
        assert maps.shape == expected.shape == (4, len(protein), len(protein))
        assert float((maps - expected).abs().max()) < 1e-12
        other = maps.transpose(1, 2)  # the control: from and to exchanged
        assert len(protein) == 1 or float((other - expected).abs().max()) > 1e-3
    assert kind in ("sdpa", "eager")


def make_streams(protein, encoder):
    stream = make_stream([protein], encoder.tokenizer)
    return stream.tokens, stream.positions, stream.bounds


def test_a_model_without_maps_is_refused(tmp_path, monkeypatch):
    encoder = load_trunk(write_family("ProtBert", tmp_path))
    stream = make_stream(PROTEINS, encoder.tokenizer)
    monkeypatch.setattr(attentions, "_weights_in", lambda *_: None)
    with pytest.raises(InputError, match="bert: 0 of its 2 layers give attention maps"):
        encoder.attention_sums(lambda maps: None, stream)


def test_correction_worked_out_by_hand():
    """Symmetric: rows 2.25, 2, 1.75 of together 6; 1.5 - 2.25 * 1.75 / 6 = 0.84375 ... The ends of the map are cut."""
    weights = torch.full((1, 5, 5), 0.77, dtype=torch.float64)
    weights[0, 1:4, 1:4] = torch.tensor([[0, 0.5, 0.5], [0.25, 0.5, 0.25], [1, 0, 0]])
    maps = attentions.AttentionMaps(0, 0, weights, slice(1, 4))
    first, second = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
    expected = [0.75 - 2.25 * 2 / 6, 0.84375, 0.25 - 2 * 1.75 / 6]
    assert pair_features(maps, first, second)[0].tolist() == pytest.approx(expected, abs=1e-12)
    both = weighted_sum(maps, torch.tensor([[1.0], [-2.0]], dtype=torch.float64))
    assert both[0, first, second].tolist() == pytest.approx(expected, abs=1e-12)
    assert torch.equal(both[1], -2 * both[0]) and torch.allclose(both[0], both[0].T, atol=1e-15)


@pytest.fixture
def regression():
    generator = torch.Generator().manual_seed(3)
    return ContactRegression(torch.randn(1, 8, generator=generator), torch.randn(1, generator=generator))


def test_a_regression_in_a_file(regression, tmp_path):
    write_regression(tmp_path / "own.safetensors", regression)
    names = {"contact_head.regression.weight": regression.weight, "contact_head.regression.bias": regression.bias}
    assert {name: value.shape for name, value in load_file(tmp_path / "own.safetensors").items()} == {
        name: value.shape for name, value in names.items()
    }
    torch.save({"model": names}, tmp_path / "esm2_t2-contact-regression.pt")  # as fair-esm has it
    for file in ("own.safetensors", "esm2_t2-contact-regression.pt"):
        again = read_regression(tmp_path / file)
        assert torch.equal(again.weight, regression.weight) and torch.equal(again.bias, regression.bias)


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({"other": torch.ones(2)}, "no contact_head.regression.weight and .bias in it"),
        ({"weight": torch.ones(8), "bias": torch.ones(1)}, r"shapes \[8\] and \[1\]; should be \[1, layers"),
        ({"weight": torch.full((1, 8), torch.nan), "bias": torch.ones(1)}, "not finite"),
    ],
)
def test_files_that_are_no_regression(tensors, complaint, tmp_path):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=complaint):
        read_regression(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="no such file; a contact regression is"):
        read_regression(tmp_path / "absent.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        read_regression(tmp_path / "x.safetensors")


@torch.no_grad()
def test_hugging_face_runs_an_exported_regression(regression, tmp_path, unrounded):
    """`predict_contacts` of the copy is ours of the model with the file; the copied model is as it was."""
    transformers = pytest.importorskip("transformers")
    esm_model().save_pretrained(tmp_path / "model")
    export_regression(tmp_path / "model", regression, tmp_path / "copy")
    peer = transformers.EsmForMaskedLM.from_pretrained(tmp_path / "copy", attn_implementation="eager").double().eval()
    encoder = proteinlm.load(tmp_path / "model", device="cpu")
    encoder.model.double()
    before = encoder.contacts(PROTEINS, quiet=True)
    encoder.set_contacts(regression)
    for protein, own, other in zip(PROTEINS, encoder.contacts(PROTEINS, quiet=True), before, strict=True):
        tokens = torch.from_numpy(make_stream([protein], encoder.tokenizer).tokens)[None]
        expected = peer.predict_contacts(tokens, torch.ones_like(tokens))[0].numpy()
        assert np.abs(own - expected).max() < 1e-10 < np.abs(own - other).max()
    left = {file.name for file in (tmp_path / "model").iterdir()}
    assert {file.name for file in (tmp_path / "copy").iterdir()} == left
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "copy"))
    changed = {name for name in one | two if name not in one or not torch.equal(one[name], two[name])}
    assert changed == {"esm.contact_head.regression.weight", "esm.contact_head.regression.bias"}


def test_where_a_regression_does_not_go(regression, tmp_path):
    esm_model(num_hidden_layers=3).save_pretrained(tmp_path / "model")
    encoder = proteinlm.load(tmp_path / "model", device="cpu")
    with pytest.raises(InputError, match=r"weight of shape \[1, 8\]; .* 3 layers x 4 heads, so it should be \[1, 12\]"):
        encoder.set_contacts(regression)
    with pytest.raises(InputError, match="no place for a contact regression"):
        export_regression(write_family("ProtBert", tmp_path / "bert"), regression, tmp_path / "copy")
    with pytest.raises(InputError, match="exists already"):
        export_regression(tmp_path / "model", regression, tmp_path)
