"""The layouts and shapes that the parity tests compare with one process, and the comparison."""

import pytest
import torch

TOLERANCE = 1e-10  # measured: 1.3e-15 in gradients and norm, 1.3e-13 in weights

TP = ["--tensor-model-parallel-size", "2"]
SP = [*TP, "--sequence-parallel"]
PP = ["--pipeline-model-parallel-size", "2"]
VIRTUAL = ["--num-layers-per-virtual-pipeline-stage", "1"]
ZERO_BUBBLE = [*PP, "--pipeline-schedule", "zero-bubble"]
FSDP = ["--use-distributed-optimizer"]
RECOMPUTE = ["--recompute-granularity", "full"]
# Two micro-batches a step in the place of four: DTensor takes a second for each of some.
TWO = ["--micro-batch-size", "4"]

# name -> (processes, flags)
LAYOUTS = {
    "dp2": (2, []),
    "fsdp2": (2, FSDP),
    "fsdp2-full": (2, ["--use-torch-fsdp2"]),
    "hybrid-2x2": (4, [*FSDP, "--num-distributed-optimizer-instances", "2"]),
    "tp2": (2, [*TP, *TWO]),
    "tp2-sp": (2, [*SP, *TWO]),
    "pp2": (2, PP),
    "pp3-uneven": (3, ["--pipeline-model-parallel-size", "3"]),
    "pp4": (4, ["--pipeline-model-parallel-size", "4"]),
    "pp2-interleaved": (2, [*PP, *VIRTUAL]),
    "pp2-zero-bubble": (2, ZERO_BUBBLE),
    "pp2-zero-bubble-interleaved": (2, [*ZERO_BUBBLE, *VIRTUAL]),
    "dp2-tp2": (4, TP),
    "fsdp2-tp2-sp": (4, [*SP, *FSDP]),
    "dp2-pp2": (4, PP),
    "fsdp2-pp2": (4, [*PP, *FSDP]),
    "fsdp2-pp2-interleaved": (4, [*PP, *VIRTUAL, *FSDP]),
    "fsdp2-pp2-zero-bubble": (4, [*ZERO_BUBBLE, *FSDP]),
    "pp2-tp2": (4, [*PP, *TP, *TWO]),
    "pp2-tp2-sp-zero-bubble": (4, [*ZERO_BUBBLE, *SP, *TWO]),
    "dp2-pp2-tp2": (8, [*PP, *TP]),
    "fsdp2-pp2-tp2-sp": (8, [*PP, *SP, *FSDP]),
    "tp2-sp-recompute": (2, [*SP, *RECOMPUTE, *TWO]),
    "fsdp2-full-recompute": (2, ["--use-torch-fsdp2", *RECOMPUTE]),
    "pp2-recompute": (2, [*PP, *RECOMPUTE]),
    "fsdp2-pp2-zero-bubble-recompute": (4, [*ZERO_BUBBLE, *FSDP, *RECOMPUTE]),
}

GATED = ["--swiglu", "--normalization", "RMSNorm", "--disable-bias-linear", "--untie-embeddings-and-output-weights"]
ROPE = ["--position-embedding-type", "rope"]
# shapes that use many of the network's options at once: name -> flags
SHAPES = {
    "esm2": [*ROPE, "--token-dropout", "--hidden-act", "gelu", "--layernorm-epsilon", "1e-5"],
    "esmc": [*ROPE, *GATED, "--qk-layernorm", "--residual-scale", "1.5", "--embedding-layernorm", "--token-dropout"],
    "esm1b": ["--embedding-layernorm", "--token-dropout", "--position-offset", "2"],
    "muon": ["--optimizer", "muon"],
    "amplify": [*GATED, "--no-lm-head-transform", "--position-embedding-type", "none"],
}


def marks(layout: str) -> list[pytest.MarkDecorator]:
    """The fast tier has every axis alone."""
    return [] if layout in ("dp2", "fsdp2", "pp2", "tp2-sp") else [pytest.mark.slow]


def differences(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    assert set(actual) == set(expected)
    return {name: float((actual[name] - value).abs().max()) for name, value in expected.items()}
