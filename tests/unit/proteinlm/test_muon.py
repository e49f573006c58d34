"""Muon beside torch.optim.Muon and torch.optim.AdamW, which this project did not write."""

import pytest
import torch
from torch import nn

from proteinlm.muon import Muon, orthogonal

RATE, DECAY = 0.03, 0.1


def matrices(*shapes: tuple[int, int]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def walk(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: int = 4) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@torch.no_grad()
def largest_difference(first: list[nn.Parameter], second: list[nn.Parameter]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


def test_matrices_move_as_under_torch_muon():
    shapes = (24, 8), (8, 24), (16, 16)
    own, reference, other = matrices(*shapes), matrices(*shapes), matrices(*shapes)
    walk(own, Muon([{"params": own, "matrices": 1, "weight_decay": DECAY}], RATE))
    settings = {"lr": RATE, "weight_decay": DECAY, "adjust_lr_fn": "match_rms_adamw"}
    walk(reference, torch.optim.Muon(reference, **settings))
    walk(other, torch.optim.Muon(other, **settings, nesterov=False))
    assert largest_difference(own, reference) < 0.02 * RATE  # bf16 inside
    assert largest_difference(own, other) > 0.2 * RATE


def test_the_rest_moves_as_under_torch_adamw():
    own, reference = matrices((6, 5), (1, 7)), matrices((6, 5), (1, 7))
    settings = {"betas": (0.8, 0.9), "eps": 1e-6}
    walk(own, Muon([{"params": own, "weight_decay": DECAY}], RATE, **settings))
    walk(reference, torch.optim.AdamW(reference, RATE, **settings, weight_decay=DECAY, fused=True))
    assert largest_difference(own, reference) == 0.0


def test_queries_keys_and_values_are_three_matrices():
    heads, size, width = 2, 4, 8
    update = torch.randn(heads, 3, size, width, dtype=torch.float64)
    together = orthogonal(update.flatten(0, 2), matrices=3, rows=size).view_as(update)
    for part in range(3):
        assert torch.equal(together[:, part].flatten(0, 1), orthogonal(update[:, part].flatten(0, 1)))
    assert not torch.allclose(together.flatten(0, 2), orthogonal(update.flatten(0, 2)), atol=0.1)


def test_singular_values_come_near_one():
    update = torch.randn(12, 7, dtype=torch.float64) @ torch.diag(torch.logspace(0, -2, 7, dtype=torch.float64))
    values = torch.linalg.svdvals(orthogonal(update) / (0.2 * 12**0.5))
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert torch.linalg.svdvals(update).max() / torch.linalg.svdvals(update).min() > 20


@pytest.mark.parametrize("matrix", [0, 1])
def test_scale_and_a_skipped_step(matrix: int):
    plain, scaled = matrices((6, 4)), matrices((6, 4))
    walk(plain, Muon([{"params": plain, "matrices": matrix}], RATE))
    optimizer = Muon([{"params": scaled, "matrices": matrix}], RATE)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        scaled[0].grad = 4.0 * torch.randn(scaled[0].shape, generator=generator)
        optimizer.step()
    assert torch.equal(plain[0], scaled[0])
    weight = scaled[0].detach().clone()
    state = {name: value.clone() for name, value in optimizer.state[scaled[0]].items()}
    optimizer.found_inf.fill_(1.0)
    scaled[0].grad = torch.full_like(scaled[0], torch.nan)
    optimizer.step()
    assert torch.equal(weight, scaled[0])
    assert all(torch.equal(value, optimizer.state[scaled[0]][name]) for name, value in state.items())
    optimizer.found_inf.fill_(0.0)
    scaled[0].grad = torch.ones_like(scaled[0])
    optimizer.step()
    assert not torch.equal(weight, scaled[0])
