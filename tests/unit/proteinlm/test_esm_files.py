"""ESM's files in every form that they have been written in, compared with Hugging Face's EsmForMaskedLM."""

import json
import pickle
import re
import sys

import esm_writer
import pytest
import torch
from esm_writer import HEADS, KINDS, LAYERS, MASK, VOCABULARY, peer, random_weights, write_fair, write_hf
from safetensors.torch import load_file, save_file
from toy_esm import transformers

import proteinlm
from proteinlm.errors import InputError
from proteinlm.model_dir.load import READERS, recognise
from proteinlm.model_dir.vocabulary import to_tokenizer
from proteinlm.tokenizer import ESM_TOKENS, TAPE_TOKENS
from proteinlm.untrusted.safe_load import safe_pickle_loads

PROTEIN = "MKTAYIAKQRQISFVK"


def ids(protein: str = PROTEIN) -> torch.Tensor:
    return torch.tensor([[ESM_TOKENS.index(token) for token in ("<cls>", *protein, "<eos>")]])


def difference(encoder: proteinlm.Encoder, model) -> float:
    """The largest, of logits and contacts."""
    tokens = ids()
    with torch.no_grad():
        logits = model(tokens, attention_mask=torch.ones_like(tokens)).logits[0, 1:-1]
        contacts = model.predict_contacts(tokens, torch.ones_like(tokens))[0]
    pairs = [(encoder.logits(PROTEIN, tensors=True)[0], logits)]
    if encoder.contact_head is not None:
        pairs.append((encoder.contacts(PROTEIN, tensors=True)[0], contacts))
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """(kind, form) -> a path: fair-esm's file, Hugging Face's directory as written by hand and by save_pretrained."""
    home, paths = tmp_path_factory.mktemp("esm"), {}
    for kind in KINDS:
        paths[kind, "fair"] = write_fair(home / f"{kind}_fair", kind)
        paths[kind, "hf"] = write_hf(home / f"{kind}_hf", kind)
        paths[kind, "saved"] = home / f"{kind}_saved"
        peer(kind).save_pretrained(paths[kind, "saved"])
    return paths


