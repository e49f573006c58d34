"""How long a run is, how large its global batch grows and which learning rate each step gets: pure functions of Config.

With --train-iters the schedule counts iterations, with --train-samples it counts packed rows, as in Megatron-LM.
"""

from pretrain.config.read import Config
from proteinlm.errors import InputError
from proteinlm.optim import learning_rate


class Schedule:
    """Global batch size and learning rate of one run.

    --rampup-batch-size START INCREMENT SAMPLES: the global batch starts at START rows and grows by INCREMENT in equal
    steps over the first SAMPLES rows until it is --global-batch-size.
    """

    def __init__(self, config: Config):
        self.training, self.optim = config.training, config.optim
        self.by_samples = self.training.train_samples is not None
        self._ramp_steps = self._check_rampup()
        self.total_samples = self.training.train_samples if self.by_samples else self._samples_of_iterations()
        self._decay = self._decay_units()
        self._warmup = self._warmup_units()

    def _check_rampup(self) -> int:
        if not self.training.rampup_batch_size:
            return 0
        start, increment, _ = self.training.rampup_batch_size
        missing = self.training.global_batch_size - start
        if increment <= 0 or missing < 0 or missing % increment:
            raise InputError(
                f"--rampup-batch-size {start} {increment}: the increment must divide global-batch-size "
                f"{self.training.global_batch_size} - {start}"
            )
        return missing // increment

    def batch_size(self, consumed_samples: int) -> int:
        """Rows of the global batch that begins after `consumed_samples` rows."""
        if not self._ramp_steps:
            return self.training.global_batch_size
        start, increment, samples = self.training.rampup_batch_size
        steps = min(self._ramp_steps, consumed_samples * self._ramp_steps // max(1, samples))
        return start + increment * steps

    def _samples_of_iterations(self) -> int:
        iterations, full = self.training.train_iters, self.training.global_batch_size
        consumed = 0
        while iterations and self.batch_size(consumed) < full:
            consumed += self.batch_size(consumed)
            iterations -= 1
        return consumed + iterations * full

    def _decay_units(self) -> float:
        if self.by_samples:
            return self.optim.lr_decay_samples or self.training.train_samples
        return self.optim.lr_decay_iters or self.training.train_iters

    def _warmup_units(self) -> float:
        if self.optim.lr_warmup_fraction is not None:
            return self.optim.lr_warmup_fraction * self._decay
        return (self.optim.lr_warmup_samples if self.by_samples else self.optim.lr_warmup_iters) or 0

    def learning_rate(self, iteration: int, consumed_samples: int) -> float:
        """The learning rate of the update that completes `iteration` and `consumed_samples`."""
        return learning_rate(
            consumed_samples if self.by_samples else iteration,
            lr=self.optim.lr,
            min_lr=self.optim.min_lr,
            style=self.optim.lr_decay_style,
            warmup=self._warmup,
            decay_steps=self._decay,
        )
