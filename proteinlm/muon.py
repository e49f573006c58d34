"""Muon: each weight matrix moves by its momentum made orthogonal, everything else by fused AdamW.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/): five Newton-Schulz steps bring every singular value of
the momentum near 1, so that rare directions move as far as common ones. The length of an update is scaled to that of
AdamW's (0.2 sqrt of the larger side; Liu et al. 2025, arXiv 2502.16982), so that one learning rate serves both.

Works on whole matrices and on DTensors: a matrix that is cut over processes is put together for the product, which
every process then computes, and each keeps its own piece.
"""

import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that maps singular values towards 1: Jordan et al.
STEPS = 5
SHORTEST = 1e-7  # a matrix of smaller norm is not scaled up to 1


class Muon(torch.optim.Optimizer):
    """Groups with `matrices` n > 0 are moved by Muon, the others by AdamW.

    A parameter [n a, b] of such a group is n matrices, row r of the matrix (r // rows) % n: `query_key_value`, whose
    rows are [H, 3, D], is three with rows D. As torch's fused optimizers this one reads two attributes, tensors on the
    device or None: grad_scale (gradients are divided by it) and found_inf (1: the step changes nothing).
    """

    def __init__(
        self,
        groups: list[dict],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum: float = 0.95,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "momentum": momentum}
        super().__init__(groups, defaults | {"weight_decay": 0.0, "matrices": 0, "rows": 1})
        self.grad_scale: Tensor | None = None
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for parameter in parameters:
                self.state[parameter] = self.state[parameter] or initial_state(parameter, bool(group["matrices"]))
            if group["matrices"]:
                for parameter in parameters:
                    self._move(parameter, group)
            elif parameters:
                self._adamw(parameters, group)

    def _adamw(self, parameters: list[nn.Parameter], group: dict) -> None:
        moments = {name: [self.state[p][name] for p in parameters] for name in ("exp_avg", "exp_avg_sq", "step")}
        adamw(
            parameters,
            [p.grad for p in parameters],
            moments["exp_avg"],
            moments["exp_avg_sq"],
            [],
            moments["step"],
            fused=True,
            grad_scale=self.grad_scale,
            found_inf=self.found_inf,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _move(self, parameter: nn.Parameter, group: dict) -> None:
        """Decay, then a step along the momentum with Nesterov's look ahead, made orthogonal."""
        weight, gradient = local_part(parameter), local_part(parameter.grad)
        buffer, momentum = local_part(self.state[parameter]["momentum_buffer"]), group["momentum"]
        if self.grad_scale is not None:
            gradient = gradient / self.grad_scale
        averaged = buffer.lerp(gradient, 1 - momentum)
        ahead = gradient.lerp(averaged, momentum)
        update = orthogonal(_whole(ahead, parameter), group["matrices"], group["rows"])
        moved = weight * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * _piece(update, parameter)
        if self.found_inf is not None:
            bad = self.found_inf > 0
            averaged, moved = torch.where(bad, buffer, averaged), torch.where(bad, weight, moved)
        buffer.copy_(averaged)
        weight.copy_(moved)


def matrices_of(name: str, head_size: int) -> tuple[int, int]:
    """(`matrices`, `rows`) of a parameter of ProteinBert: the weights inside its layers are Muon's.

    Embeddings, norms, biases and the masked-LM head are AdamW's.
    """
    if not name.startswith(("layers.", "generator.layers.")) or not name.endswith(".weight") or "layernorm" in name:
        return 0, 1
    return (3, head_size) if "query_key_value" in name else (1, 1)


def initial_state(parameter: nn.Parameter, matrix: bool) -> dict[str, Tensor]:
    """What a parameter has before its first step."""
    if matrix:
        return {"momentum_buffer": torch.zeros_like(parameter)}
    # fused AdamW keeps its step counter beside the parameter
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return {"step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}


def orthogonal(update: Tensor, matrices: int = 1, rows: int = 1) -> Tensor:
    """[n a, b] -> the same shape: each of its n matrices with singular values near 1, times 0.2 sqrt(max(a, b)).

    fp32 is computed in bf16, which is all that such a rough map needs; fp64 stays.
    """
    stacked = update.unflatten(0, (-1, matrices, rows)).transpose(0, 1).flatten(1, 2)  # [n, a, b]
    x = stacked if update.dtype == torch.float64 else stacked.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=SHORTEST)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    if tall:
        x = x.mT
    length = 0.2 * math.sqrt(max(stacked.shape[1:]))
    return length * x.to(update.dtype).unflatten(1, (-1, rows)).transpose(0, 1).flatten(0, 2)


def local_part(tensor: Tensor) -> Tensor:
    """What this process has of a DTensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _whole(local: Tensor, parameter: nn.Parameter) -> Tensor:
    """The matrix of which this process has `local`, cut as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return local
    mesh, placements = parameter.device_mesh, parameter.placements
    shape = {"shape": parameter.shape, "stride": parameter.stride()}
    return DTensor.from_local(local, mesh, placements, run_check=False, **shape).full_tensor()


def _piece(whole: Tensor, parameter: nn.Parameter) -> Tensor:
    """This process's part of a matrix that every one has whole."""
    if not isinstance(parameter, DTensor):
        return whole
    mesh = parameter.device_mesh
    replicated = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(placements=parameter.placements).to_local()
