"""TAPE directories: names and shapes checked, nothing lost, original files, Hugging Face as the reference."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from proteinlm.errors import InputError
from proteinlm.model_dir.config import model_config_of
from proteinlm.model_dir.files import load_tape_dir, write_tape_dir
from tape.models.modeling_bert import (
    ProteinBertConfig,
    ProteinBertForContactPrediction,
    ProteinBertForMaskedLM,
    ProteinBertForSequenceClassification,
    ProteinBertForValuePrediction,
    ProteinBertModel,
)

SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
FIXTURES = Path(__file__).resolve().parents[4] / "shared" / "fixtures" / "megatron"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def directory(tmp_path):
    """A masked-LM directory as our converter writes it, every tensor random."""
    model = ProteinBertForMaskedLM(ProteinBertConfig(**SHAPE))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit(directory, change):
    """Rewrite a directory's tensors after `change(tensors)`."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def edit_config(directory, **values):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | values))


def test_names_on_disk_are_tapes(directory):
    tensors = load_file(directory / "model.safetensors")
    h = 16
    assert tensors["bert.embeddings.word_embeddings.weight"].shape == (30, h)
    assert tensors["bert.embeddings.token_type_embeddings.weight"].shape == (1, h)
    assert tensors["bert.encoder.layer.1.attention.self.query.weight"].shape == (h, h)
    assert tensors["bert.encoder.layer.1.mlp.dense_h_4h.weight"].shape == (24, h)
    assert tensors["bert.encoder.final_ln.bias"].shape == (h,)
    assert torch.equal(tensors["mlm.decoder.weight"], tensors["bert.embeddings.word_embeddings.weight"])
    config = json.loads((directory / "config.json").read_text())
    assert config["base_model"] == "transformer" and config["type_vocab_size"] == 1 and config["vocab_size"] == 30
    assert (config["hidden_act"], config["lm_head_act"], config["final_layernorm"]) == ("gelu", "gelu", True)


def test_written_and_read_back_bit_for_bit(directory, tmp_path):
    files = load_tape_dir(directory)
    state = files.state
    assert files.head == {} and "lm_head.bias" in state
    write_tape_dir(tmp_path / "again", files.config, state, torch_file=True)
    first, second = load_file(directory / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    (tmp_path / "again" / "model.safetensors").unlink()  # the torch file says the same
    again = load_tape_dir(tmp_path / "again").state
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)


def test_fields_tape_lacks_survive(tmp_path):
    config = ProteinBertConfig(
        **SHAPE, hidden_act="gelu_new", lm_head_act="gelu_new", final_layernorm=False, head="tape"
    )
    ProteinBertModel(config).save_pretrained(tmp_path)
    model = ProteinBertModel.from_pretrained(tmp_path)
    assert model.config == config and model.encoder.config.hidden_act == "gelu_new"
    assert "bert.encoder.final_ln.weight" not in load_file(tmp_path / "model.safetensors")
    ids = torch.tensor([[2, 7, 9, 3]])
    erf = ProteinBertModel.from_pretrained(tmp_path, hidden_act="gelu")
    assert not torch.equal(model(ids)[0], erf(ids)[0])


def test_original_prefix_may_be_missing(directory):
    edit(directory, lambda t: [t.update({n[5:]: t.pop(n)}) for n in list(t) if n.startswith("bert.")])
    assert "heads left out (5 tensors" in ProteinBertModel.from_pretrained(directory).load_report[0]


