"""songlab's post-LN transformer: Hugging Face's BERT as the reference, every key of a file, and the way from ours."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from proteinlm.errors import InputError
from tape.models import modeling_bert
from tape.models.modeling_tape import (
    TapeTransformerConfig,
    TapeTransformerForMaskedLM,
    TapeTransformerForSequenceClassification,
    TapeTransformerForValuePrediction,
    TapeTransformerModel,
    TransformerLayer,
)
from tape.models.zoo import MODELS

pytestmark = pytest.mark.slow

SHAPE = {
    **{"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 24, "max_position_embeddings": 32, "type_vocab_size": 1, "layer_norm_eps": 1e-12},
}
COUNTERPARTS = {
    "embed": modeling_bert.ProteinBertModel,
    "masked_language_modeling": modeling_bert.ProteinBertForMaskedLM,
    "value": modeling_bert.ProteinBertForValuePrediction,
    "classification": modeling_bert.ProteinBertForSequenceClassification,
    "token_classification": modeling_bert.ProteinBertForSequenceToSequenceClassification,
    "contacts": modeling_bert.ProteinBertForContactPrediction,
}
IDS = torch.tensor([[2, 7, 9, 12, 20, 8, 3], [2, 25, 6, 3, 0, 0, 0], [2, 5, 11, 14, 3, 0, 0]])


def hugging_face():
    """(BertForMaskedLM with a pooler, random everywhere; its weights under songlab's names)."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(**SHAPE, hidden_act="gelu", pad_token_id=0, tie_word_embeddings=True)
    reference = transformers.BertForMaskedLM(config)
    reference.bert = transformers.BertModel(config, add_pooling_layer=True)
    reference.tie_weights()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.normal_(std=0.5)
    assert reference.cls.predictions.decoder.weight is reference.bert.embeddings.word_embeddings.weight
    table = {"cls.predictions.transform.": "mlm.transform.", "cls.predictions.bias": "mlm.bias", "bert.": "bert."}
    tensors = {}
    for name, value in reference.state_dict().items():
        for hf_prefix, songlabs in table.items():
            if name.startswith(hf_prefix) and "position_ids" not in name:
                tensors[name.replace(hf_prefix, songlabs, 1)] = value.clone()
    tensors["mlm.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    return reference.eval(), tensors


@pytest.fixture(scope="module")
def reference():
    return hugging_face()


@pytest.fixture
def directory(reference, tmp_path):
    """A directory such as songlab's bert-base: pytorch_model.bin, base_model "transformer", keys nobody reads."""
    path = tmp_path / "bert-base"
    path.mkdir()
    values = SHAPE | {"base_model": "transformer", "num_labels": -1, "input_size": 16, "pruned_heads": {}}
    (path / "config.json").write_text(json.dumps(values))
    torch.save(reference[1], path / "pytorch_model.bin")
    return path


def edit(directory, change):
    tensors = torch.load(directory / "pytorch_model.bin")
    change(tensors)
    torch.save(tensors, directory / "pytorch_model.bin")


@torch.no_grad()
def difference(model, reference):
    """Largest differences from Hugging Face's (hidden states, pooled output, logits), over real tokens."""
    mask = IDS != 0
    model.config.output_hidden_states = True
    expected = reference.bert(IDS, attention_mask=mask.long(), output_hidden_states=True)
    _, pooled, states = model.bert(IDS, mask)
    assert len(states) == len(expected.hidden_states) == 3
    pairs = zip(states, expected.hidden_states, strict=True)
    hidden = max(float((a - b)[mask].abs().max()) for a, b in pairs)
    logits = (model(IDS, mask)[0] - reference(IDS, attention_mask=mask.long()).logits)[mask]
    return hidden, float((pooled - expected.pooler_output).abs().max()), float(logits.abs().max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_numbers_are_hugging_faces(directory, dtype, tolerance):
    reference = hugging_face()[0].to(dtype)
    model = TapeTransformerForMaskedLM.from_pretrained(directory, require_head=True).to(dtype)
    assert model.load_report == ()
    assert max(difference(model, reference)) < tolerance


def pre_ln(self, x, keys):
    """A pre-LN block with the same weights."""
    attention, output = self.attention["output"], self.output
    x = x + attention.dense(self.attention["self"](attention.LayerNorm(x), keys))
    return x + output.dense(self.intermediate(output.LayerNorm(x)))


@pytest.mark.parametrize("wrong", ["pre-LN", "no embedding LayerNorm", "tanh GELU", "LayerNorm eps"])
def test_another_architecture_is_seen(directory, reference, wrong, monkeypatch):
    """Negative controls of the comparison above."""
    changes = {"tanh GELU": {"hidden_act": "gelu_new"}, "LayerNorm eps": {"layer_norm_eps": 1e-3}}
    model = TapeTransformerForMaskedLM.from_pretrained(directory, **changes.get(wrong, {}))
    if wrong == "pre-LN":
        monkeypatch.setattr(TransformerLayer, "forward", pre_ln)
    if wrong == "no embedding LayerNorm":
        model.bert.embeddings.LayerNorm = torch.nn.Identity()
    assert min(difference(model, reference[0])) > 1e-5


def test_names_defaults_and_first_weights_are_songlabs():
    config = TapeTransformerConfig()
    shape = (config.hidden_size, config.num_hidden_layers, config.intermediate_size, config.max_position_embeddings)
    assert shape == (768, 12, 3072, 8096)
    assert (config.hidden_act, config.layer_norm_eps, config.type_vocab_size) == ("gelu", 1e-12, 2)
    torch.manual_seed(0)
    model = TapeTransformerForMaskedLM(TapeTransformerConfig(**SHAPE | {"hidden_size": 64}))
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert shapes["bert.encoder.layer.1.attention.self.query.weight"] == [64, 64]
    assert shapes["bert.encoder.layer.0.attention.output.LayerNorm.bias"] == [64]
    assert shapes["bert.encoder.layer.0.intermediate.dense.weight"] == [24, 64]
    assert shapes["bert.pooler.dense.weight"] == [64, 64] and shapes["mlm.bias"] == [30]
    assert model.mlm.decoder.weight is model.bert.embeddings.word_embeddings.weight
    for name, value in model.named_parameters():
        if value.dim() == 2:
            assert 0.01 < float(value.detach().std()) < 0.03, name
        elif not name.endswith("LayerNorm.weight"):
            assert not value.any(), name


@pytest.mark.parametrize("kind", COUNTERPARTS)
def test_our_classes_turn_to_it(directory, kind, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        model = COUNTERPARTS[kind].from_pretrained(directory, num_labels=5, pooling="mean", head="tape")
    assert type(model) is MODELS["tape_transformer"][kind] and not model.training
    assert "post-LN transformer (model type tape_transformer)" in caplog.text
    assert (model.config.num_labels, model.config.pooling, model.config.head) == (5, "mean", "tape")
    trunk = TapeTransformerModel.from_pretrained(directory)
    for name, value in trunk.state_dict().items():
        assert torch.equal(model.base_model.state_dict()[name], value), name
    model.save_pretrained(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["base_model"] == "tape_transformer"
    again = COUNTERPARTS[kind].from_pretrained(tmp_path / "run", require_head=kind != "embed")
    assert type(again) is type(model) and again.load_report == ()
    assert torch.equal(again(IDS)[0], model(IDS)[0])


def test_a_built_in_configuration_and_no_key_base_model(directory):
    config = modeling_bert.ProteinBertConfig(**SHAPE | {"type_vocab_size": 3}, output_hidden_states=True)
    model = modeling_bert.ProteinBertModel.from_pretrained(directory, config=config)
    assert len(model(IDS)) == 3 and (model.config.base_model, model.config.type_vocab_size) == ("tape_transformer", 1)
    (directory / "config.json").write_text(json.dumps(SHAPE))
    assert TapeTransformerModel.from_pretrained(directory).config.base_model == "tape_transformer"


@pytest.mark.parametrize("kind", COUNTERPARTS)
def test_padding_changes_nothing(directory, kind):
    model = MODELS["tape_transformer"][kind].from_pretrained(directory, num_labels=4).eval()
    rubbish = torch.where(IDS == 0, 17, IDS)
    mask = IDS != 0
    together, as_padding = model(IDS)[0], model(rubbish, mask)[0]
    torch.testing.assert_close(as_padding, together, atol=1e-6, rtol=0)
    cut = 2 if kind == "contacts" else 0
    seen = 0.0
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = model(IDS[row : row + 1, :length])[0][0]
        slices = () if alone.dim() == 1 else (slice(length - cut),) * (2 if cut else 1)
        torch.testing.assert_close(together[row][slices], alone, atol=1e-5, rtol=0)
        seen = max(seen, float((model(rubbish)[0][row][slices] - alone).detach().abs().max()))
    assert seen > 1e-4  # negative control: padding taken as residues


def test_pooling_and_hidden_states(directory):
    mask = IDS != 0
    model = TapeTransformerModel.from_pretrained(directory, output_hidden_states=True)
    states, pooled, hidden_states = model(IDS)
    assert not states[~mask].any() and not any(state[~mask].any() for state in hidden_states)
    assert torch.equal(hidden_states[-1], states) and len(hidden_states) == 3
    torch.testing.assert_close(pooled, torch.tanh(model.pooler.dense(states[:, 0])))
    mean = TapeTransformerModel.from_pretrained(directory, pooling="mean")(IDS)[1]
    expected = torch.stack([states[row, 1 : int(n) - 1].mean(0) for row, n in enumerate(mask.sum(1))])
    torch.testing.assert_close(mean, expected)
    empty = model(torch.zeros(1, 4, dtype=torch.long))
    assert torch.isfinite(empty[0]).all() and torch.isfinite(empty[1]).all()


def test_proteins_longer_than_the_positions(directory):
    wide = torch.zeros(1, 40, dtype=torch.long)
    wide[:, :32] = 7
    for model_class in (TapeTransformerModel, modeling_bert.ProteinBertModel):
        model = model_class.from_pretrained(directory)
        assert model(wide)[0].shape == (1, 40, 16)
        with pytest.raises(InputError, match=r"a protein of 33 tokens .* max_position_embeddings 32"):
            model(torch.full((1, 33), 7))


def test_recompute_gives_the_same_gradients(directory):
    gradients = []
    for recompute in (False, True):
        model = TapeTransformerForMaskedLM.from_pretrained(directory, attention_probs_dropout_prob=0.0).train()
        model.bert.encoder.recompute = recompute
        torch.manual_seed(1)
        (loss, metrics), logits = model(IDS, targets=torch.where(IDS == 0, -1, IDS))
        assert torch.isclose(metrics["perplexity"], loss.exp()) and logits.shape == (3, 7, 30)
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and "mlm.transform.dense.weight" in gradients[0]
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0])


def test_spellings_of_a_file(directory):
    """Without the prefix, without the decoder, LayerNorms in TensorFlow's spelling: the same model."""
    expected = TapeTransformerForMaskedLM.from_pretrained(directory)(IDS)[0]

    def respell(tensors):
        del tensors["mlm.decoder.weight"]
        for name in list(tensors):
            new = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[new] = tensors.pop(name)

    edit(directory, respell)
    for model_class in (TapeTransformerForMaskedLM, modeling_bert.ProteinBertForMaskedLM):
        assert torch.equal(model_class.from_pretrained(directory)(IDS)[0], expected)
    trunk = TapeTransformerModel.from_pretrained(directory)

    def bare(tensors):
        for name in list(tensors):
            value = tensors.pop(name)
            if name.startswith("bert."):
                tensors[name.removeprefix("bert.")] = value

    edit(directory, bare)
    model = TapeTransformerForMaskedLM.from_pretrained(directory)  # its random head leaves the embedding alone
    assert "random weights" in model.load_report[0] and torch.equal(model.bert(IDS)[0], trunk(IDS)[0])
    assert model.mlm.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert torch.equal(model.mlm.decoder.weight, trunk.embeddings.word_embeddings.weight)


WRONG = {
    "missing": (
        lambda t: t.pop("bert.encoder.layer.1.output.LayerNorm.bias"),
        r"layer\.1\.output\.LayerNorm\.bias .*is missing",
    ),
    "no pooler": (lambda t: t.pop("bert.pooler.dense.bias"), r"pooler\.dense\.bias .*is missing"),
    "extra": (lambda t: t.update({"bert.encoder.layer.2.output.dense.bias": torch.ones(16)}), r"layer\.2\.output"),
    "shape": (lambda t: t.update({"bert.pooler.dense.bias": torch.ones(9)}), r"pooler.dense.bias has shape \[9\]"),
    "half a head": (lambda t: t.pop("mlm.transform.dense.bias"), r"mlm\.transform\.dense\.bias .*is missing"),
    "decoder": (lambda t: t["mlm.decoder.weight"].add_(1), r"mlm\.decoder\.weight differs"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("model_class", [TapeTransformerForMaskedLM, modeling_bert.ProteinBertForMaskedLM])
def test_wrong_files_are_refused_by_name(directory, case, model_class):
    edit(directory, WRONG[case][0])
    with pytest.raises(InputError, match=WRONG[case][1]) as error:
        model_class.from_pretrained(directory)
    assert str(directory) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("hidden_act", "tanh"), ("pooling", "last"), ("head", "none"), ("hidden_dropout_prob", 1.0)],
        *[("attention_probs_dropout_prob", "0"), ("num_hidden_layers", 10**9), ("num_attention_heads", 3)],
        *[("output_attentions", True), ("pruned_heads", {"0": [1]})],
    ],
)
def test_wrong_configurations_are_refused(directory, key, value):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {key: value}))
    for model_class in (TapeTransformerModel, modeling_bert.ProteinBertModel):
        with pytest.raises(InputError, match=str(key).replace("num_hidden_layers", "layers")):
            model_class.from_pretrained(directory)


