"""Data parallelism: replicas that sum their gradients, whole (plain replication) or cut (FSDP2).

Plain replication: gradients stay on their rank while micro-batches accumulate and are summed once, in buckets, after
the last (also after a pipeline's schedule). --use-distributed-optimizer: FSDP2 cuts weights, gradients and Adam's
moments over the dp_shard axis; weights are gathered once a step and gradients reduce-scattered once, after the last
micro-batch. --use-torch-fsdp2, its full form: weights are let go after every layer and gathered again, which costs
traffic and saves memory. With --num-distributed-optimizer-instances R the replicas are R groups that each hold the
whole model (hybrid sharding).

Must hold: gradients are sums, since a step divides once by the global count; fp32 is reduced in fp32.
"""

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from pretrain.parallel.mesh import World


def shard(model: nn.Module, world: World, full: bool, one_unit: bool, reduce_dtype: torch.dtype | None) -> None:
    """Cut `model` over the replicas with FSDP2, in place.

    full: free the gathered weights after each use. one_unit: the whole stage is gathered and reduced together; the
    zero-bubble schedule needs that, since per-layer units lose the gradients of its separate weight pass silently.
    """
    mesh = world.mesh["dp_replicate", "dp_shard"] if world.layout.dp_replicate > 1 else world.mesh["dp_shard"]
    policy = MixedPrecisionPolicy(reduce_dtype=reduce_dtype)
    units = [] if one_unit else list(model.layers.values())
    for unit in (*units, model):
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=full and unit is not model)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the sum over replicas, where FSDP's default is their mean
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum


def communicate(model: nn.ModuleList, last: bool, full: bool) -> None:
    """Tell FSDP2 whether the coming micro-batch is a step's last: only then are gradients reduced."""
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
