"""How Megatron cuts a model over ranks, as pure functions on tensors: what is cut where, and in which order rows lie.

Legend: T tensor-parallel size, np attention heads on one rank, hn head size, h hidden size.
"""

import torch
from torch import Tensor

from converter.names import FUSED, LAYER, TENSOR_PARALLEL_DIM
from proteinlm.errors import InputError
from proteinlm.network.config import ModelConfig


def part_of(name: str) -> str:
    """Our name without its layer: 'attention.dense.weight' of 'layers.3.attention.dense.weight'."""
    layer = LAYER.fullmatch(name)
    return layer[2] if layer else name


def cut_dim(name: str) -> int | None:
    """The dimension that tensor parallelism cuts; None for what every rank holds whole."""
    return TENSOR_PARALLEL_DIM.get(part_of(name))


def is_fused(name: str) -> bool:
    return part_of(name).startswith(FUSED)


def to_our_rows(tensor: Tensor, version: float, heads: int, head_size: int) -> Tensor:
    """One rank's query_key_value (weight [3 np hn, h] or bias [3 np hn]) in the order [np, 3, hn].

    Row orders: version 0 [3, np, hn]; 1.0 [np, hn, 3]; 2.0 and 3.0 [np, 3, hn].
    """
    rest = tensor.shape[1:]
    if version == 0:
        return tensor.reshape(3, heads, head_size, *rest).transpose(0, 1).reshape(tensor.shape)
    if version == 1:
        return tensor.reshape(heads, head_size, 3, *rest).transpose(1, 2).reshape(tensor.shape)
    return tensor


def padded_vocabulary(vocab_size: int, divisible_by: int, tensor_parallel: int) -> int:
    """Megatron's rows of the whole word embedding."""
    multiple = divisible_by * tensor_parallel
    return -(-vocab_size // multiple) * multiple


def check_even(config: ModelConfig, tensor_parallel: int, pipeline_parallel: int) -> None:
    """Every cut leaves equal parts, or an InputError with both numbers."""
    for flag, size, name, whole in (
        ("--tensor-model-parallel-size", tensor_parallel, "num-attention-heads", config.num_attention_heads),
        ("--tensor-model-parallel-size", tensor_parallel, "ffn-hidden-size", config.ffn_hidden_size),
        ("--pipeline-model-parallel-size", pipeline_parallel, "num-layers", config.num_layers),
    ):
        if size < 1 or whole % size:
            raise InputError(f"{flag} {size} must divide {name} {whole}")


def slice_for(name: str, tensor: Tensor, tp: int, tensor_parallel: int) -> Tensor:
    """Rank tp's part of a whole tensor, in memory of its own (torch.save writes a view's whole storage)."""
    dim = cut_dim(name)
    part = tensor if dim is None else tensor.chunk(tensor_parallel, dim)[tp]
    return part.clone(memory_format=torch.contiguous_format)