def test_a_pre_ln_file_is_refused(tmp_path):
    shape = {key: value for key, value in SHAPE.items() if key != "vocab_size"}
    modeling_bert.ProteinBertForMaskedLM(modeling_bert.ProteinBertConfig(**shape)).save_pretrained(tmp_path)
    for model_class in MODELS["tape_transformer"].values():
        with pytest.raises(InputError, match=r"model type is transformer$") as error:
            model_class.from_pretrained(tmp_path)
        assert "\n" not in str(error.value)


def test_a_finetuned_run_of_songlabs(directory, tmp_path):
    """No key `head` in its config.json; 512 hidden units say which it is. Another head is refused."""
    run = TapeTransformerForSequenceClassification.from_pretrained(directory, num_labels=3, head="tape")
    run.save_pretrained(tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    del config["head"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"base_model": "transformer"}))
    model_class = modeling_bert.ProteinBertForSequenceClassification
    again = model_class.from_pretrained(tmp_path / "run", require_head=True, num_labels=3)
    assert again.config.head == "tape" and torch.equal(again(IDS)[0], run(IDS)[0])
    with pytest.raises(InputError, match="head is 'tape', but 'proteinlm' was asked for"):
        TapeTransformerForSequenceClassification.from_pretrained(tmp_path / "run", head="proteinlm")
    for other in (TapeTransformerForValuePrediction, TapeTransformerForMaskedLM):
        with pytest.raises(InputError, match="classify"):
            other.from_pretrained(tmp_path / "run")
    with pytest.raises(InputError, match="finetune this model first"):
        TapeTransformerForValuePrediction.from_pretrained(directory, require_head=True)
    assert "heads left out" in TapeTransformerModel.from_pretrained(tmp_path / "run").load_report[0]


def test_safetensors_come_first(directory):
    tensors = torch.load(directory / "pytorch_model.bin")
    tensors["bert.pooler.dense.bias"].fill_(9.0)
    save_file(tensors, directory / "model.safetensors")
    assert load_file(directory / "model.safetensors")["bert.pooler.dense.bias"][0] == 9
    assert (TapeTransformerModel.from_pretrained(directory).pooler.dense.bias == 9).all()
