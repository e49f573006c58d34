"""The network in the form of ESM C against Hugging Face's EsmcForMaskedLM: states, logits, gradients; its reader."""

import json

import pytest
import torch
import torch.nn.functional as F
from esm_peers import (
    EXACT,
    SHAPES,
    VISIBLE,
    difference,
    esmc_peer,
    labelled,
    opened,
    our_outputs,
    our_step,
    peer_outputs,
    peer_step,
    proteins,
    same_network,
    step_difference,
    swap_norms,
    turn_neighbours,
)
from transformers import AutoTokenizer, EsmcTokenizer

import proteinlm
from proteinlm.errors import InputError
from proteinlm.network.attention import buckets
from proteinlm.tokenizer import build_tokenizer

FORMS = {"esmc": {}, "with biases": {"attention_bias": True, "mlp_bias": True}}
FORMS["another base"] = {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}
SHAPE = (2, 3, 4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_states_and_logits(shape, form):
    peer, tokens = esmc_peer(*shape, **FORMS[form]), proteins()
    outputs = our_outputs(same_network(peer), tokens)
    assert difference(outputs, peer_outputs(peer, tokens, batch=False)) < EXACT
    assert difference(outputs, peer_outputs(peer, tokens, batch=True)) < EXACT


def leave_query_and_key_norms_out(model):
    for layer in model.layers.values():
        layer.attention.q_layernorm = layer.attention.k_layernorm = None


def normalise_each_head(model):
    for layer in model.layers.values():
        norm, size = layer.attention.q_layernorm, layer.attention.head_size
        norm.forward = lambda x, norm=norm, size=size: (
            F.layer_norm(x.unflatten(-1, (-1, size)), (size,), eps=norm.eps).flatten(-2) * norm.weight
        )


def swap_gate_and_up(model):
    for layer in model.layers.values():
        mlp = layer.mlp
        mlp.dense_h_to_4h_gate, mlp.dense_h_to_4h = mlp.dense_h_to_4h, mlp.dense_h_to_4h_gate


def use_the_embedding_as_decoder(model):
    model.lm_head.decoder.weight = model.word_embeddings.weight


WRONG_CONFIGS = {
    "residual scale left out": {"residual_scale": 1.0},
    "residual scale upside down": {"residual_scale": (SHAPE[0] / 36) ** 0.5},
    "tanh GELU in the head": {"lm_head_act": "gelu_new"},
    "another eps": {"layernorm_epsilon": 1e-12},
    "token dropout": {"token_dropout": True, "mask_token_id": 32},
}
WRONG_MODELS = (
    leave_query_and_key_norms_out,
    normalise_each_head,
    swap_gate_and_up,
    use_the_embedding_as_decoder,
    swap_norms,
)


def test_each_mistake_would_show(monkeypatch):
    peer, tokens = esmc_peer(*SHAPE), proteins()
    expected = peer_outputs(peer, tokens, batch=True)
    assert difference(our_outputs(same_network(peer), tokens), expected) < EXACT
    for name, change in WRONG_CONFIGS.items():
        assert difference(our_outputs(same_network(peer, **change), tokens), expected) > VISIBLE, name
    for spoil in WRONG_MODELS:
        model = same_network(peer)
        spoil(model)
        assert difference(our_outputs(model, tokens), expected) > VISIBLE, spoil.__name__
    monkeypatch.setattr(buckets, "rotate_pairs", turn_neighbours)
    assert difference(our_outputs(same_network(peer), tokens), expected) > VISIBLE


@pytest.mark.parametrize("form", FORMS)
def test_loss_and_every_gradient(form):
    peer, tokens = esmc_peer(*SHAPE, **FORMS[form]), proteins()
    labels = labelled(tokens)
    expected = peer_step(peer, tokens, labels)
    step = our_step(same_network(peer), tokens, labels)
    assert step[1].pop("final_layernorm.bias").any()  # ESM C has none: ours begins at 0
    assert max(step_difference(step, expected)) < 1e-8
    wrong = our_step(same_network(peer, lm_head_act="gelu_new"), tokens, labels)
    del wrong[1]["final_layernorm.bias"]
    assert min(step_difference(wrong, expected)) > 1e-6


# ---- the reader


@pytest.fixture(scope="module")
def esmc_directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("esmc") / "model"
    esmc_peer(*SHAPE, dtype=torch.float32).save_pretrained(path)
    EsmcTokenizer().save_pretrained(path)
    return path


def test_the_vocabulary_is_hugging_faces(esmc_directory):
    tokenizer, expected = build_tokenizer("esmc"), AutoTokenizer.from_pretrained(esmc_directory)
    assert [expected.convert_ids_to_tokens(i) for i in range(33)] == list(tokenizer.tokens[:33])
    assert tokenizer.vocab_size == 64
    ids = [tokenizer.cls_id, *tokenizer.encode("ACDEFGHIKLMNPQRSTVWY|XBUZO.-J"), tokenizer.sep_id]
    assert expected("ACDEFGHIKLMNPQRSTVWY|XBUZO.-J")["input_ids"] == ids


def test_python_users_get_what_they_get_there(esmc_directory):
    encoder = proteinlm.load(esmc_directory, device="cpu")
    peer, sequences = esmc_peer(*SHAPE, dtype=torch.float32), ["MKV", "ACDEFGHIKL|MNPQ"]
    tokenizer = AutoTokenizer.from_pretrained(esmc_directory)
    for sequence, logits in zip(sequences, encoder.logits(sequences, tensors=True), strict=True):
        with torch.no_grad():
            expected = peer(**tokenizer(sequence, return_tensors="pt")).logits[0, 1:-1]
        assert logits.shape == (len(sequence), 64) and (logits - expected).abs().max() < 1e-5 * expected.abs().max()
    with pytest.raises(InputError, match="no contact regression"):
        encoder.contacts("MKV")


def test_a_model_without_its_head_and_one_with_another(esmc_directory, tmp_path):
    from transformers import EsmcForSequenceClassification, EsmcModel

    EsmcModel.from_pretrained(esmc_directory).save_pretrained(tmp_path / "encoder")
    EsmcForSequenceClassification.from_pretrained(esmc_directory).save_pretrained(tmp_path / "classifier")
    whole = proteinlm.load(esmc_directory, device="cpu").embed("MKV")
    for name in ("encoder", "classifier"):
        assert (proteinlm.load(tmp_path / name, device="cpu").embed("MKV") == whole).all()
    files = opened(EsmcForSequenceClassification.from_pretrained(esmc_directory))
    assert len(files.notes) == 1 and "classifier.dense.bias" in files.notes[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 33}, "vocab_size is 33; an ESM C of this shape has 64"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; an ESM C of this shape has silu"),
        ({"mlp_bias": True}, "mlp_bias is True; an ESM C of this shape has False"),
        ({"num_key_value_heads": 1}, "num_key_value_heads is 1; an ESM C of this shape has 3"),
        ({"mask_token_id": 4}, "mask_token_id is 4; an ESM C of this shape has 32"),
        ({"pad_token_id": True}, "pad_token_id is True; an ESM C of this shape has 1"),
        ({"mlp_bias": 0}, "mlp_bias is 0; an ESM C of this shape has False"),
        ({"model_type": "esmc", "attention_bias": "no"}, "attention_bias 'no' is not one of True, False"),
        ({"attention_bias": True, "mlp_bias": True}, ".*self_attn.q_proj.bias is missing"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_parameters .*; only rope_theta, unscaled"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta is -1.0; a positive number is needed"),
        ({"num_hidden_layers": 3}, ".*layers.2.* is missing"),
        ({"num_hidden_layers": 1000}, "its 34 tensors cannot be the 1000 layers"),
        ({"intermediate_size": 7}, r".*proj.weight has shape \[12, 9\], but config.json gives \[12, 7\]"),
    ],
)
def test_another_network_is_refused(esmc_directory, tmp_path, change, message):
    config = json.loads((esmc_directory / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(esmc_directory / "model.safetensors")
    with pytest.raises(InputError, match=rf"^{tmp_path}/(config.json|model.safetensors): {message}[^\n]*$"):
        proteinlm.load(tmp_path, device="cpu")
