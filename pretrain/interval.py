"""What the steps between two lines of metrics.jsonl amount to: mean losses, tokens per second, FLOPs, MFU."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pretrain.data.dataset import Dataset
from pretrain.gpus import find_gpu
from proteinlm.masking import num_to_mask
from proteinlm.network.config import ModelConfig


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s of the device in half precision; None where unknown (CPUs, other GPUs, fp32 arithmetic)."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return None
    gpu = find_gpu(torch.cuda.get_device_name(device))
    return gpu.half if gpu else None


def training_flops(config: ModelConfig, real_tokens: int, sum_squared_lengths: int, masked: int) -> float:
    """FLOPs of forward and backward over real tokens: matrix products only, attention per protein, no recomputation.

    A product of [m, k] and [k, n] costs 2 m k n; the backward pass costs twice the forward one. Per layer and token:
    query_key_value 6 h^2, dense 2 h^2, MLP 4 h f (gated 6 h f); per protein of n tokens: Q K^T and P V, 4 n^2 h; the LM
    head on masked positions only: 2 h^2 for its dense layer, 2 h V.
    """
    h, mlp = config.hidden_size, (6 if config.swiglu else 4) * config.hidden_size * config.ffn_hidden_size
    layers = config.num_layers * (real_tokens * (8 * h * h + mlp) + 4 * h * sum_squared_lengths)
    head = masked * (2 * h * h * config.lm_head_transform + 2 * h * config.padded_vocab_size)
    return 3.0 * (layers + head)


def unigram_entropy(data: Dataset, labels: int = 50_000) -> float:
    """The entropy in nats of the residues to predict: the loss of a model that has learned their frequencies alone.

    Of about so many labels in rows spread evenly over the first epoch, a function of the data order alone; to 0.002
    nats with the 50,000.
    """
    reader = data.readers[0]
    rows = min(len(data), math.ceil(labels / max(1, num_to_mask(reader.mask_prob, reader.seq_length))))
    counts = np.zeros(reader.tokenizer.vocab_size, np.int64)
    for number in np.linspace(0, len(data) - 1, rows).astype(int).tolist():
        counts += np.bincount(data.sample(number).labels, minlength=len(counts))
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(-(shares * np.log(shares)).sum())


# -> the residues or tokens it is over
MEANS = {"lm_loss": "masked", "mask_loss": "shown_mask", "mask_accuracy": "shown_mask"}
RTD_MEANS = {"rtd_loss": "real_tokens", "rtd_accuracy": "real_tokens"}


@dataclass(frozen=True)
class BatchCounts:
    """What one optimizer step is over, all replicas together."""

    rows: int
    tokens: int  # rows as fed, padding included
    real_tokens: int
    proteins: int
    masked: int  # residues to predict
    sum_squared_lengths: int
    shown_mask: int  # residues to predict that the model is shown as [MASK]


class Interval:
    """Adds up steps from one line of metrics.jsonl to the next, over all replicas.

    The clock covers all of a step, the waits for data and for other processes too; it stands still in `paused()`.
    peak: FLOP/s of all devices together, None where unknown. means, which a checkpoint keeps: by name the mean so
    far and how many residues it is over. generator: the second network that --objective rtd trains.
    """

    def __init__(self, config: ModelConfig, peak: float | None, generator: ModelConfig | None = None):
        self.configs, self.peak = [config] if generator is None else [config, generator], peak
        self.counted_over = MEANS if generator is None else MEANS | RTD_MEANS
        self.means: dict[str, list[float]] = {name: [0.0, 0] for name in self.counted_over}
        self.start()

    def start(self) -> None:
        """Set the clock and the tokens to 0."""
        self._began = time.perf_counter()
        self._tokens, self._real_tokens, self._flops = 0, 0, 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is not part of a step: evaluation, saving."""
        stopped = time.perf_counter()
        yield
        self._began += time.perf_counter() - stopped

    def add(self, counts: BatchCounts, values: dict) -> None:
        """One step, with its own means in `values`; one whose loss is not finite is left out of them."""
        self._tokens += counts.tokens
        self._real_tokens += counts.real_tokens
        for config in self.configs:
            self._flops += training_flops(config, counts.real_tokens, counts.sum_squared_lengths, counts.masked)
        for name, counted in self.counted_over.items():
            residues = getattr(counts, counted)
            if residues and math.isfinite(values["lm_loss"]) and math.isfinite(values[name]):
                mean, before = self.means[name]
                total = before + residues
                # exactly the step's own value where it is the first
                self.means[name] = [mean + (values[name] - mean) * (residues / total), total]

    def take(self) -> dict:
        """The report, and a new beginning. tokens_per_second counts rows as fed, real_tokens_per_second no padding.

        mfu is null on unknown devices, a loss where no step had a finite one.
        """
        elapsed = time.perf_counter() - self._began
        seconds = max(elapsed, 1e-9)
        report = {
            **{name: mean if residues else math.nan for name, (mean, residues) in self.means.items()},
            "tokens_per_second": self._tokens / seconds,
            "real_tokens_per_second": self._real_tokens / seconds,
            "flops": self._flops,
            "mfu": self._flops / seconds / self.peak if self.peak else None,
            "seconds": elapsed,
        }
        self.means = {name: [0.0, 0] for name in self.means}
        self.start()
        return report
