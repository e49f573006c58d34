"""What a step is over, how fast steps are, and what they cost: tokens per second, FLOPs, MFU."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pretrain.data.loader import Batch
from proteinlm.model import ModelConfig

# Dense peak of the tensor cores in FLOP/s for bf16/fp16, from NVIDIA's data sheets (without sparsity). The longest name
# that the device's own name contains decides. An unknown device has no MFU rather than a wrong one.
PEAK_FLOPS = {
    "V100": 125e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "L40S": 362e12,
    "L4": 121e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s of the device in half precision; None where unknown (CPUs, other GPUs, fp32 arithmetic)."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return None
    name = torch.cuda.get_device_name(device)
    known = [key for key in PEAK_FLOPS if key in name]
    return PEAK_FLOPS[max(known, key=len)] if known else None


def training_flops(config: ModelConfig, real_tokens: int, sum_squared_lengths: int, masked: int) -> float:
    """FLOPs of forward and backward over real tokens: matrix products only, attention per protein, no recomputation.

    A product of [m, k] and [k, n] costs 2 m k n; the backward pass costs twice the forward one. Per layer and token:
    query_key_value 6 h^2, dense 2 h^2, MLP 4 h f; per protein of n tokens: Q K^T and P V, 4 n^2 h; the LM head on
    masked positions only: 2 h^2 + 2 h V.
    """
    h, ffn = config.hidden_size, config.ffn_hidden_size
    layers = config.num_layers * (real_tokens * (8 * h * h + 4 * h * ffn) + 4 * h * sum_squared_lengths)
    head = masked * (2 * h * h + 2 * h * config.padded_vocab_size)
    return 3.0 * (layers + head)


@dataclass(frozen=True)
class BatchCounts:
    """What one optimizer step is over, all replicas together."""

    rows: int
    tokens: int  # rows as fed, padding included
    real_tokens: int
    proteins: int
    masked: int
    sum_squared_lengths: int

    @classmethod
    def of(cls, micro_batches: list[Batch], sum_over_replicas: Callable[[list[int]], list[int]]) -> "BatchCounts":
        """Of the micro-batches that this replica reads and the others' together."""
        mine = [
            (len(b.tokens), b.tokens.numel(), b.num_real_tokens, b.num_proteins, b.num_masked, b.sum_squared_lengths)
            for b in micro_batches
        ]
        return cls(*sum_over_replicas([sum(column) for column in zip(*mine, strict=True)]))


class Throughput:
    """Adds up steps since the last report, over all replicas; evaluation and saving are not in its time.

    peak: FLOP/s of all devices together, None where unknown.
    """

    def __init__(self, config: ModelConfig, peak: float | None):
        self.config, self.peak = config, peak
        self._clear()

    def _clear(self) -> None:
        self.seconds, self.tokens, self.real, self.flops = 0.0, 0, 0, 0.0

    @contextlib.contextmanager
    def step(self, counts: BatchCounts):
        """Time one optimizer step over so much; the step must end in a device synchronisation."""
        begin = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - begin
        self.tokens += counts.tokens
        self.real += counts.real_tokens
        self.flops += training_flops(self.config, counts.real_tokens, counts.sum_squared_lengths, counts.masked)

    def take(self) -> dict:
        """tokens_per_second counts rows as fed, real_tokens_per_second no padding; mfu is null on unknown devices."""
        seconds = max(self.seconds, 1e-9)
        report = {
            "tokens_per_second": self.tokens / seconds,
            "real_tokens_per_second": self.real / seconds,
            "mfu": self.flops / seconds / self.peak if self.peak else None,
            "seconds": self.seconds,
        }
        self._clear()
        return report
