"""One optimizer step on a global batch, of which the host reads nothing while the device takes it.

    result = step(micro_batches, learning_rate)     # started; on a GPU it returns long before the step is taken
    report = result.read()                          # waits for it

Losses, counts, the gradient norm, clipping, fp16's loss scale and the decision to skip stay on the device, and one
message carries all that has to be summed over the processes, the wishes to stop too.

What must hold: the loss of a step is the sum over the masked residues of its global batch divided once by their number;
a step that is not finite leaves weights, moments and their step counters as they were; every process gets the same
numbers.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.config.options import Config
from pretrain.data.loader import Batch
from pretrain.interval import BatchCounts
from pretrain.parallel.apply import Loss, autocast_dtype, build_model, compute_dtype, reduce_dtype
from pretrain.parallel.gradients import Gradients
from pretrain.parallel.mesh import World
from pretrain.parallel.pipeline import Parts, Pipeline
from pretrain.parallel.replicas import communicate
from pretrain.parallel.tensor import vocabulary_parallel_num_correct
from pretrain.replaced_tokens import detection_loss, fill, fixed_draws
from proteinlm.loss import IGNORE, num_correct
from proteinlm.masking import num_to_mask
from proteinlm.muon import matrices_of
from proteinlm.network.config import ModelConfig
from proteinlm.optim import LossScaler, build_optimizer, clip_factor, set_learning_rate, step_if

STOPS = ("preempted", "interrupted", "exit-duration-in-mins")  # why a process may ask all of them to stop
COUNTS = {  # of BatchCounts -> of a Batch
    "masked": "num_masked",
    "real_tokens": "num_real_tokens",
    "proteins": "num_proteins",
    "sum_squared_lengths": "sum_squared_lengths",
}
Stop = Callable[[], Sequence[bool]]
# What a step's message sums, and what every process makes of the sums (a loss scale in fp16 only).
MASKED_LM = ("loss", "mask_loss", "shown_mask", "mask_correct")  # with --objective rtd the generator's
DETECTION = ("rtd_loss", "rtd_tokens", "rtd_correct")  # with --objective rtd alone
LOSSES = (*MASKED_LM, *DETECTION)
SUMS = ("squared_norm", *LOSSES, *COUNTS, *STOPS)
NUMBERS = (*SUMS, "grad_norm", "finite", "loss_scale")


@dataclass(frozen=True)
class StepReport:
    """A step that was taken or skipped, the same on every process."""

    counts: BatchCounts
    values: dict  # lm_loss, mask_loss, mask_accuracy, (rtd_*,) grad_norm, learning_rate, loss_scale, skipped
    stop: str | None  # why a process asks to stop


@dataclass(frozen=True)
class StepResult:
    """A step that was started; its numbers are on their way to the host."""

    rows: int  # of the global batch
    tokens: int  # rows as fed, padding included
    learning_rate: float
    numbers: Tensor  # fp64, NUMBERS
    arrived: torch.cuda.Event | None

    def read(self) -> StepReport:
        """Wait for the numbers."""
        if self.arrived:
            self.arrived.synchronize()
        n = {"loss_scale": 1.0} | dict(zip(NUMBERS, self.numbers.tolist(), strict=False))
        counts = BatchCounts(self.rows, self.tokens, **{name: int(n[name]) for name in (*COUNTS, "shown_mask")})
        values = {
            "lm_loss": n["loss"] / max(1, counts.masked),
            "mask_loss": n["mask_loss"] / max(1, counts.shown_mask),
            "mask_accuracy": n["mask_correct"] / max(1, counts.shown_mask),
            **detection_means(n),
            "grad_norm": n["grad_norm"],
            "learning_rate": self.learning_rate,
            "loss_scale": n["loss_scale"],
            "skipped": not n["finite"],
        }
        return StepReport(counts, values, next((stop for stop in STOPS if n[stop]), None))


def detection_means(sums: dict[str, float]) -> dict[str, float]:
    """rtd_loss and rtd_accuracy over all tokens; nothing where no token was judged."""
    tokens = sums["rtd_tokens"]
    if not tokens:
        return {}
    return {"rtd_loss": sums["rtd_loss"] / tokens, "rtd_accuracy": sums["rtd_correct"] / tokens}


def build_step(config: Config, model_config: ModelConfig, world: World, mask_id: int, pad_id: int) -> "TrainStep":
    """This process's part of the model, filled, with its loss, optimizer and loss scaler."""
    model, loss, pipeline = build_model(config, model_config, world)
    o = config.optim
    muon = functools.partial(matrices_of, head_size=model_config.head_size) if o.optimizer == "muon" else None
    betas = o.adam_beta1, o.adam_beta2
    optimizer = build_optimizer(model, o.lr, o.weight_decay, betas, o.adam_eps, muon=muon, momentum=o.muon_momentum)
    scaling = (o.initial_loss_scale, o.loss_scale, o.loss_scale_window, o.hysteresis, o.min_loss_scale, world.device)
    scaler = LossScaler(*scaling) if config.training.fp16 else None
    if config.training.objective == "rtd":
        parts = config, world, model, loss, pipeline, optimizer, scaler, mask_id
        return ReplacedTokenStep(*parts, pad_id=pad_id)
    return TrainStep(config, world, model, loss, pipeline, optimizer, scaler, mask_id)


