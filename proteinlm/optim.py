"""Optimizer groups, learning-rate schedules, dynamic loss scaling and gradient clipping, for pretraining and tape."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn


def build_optimizer(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    lr_scale: Callable[[str], float] | None = None,
    muon: Callable[[str], tuple[int, int]] | None = None,
    momentum: float = 0.95,
) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; biases, norms and every other 1-D parameter are not decayed.

    lr_scale maps a parameter's name to a factor on the learning rate; each group keeps it as `lr_scale` for
    `set_learning_rate`. muon maps a name to `matrices` and `rows` of a Muon with this momentum, (0, 1) for AdamW's.
    """
    groups: dict[tuple, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (parameter.dim() > 1, lr_scale(name) if lr_scale else 1.0, *(muon(name) if muon else (0, 1)))
            groups.setdefault(key, []).append(parameter)
    settings = [
        {"params": parameters, "weight_decay": weight_decay if decayed else 0.0, "lr": lr * scale, "lr_scale": scale}
        | ({"matrices": matrices, "rows": rows} if muon else {})
        for (decayed, scale, matrices, rows), parameters in groups.items()
    ]
    if muon:
        from proteinlm.muon import Muon  # knows DTensors, whose import takes a second

        return Muon(settings, lr, betas, eps, momentum)
    # Fused AdamW: one kernel (CUDA) or one vectorised loop (CPU) for all parameters of a group.
    fused = all(p.dtype in (torch.float32, torch.float64, torch.bfloat16) for p in model.parameters())
    return torch.optim.AdamW(settings, lr=lr, betas=betas, eps=eps, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group to lr times the group's own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def learning_rate(step: float, *, lr: float, min_lr: float, style: str, warmup: float, decay_steps: float) -> float:
    """The learning rate of the update that completes `step` units (iterations or samples; 1 for the first iteration).

    Linear warm-up from 0 to lr over `warmup` units, then from lr to min_lr at `decay_steps`, then min_lr. Styles:
    constant, linear, cosine, and WSD (stable, then linear over the last tenth of decay_steps). As in Megatron-LM the
    decay runs from the end of the warm-up; unlike there, the first update is not spent at a learning rate of 0.
    """
    if step < warmup:
        return lr * step / warmup
    if style == "constant":
        return lr
    if step >= decay_steps:
        return min_lr
    progress = (step - warmup) / max(1.0, decay_steps - warmup)
    if style == "linear":
        left = 1.0 - progress
    elif style == "cosine":
        left = 0.5 * (1.0 + math.cos(math.pi * progress))
    elif style == "WSD":
        left = min(1.0, (decay_steps - step) / max(1.0, 0.1 * decay_steps))
    else:
        raise ValueError(f"lr-decay-style {style!r} is not one of constant, linear, cosine, WSD")
    return min_lr + (lr - min_lr) * left


def global_norm(gradients: Sequence[Tensor], device: torch.device | None = None) -> Tensor:
    """The 2-norm over all gradients together, in fp32 (fp64 for fp64 gradients); of none it is 0 on `device`."""
    if not gradients:
        return torch.zeros((), device=device)
    wide = functools.reduce(torch.promote_types, {g.dtype for g in gradients}, torch.float32)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2, wide)))


def scale_in_place(tensors: list[Tensor], factor: float | Tensor) -> None:
    """Multiply every tensor, in few kernels."""
    torch._foreach_mul_(tensors, factor)


def copy_in_place(tensors: list[Tensor], sources: list[Tensor]) -> None:
    """Overwrite every tensor by its source, in few kernels."""
    torch._foreach_copy_(tensors, sources)


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """What to multiply gradients of this norm by: max_norm / norm where it is larger, else 1 (also if not finite).

    max_norm 0: always 1. Nothing is read on the host.
    """
    clipped = (norm > max_norm) & norm.isfinite() if max_norm > 0 else torch.zeros_like(norm, dtype=torch.bool)
    return torch.where(clipped, max_norm / (norm + 1e-6), 1.0)


def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale all gradients by max_norm / norm when the norm is larger (0: only measure). Returns the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = global_norm(gradients)
    if max_norm > 0 and gradients:
        scale_in_place(gradients, clip_factor(norm, max_norm))
    return float(norm)


def step_if(finite: Tensor, optimizer: torch.optim.Optimizer, divisor: Tensor) -> None:
    """A step of fused AdamW or Muon on gradients / divisor where `finite`; else weights, moments and counters stay.

    Both are scalars on the device, and nothing is read on the host. The gradients are divided in place.
    """
    optimizer.grad_scale, optimizer.found_inf = divisor.float(), (~finite).float()  # the kernel reads fp32
    optimizer.step()


SCALING = ("scale", "good_steps", "hysteresis_left")


class LossScaler:
    """fp16 loss scaling with Megatron's rules. Its numbers are scalars on `device`; a step reads none on the host.

    Dynamic: an overflow halves the scale once `hysteresis` overflows have been seen since the last growth, never below
    min_scale; `window` good steps in a row double it and restore the hysteresis. Static: `static` stays as given.
    """

    def __init__(
        self,
        initial: float,
        static: float | None = None,
        window: int = 1000,
        hysteresis: int = 2,
        minimum: float = 1.0,
        device: torch.device | str = "cpu",
    ):
        self.dynamic = static is None
        self.window, self.hysteresis, self.minimum = window, hysteresis, minimum
        state = torch.tensor([static or initial, 0, hysteresis], dtype=torch.float64)
        self.scale, self.good_steps, self.hysteresis_left = state.to(device).unbind()

    def can_lower(self, scale: float) -> bool:
        """Whether an overflow at `scale` may only mean that the scale is too high."""
        return self.dynamic and scale > self.minimum

    def update(self, overflow: Tensor) -> None:
        """Record one step: whether its gradients overflowed."""
        if not self.dynamic:
            return
        good = torch.where(overflow, 0.0, self.good_steps + 1)
        left = torch.where(overflow, self.hysteresis_left - 1, self.hysteresis_left)
        grows = good >= self.window
        lower = torch.where(overflow & (left <= 0), (self.scale / 2).clamp(min=self.minimum), self.scale)
        self.scale = torch.where(grows, self.scale * 2, lower)
        self.good_steps = torch.where(grows, 0.0, good)
        self.hysteresis_left = torch.where(grows, float(self.hysteresis), left)

    def state_dict(self) -> dict[str, float]:
        """The numbers as they are once the device has taken the steps recorded so far."""
        return {name: float(getattr(self, name)) for name in SCALING}

    def load_state_dict(self, state: dict[str, float]) -> None:
        for name in SCALING:
            getattr(self, name).fill_(state[name])
