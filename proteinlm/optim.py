"""AdamW groups, learning-rate schedules, dynamic loss scaling and gradient clipping, shared by pretraining and tape."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def build_optimizer(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    lr_scale: Callable[[str], float] | None = None,
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; biases, norms and every other 1-D parameter are not decayed.

    lr_scale maps a parameter's name to a factor on the learning rate; each group keeps it as `lr_scale` for
    `set_learning_rate`.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (parameter.dim() > 1, lr_scale(name) if lr_scale else 1.0)
            groups.setdefault(key, []).append(parameter)
    settings = [
        {"params": parameters, "weight_decay": weight_decay if decayed else 0.0, "lr": lr * scale, "lr_scale": scale}
        for (decayed, scale), parameters in groups.items()
    ]
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


def global_norm(gradients: Iterable[Tensor]) -> Tensor:
    """The 2-norm over all gradients together, in fp32 (fp64 for fp64 gradients)."""
    norms = [torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32)) for g in gradients]
    if not norms:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(norms))


def scale_in_place(tensors: list[Tensor], factor: float) -> None:
    """Multiply every tensor, in few kernels."""
    torch._foreach_mul_(tensors, factor)


def copy_in_place(tensors: list[Tensor], sources: list[Tensor]) -> None:
    """Overwrite every tensor by its source, in few kernels."""
    torch._foreach_copy_(tensors, sources)


def clip_factor(norm: float, max_norm: float) -> float | None:
    """What to multiply gradients of this norm by; None to leave them (also when the norm is not finite)."""
    return max_norm / (norm + 1e-6) if 0 < max_norm < norm < math.inf else None


def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale all gradients by max_norm / norm when the norm is larger (0: only measure). Returns the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = float(global_norm(gradients))
    if factor := clip_factor(norm, max_norm):
        scale_in_place(gradients, factor)
    return norm


class LossScaler:
    """fp16 loss scaling with Megatron's rules.

    Dynamic: an overflow halves the scale once `hysteresis` overflows have been seen since the last growth, never below
    min_scale; `window` good steps in a row double it and restore the hysteresis. Static: `static` stays as given.
    """

    def __init__(
        self, initial: float, static: float | None = None, window: int = 1000, hysteresis: int = 2, minimum: float = 1.0
    ):
        self.scale = static or initial
        self.dynamic = static is None
        self.window, self.hysteresis, self.minimum = window, hysteresis, minimum
        self.good_steps, self.hysteresis_left = 0, hysteresis

    def can_lower(self, scale: float) -> bool:
        """Whether an overflow at `scale` may only mean that the scale is too high."""
        return self.dynamic and scale > self.minimum

    def update(self, overflow: bool) -> None:
        """Record one step: whether its gradients overflowed."""
        if not self.dynamic:
            return
        if overflow:
            self.good_steps = 0
            self.hysteresis_left -= 1
            if self.hysteresis_left <= 0:
                self.scale = max(self.minimum, self.scale / 2)
            return
        self.good_steps += 1
        if self.good_steps >= self.window:
            self.good_steps, self.hysteresis_left = 0, self.hysteresis
            self.scale *= 2

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale, "good_steps": self.good_steps, "hysteresis_left": self.hysteresis_left}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])
        self.hysteresis_left = int(state["hysteresis_left"])
