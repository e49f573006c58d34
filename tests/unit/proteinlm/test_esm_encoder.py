"""proteinlm.load on an ESM-2 directory that Hugging Face wrote: what Python users get, against what they get there."""

import numpy as np
import pytest
import torch
from esm_peers import esm_peer
from toy_esm import transformers

import proteinlm
from proteinlm.errors import InputError
from proteinlm.tokenizer import ESM_TOKENS

LENGTHS = (12, 1, 1100, 40, 2)  # ESM-2 was trained on 1,022 residues, and takes more


@pytest.fixture(scope="module")
def peer():
    return esm_peer(2, 3, 4, dtype=torch.float32)


@pytest.fixture(scope="module")
def esm_directory(peer, tmp_path_factory):
    path = tmp_path_factory.mktemp("esm") / "model"
    peer.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(ESM_TOKENS))
    transformers.EsmTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def proteins():
    letters = list("ACDEFGHIKLMNPQRSTVWYXBUZO")
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(letters, length)) for length in LENGTHS]


@torch.no_grad()
def test_everything_is_hugging_faces(peer, esm_directory, proteins, unrounded):
    encoder = proteinlm.load(esm_directory, device="cpu")
    encoder.model.double()
    expected = transformers.EsmForMaskedLM.from_pretrained(esm_directory, attn_implementation="eager").double().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(esm_directory)
    inputs = [tokenizer(protein, return_tensors="pt") for protein in proteins]
    outputs = [expected(**one, output_hidden_states=True) for one in inputs]

    def agree(results, values):
        shapes = [np.shape(result) for result in results]
        assert shapes == [tuple(value.shape) for value in values]
        return max(np.abs(a - b.numpy()).max() for a, b in zip(results, values, strict=True)) < 1e-10

    assert agree(encoder.logits(proteins), [out.logits[0, 1:-1] for out in outputs])
    states = [torch.cat(out.hidden_states)[:, 1:-1] for out in outputs]
    assert agree(encoder.hidden_states(proteins), states)
    assert agree(encoder.embed(proteins, None), [state[-1] for state in states])
    assert agree(encoder.embed(proteins, None, layer=1), [state[1] for state in states])
    contacts = [expected.predict_contacts(one["input_ids"], one["attention_mask"])[0] for one in inputs]
    assert agree(encoder.contacts(proteins), contacts)
    assert not agree(encoder.logits(proteins), [out.logits[0, 1:-1].roll(1, 0) for out in outputs])

    last = [out.hidden_states[-1][0] for out in outputs]
    pooled = {"mean": [state[1:-1].mean(0) for state in last], "cls": [state[0] for state in last]}
    pooled["avg"] = [state.mean(0) for state in last]
    for pooling, values in pooled.items():
        assert np.abs(encoder.embed(proteins, pooling) - torch.stack(values).numpy()).max() < 1e-6, pooling  # in fp32


def test_contacts_of_an_encoder(esm_directory, proteins):
    encoder = proteinlm.load(esm_directory, device="cpu")
    maps = encoder.contacts(proteins, tensors=True)
    assert all(
        own.dtype == torch.float32 and own.shape == (len(p), len(p)) for own, p in zip(maps, proteins, strict=True)
    )
    assert all(torch.allclose(own, own.T, atol=1e-6) for own in maps)
    alone = encoder.contacts(proteins[0])  # a string is a list of one
    assert len(alone) == 1 and np.abs(alone[0] - maps[0].numpy()).max() < 1e-6
    assert encoder.contacts([]) == []
    halves = proteinlm.load(esm_directory, dtype="bf16", device="cpu").contacts(proteins[:2])
    assert halves[0].dtype == np.float32 and np.abs(halves[0] - alone[0]).max() < 0.1


def test_a_model_without_contact_regression(encoder):
    known = "ESM-1b, 1v and 2 come with one, proteinlm contacts MODEL --fit makes one"
    with pytest.raises(InputError, match=f"^.*: no contact regression, so no contacts; {known}$"):
        encoder.contacts("MKV")