def test_decoder_that_is_not_the_embedding(directory, caplog):
    embedding = load_file(directory / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    edit(directory, lambda t: t["mlm.decoder.weight"].add_(1.0))
    with caplog.at_level(logging.WARNING):
        model = ProteinBertForMaskedLM.from_pretrained(directory)
    assert torch.equal(model.bert.encoder.word_embeddings.weight, embedding)
    assert any("mlm.decoder.weight differs" in note for note in model.load_report) and "mlm.decoder" in caplog.text
    with pytest.raises(InputError, match="no usable masked-LM head"):
        ProteinBertForMaskedLM.from_pretrained(directory, require_head=True)


def test_unused_tensors_are_named(directory):
    edit(directory, lambda t: t.update({"bert.bert_tail_dense.weight": torch.ones(16, 16)}))
    notes = load_tape_dir(directory).notes
    assert any("bert.bert_tail_dense.weight left out deliberately" in note for note in notes)


def test_token_types_are_added_to_the_positions(directory):
    before = ProteinBertModel.from_pretrained(directory)
    edit(directory, lambda t: t["bert.embeddings.token_type_embeddings.weight"].fill_(0.5))
    after = ProteinBertModel.from_pretrained(directory)
    assert torch.allclose(after.encoder.position_embeddings.weight, before.encoder.position_embeddings.weight + 0.5)
    assert any("token type" in note for note in after.load_report)


WRONG_FILES = {
    "missing": (
        lambda t: t.pop("bert.encoder.layer.1.attention.self.key.bias"),
        "layer.1.attention.self.key.bias is missing",
    ),
    "shape": (
        lambda t: t.update({"bert.encoder.layer.0.mlp.dense_h_4h.weight": torch.zeros(9, 16)}),
        r"dense_h_4h.weight has shape \[9, 16\], but config.json gives \[24, 16\]",
    ),
    "final norm": (
        lambda t: t.update({"bert.encoder.final_ln.bias": torch.zeros(9)}),
        r"final_ln.bias has shape \[9\], but config.json gives \[16\]",
    ),
    "token types": (
        lambda t: t.update({"bert.embeddings.token_type_embeddings.weight": torch.zeros(1, 9)}),
        r"token_type_embeddings.weight has shape \[1, 9\], but config.json gives \[1, 16\]",
    ),
    "positions": (
        lambda t: t.update({"bert.embeddings.position_embeddings.weight": torch.zeros(8, 16)}),
        r"\[8, 16\], but config.json gives \[32, 16\]",
    ),
    "extra layer": (
        lambda t: t.update({"bert.encoder.layer.2.input_ln.bias": torch.zeros(16)}),
        "layer.2.input_ln.bias does not belong",
    ),
    "integers": (
        lambda t: t.update({"bert.encoder.layer.0.input_ln.bias": torch.zeros(16, dtype=torch.int64)}),
        "int64",
    ),
    "half a head": (lambda t: t.pop("mlm.bias"), "mlm.bias is missing"),
    "foreign": (lambda t: t.update({"cls.predictions.bias": torch.zeros(30)}), "cls.predictions.bias is not a name"),
    "post-LN": (
        lambda t: t.update({"bert.embeddings.LayerNorm.weight": torch.zeros(16)}),
        "embeddings.LayerNorm.weight of a post-LN model beside bert.encoder.final_ln.bias of a pre-LN one",
    ),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_files_are_refused_by_name(directory, case):
    change, message = WRONG_FILES[case]
    edit(directory, change)
    with pytest.raises(InputError, match=message) as error:
        ProteinBertModel.from_pretrained(directory)
    assert str(directory) in str(error.value)


def test_wrong_directories_are_refused(directory, tmp_path):
    with pytest.raises(InputError, match="no such directory"):
        ProteinBertModel.from_pretrained("bert-base")
    edit_config(directory, num_attention_heads=3)
    with pytest.raises(InputError, match="num_attention_heads 3 must divide hidden_size 16"):
        ProteinBertModel.from_pretrained(directory)
    edit_config(directory, num_attention_heads="2")
    with pytest.raises(InputError, match="num_attention_heads is '2'"):
        ProteinBertModel.from_pretrained(directory)
    edit_config(directory, num_attention_heads=2, pruned_heads={"0": [1]})
    with pytest.raises(InputError, match="pruned_heads"):
        ProteinBertModel.from_pretrained(directory)
    (directory / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json: not JSON"):
        ProteinBertModel.from_pretrained(directory)
    (directory / "config.json").unlink()
    with pytest.raises(InputError, match=r"config.json: no such file"):
        ProteinBertModel.from_pretrained(directory)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text(json.dumps(SHAPE | {"vocab_size": 30}))
    with pytest.raises(InputError, match=r"neither model.safetensors nor pytorch_model.bin"):
        ProteinBertModel.from_pretrained(tmp_path / "empty")
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(InputError, match="not a whole safetensors file"):
        ProteinBertModel.from_pretrained(tmp_path / "empty")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_hidden_layers", 1000, "tensors cannot be the 1000 layers of config.json"),
        ("num_hidden_layers", 1001, r"num_hidden_layers is 1001; a positive whole number is needed \(1,000 at most\)"),
        ("hidden_size", 10**12, "hidden_size is 1000000000000; a positive whole number is needed"),
        ("max_position_embeddings", 2**27, r"\[32, 16\], but config.json gives \[134217728, 16\]"),
        ("initializer_range", "0.02", "initializer_range is '0.02'"),
        ("final_layernorm", "yes", "final_layernorm 'yes' is not one of True, False"),
    ],
)
def test_a_config_is_refused_before_anything_is_made_of_it(directory, key, value, message):
    edit_config(directory, **{key: value})
    for read in (load_tape_dir, ProteinBertModel.from_pretrained):
        with pytest.raises(InputError, match=message) as error:
            read(directory)
        assert str(directory) in str(error.value)


def test_keys_that_a_config_lacks_have_tapes_defaults():
    config = model_config_of(SHAPE | {"vocab_size": 30})
    assert (config.hidden_act, config.hidden_dropout, config.layernorm_epsilon) == ("gelu", 0.1, 1e-12)
    assert (config.num_layers, config.ffn_hidden_size, config.padded_vocab_size) == (2, 24, 30)
    assert config == ProteinBertConfig(**SHAPE).model_config()
    with pytest.raises(InputError, match=r"config\.json: vocab_size is missing; a positive whole number is needed"):
        model_config_of(SHAPE)


def test_overrides(directory):
    with pytest.raises(InputError, match="hiden_size is not a key"):
        ProteinBertModel.from_pretrained(directory, hiden_size=16)
    with pytest.raises(InputError, match=r"\[32, 16\], but config.json gives \[64, 16\]"):
        ProteinBertModel.from_pretrained(directory, max_position_embeddings=64)
    assert ProteinBertModel.from_pretrained(directory, hidden_dropout_prob=0.3).encoder.embedding_dropout.p == 0.3


def test_finetuned_heads_come_back(directory, tmp_path):
    run = ProteinBertForSequenceClassification.from_pretrained(directory, num_labels=5, head="tape")
    assert any("starts from random weights" in note for note in run.load_report)
    run.save_pretrained(tmp_path / "run")
    again = ProteinBertForSequenceClassification.from_pretrained(tmp_path / "run", require_head=True)
    assert again.load_report == () and again.config.head == "tape"
    ids = torch.tensor([[2, 7, 9, 3]])
    assert torch.equal(run(ids)[0], again(ids)[0])
    with pytest.raises(InputError, match="head is 'tape', but 'proteinlm' was asked for"):
        ProteinBertForSequenceClassification.from_pretrained(tmp_path / "run", head="proteinlm")
    with pytest.raises(
        InputError, match=r"main.3.bias has shape \[5\], but ProteinBertForSequenceClassification needs \[7\]"
    ):
        ProteinBertForSequenceClassification.from_pretrained(tmp_path / "run", num_labels=7)
    for other in (ProteinBertForValuePrediction, ProteinBertForContactPrediction, ProteinBertForMaskedLM):
        for require_head in (False, True):
            with pytest.raises(InputError, match=r" of ProteinBertFor\w+ is missing; the file has classify\.classify"):
                other.from_pretrained(tmp_path / "run", require_head=require_head)
    assert "heads left out" in ProteinBertModel.from_pretrained(tmp_path / "run").load_report[0]


def test_head_kind_is_seen_in_an_original_file(directory, tmp_path):
    """The original's runs have no key `head` in config.json."""
    for head in ("tape", "proteinlm"):
        run = ProteinBertForContactPrediction.from_pretrained(directory, head=head)
        run.save_pretrained(tmp_path / head)
        edit_config(tmp_path / head, head="proteinlm" if head == "tape" else "tape")
        assert ProteinBertForContactPrediction.from_pretrained(tmp_path / head).config.head == head


def test_evaluation_needs_a_trained_head(directory):
    with pytest.raises(InputError, match="no weights of a task head"):
        ProteinBertForValuePrediction.from_pretrained(directory, require_head=True)
    with pytest.raises(InputError, match="no directory was given"):
        ProteinBertForValuePrediction.from_pretrained(None, require_head=True)


def test_hidden_states_are_hugging_faces(tmp_path):
    """The same weights under Hugging Face's names, in its own pre-LN BERT."""
    transformers = pytest.importorskip("transformers")
    shape = SHAPE | {"vocab_size": 30, "type_vocab_size": 1, "hidden_act": "gelu_new", "layer_norm_eps": 1e-12}
    reference = transformers.MegatronBertModel(transformers.MegatronBertConfig(**shape), add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.normal_(std=0.5)
    table = {
        "encoder.ln.": "encoder.final_ln.",
        ".attention.ln.": ".input_ln.",
        ".attention.output.dense.": ".attention.dense.",
        ".ln.": ".post_attn_ln.",
        ".intermediate.dense.": ".mlp.dense_h_4h.",
        ".output.dense.": ".mlp.dense_4h_h.",
    }
    tensors = {}
    for name, value in reference.state_dict().items():
        hf_name, tape_name = next(((t, o) for t, o in table.items() if t in name), ("", ""))
        if "position_ids" not in name:
            tensors[f"bert.{name.replace(hf_name, tape_name)}"] = value.contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(shape))
    model = ProteinBertModel.from_pretrained(tmp_path)
    ids = torch.randint(5, 30, (2, 12))
    ids[1, 7:] = 0
    mask = (ids != 0).long()
    expected = reference(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(model(ids, mask)[0][mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)
    erf = ProteinBertModel.from_pretrained(tmp_path, hidden_act="gelu")  # negative control
    assert (erf(ids, mask)[0] - expected)[mask.bool()].abs().max() > 1e-4


@pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"{FIXTURES} is not here")
@pytest.mark.parametrize(("final", "key"), [(True, "tape_hidden_erf"), (False, "tape_hidden_no_final_ln_erf")])
def test_a_directory_of_the_original_project(final, key):
    expected = np.load(FIXTURES / "expected.npz")
    model = ProteinBertModel.from_pretrained(FIXTURES / "tape_original", final_layernorm=final)
    report = " ".join(model.load_report)
    assert "bert_tail_dense.weight" in report and "mlm.decoder.weight differs" in report
    for n in range(3):
        ids = torch.from_numpy(expected[f"tape_ids_{n}"])
        got = model(ids[None])[0][0].detach().numpy()
        assert np.abs(got - expected[f"{key}_{n}"]).max() < 1e-5
        other = expected[f"tape_hidden_tanh_{n}" if final else f"tape_hidden_erf_{n}"]
        assert np.abs(got - other).max() > 1e-5  # negative control
