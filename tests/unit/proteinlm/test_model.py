"""The encoder against Hugging Face's MegatronBert, and the promises of its docstrings."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from proteinlm.network.config import ModelConfig
from proteinlm.network.model import ProteinBert, initialize

CONFIG = ModelConfig(
    hidden_size=48,
    num_layers=3,
    num_attention_heads=4,
    max_position_embeddings=64,
    ffn_hidden_size=160,
    hidden_dropout=0.0,
    attention_dropout=0.0,
)
LENGTHS = [5, 40, 1, 17]


def packed(lengths=LENGTHS, seed=0):
    """tokens [T], position ids [T], cu_seqlens [B+1] of random proteins that begin with [CLS]."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(6, 31, (sum(lengths),), generator=generator)
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    tokens[bounds[:-1]] = 2
    positions = torch.cat([torch.arange(n) for n in lengths])
    return tokens, positions, bounds.to(torch.int32)


def random_model(config=CONFIG, dtype=torch.float32, **kwargs) -> ProteinBert:
    """Weights far from their initial values, so that biases, norms and every matrix matter."""
    model = ProteinBert(config, **kwargs)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if "layernorm.weight" in name else 0.15 * noise)
    return model.to(dtype).eval()


def to_hugging_face(model: ProteinBert):
    """The same weights in MegatronBertForMaskedLM, written here by hand from the two models' definitions."""
    transformers = pytest.importorskip("transformers")
    c = model.config
    assert c.hidden_act == c.lm_head_act, "Hugging Face has one activation for both"
    reference = transformers.MegatronBertForMaskedLM(
        transformers.MegatronBertConfig(
            vocab_size=c.padded_vocab_size,
            hidden_size=c.hidden_size,
            num_hidden_layers=c.num_layers,
            num_attention_heads=c.num_attention_heads,
            intermediate_size=c.ffn_hidden_size,
            hidden_act=c.hidden_act,
            max_position_embeddings=c.max_position_embeddings,
            layer_norm_eps=c.layernorm_epsilon,
            type_vocab_size=2,
        )
    ).eval()
    state = reference.state_dict()
    weights = model.state_dict()

    def put(name: str, value: Tensor):
        assert state[name].shape == value.shape, name
        state[name] = value.clone()

    put("bert.embeddings.word_embeddings.weight", weights["word_embeddings.weight"])
    put("bert.embeddings.position_embeddings.weight", weights["position_embeddings.weight"])
    state["bert.embeddings.token_type_embeddings.weight"].zero_()
    for i in range(c.num_layers):
        layer, hf_layer = f"layers.{i}.", f"bert.encoder.layer.{i}."
        for kind in ("weight", "bias"):
            qkv = weights[f"{layer}attention.query_key_value.{kind}"]
            by_head = qkv.view(c.num_attention_heads, 3, c.hidden_size // c.num_attention_heads, *qkv.shape[1:])
            for j, part in enumerate(("query", "key", "value")):
                put(f"{hf_layer}attention.self.{part}.{kind}", by_head[:, j].reshape(c.hidden_size, *qkv.shape[1:]))
            put(f"{hf_layer}attention.ln.{kind}", weights[f"{layer}input_layernorm.{kind}"])
            put(f"{hf_layer}attention.output.dense.{kind}", weights[f"{layer}attention.dense.{kind}"])
            put(f"{hf_layer}ln.{kind}", weights[f"{layer}post_attention_layernorm.{kind}"])
            put(f"{hf_layer}intermediate.dense.{kind}", weights[f"{layer}mlp.dense_h_to_4h.{kind}"])
            put(f"{hf_layer}output.dense.{kind}", weights[f"{layer}mlp.dense_4h_to_h.{kind}"])
    for kind in ("weight", "bias"):
        put(f"bert.encoder.ln.{kind}", weights[f"final_layernorm.{kind}"])
        put(f"cls.predictions.transform.dense.{kind}", weights[f"lm_head.dense.{kind}"])
        put(f"cls.predictions.transform.LayerNorm.{kind}", weights[f"lm_head.layernorm.{kind}"])
    put("cls.predictions.decoder.weight", weights["word_embeddings.weight"])
    for name in ("cls.predictions.bias", "cls.predictions.decoder.bias"):
        if name in state:
            put(name, weights["lm_head.bias"])
    reference.load_state_dict(state)
    return reference


@torch.no_grad()
def largest_difference(model, reference, positions_override=None) -> tuple[float, float]:
    """Hidden states and logits, each protein run alone through the reference and packed through this model."""
    tokens, positions, bounds = packed()
    hidden = model(tokens, positions if positions_override is None else positions_override, bounds)
    logits = model.lm_logits(hidden)[:, : model.config.vocab_size]
    worst_hidden = worst_logits = 0.0
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        answer = reference(tokens[None, begin:end], output_hidden_states=True)
        final = reference.bert(tokens[None, begin:end])[0][0]
        worst_hidden = max(worst_hidden, float((final - hidden[begin:end]).abs().max()))
        scores = answer.logits[0][:, : model.config.vocab_size]
        worst_logits = max(worst_logits, float((scores - logits[begin:end]).abs().max()))
    return worst_hidden, worst_logits


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_packed_proteins_match_hugging_face_one_by_one(activation):
    model = random_model(replace(CONFIG, hidden_act=activation, lm_head_act=activation))
    hidden, logits = largest_difference(model, to_hugging_face(model))
    assert hidden < 1e-5
    assert logits < 1e-5


def test_the_comparison_notices_what_it_should():
    """Negative controls: the other GELU, positions that run on through the row, and query/key/value rows mixed up."""
    model = random_model(replace(CONFIG, hidden_act="gelu", lm_head_act="gelu"))
    reference = to_hugging_face(model)
    other = random_model(replace(CONFIG, hidden_act="gelu_new", lm_head_act="gelu"))
    assert largest_difference(other, reference)[0] > 1e-5
    assert largest_difference(model, reference, torch.arange(sum(LENGTHS)))[0] > 1e-2
    mixed = random_model(replace(CONFIG, hidden_act="gelu", lm_head_act="gelu"))
    with torch.no_grad():
        weight = mixed.layers["0"].attention.query_key_value.weight
        weight.copy_(weight.view(3, 4, 12, 48).transpose(0, 1).reshape(144, 48))
    assert largest_difference(mixed, reference)[0] > 1e-2


def test_rows_and_flat_stream_agree_and_a_protein_sees_only_itself():
    model = random_model(dtype=torch.float64)
    tokens, positions, bounds = packed([20, 12, 30, 2])
    flat = model(tokens, positions, bounds)
    rows = model(tokens.view(2, 32), positions.view(2, 32), bounds)
    assert rows.shape == (2, 32, 48)
    torch.testing.assert_close(rows.flatten(0, 1), flat, rtol=0, atol=0)
    changed = tokens.clone()
    changed[25] = 7 if changed[25] != 7 else 8
    difference = (model(changed, positions, bounds) - flat).abs().amax(1)
    assert difference[20:32].min() > 0
    assert difference[:20].max() < 1e-12 and difference[32:].max() < 1e-12


def test_head_on_masked_positions_only_equals_head_everywhere():
    model = random_model()
    tokens, positions, bounds = packed()
    picked = torch.tensor([3, 8, 60])
    everywhere = model.lm_logits(model(tokens, positions, bounds))
    torch.testing.assert_close(model(tokens, positions, bounds, picked), everywhere[picked])
    assert everywhere.shape[1] == 128
    assert torch.isneginf(everywhere[:, 31:]).all() and torch.isfinite(everywhere[:, :31]).all()


def test_hidden_states_are_embedding_layers_and_the_normalised_last():
    model = random_model()
    tokens, positions, bounds = packed()
    states = model.hidden_states(tokens, positions, bounds)
    assert len(states) == CONFIG.num_layers + 1
    embedded = model.word_embeddings(tokens) + model.position_embeddings(positions)
    torch.testing.assert_close(states[0], embedded)
    torch.testing.assert_close(states[-1], model(tokens, positions, bounds))
    unnormalised = random_model(replace(CONFIG, final_layernorm=False))
    assert unnormalised.final_layernorm is None
    torch.testing.assert_close(model.final_layernorm(unnormalised(tokens, positions, bounds)), states[-1])


def test_initial_weights_depend_on_seed_and_name_alone():
    small, deep = ProteinBert(CONFIG), ProteinBert(replace(CONFIG, num_layers=5))
    torch.manual_seed(99)
    initialize(small, 1)
    initialize(deep, 1)
    assert torch.equal(small.word_embeddings.weight, deep.word_embeddings.weight)
    same = "layers.2.attention.query_key_value.weight"
    assert torch.equal(small.state_dict()[same], deep.state_dict()[same])
    first = small.state_dict()
    assert not torch.equal(first["layers.0.mlp.dense_h_to_4h.weight"], first["layers.1.mlp.dense_h_to_4h.weight"])
    again = ProteinBert(CONFIG)
    initialize(again, 2)
    assert not torch.equal(again.word_embeddings.weight, small.word_embeddings.weight)


def test_initial_spread_is_megatrons():
    config = replace(CONFIG, hidden_size=128, ffn_hidden_size=512, num_layers=2)
    model = ProteinBert(config)
    initialize(model, 5)
    layer = model.layers["1"]
    assert float(layer.attention.query_key_value.weight.detach().std()) == pytest.approx(0.02, rel=0.03)
    assert float(layer.mlp.dense_4h_to_h.weight.detach().std()) == pytest.approx(0.02 / 2.0, rel=0.03)
    assert float(layer.attention.dense.weight.detach().std()) == pytest.approx(0.02 / 2.0, rel=0.03)
    assert torch.equal(layer.input_layernorm.weight, torch.ones(128))
    assert not layer.mlp.dense_h_to_4h.bias.any() and not model.word_embeddings.weight[31:].any()


def test_parameter_count():
    for lm_head in (True, False):
        for config in (CONFIG, replace(CONFIG, final_layernorm=False)):
            model = ProteinBert(config, lm_head=lm_head)
            assert sum(p.numel() for p in model.parameters()) == config.num_parameters(lm_head)


def test_recomputed_gradients_equal_stored_ones_with_dropout():
    config = replace(CONFIG, hidden_dropout=0.1, attention_dropout=0.1)
    tokens, positions, bounds = packed()
    gradients = []
    for recompute in (False, True):
        model = random_model(config).train()
        model.recompute = recompute
        torch.manual_seed(0)
        model(tokens, positions, bounds).square().sum().backward()
        gradients.append(model.layers["0"].mlp.dense_h_to_4h.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_dropout_places():
    """Embedding, attention probabilities, both block outputs; the TAPE fork only the first two."""
    tokens, positions, bounds = packed()
    config = replace(CONFIG, hidden_dropout=0.5, attention_dropout=0.0)
    fork = random_model(replace(config, output_dropout=False)).train()
    assert fork.layers["0"].dropout.p == 0.0 and fork.embedding_dropout.p == 0.5
    full = random_model(config).train()
    assert full.layers["0"].dropout.p == 0.5
    attention_only = random_model(replace(CONFIG, attention_dropout=0.5)).train()
    first, second = (attention_only(tokens, positions, bounds) for _ in range(2))
    assert not torch.equal(first, second), "attention dropout must not be dropped silently"


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match="num-attention-heads 5 must divide hidden-size 48"):
        replace(CONFIG, num_attention_heads=5)
    with pytest.raises(ValueError, match="hidden_act 'tanh'"):
        replace(CONFIG, hidden_act="tanh")
