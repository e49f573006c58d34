"""An operator in the place of attention that reads the boundaries of proteins as a GPU's kernels do: for compiling."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from proteinlm.network import layers, model
from proteinlm.network.attention import AttentionPlan


@torch.library.custom_op("tests::mean_of_protein", mutates_args=())
def mean_of_protein(values: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Every token gets the mean of its protein."""
    parts = values.split(cu_seqlens.diff().tolist())
    return torch.cat([part.mean(0, keepdim=True).expand_as(part) for part in parts])


mean_of_protein.register_fake(lambda values, cu_seqlens: torch.empty_like(values))
mean_of_protein.register_autograd(
    lambda ctx, gradient: (mean_of_protein(gradient.contiguous(), ctx.saved_tensors[0]), None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[1]),
)


def as_an_operator(qkv: Tensor, plan: AttentionPlan, dropout_p: float) -> Tensor:
    return mean_of_protein(qkv.sum(2), plan.cu_seqlens)


def with_lengths_as_numbers(qkv: Tensor, plan: AttentionPlan, dropout_p: float) -> Tensor:
    """The lengths of proteins become a part of the graph."""
    return torch.cat([part.sum(1) for part in qkv.split(plan.cu_seqlens.diff().tolist())])


@contextlib.contextmanager
def stand_in(attend: Callable = as_an_operator) -> Iterator[None]:
    """Layers attend so inside, and what Dynamo has compiled before and after is forgotten."""
    honest = layers.packed_attention, model.choose_backend
    layers.packed_attention, model.choose_backend = attend, lambda *arguments: "reference"
    torch._dynamo.reset()
    try:
        yield
    finally:
        layers.packed_attention, model.choose_backend = honest
        torch._dynamo.reset()
