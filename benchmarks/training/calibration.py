"""This device's own rates, as `python -m pretrain.plan --calibration` reads them (docs/formats.md).

Matrix products at the shapes of ProteinLM's layers, memory bandwidth, attention over proteins of real lengths, what
compilation leaves of the bytes of a layer's other kernels, and what it costs the host to start a kernel. `error` is how
far these rates, added up, are from a layer measured whole.
"""

import platform
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.comparison import random_proteins
from benchmarks.training.arms import Setting
from benchmarks.training.measure import layer_products, timed
from benchmarks.training.models import PROTEINLM_SHAPES
from proteinlm.network.attention import AttentionPlan, choose_backend, make_plan, packed_attention
from proteinlm.network.config import ModelConfig
from proteinlm.network.layers import TransformerLayer

LAUNCHES = 2000
LEAST_ERROR = 0.05


def calibrate(config: ModelConfig, setting: Setting, device: torch.device, tokens: int | None = None) -> dict:
    """All rates; `config` is the layer that is measured whole. tokens: of a micro-batch, the setting's unless given."""
    tokens = tokens or setting.rows * setting.seq_length
    dtype = setting.dtype
    shapes = {shape for c in (config, *_published(config)) for shape in layer_products(c, tokens)}
    products = {shape: _product(*shape, dtype, device) for shape in sorted(shapes)}
    rows = [{"m": m, "n": n, "k": k, "tflops": _round(2e-12 * m * n * k / products[m, k, n])} for m, k, n in products]
    gbs = _bandwidth(device, 2**28 if device.type == "cuda" else 2**24)
    attention = _attention(config, tokens, dtype, device)
    whole = _layer(config, tokens, dtype, device, compiled=False)
    known = 3 * sum(products[shape] for shape in layer_products(config, tokens)) + sum(attention["seconds"])
    rates = {
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
        "gemm_tflops": rows,
        "hbm_gbs": _round(gbs),
        "attention_tflops": attention["tflops"],
        "launch_us": _round(1e6 * _launch(device)),
    }
    if device.type == "cuda":
        compiled = _layer(config, tokens, dtype, device, compiled=True)
        rates["compiled_bytes"] = _round(min(1.0, max(0.1, (compiled - known) / max(whole - known, 1e-9))))
    moved = 210 * tokens * config.hidden_size / (1e9 * gbs)  # bytes of the other kernels of an eager layer, in half
    rates["error"] = _round(max(LEAST_ERROR, abs((known + moved) / whole - 1)))
    measured = f"benchmarks/train_step.py --calibration, torch {torch.__version__}, {setting.precision}"
    return rates | {"measured": measured}


def _published(config: ModelConfig) -> list[ModelConfig]:
    """The shapes whose products are measured beside the configuration's own, on anything but a toy."""
    if config.hidden_size < 192:
        return []
    shapes = (PROTEINLM_SHAPES[name] for name in ("35m", "200m", "3b"))
    return [ModelConfig(h, layers, heads, 2176, ffn_hidden_size=ffn) for layers, h, heads, ffn in shapes]


def _product(m: int, k: int, n: int, dtype: torch.dtype, device: torch.device) -> float:
    a, b = (torch.randn(shape, device=device, dtype=dtype) for shape in ((m, k), (n, k)))
    return timed(lambda: a @ b.t(), device)


def _bandwidth(device: torch.device, numel: int) -> float:
    """GB/s of a copy, read and written bytes counted."""
    source = torch.ones(numel, device=device)
    target = torch.empty_like(source)
    return 2e-9 * source.nbytes / timed(lambda: target.copy_(source), device)


def _launch(device: torch.device) -> float:
    """Seconds of the host for a kernel with nothing to do."""
    value = torch.zeros(1, device=device)

    def many() -> None:
        for _ in range(LAUNCHES):
            value.add_(1.0)

    return timed(many, device) / LAUNCHES


def _bounds(tokens: int, longest: int) -> np.ndarray:
    """Boundaries of proteins of real lengths in a stream of so many tokens."""
    lengths = np.array([min(len(protein) + 2, longest) for protein in random_proteins(max(8, tokens // 40))])
    ends = lengths.cumsum()
    return np.concatenate(([0], ends[ends < tokens], [tokens])).astype(np.int32)


def _plan(config: ModelConfig, tokens: int, dtype: torch.dtype, device: torch.device) -> tuple[AttentionPlan, float]:
    """(the plan, FLOPs of the products of attention's forward pass)."""
    bounds = _bounds(tokens, 1024)
    sizes = np.diff(bounds).astype(np.float64)
    backend = choose_backend(device, dtype, 0.0, config.head_size)
    plan = make_plan(torch.from_numpy(bounds).to(device), backend, int(sizes.max()))
    return plan, float(4 * config.hidden_size * (sizes * sizes).sum())


def _attention(config: ModelConfig, tokens: int, dtype: torch.dtype, device: torch.device) -> dict:
    """FLOP/s of attention over proteins, forward and backward (2.5 times the FLOPs), and their seconds."""
    plan, flops = _plan(config, tokens, dtype, device)
    shape = tokens, config.num_attention_heads, 3, config.head_size
    qkv = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(shape[0], shape[1], shape[3], device=device, dtype=dtype)

    def both() -> None:
        packed_attention(qkv, plan).backward(weight)
        qkv.grad = None

    forward = timed(partial(packed_attention, qkv, plan), device)
    backward = max(timed(both, device) - forward, 1e-9)
    rates = {"forward": _round(1e-12 * flops / forward), "backward": _round(2.5e-12 * flops / backward)}
    return {"tflops": rates, "seconds": (forward, backward)}


def _layer(config: ModelConfig, tokens: int, dtype: torch.dtype, device: torch.device, compiled: bool) -> float:
    """Seconds of a layer, forward and backward, under autocast."""
    torch.manual_seed(0)
    layer = TransformerLayer(config).to(device).train()
    run = torch.compile(layer, fullgraph=True) if compiled else layer
    plan, _ = _plan(config, tokens, dtype, device)
    x = torch.randn(tokens, config.hidden_size, device=device, requires_grad=True)
    weight = torch.randn_like(x)

    def step() -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            out = run(x, plan)
        out.backward(weight.to(out))
        layer.zero_grad(set_to_none=True)
        return out

    return timed(step, device)


def _round(value: float) -> float:
    return float(f"{value:.4g}")
