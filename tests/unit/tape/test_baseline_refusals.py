"""What the baselines refuse in one line (values of config.json, overrides, kinds of numbers); two costs of padding."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from proteinlm.errors import InputError
from tape.models.modeling_bert import ProteinBertConfig, ProteinBertForSequenceClassification
from tape.models.modeling_tape import TapeTransformerModel
from tape.models.outputs import masked_mean
from tape.models.zoo import MODELS

SIZES = {
    "tape_transformer": {
        **{"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
        "max_position_embeddings": 16,
    },
    "lstm": {"input_size": 4, "hidden_size": 8, "num_hidden_layers": 1},
    "resnet": {"hidden_size": 8, "num_hidden_layers": 1},
    "onehot": {},
}
EVERY = [("contact_dropout_prob", 2), ("vocab_size", "30"), ("pooling", "last"), ("head", "none")]
NUMBERS = [("initializer_range", "0.02"), ("hidden_dropout_prob", "0"), ("num_hidden_layers", 10**9)]


def saved(directory, model_type, kind="embed", **values):
    model = MODELS[model_type][kind].from_pretrained(None, **SIZES[model_type], **values)
    model.save_pretrained(directory)
    return model


def cases():
    for model_type in SIZES:
        for key, value in EVERY + (NUMBERS if model_type != "onehot" else []):
            yield model_type, key, value
    yield "resnet", "layer_norm_eps", "1e-12"


@pytest.mark.parametrize(("model_type", "key", "value"), list(cases()))
def test_values_of_a_file_are_checked(model_type, key, value, tmp_path):
    saved(tmp_path, model_type)
    config = json.loads((tmp_path / "config.json").read_text())
    assert MODELS[model_type]["embed"].from_pretrained(tmp_path).config.base_model == model_type
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(InputError, match=key.replace("num_hidden_layers", "layers")) as error:
        MODELS[model_type]["embed"].from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model_type", SIZES)
def test_a_size_that_is_missing_is_named(model_type, tmp_path):
    """Its default would be another model's, at which the weights' shapes would be blamed."""
    saved(tmp_path, model_type)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in {"vocab_size": 30, **SIZES[model_type]}:
        (tmp_path / "config.json").write_text(json.dumps({name: config[name] for name in config if name != key}))
        with pytest.raises(InputError, match=rf"^{tmp_path}/config.json: {key} is missing; a positive whole number"):
            MODELS[model_type]["embed"].from_pretrained(tmp_path)


@pytest.mark.parametrize("model_type", SIZES)
def test_a_misspelt_override_is_refused(model_type, tmp_path):
    saved(tmp_path, model_type)
    for directory in (None, tmp_path):
        with pytest.raises(InputError, match=r"poling is not a key of \w+Config"):
            MODELS[model_type]["embed"].from_pretrained(directory, poling="mean")
        model = MODELS[model_type]["embed"].from_pretrained(directory, **SIZES[model_type], pooling="mean")
        assert model.config.pooling == "mean"


@pytest.mark.parametrize("model_type", SIZES)
def test_whole_numbers_for_weights_are_refused(model_type, tmp_path):
    saved(tmp_path, model_type, "value")
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("weight_v"))
    tensors[name] = tensors[name].long()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=rf"{name} holds torch.int64, but \w+ needs torch.float32"):
        MODELS[model_type]["value"].from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["classification", "token_classification"])
@pytest.mark.parametrize("number", [-1, 0, "3", True])
def test_a_classification_needs_a_number_of_classes(kind, number):
    """songlab's bert-base has num_labels -1."""
    for model_type, sizes in SIZES.items():
        with pytest.raises(InputError, match=r"num_labels is .*a positive number"):
            MODELS[model_type][kind].from_pretrained(None, num_labels=number, **sizes)
    with pytest.raises(InputError, match="num_labels is"):
        ProteinBertForSequenceClassification(ProteinBertConfig(**SIZES["tape_transformer"], num_labels=number))


def test_the_transformer_computes_real_tokens_only():
    model = TapeTransformerModel.from_pretrained(None, **SIZES["tape_transformer"])
    seen = []
    model.encoder.layer[0].intermediate.dense.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    ids = torch.zeros(3, 16, dtype=torch.long)
    ids[0, :16], ids[1, :5], ids[2, :4] = 7, 8, 9
    model(ids)
    assert seen == [16 + 5 + 4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_mean_in_half_precision(dtype):
    """1,001 states of 100: their sum is beyond fp16, and bf16 counts them as 1,000 or 1,004."""
    states = torch.full((1, 1003, 2), 100.0, dtype=dtype)
    mask = torch.ones(1, 1003, dtype=torch.bool)
    mask[:, [0, -1]] = False
    mean = masked_mean(states, mask)
    assert mean.dtype == dtype and (mean == 100).all()
    weights = mask.unsqueeze(2).to(dtype)  # negative control: in the states' own precision
    assert not ((states * weights).sum(1) / weights.sum(1) == 100).all()
