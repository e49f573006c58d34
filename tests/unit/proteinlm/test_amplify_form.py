"""The network in the form of AMPLIFY (Fournier et al. 2024), against its maths written out here for one protein.

There is no peer to install. Read in chandar-lab/AMPLIFY, src/amplify/model: RMSNorm before attention and MLP, no biases
but the decoder's, gate and value of SwiGLU in one matrix, rotation of neighbouring features as complex numbers, and a
decoder of its own on the last norm. It rounds queries and keys to fp32 for the rotation; that is left out here.
"""

import pytest
import torch
import torch.nn.functional as F
from esm_peers import EXACT, VISIBLE, difference, our_outputs

from proteinlm.network.config import ModelConfig
from proteinlm.network.model import ProteinBert

VOCABULARY, FFN, EPSILON = 27, 8, 1e-5
SHAPES = [(1, 1, 2), (3, 3, 6), (2, 5, 8)]  # layers, heads, head size


def random_weights(layers, heads, size):
    """AMPLIFY's parameters by its names."""
    generator, h = torch.Generator().manual_seed(0), heads * size
    shapes = {"encoder.weight": (VOCABULARY, h), "decoder.weight": (VOCABULARY, h), "decoder.bias": (VOCABULARY,)}
    shapes["layer_norm_2.weight"] = (h,)
    for i in range(layers):
        layer = f"transformer_encoder.{i}."
        shapes |= {f"{layer}{name}.weight": (h, h) for name in ("q", "k", "v", "wo")}
        shapes |= {f"{layer}{name}.weight": (h,) for name in ("attention_norm", "ffn_norm")}
        shapes |= {f"{layer}ffn.w12.weight": (2 * FFN, h), f"{layer}ffn.w3.weight": (h, FFN)}
    noise = {name: torch.randn(shape, generator=generator).double() for name, shape in shapes.items()}
    return {name: 1 + 0.3 * value if "norm" in name else 0.4 * value for name, value in noise.items()}


def amplify(weights, tokens, layers, heads):
    """The L + 1 states [T, h], the last one normalised, and the logits [T, V] of one protein."""

    def norm(x, name):
        return x * (x.square().mean(-1, keepdim=True) + EPSILON).rsqrt() * weights[name]

    states = [weights["encoder.weight"][tokens]]
    size = states[0].shape[1] // heads
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, size, 2).float() / size)
    angles = torch.outer(torch.arange(len(tokens)), frequencies).float()
    turns = torch.complex(angles.cos(), angles.sin())[:, None]  # [T, 1, size / 2]; torch.polar differs in the last bits

    def turned(x):
        pairs = torch.view_as_complex(x.unflatten(-1, (heads, -1, 2)).contiguous())
        return torch.view_as_real(pairs * turns).flatten(-2).transpose(0, 1)  # [heads, T, size]

    for i in range(layers):
        x, layer = states[-1], f"transformer_encoder.{i}."
        query, key, value = (norm(x, f"{layer}attention_norm.weight") @ weights[f"{layer}{p}.weight"].T for p in "qkv")
        scores = (turned(query) @ turned(key).transpose(1, 2) / size**0.5).softmax(-1)
        mixed = (scores @ value.unflatten(-1, (heads, -1)).transpose(0, 1)).transpose(0, 1).flatten(1)
        x = x + mixed @ weights[f"{layer}wo.weight"].T
        gate, values = (norm(x, f"{layer}ffn_norm.weight") @ weights[f"{layer}ffn.w12.weight"].T).chunk(2, -1)
        states.append(x + (F.silu(gate) * values) @ weights[f"{layer}ffn.w3.weight"].T)
    states[-1] = norm(states[-1], "layer_norm_2.weight")
    return [*states, states[-1] @ weights["decoder.weight"].T + weights["decoder.bias"]]


def in_our_network(weights, layers, heads, size, halves=True, **changes):
    """halves: a head's queries and keys are reordered, even features first, for our rotation turns its halves."""
    config = {"num_layers": layers, "num_attention_heads": heads, "hidden_size": heads * size, "ffn_hidden_size": FFN}
    config |= {"vocab_size": VOCABULARY, "make_vocab_size_divisible_by": 1, "max_position_embeddings": 2048}
    config |= {"position_embedding_type": "rope", "normalization": "RMSNorm", "layernorm_epsilon": EPSILON}
    config |= {"swiglu": True, "add_bias_linear": False, "lm_head_transform": False}
    config |= {"untie_embeddings_and_output_weights": True}
    model = ProteinBert(ModelConfig(**config | changes)).double().eval()
    order = torch.cat((torch.arange(0, size, 2), torch.arange(1, size, 2))) if halves else torch.arange(size)
    state = {
        "word_embeddings.weight": weights["encoder.weight"],
        "rotary_embeddings.inv_freq": model.rotary_embeddings.inv_freq,
        "final_layernorm.weight": weights["layer_norm_2.weight"],
        "lm_head.decoder.weight": weights["decoder.weight"],
        "lm_head.bias": weights["decoder.bias"],
    }
    for i in range(layers):
        there, own = f"transformer_encoder.{i}.", f"layers.{i}."
        query, key, value = (weights[f"{there}{part}.weight"].unflatten(0, (heads, size)) for part in "qkv")
        fused = torch.stack((query[:, order], key[:, order], value), 1)
        state[f"{own}attention.query_key_value.weight"] = fused.flatten(0, 2)
        state[f"{own}attention.dense.weight"] = weights[f"{there}wo.weight"]
        state[f"{own}input_layernorm.weight"] = weights[f"{there}attention_norm.weight"]
        state[f"{own}post_attention_layernorm.weight"] = weights[f"{there}ffn_norm.weight"]
        gate, up = weights[f"{there}ffn.w12.weight"].chunk(2)
        state |= {f"{own}mlp.dense_h_to_4h_gate.weight": gate, f"{own}mlp.dense_h_to_4h.weight": up}
        state[f"{own}mlp.dense_4h_to_h.weight"] = weights[f"{there}ffn.w3.weight"]
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(
        name.endswith("norm.bias") for name in missing
    )  # LayerNorm's, where it is the mistake
    return model


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_states_and_logits(shape):
    layers, heads, _ = shape
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randint(0, VOCABULARY, (length,), generator=generator) for length in (9, 1, 30, 17)]
    weights = random_weights(*shape)
    expected = [amplify(weights, protein, layers, heads) for protein in tokens]
    assert difference(our_outputs(in_our_network(weights, *shape), tokens), expected) < EXACT
    wrong = [
        in_our_network(weights, *shape, **change)
        for change in ({"normalization": "LayerNorm"}, {"layernorm_epsilon": 0.1})
    ]
    if shape[2] > 2:  # a pair alone is its own halves
        wrong.append(in_our_network(weights, *shape, halves=False))
    assert min(difference(our_outputs(model, tokens), expected) for model in wrong) > VISIBLE
