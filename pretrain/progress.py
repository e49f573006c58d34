"""Progress on a terminal (tqdm) or as lines in a log, and the throughput of the steps alone."""

import contextlib
import sys
import time

from pretrain.data.loader import Batch
from pretrain.metrics import training_flops
from pretrain.model import ModelConfig


class Progress:
    """A tqdm bar on a terminal; elsewhere each message is one line on stdout."""

    def __init__(self, total: int | None, done: int):
        self._bar = None
        if sys.stderr.isatty():
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
            else:
                print(message, flush=True)

    def __exit__(self, *exc_info):
        if self._bar is not None:
            self._bar.close()


class Throughput:
    """Adds up steps since the last report; evaluation and saving are not in its time."""

    def __init__(self, config: ModelConfig, peak: float | None):
        self.config, self.peak = config, peak
        self._clear()

    def _clear(self) -> None:
        self.seconds, self.tokens, self.real, self.flops = 0.0, 0, 0, 0.0

    @contextlib.contextmanager
    def step(self, micro_batches: list[Batch]):
        """Time one optimizer step on these micro-batches; the step must end in a device synchronisation."""
        begin = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - begin
        for batch in micro_batches:
            self.tokens += batch.tokens.numel()
            self.real += batch.num_real_tokens
            self.flops += training_flops(
                self.config, batch.num_real_tokens, batch.sum_squared_lengths, batch.num_masked
            )

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
