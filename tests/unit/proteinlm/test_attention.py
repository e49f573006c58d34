"""Every backend against attention written out protein by protein, in float64; CUDA's in test_cuda_attention.py."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from proteinlm.network.attention import buckets, make_plan, packed_attention, with_rotary
from proteinlm.network.attention.plan import BUCKET_RATIO
from proteinlm.network.rotary import RotaryEmbedding


def stream(lengths, heads=3, size=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn((sum(lengths), heads, 3, size), generator=generator, dtype=dtype)
    return qkv, torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def plan_of(bounds, backend, rotary=False, first=0):
    """rotary: positions count from `first` in every protein."""
    plan = make_plan(bounds, backend)
    if not rotary:
        return plan
    positions = torch.cat([first + torch.arange(n) for n in bounds.diff().tolist()])
    return with_rotary(plan, *RotaryEmbedding(8, 100.0)(positions))


def answer(qkv, plan):
    """(values, gradients) of a weighted sum."""
    leaf = qkv.clone().requires_grad_()
    out = packed_attention(leaf, plan)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return out.detach(), leaf.grad


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize(
    "lengths", [[1], [7, 7, 7], [1, 2, 3, 50, 49, 5, 40, 1], [3, 0, 4], [64] * 5 + [13], [900] * 3]
)
def test_buckets_equal_the_reference_in_values_and_gradients(lengths, rotary):
    qkv, bounds = stream(lengths)
    expected = answer(qkv, plan_of(bounds, "reference", rotary))
    torch.testing.assert_close(answer(qkv, plan_of(bounds, "buckets", rotary)), expected, rtol=0, atol=1e-12)


def test_scores_depend_on_distances_alone_and_the_rotation_is_seen():
    qkv, bounds = stream([20, 3, 40])
    turned, moved, unturned = (
        packed_attention(qkv, plan_of(bounds, "buckets", rotary, first)) for rotary, first in ((1, 0), (1, 5), (0, 0))
    )
    assert (turned - moved).abs().max() < 1e-6 and (turned - unturned).abs().max() > 1e-2


def test_half_precision_on_a_cpu_rounds_about_as_much_as_its_inputs():
    qkv, bounds = stream([30, 200, 17, 20, 19, 18, 64], dtype=torch.bfloat16)
    expected = answer(qkv.double(), plan_of(bounds, "reference", rotary=True))
    with torch.autocast("cpu", torch.bfloat16):
        actual = answer(qkv, plan_of(bounds, "buckets", rotary=True))
        without_gradients = packed_attention(qkv, plan_of(bounds, "buckets", rotary=True))
    assert actual[0].dtype == actual[1].dtype == torch.bfloat16 and actual[0].equal(without_gradients)
    pairs = zip((actual[0], *actual[1].unbind(2)), (expected[0], *expected[1].unbind(2)), strict=True)
    for value, exact in pairs:  # the output, and the gradients of queries, keys and values
        assert 1e-3 < (value - exact).norm() / exact.norm() < 1e-2


def test_a_boundary_in_the_wrong_place_is_noticed():
    qkv, bounds = stream([10, 20])
    moved = bounds.clone()
    moved[1] += 1
    right = packed_attention(qkv, make_plan(bounds, "reference"))
    wrong = packed_attention(qkv, make_plan(moved, "buckets"))
    assert (right - wrong).abs().max() > 1e-3


def test_buckets_cover_every_token_once_with_little_padding():
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(20, 500, (300,), generator=generator).tolist()
    plan = make_plan(torch.tensor([0, *lengths]).cumsum(0).to(torch.int32), "buckets")
    slots = torch.cat([b.scatter for b in plan.buckets])
    assert sorted(slots[slots < sum(lengths)].tolist()) == list(range(sum(lengths)))
    for b in plan.buckets:
        real = b.scatter < sum(lengths)
        assert b.gather[real].equal(b.scatter[real]) and int(real.sum()) == sum(b.lengths)
    assert sum(b.proteins for b in plan.buckets) == len(lengths)
    assert len(slots) / sum(lengths) < 1 / BUCKET_RATIO
    assert plan.max_seqlen == max(lengths)


def test_dropout_of_probabilities_has_the_right_mean_and_is_not_lost():
    qkv, bounds = stream([30, 30], dtype=torch.float32)
    plan = make_plan(bounds, "buckets")
    torch.manual_seed(0)
    mean = torch.stack([packed_attention(qkv, plan, 0.3) for _ in range(600)]).mean(0)
    exact = packed_attention(qkv, plan)
    assert (mean - exact).abs().max() < 0.2
    assert (packed_attention(qkv, plan, 0.3) - exact).abs().max() > 0.05


@pytest.mark.parametrize("rotary", [False, True])
def test_the_function_equals_what_autograd_records_of_sdpa(rotary):
    qkv, bounds = stream([1, 2, 3, 50, 49, 5, 40, 1], dtype=torch.float32)
    plan = plan_of(bounds, "buckets", rotary)
    leaf = qkv.clone().requires_grad_()
    out = buckets._recorded(leaf, plan, 0.0)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    torch.testing.assert_close(answer(qkv, plan), (out.detach(), leaf.grad), rtol=0, atol=1e-6)


def test_recomputed_layers_get_the_same_gradients():
    qkv, bounds = stream([5, 40, 33])
    plan = plan_of(bounds, "buckets", rotary=True)
    leaf = qkv.clone().requires_grad_()
    checkpoint(packed_attention, leaf, plan, use_reentrant=False).sum().backward()
    plain = qkv.clone().requires_grad_()
    packed_attention(plain, plan).sum().backward()
    assert leaf.grad.equal(plain.grad)
