"""BatchNorm when several processes share a step: the statistics, kept equal to those of one process.

A step's parts (micro-batches) each have statistics of their own. Where a process has whole parts nothing changes but
the running statistics, which are put together afterwards as if one process had seen the parts in order. Where every
part is spread over the processes, the masked norm of a residue head sums its statistics over them (`SyncedBatchNorm`).

Not synchronised: norms inside a contact head (its maps may be recomputed on one process and not on another, which would
leave that one waiting) and norms that a plugin brings. Spread over processes, their statistics are those of the
proteins that each process has, as in PyTorch's data parallelism; `unsynced` names them, and the running
statistics are averaged.
"""

import torch
from torch import Tensor, nn

from tape.data.batching import Share
from tape.models.heads import ContactHead, MaskedBatchNorm
from tape.runs.processes import Processes

Buffers = dict[nn.Module, tuple[Tensor, Tensor]]


class SumOverRanks(torch.autograd.Function):
    """y = sum of x over the processes; the loss is summed over them too, and so are the gradients."""

    @staticmethod
    def forward(ctx, x: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return processes.all_reduce(x.clone())

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.processes.all_reduce(gradient.clone()), None


class SyncedBatchNorm(MaskedBatchNorm):
    """MaskedBatchNorm whose statistics are those of all processes' proteins while `spread` is set.

    idle: this process's proteins count for nothing now.
    """

    def __init__(self, norm: MaskedBatchNorm, processes: Processes):
        super().__init__(norm.weight.numel(), norm.eps, norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            setattr(self, name, buffer)
        self.processes, self.spread, self.idle = processes, False, False
        self.train(norm.training)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if not (self.training and self.spread):
            return super().forward(x, mask)
        shape, dims = (1, -1, *[1] * (x.dim() - 2)), [0, *range(2, x.dim())]
        mask = torch.ones_like(x[:, :1]) if mask is None else mask
        counted = mask.float() * (0.0 if self.idle else 1.0)
        wide = x.float()
        count = self.processes.all_reduce(counted.sum())
        mean = SumOverRanks.apply((wide * counted).sum(dims), self.processes) / count
        centred = wide - mean.view(shape)
        variance = SumOverRanks.apply((centred.square() * counted).sum(dims), self.processes) / count
        if self.track:
            self._update(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return ((self.bias.view(shape) + centred * scale.view(shape)) * mask).to(x.dtype)


class NormKeeper:
    """Every BatchNorm of a model under data parallelism. Does nothing when there is one process."""

    def __init__(self, model: nn.Module, processes: Processes):
        self.processes = processes
        self.norms: list[nn.Module] = []
        if processes.size == 1:
            return
        heads = [name for name, part in model.named_modules() if isinstance(part, ContactHead)]
        for name, part in list(model.named_modules()):
            inside = any(name.startswith(f"{head}.") for head in heads)
            if type(part) is MaskedBatchNorm and not inside:
                parent, _, last = name.rpartition(".")
                model.get_submodule(parent)._modules[last] = SyncedBatchNorm(part, processes)
        self.norms = [part for part in model.modules() if getattr(part, "running_mean", None) is not None]

    @property
    def unsynced(self) -> int:
        """Norms whose statistics are a single process's when a part is spread over several."""
        return sum(not isinstance(norm, SyncedBatchNorm) for norm in self.norms)

    def begin(self, share: Share) -> Buffers:
        """Before a step: remember the running statistics, the same on all processes."""
        for norm in self.norms:
            if isinstance(norm, SyncedBatchNorm):
                norm.spread = share.split
        return {norm: (norm.running_mean.clone(), norm.running_var.clone()) for norm in self.norms}

    def set_idle(self, idle: bool) -> None:
        """Whether the part that comes next counts for nothing here."""
        for norm in self.norms:
            if isinstance(norm, SyncedBatchNorm):
                norm.idle = idle

    def end(self, share: Share, before: Buffers) -> None:
        """After a step: the running statistics as if one process had seen the parts one after the other.

        Each part moves them by r <- (1 - m) r + m s. So a process's k parts moved them to (1 - m)^k r + d, and all
        of them to (1 - m)^total r + sum of (1 - m)^(parts after its own) d.
        """
        for norm in self.norms:
            if share.split and isinstance(norm, SyncedBatchNorm):
                continue  # the same on all processes already
            keep = 1.0 - (norm.momentum or 0.0)
            for buffer, old in zip((norm.running_mean, norm.running_var), before[norm], strict=True):
                if share.split or norm.momentum is None:
                    buffer.copy_(self.processes.all_reduce(buffer.clone()) / self.processes.size)
                    continue
                moved = (buffer - keep ** len(share.parts) * old) * keep**share.after
                buffer.copy_(keep**share.total * old + self.processes.all_reduce(moved))
            if norm.num_batches_tracked is not None and not share.split:
                norm.num_batches_tracked += share.total - len(share.parts)
