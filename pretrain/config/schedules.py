"""How long a run is, how large its global batch grows and which learning rate each step gets: pure functions of Config.

With --train-iters the schedule counts iterations, with --train-samples it counts packed rows, as in Megatron-LM.
"""

from pretrain.config.options import Config, Training
from proteinlm.errors import InputError
from proteinlm.optim import learning_rate


def batch_sizes(training: Training) -> range:
    """The sizes, in rows, that the global batch takes one after the other.

    --rampup-batch-size START INCREMENT SAMPLES: it starts at START rows and grows by INCREMENT in equal steps over the
    first SAMPLES rows until it is --global-batch-size. Empty while that is still to be filled in.
    """
    ramp, final = training.rampup_batch_size, training.global_batch_size
    if not ramp:
        return range(final, final + 1) if final else range(0)
    if len(ramp) != 3 or ramp[0] < 1 or ramp[1] < 1:
        raise InputError(f"--rampup-batch-size takes START INCREMENT SAMPLES, not {' '.join(map(str, ramp))}")
    start, increment, _ = ramp
    if final is None or final < start or (final - start) % increment:
        raise InputError(f"rampup-batch-size {start} in steps of {increment} does not reach global-batch-size {final}")
    return range(start, final + 1, increment)


class Schedule:
    """Length, global batch size and learning rate of one run."""

    def __init__(self, config: Config):
        self.training, self.optim = config.training, config.optim
        self.by_samples = self.training.train_samples is not None
        self._sizes = batch_sizes(self.training)
        self.total_samples = self.training.train_samples if self.by_samples else self._samples_of_iterations()
        unit = "samples" if self.by_samples else "iters"
        self._decay = getattr(self.optim, f"lr_decay_{unit}")
        fraction = self.optim.lr_warmup_fraction
        self._warmup = getattr(self.optim, f"lr_warmup_{unit}") if fraction is None else fraction * self._decay

    def batch_size(self, consumed_samples: int) -> int:
        """Rows of the global batch that begins after `consumed_samples` rows."""
        steps = len(self._sizes) - 1
        if steps == 0:
            return self.training.global_batch_size
        samples = max(1, self.training.rampup_batch_size[2])
        return self._sizes[min(steps, consumed_samples * steps // samples)]

    def _samples_of_iterations(self) -> int:
        iterations, full = self.training.train_iters, self.training.global_batch_size
        consumed = 0
        while iterations and self.batch_size(consumed) < full:
            consumed += self.batch_size(consumed)
            iterations -= 1
        return consumed + iterations * full

    def learning_rate(self, iteration: int, consumed_samples: int) -> float:
        """The learning rate of the update that completes `iteration` and `consumed_samples`."""
        step, o = consumed_samples if self.by_samples else iteration, self.optim
        return learning_rate(
            step, lr=o.lr, min_lr=o.min_lr, style=o.lr_decay_style, warmup=self._warmup, decay_steps=self._decay
        )