class TrainStep:
    """Takes optimizer steps with this process's part of the model."""

    def __init__(
        self,
        config: Config,
        world: World,
        model: Parts,
        loss: Loss,
        pipeline: Pipeline | None,
        optimizer: torch.optim.AdamW,
        scaler: LossScaler | None,
        mask_id: int,
    ):
        self.config, self.world, self.device = config, world, world.device
        self.model, self.loss, self.pipeline = model, loss, pipeline
        self.optimizer, self.scaler, self.mask_id = optimizer, scaler, mask_id
        self.num_correct = num_correct
        if world.layout.tp > 1:
            self.num_correct = vocabulary_parallel_num_correct(world.mesh.get_group("tp"), model[0].vocab_start)
        self.gradients = Gradients(model, world, reduce_dtype(config.parallel))
        self.dtype, self.autocast = compute_dtype(config.training), autocast_dtype(config.training, world)

    def __call__(
        self, micro_batches: list[Batch], learning_rate: float, stop: Stop = lambda: (False,) * len(STOPS)
    ) -> StepResult:
        """Start a step on a global batch, of which this replica has `micro_batches`.

        stop: called after the backward pass, this process's STOPS.
        """
        self.model.train()
        rows = sum(len(batch.tokens) for batch in micro_batches) * self.world.dp_size
        tokens = sum(batch.tokens.numel() for batch in micro_batches) * self.world.dp_size
        # About the number of masked residues, which is only known after the message: fp16's gradients stay in range.
        expected = max(1, rows * num_to_mask(self.config.data.mask_prob, self.config.data.seq_length))
        scale = self.scaler.scale if self.scaler else 1.0
        losses = self._accumulate(micro_batches, scale / expected)
        self.gradients.finish()
        sums = self.world.sum_over_all(self._own_terms(micro_batches, losses, stop))
        set_learning_rate(self.optimizer, learning_rate)
        numbers = self._update(sums, scale / expected).to("cpu", non_blocking=True)
        copying = self.device.type == "cuda" and torch.cuda.is_available()  # fake tensors need no GPU
        arrived = torch.cuda.current_stream().record_event() if copying else None
        return StepResult(rows, tokens, learning_rate, numbers, arrived)

    def _accumulate(self, micro_batches: list[Batch], weight: float | Tensor) -> Tensor:
        """Add up the gradients of weight x loss.

        Returns what this process has of LOSSES (not every one has a loss), fp64.
        """
        sums = torch.zeros(len(LOSSES), dtype=torch.float64, device=self.device)

        def weighted_loss(logits: Tensor, batch: Batch) -> Tensor:
            return self._loss(logits, batch, sums) * weight

        if self.pipeline:
            self.pipeline.run(micro_batches, weighted_loss)
            return sums
        for number, batch in enumerate(micro_batches, 1):
            communicate(self.model, number == len(micro_batches), self.config.parallel.use_torch_fsdp2)
            (self._batch_loss(batch.to(self.device), sums) * weight).backward()
        return sums

    def _batch_loss(self, batch: Batch, sums: Tensor) -> Tensor:
        """The loss of a batch on the device, after adding to `sums`."""
        return self._loss(self.logits(batch), batch, sums)

    def _loss(self, logits: Tensor, batch: Batch, sums: Tensor) -> Tensor:
        """The loss, after adding MASKED_LM to `sums`: the sums of the losses over all masked residues and over those
        that the model is shown as [MASK], the number of the latter and how many of them it names. The other fifth can
        be copied or guessed from what is shown in their place."""
        loss, labels, seen = self.loss(logits, batch.labels), batch.labels_of_masks(self.mask_id), logits.detach()
        terms = loss.detach(), self.loss(seen, labels), (labels != IGNORE).sum(), self.num_correct(seen, labels)
        sums[: len(MASKED_LM)] += torch.stack([term.double() for term in terms])
        return loss

    def evaluate(self, micro_batches: list[Batch]) -> Tensor:
        """What this process has of LOSSES, forward only, fp64."""
        sums = torch.zeros(len(LOSSES), dtype=torch.float64, device=self.device)
        if self.pipeline:
            self.pipeline.run(micro_batches, lambda logits, batch: self._loss(logits, batch, sums), False)
            return sums
        for batch in micro_batches:
            self._batch_loss(batch.to(self.device), sums)
        return sums

    def logits(self, batch: Batch) -> Tensor:
        """[M, V] of a batch on the device, of the whole model."""
        with self._autocast():
            return self.model(batch.tokens, batch.position_ids, batch.cu_seqlens, batch.masked_positions)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)

    def _own_terms(self, micro_batches: list[Batch], losses: Tensor, stop: Stop) -> Tensor:
        """This process's terms of SUMS. Of the processes that share a replica one counts its batch."""
        counted = self.world.counts_loss
        known = [sum(getattr(b, name) for b in micro_batches) if counted else 0 for name in COUNTS.values()]
        pin = self.device.type == "cuda"  # a copy from other memory may wait for the device
        known = torch.tensor([*known, *stop()], dtype=torch.float64, pin_memory=pin).to(self.device, non_blocking=True)
        return torch.cat([self.gradients.squared_norm()[None], losses if counted else torch.zeros_like(losses), known])

    def _update(self, sums: Tensor, weight: float | Tensor) -> Tensor:
        """Clip, and step or skip. Returns NUMBERS."""
        total = dict(zip(SUMS, sums.unbind(), strict=True))
        divisor = total["masked"].clamp(min=1) * weight  # a row of two or three tokens may hide none
        norm = total["squared_norm"].sqrt() / divisor
        finite = norm.isfinite() & total["loss"].isfinite()
        step_if(finite, self.optimizer, divisor / clip_factor(norm, self.config.optim.clip_grad))
        self.optimizer.zero_grad(set_to_none=True)
        numbers = [norm, finite.double()]
        if self.scaler:
            numbers.append(self.scaler.scale)
            self.scaler.update(~finite)
        return torch.cat([sums, torch.stack(numbers)])


class ReplacedTokenStep(TrainStep):
    """Takes steps of `pretrain.replaced_tokens`."""

    def __init__(self, *parts, pad_id: int):
        super().__init__(*parts)
        (self.network,), self.pad_id = self.model, pad_id

    def _batch_loss(self, batch: Batch, sums: Tensor) -> Tensor:
        places = batch.position_ids, batch.cu_seqlens
        with self._autocast():
            logits = self.network.generator(batch.tokens, *places, batch.masked_positions)
        generator_loss = self._loss(logits, batch, sums)
        tokens, replaced = fill(batch, logits)
        with self._autocast():
            log_odds = self.network.log_odds(tokens, *places)
        real = batch.tokens.flatten() != self.pad_id
        loss, right = detection_loss(log_odds, replaced, real)
        sums[len(MASKED_LM) :] += torch.stack([term.double() for term in (loss.detach(), real.sum(), right)])
        # A step divides once, by the number of masked residues: --mask-prob of the tokens.
        return generator_loss + self.config.training.rtd_weight * self.config.data.mask_prob * loss

    def evaluate(self, micro_batches: list[Batch]) -> Tensor:
        with fixed_draws(self.device, self.config.training.seed):
            return super().evaluate(micro_batches)
