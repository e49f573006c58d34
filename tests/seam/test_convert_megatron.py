"""Megatron checkpoints in: every version, layout and spelling gives the same model, which Hugging Face agrees with.

Two oracles: `megatron_writer`, which writes files by plain loops, and (where they are there) fixtures that another
implementation wrote, with the hidden states and logits that Hugging Face computed from them.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron_writer import VOCABULARY, hf_state, our_tensors, random_weights, write_megatron

from converter.loaders import load_own
from converter.sources import read, recognise
from proteinlm.errors import InputError
from proteinlm.tokenizer import PRETRAIN_TOKENS

FIXTURES = Path(__file__).parents[3] / "shared/fixtures/megatron"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="the fixtures are not beside this checkout")
WEIGHTS = random_weights()
# Older args: one parallel size, under another name. KeyError: the field is absent.
OLD_SIZES = {
    "tensor_model_parallel_size": KeyError,
    "pipeline_model_parallel_size": KeyError,
    "model_parallel_size": 1,
}
LAYOUTS = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (2, 4), (4, 4)]


def assert_same(model, weights, dtype=torch.float32) -> None:
    expected = our_tensors(weights)
    assert set(model.tensors) == set(expected)
    for name, tensor in expected.items():
        stored = model.tensors[name]
        if name in ("word_embeddings.weight", "lm_head.bias"):
            assert len(stored) == 128 and not stored[VOCABULARY:].any(), name
            stored = stored[:VOCABULARY]
        assert stored.dtype == dtype and torch.equal(stored, tensor.to(dtype)), name


def notes(model) -> str:
    return "\n".join(model.notes)


@pytest.mark.parametrize("version", [0, 1.0, 2.0, 3.0])
@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
def test_every_version_and_layout(tmp_path, version, tp, pp):
    write_megatron(tmp_path, WEIGHTS, tp, pp, version)
    assert recognise(tmp_path) == "megatron"
    assert_same(read(tmp_path), WEIGHTS)


@pytest.mark.parametrize("shape", [(24, 3, 2, 40), (64, 8, 6, 96), (16, 1, 1, 64)])
def test_other_shapes(tmp_path, shape):
    hidden, heads, layers, ffn = shape
    weights = random_weights(2, hidden, heads, layers, positions=20, ffn=ffn)
    tp = 1 if heads % 2 else 2
    write_megatron(tmp_path, weights, tp, layers, 1.0)
    assert_same(read(tmp_path), weights)


@pytest.mark.parametrize(
    "options",
    [
        {"transformer": "encoder", "attention": "self_attention"},
        {"name": "release", "tracker": "release"},
        {"tracker": None},
        {"optimizer": True},
        {"old_loss_scaler": True},
        {"tp": 2, "pp": 2, "chunks": 2},  # an interleaved pipeline: rank 0 holds the first and the third quarter
        {"args": OLD_SIZES},
    ],
)
def test_spellings_and_companions(tmp_path, options):
    write_megatron(tmp_path, WEIGHTS, **options)
    model = read(tmp_path)
    assert_same(model, WEIGHTS)
    assert "lr_scheduler" in notes(model)


def test_half_precision(tmp_path):
    write_megatron(tmp_path, WEIGHTS, 2, 2, dtype=torch.float16)
    assert_same(read(tmp_path), WEIGHTS, torch.float16)


def test_where_it_may_lie(tmp_path):
    """The run's directory, one iteration, one rank's directory, the bare file."""
    ranks = write_megatron(tmp_path, WEIGHTS)
    for path in (tmp_path, ranks, ranks / "mp_rank_00", ranks / "mp_rank_00/model_optim_rng.pt"):
        assert recognise(path) == "megatron"
        assert_same(read(path), WEIGHTS)
    assert_same(read(tmp_path, iteration=1000), WEIGHTS)
    write_megatron(tmp_path, random_weights(7), name="iter_0000500", tracker=None, change=_say_iteration(500))
    assert_same(read(tmp_path, iteration=500), random_weights(7))
    assert_same(read(tmp_path), WEIGHTS)  # the tracker's


def _say_iteration(number: int):
    def change(content, tp, pp):
        content["iteration"] = number

    return change


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2)])
def test_without_args(tmp_path, tp, pp):
    write_megatron(tmp_path, WEIGHTS, tp, pp, no_args=True)
    with pytest.raises(InputError, match="--num-attention-heads"):
        read(tmp_path)
    model = read(tmp_path, num_attention_heads=4)
    assert_same(model, WEIGHTS)
    assert "--hidden-act overrides" in notes(model)
    assert model.config.num_attention_heads == 4 and model.config.hidden_act == "gelu_new"
    wrong = read(tmp_path, num_attention_heads=2)  # nothing shows it: version 3 rows lie otherwise, and states differ
    states = [load_own(m)(["[CLS]", "M", "K", "V"])[0] for m in (model, wrong)]
    assert (states[0] - states[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("args", "acts"),
    [
        ({}, ("gelu_new", "gelu")),
        ({"bias_gelu_fusion": False}, ("gelu", "gelu")),
        ({"openai_gelu": True, "bias_gelu_fusion": False}, ("gelu_new", "gelu_new")),
        ({"bias_gelu_fusion": KeyError, "openai_gelu": KeyError}, ("gelu_new", "gelu")),
    ],
)
def test_activations_as_args_say(tmp_path, args, acts):
    write_megatron(tmp_path, WEIGHTS, args=args)
    config = read(tmp_path).config
    assert (config.hidden_act, config.lm_head_act) == acts


def test_token_types_and_next_sentence_parts_are_reported(tmp_path):
    def change(content, tp, pp):
        content["model"]["language_model"]["pooler"] = {"dense.weight": torch.ones(32, 32)}
        content["model"]["binary_head"] = {"bias": torch.ones(2)}

    weights = random_weights(token_types=2)
    write_megatron(tmp_path, weights, change=change)
    model = read(tmp_path)
    assert "token type 0 is not zeros" in notes(model) and "types 1 to 1 left out" in notes(model)
    assert "language_model.pooler.dense.weight" in notes(model) and "binary_head.bias" in notes(model)
    expected = torch.from_numpy(weights.position + weights.token_types[0])
    assert torch.equal(model.tensors["position_embeddings.weight"], expected)


def hf_answers(weights, hidden_act: str, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    transformers = pytest.importorskip("transformers")
    config = transformers.MegatronBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=weights.hidden,
        num_hidden_layers=len(weights.layers),
        num_attention_heads=weights.heads,
        intermediate_size=len(weights.layers[0]["up_bias"]),
        max_position_embeddings=len(weights.position),
        hidden_act=hidden_act,
        layer_norm_eps=1e-12,
    )
    model = transformers.MegatronBertForMaskedLM(config).eval()
    missing, unexpected = model.load_state_dict(hf_state(weights), strict=False)
    assert not unexpected and all("position_ids" in name for name in missing)
    with torch.no_grad():
        hidden = model.bert(torch.tensor([ids])).last_hidden_state[0]
        model.cls.predictions.transform.transform_act_fn = torch.nn.GELU()  # Megatron's head is the erf form
        return hidden, model.cls(hidden)


@pytest.mark.parametrize(("fusion", "act", "token_types"), [(True, "gelu_new", 0), (False, "gelu", 2)])
def test_hugging_face_computes_the_same(tmp_path, fusion, act, token_types):
    weights = random_weights(3, token_types=token_types)
    write_megatron(tmp_path, weights, 2, 2, 1.0, args={"bias_gelu_fusion": fusion})
    model, tokens = read(tmp_path), ["[CLS]", *"MKTAYIAKQRQISFVKSHFSRQ"]
    hidden, logits = load_own(model)(tokens)
    expected = hf_answers(weights, act, [PRETRAIN_TOKENS.index(token) for token in tokens])
    assert (hidden - expected[0]).abs().max() < 1e-5
    assert (logits - expected[1]).abs().max() < 1e-5
    other = hf_answers(weights, "gelu" if act == "gelu_new" else "gelu_new", [2, 6, 7, 8])
    assert (load_own(model)(["[CLS]", "A", "B", "C"])[0] - other[0]).abs().max() > 1e-5  # the activation shows


# ---- the fixtures


def fixture_layouts() -> list[str]:
    return sorted(path.name for path in FIXTURES.glob("tp*")) if FIXTURES.is_dir() else []


@needs_fixtures
@pytest.mark.parametrize("name", fixture_layouts())
def test_fixtures_are_one_model(name):
    first, model = read(FIXTURES / "tp1_pp1_v3"), read(FIXTURES / name)
    dtype = torch.float16 if name.endswith("fp16") else torch.float32
    assert set(first.tensors) == set(model.tensors)
    for key, tensor in first.tensors.items():
        assert model.tensors[key].dtype == dtype
        assert torch.equal(model.tensors[key], tensor.to(dtype)), key


@needs_fixtures
@pytest.mark.parametrize("act", ["tanh", "erf"])
@pytest.mark.parametrize("name", [name for name in fixture_layouts() if not name.endswith("fp16")])
def test_fixtures_give_the_known_answers(name, act):
    expected, inputs = np.load(FIXTURES / "expected.npz"), json.loads((FIXTURES / "inputs.json").read_text())
    model = read(FIXTURES / name)
    assert model.config.hidden_act == "gelu_new"  # tanh, as the files' args say
    if act == "erf":
        model = replace(model, config=replace(model.config, hidden_act="gelu"))
    loaded = load_own(model)
    for n, ids in enumerate(inputs["megatron_token_ids"]):
        hidden, logits = loaded([PRETRAIN_TOKENS[i] for i in ids])
        assert np.abs(hidden.numpy() - expected[f"hidden_{act}_{n}"]).max() < 1e-5
        assert np.abs(logits.numpy() - expected[f"logits_{act}_{n}"][:, :VOCABULARY]).max() < 1e-5
