"""The accumulated gradients of a step: the sums that are still to be taken, and one norm over the whole model.

Must hold: gradients are sums, never means; fp32 is reduced in fp32 unless told otherwise; nothing is read on the host.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from pretrain.parallel.mesh import World
from pretrain.parallel.pipeline import Parts
from pretrain.parallel.tensor import is_partial
from proteinlm.muon import local_part
from proteinlm.optim import global_norm

BUCKET = 1 << 25  # elements summed in one message; a copy of so many lives meanwhile


class Gradients:
    """The accumulated gradients of this process's part of the model, once all micro-batches went through it."""

    def __init__(self, model: Parts, world: World, reduce_dtype: torch.dtype | None = None):
        self.world, self.reduce_dtype = world, reduce_dtype
        self.named, self.overlap = dict(model.named_parameters()), model.overlap
        self.sharded = world.layout.dp_shard > 1
        untied = any(part.config.untie_embeddings_and_output_weights for part in model.children())
        self.ends_group = None if untied else world.ends_group

    def finish(self) -> None:
        """Take the sums that are still to be taken: over tp, over plain replicas, over the tied embedding's copies."""
        if self.world.alone:
            return
        self._settle_placements()
        if self.overlap:
            self.overlap.finish()
        elif not self.sharded and self.world.dp_size > 1:
            sum_together([local_part(p.grad) for p in self._with_gradient()], self.world.dp_group, self.reduce_dtype)
        if self.ends_group is not None and "word_embeddings.weight" in self.named:
            sum_together([local_part(self.named["word_embeddings.weight"].grad)], self.ends_group)

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

    def squared_norm(self) -> Tensor:
        """This process's share of the squared 2-norm over the whole model, fp64 []."""
        norm = global_norm([local_part(p.grad) for n, p in self.named.items() if self._counts(n, p)], self.world.device)
        return norm.double().square()

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