@pytest.mark.parametrize("form", ["fair", "hf", "saved"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_is_hugging_faces_network(paths, kind, form):
    encoder = proteinlm.load(paths[kind, form], device="cpu")
    assert encoder.contact_head.weight.shape == (1, LAYERS * HEADS)
    assert encoder.config.token_dropout and encoder.config.mask_token_id == MASK
    assert encoder.config.max_tokens == (None if kind == "esm2" else esm_writer.POSITIONS)
    assert difference(encoder, peer(kind)) < 1e-5
    assert difference(encoder, peer(kind, random_weights(kind, seed=1))) > 1e-2  # control


def test_all_forms_hold_the_same(paths):
    for kind in KINDS:
        files = [READERS[recognise(paths[kind, form])](paths[kind, form]) for form in ("fair", "hf", "saved")]
        for other in files[1:]:
            assert set(other.state) == set(files[0].state)
            assert all(torch.equal(other.state[name], files[0].state[name]) for name in other.state)
            assert torch.equal(other.contact_head.weight, files[0].contact_head.weight) and other.notes == ()


def test_stored_frequencies_are_not_computed_anew(paths, tmp_path):
    usual = 10000.0 ** -(torch.arange(0, 4, 2) / 4)
    weights = random_weights()
    other = {name: usual if name.endswith("inv_freq") else value for name, value in weights.items()}
    encoder = proteinlm.load(paths["esm2", "hf"], device="cpu")
    assert difference(encoder, peer("esm2", other)) > 1e-3  # what a loader that computes them anew would give
    directory = write_hf(tmp_path / "absent")
    rewrite(directory, lambda tensors: tensors.pop("esm.rotary_embeddings.inv_freq"))
    files = READERS["esm"](directory)
    torch.testing.assert_close(files.state["rotary_embeddings.inv_freq"], usual)
    assert "no inv_freq" in files.notes[0]


def rewrite(directory, change) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def old_names(tensors: dict) -> None:
    """What transformers 4 wrote: frequencies once a layer, position_ids, positions that rotary models do not read."""
    value = tensors.pop("esm.rotary_embeddings.inv_freq")
    for i in range(LAYERS):
        tensors[f"esm.encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq"] = value.clone()
    tensors["esm.embeddings.position_ids"] = torch.arange(42)[None]
    tensors["esm.embeddings.position_embeddings.weight"] = torch.zeros(42, 8)
    tensors["lm_head.decoder.weight"] = tensors["esm.embeddings.word_embeddings.weight"].clone()


def test_old_names_and_another_file(paths, tmp_path):
    expected = READERS["esm"](paths["esm2", "hf"])
    directory = write_hf(tmp_path / "old")
    rewrite(directory, old_names)
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    (directory / "vocab.txt").write_text("\n".join(ESM_TOKENS))
    files = READERS["esm"](directory)
    assert all(torch.equal(files.state[name], value) for name, value in expected.state.items())
    assert files.config == expected.config and len(files.notes) == 1 and "positions are rotary" in files.notes[0]


def test_an_encoder_alone_and_a_finetuned_model(tmp_path):
    def encoder_alone(tensors: dict) -> None:
        for name in list(tensors):
            value = tensors.pop(name)
            if name.startswith("esm.") and "contact_head" not in name:
                tensors[name.removeprefix("esm.")] = value
        tensors |= {"pooler.dense.weight": torch.ones(8, 8), "pooler.dense.bias": torch.ones(8)}

    directory = write_hf(tmp_path / "model")
    rewrite(directory, encoder_alone)
    files = READERS["esm"](directory)
    assert files.contact_head is None and not any(name.startswith("lm_head.") for name in files.state)
    assert "esm.pooler.dense.bias, esm.pooler.dense.weight left out" in files.notes[0]
    encoder = proteinlm.load(directory, device="cpu")
    with torch.no_grad():
        expected = peer().esm(ids()).last_hidden_state[0, 1:-1]
    torch.testing.assert_close(encoder.embed(PROTEIN, pooling=None, tensors=True)[0], expected, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="no contact regression"):
        encoder.contacts(PROTEIN)


@pytest.mark.parametrize("tied_in_config", [True, False])
def test_a_head_of_its_own(tmp_path, tied_in_config):
    own = torch.randn(VOCABULARY, 8, generator=torch.Generator().manual_seed(3))
    directory = write_hf(tmp_path / "untied", tie_word_embeddings=tied_in_config)
    rewrite(directory, lambda tensors: tensors.update({"lm_head.decoder.weight": own}))
    files = READERS["esm"](directory)
    assert files.config.untie_embeddings_and_output_weights
    assert any("differs from" in note for note in files.notes) == tied_in_config
    model = transformers.EsmForMaskedLM.from_pretrained(directory, attn_implementation="eager").eval()
    assert torch.equal(model.lm_head.decoder.weight, own)
    assert difference(proteinlm.load(directory, device="cpu"), model) < 1e-5
    assert to_tokenizer(files, "tape").state["lm_head.decoder.weight"].shape == (30, 8)


def test_on_tapes_vocabulary(paths):
    files = READERS["esm"](paths["esm2", "hf"])
    tape = to_tokenizer(files, "tape")
    assert (tape.config.vocab_size, tape.config.mask_token_id) == (30, TAPE_TOKENS.index("<mask>"))
    words, esm_words = (f.state["word_embeddings.weight"] for f in (tape, files))
    for token, esm_token in (("A", "A"), ("<sep>", "<eos>"), ("<mask>", "<mask>"), ("<unk>", "<unk>")):
        assert torch.equal(words[TAPE_TOKENS.index(token)], esm_words[ESM_TOKENS.index(esm_token)])
    assert "rows of ., -, <null_1> left out" in tape.notes[-1] and tape.contact_head is files.contact_head


# ---- fair-esm alone


def test_without_contact_regression(tmp_path):
    path = write_fair(tmp_path, contacts=False)
    assert READERS["fair-esm"](path).contact_head is None
    inside = random_weights()
    torch.save(esm_writer.fair_arguments("esm2") | {"model": inside}, path)  # with its contacts, and without prefixes
    assert torch.equal(READERS["fair-esm"](path).contact_head.weight, inside["contact_head.regression.weight"])
    zeros = {name: 0 * value if "contact" in name else value for name, value in inside.items()}
    assert READERS["fair-esm"](write_fair(tmp_path / "zeros", weights=zeros)).contact_head is None


def test_esm1bs_mask_row_is_cleared(tmp_path):
    weights = random_weights("esm1b")
    weights["embed_tokens.weight"][MASK] = 5.0
    weights["lm_head.weight"] = weights["embed_tokens.weight"]
    path = write_fair(tmp_path, "esm1b", weights)
    files, before = READERS["fair-esm"](path), path.read_bytes()
    assert not files.state["word_embeddings.weight"][MASK].any() and "row of <mask> was set to zero" in files.notes[0]
    assert torch.equal(files.state["word_embeddings.weight"][:MASK], weights["embed_tokens.weight"][:MASK])
    assert path.read_bytes() == before


def test_esm1v_and_half_precision(tmp_path):
    weights = random_weights("esm1b")
    without = {name: value.half() for name, value in weights.items() if not name.startswith("emb_layer_norm_before")}
    without["lm_head.weight"] = without["embed_tokens.weight"]
    files = READERS["fair-esm"](write_fair(tmp_path, "esm1b", without))
    assert not files.config.embedding_layernorm and files.state["final_layernorm.bias"].dtype == torch.float16


def test_the_only_file_of_a_directory(paths, tmp_path):
    path = paths["esm2", "fair"]
    assert recognise(path.parent) == "fair-esm"
    (tmp_path / "two").mkdir()
    for name in ("a.pt", "b.pt"):
        (tmp_path / "two" / name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="no such file; a model directory holds config"):
        proteinlm.load(tmp_path / "two")


def omegaconf_like(monkeypatch) -> type:
    """A module of omegaconf's names whose DictConfig pickles as theirs: nodes with a value, metadata, a parent."""
    for name in ("omegaconf", "omegaconf.dictconfig", "omegaconf.nodes", "omegaconf.base"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    source = "import typing\nclass {}:\n    def __init__(self, **state): self.__dict__.update(state)\n"
    for module, name in (("dictconfig", "DictConfig"), ("nodes", "AnyNode"), ("base", "ContainerMetadata")):
        exec(source.format(name), sys.modules[f"omegaconf.{module}"].__dict__)
    return sys.modules["omegaconf.dictconfig"].DictConfig


def test_options_of_omegaconf(monkeypatch, tmp_path):
    import typing

    DictConfig = omegaconf_like(monkeypatch)
    node, metadata = sys.modules["omegaconf.nodes"].AnyNode, sys.modules["omegaconf.base"].ContainerMetadata

    def dict_config(values: dict) -> object:
        content = {k: v if isinstance(v, DictConfig) else node(_val=v, _metadata=None) for k, v in values.items()}
        own = DictConfig(_content=content, _metadata=metadata(ref_type=typing.Any, object_type=dict, flags={}))
        for value in content.values():
            value._parent = own
        return own

    values = vars(esm_writer.fair_arguments("esm2")["cfg"]["model"])
    path = write_fair(tmp_path, arguments={"cfg": dict_config({"model": dict_config(values)})})
    for name in [name for name in sys.modules if name.startswith("omegaconf")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError):  # control: the pickle does name that library
        torch.load(path, weights_only=False)
    assert READERS["fair-esm"](path).config == READERS["fair-esm"](write_fair(tmp_path / "plain")).config


def test_nothing_of_omegaconf_runs():
    data = b"\x80\x02comegaconf.dictconfig\nDictConfig\nX\x02\x00\x00\x00id\x85R."
    with pytest.raises(ModuleNotFoundError):  # control
        pickle.loads(data)
    assert repr(safe_pickle_loads(data, "x")) == "StandIn(class_name='omegaconf.dictconfig.DictConfig')"


def test_config_keys_are_read(tmp_path):
    directory = write_hf(tmp_path / "model")
    path = directory / "config.json"
    stored = json.loads(path.read_text())
    for key, value, field in (
        ("layer_norm_eps", 1e-3, "layernorm_epsilon"),
        ("token_dropout", False, "token_dropout"),
        ("rope_theta", 500.0, "rotary_base"),
        ("hidden_dropout_prob", 0.25, "hidden_dropout"),
    ):
        path.write_text(json.dumps(stored | {key: value}))
        assert getattr(READERS["esm"](directory).config, field) == value
        path.write_text(json.dumps({name: v for name, v in stored.items() if name != key}))
        default = getattr(transformers.EsmConfig(), key)
        assert getattr(READERS["esm"](directory).config, field) == default
    path.write_text(json.dumps({k: v for k, v in stored.items() if k != "position_embedding_type"}))
    with pytest.raises(InputError, match=re.escape("esm.embeddings.position_embeddings.weight is missing")):
        READERS["esm"](directory)
