"""Groups, schedules, clipping and loss scaling."""

import math

import pytest
import torch
from torch import nn

from proteinlm.network.config import ModelConfig
from proteinlm.network.model import ProteinBert
from proteinlm.optim import LossScaler, build_optimizer, clip_grad_norm, learning_rate, set_learning_rate

CONFIG = ModelConfig(hidden_size=16, num_layers=2, num_attention_heads=2, max_position_embeddings=8)


def test_matrices_decay_biases_and_norms_do_not():
    model = ProteinBert(CONFIG)
    decayed = {id(p): g["weight_decay"] for g in build_optimizer(model, 1e-3, 0.01).param_groups for p in g["params"]}
    assert len(decayed) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        matrix = name.endswith("weight") and "layernorm" not in name
        assert decayed[id(parameter)] == (0.01 if matrix else 0.0), name


def test_learning_rate_scales_by_name_survive_the_schedule():
    model = ProteinBert(CONFIG)
    optimizer = build_optimizer(model, 1.0, 0.0, lr_scale=lambda name: 0.1 if name.startswith("layers.0.") else 1.0)
    set_learning_rate(optimizer, 0.5)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.05, 0.5]


def rate(step, style="linear", **changes):
    settings = {"lr": 1.0, "min_lr": 0.1, "warmup": 10, "decay_steps": 110} | changes
    return learning_rate(step, style=style, **settings)


@pytest.mark.parametrize(
    ("style", "step", "expected"),
    [
        ("linear", 1, 0.1),
        ("linear", 5, 0.5),
        ("linear", 10, 1.0),
        ("linear", 60, 0.55),
        ("linear", 110, 0.1),
        ("linear", 500, 0.1),
        ("constant", 500, 1.0),
        ("cosine", 60, 0.55),
        ("cosine", 35, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))),
        ("WSD", 90, 1.0),
        ("WSD", 104.5, 0.55),
        ("WSD", 110, 0.1),
    ],
)
def test_hand_worked_schedules(style, step, expected):
    assert rate(step, style) == pytest.approx(expected)


def test_linear_schedule_equals_transformers_get_linear_schedule():
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, 10, 110)
    for step in range(1, 110):
        optimizer.step()
        scheduler.step()
        assert scheduler.get_last_lr()[0] == pytest.approx(rate(step, min_lr=0.0))


def test_unknown_style_is_refused():
    with pytest.raises(ValueError, match="'square' is not one of"):
        rate(50, "square")


def test_clipping_equals_torch_and_reports_the_norm_before():
    parameters, reference = ([nn.Parameter(torch.zeros(n)) for n in (3, 50)] for _ in range(2))
    for a, b in zip(parameters, reference, strict=True):
        a.grad = torch.linspace(-2, 3, len(a))
        b.grad = a.grad.clone()
    norm = clip_grad_norm(parameters, 1.0)
    assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(reference, 1.0)))
    for a, b in zip(parameters, reference, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    before = [p.grad.clone() for p in parameters]
    clip_grad_norm(parameters, 100.0)
    assert all(torch.equal(p.grad, g) for p, g in zip(parameters, before, strict=True))


def test_a_non_finite_norm_leaves_gradients_alone():
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, math.nan])
    assert math.isnan(clip_grad_norm([parameter], 1.0))
    assert parameter.grad[0] == 1.0


def test_loss_scaler_follows_megatrons_rules():
    scaler = LossScaler(1024.0, window=3, hysteresis=2, minimum=256.0)
    scaler.update(torch.tensor(True))
    assert scaler.scale == 1024, "the first overflow only uses up the hysteresis"
    scaler.update(torch.tensor(True))
    assert scaler.scale == 512
    scaler.update(torch.tensor(True))
    scaler.update(torch.tensor(True))
    assert scaler.scale == 256, "never below the minimum"
    for _ in range(3):
        scaler.update(torch.tensor(False))
    assert scaler.scale == 512 and scaler.hysteresis_left == 2
    restored = LossScaler(1.0)
    restored.load_state_dict(scaler.state_dict())
    assert restored.scale == 512
    static = LossScaler(1.0, static=128.0)
    static.update(torch.tensor(True))
    assert static.scale == 128
