"""Plain replicas: gradients summed while the last backward pass of a step still runs.

The last micro-batch's backward pass fills buckets of parameters from the model's end to its beginning; a full one is
sent while the layers below are still computed. Whole gradients on one mesh axis only: under tp or pp the sums are taken
after the last micro-batch (`gradients.Gradients`).
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET = 1 << 23  # elements in one message: small enough that the first leaves early


class Overlap:
    """Sums the gradients of `model` over `group`; dtype: what travels (None: as they are)."""

    def __init__(self, model: nn.Module, group: dist.ProcessGroup, dtype: torch.dtype | None = None):
        self.group, self.dtype = group, dtype
        self.buckets: list[list[nn.Parameter]] = [[]]
        for parameter in reversed(list(model.parameters())):
            if sum(p.numel() for p in self.buckets[-1]) + parameter.numel() > BUCKET and self.buckets[-1]:
                self.buckets.append([])
            self.buckets[-1].append(parameter)
            parameter.register_post_accumulate_grad_hook(self._ready)
        self.place = {parameter: number for number, bucket in enumerate(self.buckets) for parameter in bucket}
        self.expect(last=False)

    def expect(self, last: bool) -> None:
        """The coming backward pass is a step's last one, or not."""
        self.last, self.next = last, 0
        self.missing = [len(bucket) for bucket in self.buckets]
        self.sent: list[tuple[Tensor, Tensor, dist.Work]] = []

    def _ready(self, parameter: nn.Parameter) -> None:
        if self.last:
            self.missing[self.place[parameter]] -= 1
            while self.next < len(self.buckets) and not self.missing[self.next]:
                self._send()

    def _send(self) -> None:
        """Every process sends its buckets in the same order, whichever is full first."""
        bucket = [p for p in self.buckets[self.next] if p.grad is not None]
        self.next += 1
        if not bucket:
            return
        flat = torch.cat([p.grad.flatten() for p in bucket])
        # The gradients move into the message: no second copy of them lives while it travels.
        for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            parameter.grad = part.view_as(parameter)
        message = flat if self.dtype is None else flat.to(self.dtype)
        self.sent.append((flat, message, dist.all_reduce(message, group=self.group, async_op=True)))

    def finish(self) -> None:
        """Send what is left and wait; gradients are the sums then."""
        while self.next < len(self.buckets):
            self._send()
        for flat, message, work in self.sent:
            work.wait()
            if message is not flat:
                flat.copy_(message)
        self.expect(last=False)
