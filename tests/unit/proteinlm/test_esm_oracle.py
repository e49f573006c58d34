"""The network in the forms of ESM-2 and ESM-1b against Hugging Face's EsmForMaskedLM: states, logits, loss, gradients.

Hugging Face makes cos and sin in fp32 whatever the model's dtype, and so do we. Beyond that its `apply_rotary_pos_emb`
rounds queries and keys to fp32, also of an fp64 model. Comparisons at 1e-10 take that one rounding out of it (the
fixture `unrounded`), by putting the function of its ESM C in that place, which is the same without it;
`test_unpatched` changes nothing.
"""

import pytest
import torch
from esm_peers import (
    EXACT,
    SHAPES,
    VISIBLE,
    difference,
    esm_peer,
    labelled,
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
from toy_esm import ESM_1B

from proteinlm.network.attention import buckets
from proteinlm.network.model import initialize_buffers

FORMS = {"esm2": {}, "esm2 without token dropout": {"token_dropout": False}, "esm1b": ESM_1B}
FORMS["esm1b without embedding LayerNorm"] = {**ESM_1B, "emb_layer_norm_before": False}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_states_and_logits(shape, form, unrounded):
    peer, tokens = esm_peer(*shape, **FORMS[form]), proteins()
    outputs = our_outputs(same_network(peer), tokens)
    assert difference(outputs, peer_outputs(peer, tokens, batch=False)) < EXACT
    assert difference(outputs, peer_outputs(peer, tokens, batch=True)) < EXACT


def test_long_proteins(unrounded):
    """Beyond the 1,022 residues that ESM-2 was trained with, and beyond max_position_embeddings."""
    peer, tokens = esm_peer(1, 2, 4, max_position_embeddings=1026), proteins((1500, 3), (200, 1))
    assert difference(our_outputs(same_network(peer), tokens), peer_outputs(peer, tokens, batch=False)) < EXACT


def test_unpatched():
    """Hugging Face as it is: fp64 but for the rounding of queries and keys, and fp32, which users have."""
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
        peer, tokens = esm_peer(3, 2, 16, dtype=dtype), proteins()
        expected = peer_outputs(peer, tokens, batch=True)
        largest = max(float(value.abs().max()) for values in expected for value in values)
        assert difference(our_outputs(same_network(peer), tokens), expected) < tolerance * largest
        wrong = same_network(peer, hidden_act="gelu_new")
        assert difference(our_outputs(wrong, tokens), expected) > 10 * tolerance * largest


# ---- what must not agree. Rope knows distances alone, so that positions off by one change nothing: they are doubled.


def ignore_proteins_in_token_dropout(model):
    per_protein = model._token_scale
    model._token_scale = lambda tokens, bounds: per_protein(tokens, bounds[[0, -1]])


def double_positions(model):
    angles = model.rotary_embeddings.forward
    model.rotary_embeddings.forward = lambda positions: angles(2 * positions)


def keep_positions_running(model):
    rows = model.position_embeddings.forward
    model.position_embeddings.forward = lambda positions: rows(torch.arange(len(positions)) % 66)


def forget_biases(model):
    for layer in model.layers.values():
        layer.attention.query_key_value.bias = None


def swap_queries_and_keys(model):
    for layer in model.layers.values():
        rows = layer.attention.query_key_value.weight.data.unflatten(0, (-1, 3, layer.attention.head_size))
        rows[:, [0, 1]] = rows[:, [1, 0]].clone()


def leave_final_norm_out(model):
    model.final_layernorm = None


WRONG_CONFIGS = {
    "tanh GELU in the MLP": {"hidden_act": "gelu_new"},
    "tanh GELU in the head": {"lm_head_act": "gelu_new"},
    "x0.88 left out": {"token_dropout": False},
    "EsmConfig's default eps": {"layernorm_epsilon": 1e-12},
    "another mask token": {"mask_token_id": 31},
}
WRONG_MODELS = (
    swap_norms,
    ignore_proteins_in_token_dropout,
    forget_biases,
    swap_queries_and_keys,
    leave_final_norm_out,
)
OFFSET_1 = {"position_offset": 1, "max_position_embeddings": 65}
MISTAKES = {
    "esm2": (WRONG_CONFIGS, (*WRONG_MODELS, double_positions, initialize_buffers)),  # the last one recomputes inv_freq
    "esm1b": (WRONG_CONFIGS | {"position offset": OFFSET_1}, (*WRONG_MODELS, keep_positions_running)),
}


@pytest.mark.parametrize("form", MISTAKES)
def test_each_mistake_would_show(form, unrounded, monkeypatch):
    peer, tokens = esm_peer(2, 3, 4, **FORMS[form]), proteins()
    expected = peer_outputs(peer, tokens, batch=True)
    assert difference(our_outputs(same_network(peer), tokens), expected) < EXACT
    wrong_configs, wrong_models = MISTAKES[form]
    for name, change in wrong_configs.items():
        assert difference(our_outputs(same_network(peer, **change), tokens), expected) > VISIBLE, name
    for spoil in wrong_models:
        model = same_network(peer)
        with torch.no_grad():
            spoil(model)
        assert difference(our_outputs(model, tokens), expected) > VISIBLE, spoil.__name__
    if form == "esm2":
        monkeypatch.setattr(buckets, "rotate_pairs", turn_neighbours)
        assert difference(our_outputs(same_network(peer), tokens), expected) > VISIBLE


# ---- a step of continued pretraining


@pytest.mark.parametrize("form", FORMS)
def test_loss_and_every_gradient(form, unrounded):
    peer, tokens = esm_peer(2, 3, 4, **FORMS[form]), proteins()
    labels = labelled(tokens)
    expected = peer_step(peer, tokens, labels)
    assert max(step_difference(our_step(same_network(peer), tokens, labels), expected)) < 1e-8
    wrong = our_step(same_network(peer, hidden_act="gelu_new"), tokens, labels)
    assert min(step_difference(wrong, expected)) > 1e-6
