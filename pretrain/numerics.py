"""Switches of PyTorch that decide how a process computes; they hold for all of it."""

import torch

from pretrain.config.options import Training


def set_numerics(training: Training, device: torch.device) -> None:
    """--deterministic and, on a GPU, --tf32."""
    if training.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # costs a pass over every new tensor
        torch.backends.cudnn.benchmark = False
    if training.tf32 and device.type == "cuda":
        torch.set_float32_matmul_precision("high")
