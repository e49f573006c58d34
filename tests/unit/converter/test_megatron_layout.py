"""Megatron's orders of rows and cuts, worked out by hand for two heads of two."""

import pytest
import torch

from converter.megatron.layout import check_even, cut_dim, padded_vocabulary, slice_for, to_our_rows
from proteinlm.errors import InputError
from proteinlm.network.config import ModelConfig

# Rows named by (part, head, element): part 1 query, 2 key, 3 value.
EXPECTED = [111, 112, 211, 212, 311, 312, 121, 122, 221, 222, 321, 322]
ORDERS = {
    0: [111, 112, 121, 122, 211, 212, 221, 222, 311, 312, 321, 322],  # [3, heads, size]
    1.0: [111, 211, 311, 112, 212, 312, 121, 221, 321, 122, 222, 322],  # [heads, size, 3]
    2.0: EXPECTED,  # [heads, 3, size]
    3.0: EXPECTED,
}


@pytest.mark.parametrize("version", ORDERS)
def test_rows_of_query_key_value(version):
    rows = torch.tensor(ORDERS[version], dtype=torch.float32)
    assert to_our_rows(rows, version, heads=2, head_size=2).int().tolist() == EXPECTED
    matrix = rows[:, None].repeat(1, 5)
    assert to_our_rows(matrix, version, heads=2, head_size=2)[:, 3].int().tolist() == EXPECTED


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        ("word_embeddings.weight", 0),
        ("position_embeddings.weight", None),
        ("layers.11.attention.query_key_value.bias", 0),
        ("layers.11.attention.dense.weight", 1),
        ("layers.11.attention.dense.bias", None),
        ("layers.0.mlp.dense_h_to_4h.bias", 0),
        ("layers.0.mlp.dense_4h_to_h.weight", 1),
        ("layers.0.mlp.dense_4h_to_h.bias", None),
        ("layers.0.input_layernorm.weight", None),
        ("lm_head.dense.weight", None),
        ("lm_head.bias", 0),
    ],
)
def test_what_tensor_parallelism_cuts(name, dim):
    assert cut_dim(name) == dim


def test_slices_put_together_are_the_whole():
    whole = torch.arange(24.0).reshape(4, 6)
    parts = [slice_for("layers.0.attention.dense.weight", whole, tp, 3) for tp in range(3)]
    assert torch.equal(torch.cat(parts, 1), whole)
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in parts)


def test_padding_follows_tensor_parallelism():
    assert [padded_vocabulary(31, 128, tp) for tp in (1, 2, 4)] == [128, 256, 512]
    assert padded_vocabulary(129, 128, 1) == 256


def test_uneven_cuts_are_refused_with_both_numbers():
    config = ModelConfig(hidden_size=32, num_layers=6, num_attention_heads=4, max_position_embeddings=8)
    check_even(config, 4, 3)
    with pytest.raises(InputError, match="--pipeline-model-parallel-size 4 must divide num-layers 6"):
        check_even(config, 2, 4)
    with pytest.raises(InputError, match="--tensor-model-parallel-size 3 must divide num-attention-heads 4"):
        check_even(config, 3, 1)
