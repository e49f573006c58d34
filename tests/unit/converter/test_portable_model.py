"""The portable form: its names and shapes are those of the model, and configs from files are checked before use."""

from dataclasses import asdict, replace

import pytest
import torch

from converter.model import PortableModel, make_config, with_lm_head
from proteinlm.errors import InputError
from proteinlm.network.config import ModelConfig
from proteinlm.network.model import ProteinBert, initialize
from proteinlm.tokenizer import build_tokenizer

CONFIG = ModelConfig(hidden_size=8, num_layers=2, num_attention_heads=2, max_position_embeddings=6, ffn_hidden_size=20)


@pytest.mark.parametrize("lm_head", [True, False])
@pytest.mark.parametrize("final_layernorm", [True, False])
def test_what_is_checked_is_the_model_of_the_config(lm_head, final_layernorm):
    config = ModelConfig(**asdict(CONFIG) | {"final_layernorm": final_layernorm})
    model = PortableModel(config, build_tokenizer(), ProteinBert(config, lm_head).state_dict(), "x")
    assert model.checked() is model and model.has_lm_head == lm_head
    more = replace(model, tensors=model.tensors | {"layers.2.mlp.dense_4h_to_h.bias": torch.zeros(8)})
    with pytest.raises(InputError, match=r"layers\.2\.mlp\.dense_4h_to_h\.bias does not belong to the model \(conf"):
        more.checked()
    for name, tensor in model.tensors.items():
        with pytest.raises(InputError, match=name):
            replace(model, tensors={n: t for n, t in model.tensors.items() if n != name}).checked()
        with pytest.raises(InputError, match=name):
            replace(model, tensors=model.tensors | {name: tensor[:-1]}).checked()


@pytest.mark.parametrize("field", ["num_layers", "hidden_size", "max_position_embeddings"])
def test_a_config_that_claims_too_much_is_refused_before_it_is_built(field):
    model = PortableModel(CONFIG, build_tokenizer(), ProteinBert(CONFIG).state_dict(), "x")
    with pytest.raises(InputError, match=r"^x: "):
        model.with_config(**{field: 2**27}).checked()


def test_a_fresh_head_is_the_one_that_pretraining_would_make():
    bert = ProteinBert(CONFIG)
    initialize(bert, 1234)
    state = {name: tensor for name, tensor in bert.state_dict().items() if not name.startswith("lm_head.")}
    model = with_lm_head(PortableModel(CONFIG, build_tokenizer(), state, "x")).checked()
    for name, tensor in bert.state_dict().items():
        assert torch.equal(model.tensors[name], tensor), name
    assert "fresh" in model.notes[-1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", "8"),
        ("hidden_size", True),
        ("num_layers", 0),
        ("num_attention_heads", 3),
        ("hidden_dropout", 1.0),
        ("layernorm_epsilon", 10**400),
        ("layernorm_epsilon", float("nan")),
        ("hidden_act", "magic"),
        ("final_layernorm", 1),
        ("max_position_embeddings", 2**40),
        ("colour", 1),
    ],
)
def test_impossible_configs_are_refused(name, value):
    with pytest.raises(InputError, match=r"^somewhere: "):
        make_config(asdict(CONFIG) | {name: value}, "somewhere")
    assert make_config(asdict(CONFIG), "somewhere") == CONFIG
