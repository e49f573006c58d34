"""Data parallelism: replicas that sum their gradients, whole (plain replication) or cut (FSDP2), and one gradient norm.

Plain replication: gradients stay on their rank while micro-batches accumulate and are summed once, in buckets, after
the last (also after a pipeline's schedule). --use-distributed-optimizer: FSDP2 cuts weights, gradients and Adam's
moments over the dp_shard axis; weights are gathered once a step and gradients reduce-scattered once, after the last
micro-batch. --use-torch-fsdp2, its full form: weights are let go after every layer and gathered again, which costs
traffic and saves memory. With --num-distributed-optimizer-instances R the replicas are R groups that each hold the
whole model (hybrid sharding).

Must hold: gradients are sums, since the loss was divided by the global count; fp32 is reduced in fp32.
"""

import math
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

from pretrain.parallel.mesh import World
from pretrain.parallel.tensor import is_partial
from proteinlm.optim import global_norm, scale_in_place

BUCKET = 1 << 25  # elements summed in one message; a copy of so many lives meanwhile


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


class Gradients:
    """The accumulated gradients of this process's part of the model, once all micro-batches went through it."""

    def __init__(self, model: nn.Module, world: World, reduce_dtype: torch.dtype | None = None):
        self.world, self.reduce_dtype = world, reduce_dtype
        self.named = dict(model.named_parameters())
        self.sharded = world.layout.dp_shard > 1
        untied = any(part.config.untie_embeddings_and_output_weights for part in model.children())
        self.ends_group = None if untied else world.ends_group

    def finish(self) -> None:
        """Take the sums that are still to be taken: over tp, over plain replicas, over the tied embedding's copies."""
        if self.world.alone:
            return
        self._settle_placements()
        if not self.sharded and self.world.dp_size > 1:
            sum_together([_local(p.grad) for p in self._with_gradient()], self.world.dp_group, self.reduce_dtype)
        if self.ends_group is not None and "word_embeddings.weight" in self.named:
            sum_together([_local(self.named["word_embeddings.weight"].grad)], self.ends_group)

    def _with_gradient(self) -> list[nn.Parameter]:
        return [p for p in self.named.values() if p.grad is not None]

    def _settle_placements(self) -> None:
        """Bring each gradient to its weight's place on the tp mesh; backward passes leave some in another.

        Under sequence parallelism each rank has the gradient of its own tokens for weights that all of them hold: these
        sums are taken together. The gradient of an embedding that is used for nothing else comes whole.
        """
        moved = [p for p in self._with_gradient() if isinstance(p, DTensor) and p.grad.placements != p.placements]
        partial = [p for p in moved if is_partial(p.grad)]
        terms = [p.grad.to_local() for p in partial]
        if terms:
            sum_together(terms, self.world.mesh.get_group("tp"))
        for parameter, total in zip(partial, terms, strict=True):
            parameter.grad = DTensor.from_local(total, parameter.device_mesh, [Replicate()], run_check=False)
        for parameter in moved:
            parameter.grad = parameter.grad.redistribute(placements=parameter.placements)

    def norm_with(self, losses: list[float]) -> tuple[float, list[float]]:
        """(the 2-norm over the whole model, sums of losses over the whole global batch): one message for all."""
        norm = float(global_norm(_local(p.grad) for n, p in self.named.items() if self._counts(n, p)))
        if self.world.alone:
            return norm, losses
        counted = [loss if self.world.counts_loss else 0.0 for loss in losses]
        square, *losses = self.world.sum_over_all([norm**2, *counted])
        return math.sqrt(square) if math.isfinite(square) else square, losses

    def _counts(self, name: str, parameter: nn.Parameter) -> bool:
        """Of the ranks that hold the same piece of a gradient exactly one counts it in the norm."""
        world = self.world
        if parameter.grad is None or (world.dp_replicate_rank if self.sharded else world.dp_rank) > 0:
            return False
        if name == "word_embeddings.weight" and not world.is_first_stage:
            return False
        return world.tp_rank == 0 or self._cut_over_tp(parameter)

    def _cut_over_tp(self, parameter: nn.Parameter) -> bool:
        axis = parameter.device_mesh.mesh_dim_names.index("tp")
        return isinstance(parameter.placements[axis], Shard)

    def scale(self, factor: float) -> None:
        scale_in_place([_local(p.grad) for p in self._with_gradient()], factor)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sum_together(tensors: list[Tensor], group: dist.ProcessGroup, dtype: torch.dtype | None = None) -> None:
    """Sum each tensor over the group in place, many to a message. dtype: what travels (None: as they are)."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bucket]).to(dtype or bucket[0].dtype)
        dist.all_reduce(flat, group=group)
        for tensor, total in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(total.view_as(tensor))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.numel() > BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket
