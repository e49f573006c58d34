"""The CUDA backends: which is chosen, their shapes and gradients on fake tensors, and on a GPU their values."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from proteinlm.network import attention
from proteinlm.network.attention import choose_backend, cuda, make_plan, packed_attention, with_rotary
from proteinlm.network.rotary import RotaryEmbedding

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BF16, FP16 = torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    "dtype, dropout, size, capability, backend",
    [
        (BF16, 0.0, 64, (8, 0), "flash"),
        (FP16, 0.1, 64, (9, 0), "flash"),
        (FP16, 0.1, 64, (7, 0), "efficient"),  # V100
        (FP16, 0.0, 64, (7, 5), "efficient"),  # T4
        (BF16, 0.0, 64, (7, 5), "buckets"),
        (torch.float32, 0.1, 64, (9, 0), "efficient"),
        (torch.float64, 0.0, 64, (9, 0), "buckets"),
        (BF16, 0.0, 20, (8, 0), "flash"),
        (BF16, 0.0, 264, (9, 0), "efficient"),
        (BF16, 0.0, 256, (9, 0), "flash"),
        (BF16, 0.0, 256, (8, 6), "efficient"),
    ],
)
def test_choice_of_the_backend(dtype, dropout, size, capability, backend):
    assert choose_backend(CUDA, dtype, dropout, size, capability) == backend
    assert choose_backend(CPU, dtype, dropout, size) == "buckets"


def test_flash_attention_3_is_not_asked_for_dropout(monkeypatch):
    monkeypatch.setattr(attention, "flash3_is_active", lambda: True)
    assert choose_backend(CUDA, BF16, 0.0, 64, (9, 0)) == "flash"
    assert choose_backend(CUDA, BF16, 0.1, 64, (9, 0)) == "efficient"


def test_flash_attention_3_needs_its_gpu_and_its_package():
    assert not cuda.flash3_is_active()
    assert not cuda.activate_flash3(CPU)


@pytest.mark.parametrize("backend, dtype", [("flash", BF16), ("flash", FP16), ("efficient", torch.float32)])
@pytest.mark.parametrize("size", [16, 20])
def test_shapes_and_gradients_on_fake_tensors(backend, dtype, size):
    """What compilation and the planner see."""
    with FakeTensorMode():
        qkv = torch.empty(30, 3, 3, size, dtype=dtype, requires_grad=True)
        plan = make_plan(torch.empty(4, dtype=torch.int32), backend, 16)
        out = packed_attention(qkv, with_rotary(plan, *RotaryEmbedding(size, 100.0)(torch.empty(30))), 0.1)
        assert out.shape == (30, 3, size) and out.dtype == dtype
        if backend == "efficient" and size % 8:
            return  # torch's fake backward takes no scale
        out.sum().backward()
        assert qkv.grad.shape == qkv.shape and qkv.grad.dtype == dtype


def test_fp32_is_cast_under_autocast_and_refused_without():
    with FakeTensorMode():
        qkv, plan = torch.empty(30, 3, 3, 16), make_plan(torch.empty(4, dtype=torch.int32), "flash", 16)
        with torch.autocast("cpu", BF16):
            assert packed_attention(qkv, plan).dtype == BF16
        with pytest.raises(AssertionError, match=r"takes fp16 and bf16, not torch.float32"):
            packed_attention(qkv, plan)


@pytest.mark.parametrize("backend, dtype", [("flash", BF16), ("efficient", torch.float32)])
def test_no_copy_is_made_the_operators_get_the_strides_of_the_projection(backend, dtype, monkeypatch):
    qkv = torch.empty(30, 3, 3, 16, dtype=dtype, device="meta")
    plan = make_plan(torch.empty(4, dtype=torch.int32, device="meta"), backend, 16)
    name = f"_{backend}_attention_forward"
    operator, strides = getattr(torch.ops.aten, name), []

    def watched(query, key, value, *args, **kwargs):
        strides.extend(part.stride()[-3:] for part in (query, key, value))
        return operator(query, key, value, *args, **kwargs)

    monkeypatch.setattr(torch.ops.aten, name, watched)
    packed_attention(qkv, plan)
    assert strides == [(3 * 3 * 16, 3 * 16, 1)] * 3


def on_gpu(lengths, size, dtype, backend, dropout=0.0, seed=0):
    """(output, gradient), in fp64 on the CPU, and the reference's from the same rounded inputs."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn((sum(lengths), 4, 3, size), generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn((sum(lengths), 4, size), generator=generator, dtype=torch.float64).to(dtype)
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    answers = []
    for leaf, plan in (
        (qkv.cuda(), make_plan(bounds.cuda(), backend, 2176)),
        (qkv.double().cuda(), make_plan(bounds.cuda(), "reference")),
    ):
        leaf.requires_grad_()
        out = packed_attention(leaf, plan, dropout if plan.backend == backend else 0.0)
        out.backward(weight.to(out))
        answers.append((out.detach().double().cpu(), leaf.grad.double().cpu()))
    return answers


@pytest.mark.gpu
@pytest.mark.parametrize("size", [16, 20, 24, 64, 128, 264])
@pytest.mark.parametrize(
    "backend, dtype, tolerance",
    [("flash", BF16, 1e-2), ("flash", FP16, 2e-3), ("efficient", FP16, 2e-3), ("efficient", torch.float32, 2e-3)],
)
def test_values_and_gradients_equal_the_reference_on_a_gpu(backend, dtype, tolerance, size):
    capability = torch.cuda.get_device_capability()
    if backend == "flash" and choose_backend(CUDA, dtype, 0.0, size, capability) != "flash":
        pytest.skip("this GPU has no flash attention for it")
    (out, gradient), (exact, exact_gradient) = on_gpu([1, 30, 2176, 17, 64, 2, 129, 1000], size, dtype, backend)
    for value, reference in zip((out, *gradient.unbind(2)), (exact, *exact_gradient.unbind(2)), strict=True):
        assert (value - reference).norm() / reference.norm() < tolerance
        assert (value.flip(0) - reference).norm() / reference.norm() > 0.5


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["flash", "efficient"])
def test_dropout_on_a_gpu_keeps_the_mean_and_the_share(backend):
    if backend == "flash" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no flash attention")
    lengths, heads, size = [16] * 64, 2, 16
    tokens = sum(lengths)
    qkv = torch.zeros(tokens, heads, 3, size, device="cuda", dtype=FP16)  # equal scores: every probability is 1/16
    qkv[:, :, 2] = torch.eye(16, device="cuda", dtype=FP16).repeat(64, 1)[:, None]  # so the output is the probabilities
    plan = make_plan(torch.tensor([0, *lengths], device="cuda").cumsum(0).to(torch.int32), backend, 16)
    torch.manual_seed(0)
    out = packed_attention(qkv, plan, 0.25).float()
    assert abs(float((out == 0).float().mean()) - 0.25) < 0.02
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 1 / 16 / 0.75), rtol=2e-3, atol=0)
    torch.manual_seed(0)
    assert packed_attention(qkv, plan, 0.25).float().equal(out) and not packed_attention(qkv, plan, 0.25).equal(out)


@pytest.mark.gpu
@pytest.mark.parametrize("backend, dtype", [("flash", BF16), ("efficient", FP16)])
def test_deterministic_twice_on_a_gpu(backend, dtype):
    if backend == "flash" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no flash attention")
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (on_gpu([1, 30, 700, 17], 64, dtype, backend)[0] for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert first[0].equal(second[0]) and first[1].equal(second[1])
