"""Data parallelism: replicas that sum their gradients, whole (plain replication) or cut (FSDP2).

Plain replication: gradients stay on their rank while micro-batches accumulate and are summed once, in buckets, during
the last one's backward pass (`overlap`), or after it where there is tp or pp. --use-distributed-optimizer: FSDP2 cuts
weights, gradients and Adam's moments over the dp_shard axis; weights are gathered once a step and gradients
reduce-scattered once, after the last micro-batch. --use-torch-fsdp2, its full form: weights are let go after every
layer and gathered again, which costs traffic and saves memory. With --num-distributed-optimizer-instances R the
replicas are R groups that each hold the whole model (hybrid sharding).

Must hold: gradients are sums, since a step divides once by the global count; fp32 is reduced in fp32.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from pretrain.parallel.mesh import World
from pretrain.parallel.pipeline import Parts

reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor  # renamed in torch 2.13


def shard(
    model: nn.Module,
    world: World,
    full: bool,
    one_unit: bool,
    param_dtype: torch.dtype | None,
    reduce_dtype: torch.dtype | None,
) -> None:
    """Cut `model` over the replicas with FSDP2, in place.

    full: free the gathered weights after each use. one_unit: the whole stage is gathered and reduced together; the
    zero-bubble schedule needs that, since per-layer units lose the gradients of its separate weight pass silently.
    param_dtype: what weights are gathered and computed with in, and gradients come in (None: their own).
    reduce_dtype: what gradients travel in between shards (None: their weight's); they are added up in the weight's.
    """
    mesh = world.mesh["dp_replicate", "dp_shard"] if world.layout.dp_replicate > 1 else world.mesh["dp_shard"]
    accumulate_dtype = None if param_dtype is None else next(model.parameters()).dtype
    # Inputs are cast by the model itself: the residual stream may stay in fp32 over layers in half precision.
    policy = MixedPrecisionPolicy(param_dtype, accumulate_dtype, cast_forward_inputs=False)
    units = [] if one_unit else list(model.layers.values())
    for unit in (*units, model):
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=full and unit is not model)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the sum over replicas, where FSDP's default is their mean
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
            if reduce_dtype is not None:
                module.set_custom_reduce_scatter(NarrowReduceScatter(reduce_dtype))


class NarrowReduceScatter:
    """Sends gradients in `dtype`. FSDP2's own reduce_dtype would also add up the micro-batches of a step in it, where
    small gradients are lost."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor, input_tensor, group, op, async_op=False) -> None:
        total = output_tensor.new_empty(output_tensor.shape, dtype=self.dtype)
        reduce_scatter(total, input_tensor.to(self.dtype), op, group)
        output_tensor.copy_(total)


def communicate(model: Parts, last: bool, full: bool) -> None:
    """Say whether the coming micro-batch is a step's last: only then are gradients summed over the replicas."""
    if model.overlap:
        model.overlap.expect(last)
    for part in model.children():
        if isinstance(part, FSDPModule):
            part.set_requires_gradient_sync(last)
            part.set_is_last_backward(last)
            part.set_reshard_after_backward(last or full)


def release(model: nn.Module) -> None:
    """Let FSDP2's gathered weights go, as after a backward pass; an evaluation has none."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
