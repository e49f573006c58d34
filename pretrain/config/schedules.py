"""How long a run is, how large its global batch grows and which learning rate each step gets: pure functions of Config.

With --train-iters the schedule counts iterations, with --train-samples it counts packed rows, as in Megatron-LM.
"""

from pretrain.config.options import Config
from pretrain.config.validate import batch_sizes
from proteinlm.optim import learning_rate


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
