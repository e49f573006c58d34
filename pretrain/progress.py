"""Progress on a terminal (tqdm) or as lines in a log, and the throughput of the steps alone."""

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from pretrain.data.loader import Batch
from pretrain.metrics import training_flops
from pretrain.model import ModelConfig


class Progress:
    """A tqdm bar on a terminal; elsewhere each message is one line on stdout. quiet: neither."""

    def __init__(self, total: int | None, done: int, quiet: bool = False):
        self._bar, self._quiet = None, quiet
        if sys.stderr.isatty() and not quiet:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit="rows", dynamic_ncols=True)
        self._at = done

    def __enter__(self):
        return self

    def advance(self, done: int) -> None:
        if self._bar is not None:
            self._bar.update(done - self._at)
        self._at = done

    def show(self, *messages: str) -> None:
        for message in messages:
            if self._bar is not None:
                self._bar.write(message)
            elif not self._quiet:
                print(message, flush=True)

    def __exit__(self, *exc_info):
        if self._bar is not None:
            self._bar.close()


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
