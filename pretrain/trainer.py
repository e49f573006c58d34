"""The training loop: `Trainer(config).run()` reads top to bottom what one pretraining run does.

The same lines run in one process and in hundreds (`pretrain.parallel`): a World that is alone sums over nothing.

What must hold: the loss of a step is the sum over the masked residues of its global batch divided once by their number;
a non-finite loss or gradient never reaches the weights; everything a resumed run needs is in the checkpoint, so that on
CPU it continues bit for bit.
"""

import contextlib
import math
import threading
import time
from dataclasses import asdict
from pathlib import Path

import torch

from pretrain.checkpoint.files import checkpoint_name
from pretrain.checkpoint.saving import Saver
from pretrain.checkpoint.state import RunState
from pretrain.config.options import Config
from pretrain.config.schedules import Schedule
from pretrain.config.validate import for_world
from pretrain.data.blending import build_datasets
from pretrain.data.dataset import Dataset, PackedDataset
from pretrain.data.indexed import IndexedDataset
from pretrain.data.loader import Batch, PackedLoader, evaluation_batches
from pretrain.data.sources import parse_valid_data_path
from pretrain.interval import BatchCounts, Interval, peak_flops, unigram_entropy
from pretrain.parallel.apply import build_model, compute_dtype, reduce_dtype
from pretrain.parallel.mesh import World, local_rank_of_launcher
from pretrain.parallel.replicas import Gradients, communicate, release
from pretrain.shutdown import stop_signal
from proteinlm.devices import choose_device
from proteinlm.errors import InputError
from proteinlm.files import write_json
from proteinlm.metrics_log import MetricsLog, NoLog
from proteinlm.network.attention import activate_flash3
from proteinlm.optim import LossScaler, build_optimizer, clip_factor, set_learning_rate
from proteinlm.progress import Progress
from proteinlm.tokenizer import Tokenizer, build_tokenizer


class Trainer:
    """One pretraining run, or this process's part of it."""

    def __init__(self, config: Config):
        self.device = _device(config)
        self.world = World.join(config, self.device)
        config = for_world(config, self.world.size)
        self.dtype = compute_dtype(config.training)
        if config.training.deterministic:
            torch.use_deterministic_algorithms(True)
        self.tokenizer = build_tokenizer(config.data.tokenizer_type, config.data.vocab_file)
        self.train_data, self.held_out, self.valid_sets = _datasets(config, self.tokenizer)
        for name, data in {"train": self.train_data, **self.valid_sets}.items():
            self.say(_described(name, data, config.data.seq_length))
        self.model_config = config.model_config(self.tokenizer)
        self.model, self.loss, self.pipeline = build_model(config, self.model_config, self.world)
        if self.model_config.attention_dropout == 0.0:
            activate_flash3(self.device)
        self.gradients = Gradients(self.model, self.world, reduce_dtype(config.parallel))
        o = config.optim
        self.optimizer = build_optimizer(self.model, o.lr, o.weight_decay, (o.adam_beta1, o.adam_beta2), o.adam_eps)
        scaling = (o.initial_loss_scale, o.loss_scale, o.loss_scale_window, o.hysteresis, o.min_loss_scale)
        self.scaler = LossScaler(*scaling) if config.training.fp16 else None
        peak = peak_flops(self.device, self.dtype)
        self.interval = Interval(self.model_config, peak and peak * self.world.size)
        self.saver = Saver(config.checkpoint, self.world.side_group)
        self.state = RunState(
            config, self.world, self.model, self.tokenizer, self.train_data, self.optimizer, self.scaler, self.interval
        )
        self.counters = self.state.counters
        self.resumed = self.state.load(self.say) if config.checkpoint.load else None
        self.config = self.state.config  # loading may settle the schedule
        self.schedule = Schedule(self.config)
        self._evaluated_at = self.resumed

    def say(self, message: str) -> None:
        """One line on stdout, by one process."""
        if self.world.is_main:
            print(message, flush=True)

    # ---- the loop

    def run(self) -> str:
        """Train to the end of the schedule or until asked to stop. Returns the reason, also in exit_reason.json."""
        c = self.config
        reason, started = "completed", time.monotonic()
        with stop_signal() as stop, contextlib.closing(self._open_log()) as log, self._progress() as bar:
            loader = self._loader()
            self.interval.start()
            for micro_batches in loader:
                counts = self.count(micro_batches)
                values = self.train_step(micro_batches, counts)
                self._advance(counts, values)
                bar.add(counts.rows)
                if self._due(c.logging.log_interval) or values["skipped"]:
                    bar.show(self._log_step(log, values))
                self._refuse_to_skip_for_ever()
                with self.interval.paused():
                    if self._due(c.logging.eval_interval):
                        bar.show(*self._log_evaluation(log))
                    if self._save_due():
                        self.save()
                if why := self._why_stop(stop, started):
                    reason = why
                    break
            if reason == "completed" and self._evaluated_at != self.counters.iteration:
                bar.show(*self._log_evaluation(log))
            if self.state.saved_at != self.counters.iteration:
                self.save()
            self.saver.wait()
        self._record_exit(reason)
        return reason

    def _loader(self) -> PackedLoader:
        c, consumed, end = self.config, self.counters.consumed_train_samples, self.schedule.total_samples
        if end is not None and consumed >= end:
            self.say(f"notice: nothing left to train on: the schedule ends at sample {end:,}; {consumed:,} consumed")
        rows, share = c.training.micro_batch_size, (self.world.dp_rank, self.world.dp_size)
        return PackedLoader(self.train_data, rows, self.schedule.batch_size, consumed, end, *share, c.data.num_workers)

    def count(self, micro_batches: list[Batch]) -> BatchCounts:
        """What the step on a global batch is over, of which this replica has `micro_batches`."""
        return BatchCounts.of(micro_batches, self.tokenizer.mask_id, self.world.sum_over_replicas)

    def train_step(self, micro_batches: list[Batch], counts: BatchCounts) -> dict:
        """One optimizer step on a global batch, of which this replica has `micro_batches`; `counts` is of the whole.

        Returns lm_loss, mask_loss, grad_norm, learning_rate, loss_scale, skipped, the same on every process.
        """
        self.model.train()
        scale = self.scaler.scale if self.scaler else 1.0
        masked = max(1, counts.masked)  # a row of two or three tokens may hide none
        losses = self._accumulate(micro_batches, scale / masked)
        self.gradients.finish()
        counters = self.counters
        lr = self.schedule.learning_rate(counters.iteration + 1, counters.consumed_train_samples + counts.rows)
        set_learning_rate(self.optimizer, lr)
        norm, (loss_sum, mask_loss_sum) = self._unscale_and_clip(scale, losses)
        good = math.isfinite(norm) and math.isfinite(loss_sum)
        if good:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler:
            self.scaler.update(overflow=not good)
        return {
            "lm_loss": loss_sum / masked,
            "mask_loss": mask_loss_sum / max(1, counts.shown_mask),
            "grad_norm": norm,
            "learning_rate": lr,
            "loss_scale": scale,
            "skipped": not good,
        }

    def _accumulate(self, micro_batches: list[Batch], weight: float) -> list[float]:
        """Add up the gradients of weight x loss.

        Returns the sums of this process's losses (not every one has one): over all masked residues, and over those that
        the model is shown as [MASK]. The other fifth can be copied or guessed from what is shown in their place.
        """
        mask_id = self.tokenizer.mask_id
        if self.pipeline:
            return self.pipeline.step(micro_batches, weight, mask_id).tolist()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for number, batch in enumerate(micro_batches, 1):
            communicate(self.model, number == len(micro_batches), self.config.parallel.use_torch_fsdp2)
            batch = batch.to(self.device)
            logits = self._logits(batch)
            loss = self.loss(logits, batch.labels)
            (loss * weight).backward()
            mask_loss = self.loss(logits.detach(), batch.labels_of_masks(mask_id))
            sums += torch.stack([loss.detach(), mask_loss]).double()
        return sums.tolist()

    def _logits(self, batch: Batch) -> torch.Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model(batch.tokens, batch.position_ids, batch.cu_seqlens, batch.masked_positions)

    def _loss(self, batch: Batch) -> torch.Tensor:
        return self.loss(self._logits(batch), batch.labels)

    def _unscale_and_clip(self, scale: float, losses: list[float]) -> tuple[float, list[float]]:
        """(gradient norm of the whole model before clipping, losses of the whole global batch)."""
        if scale != 1.0:
            self.gradients.scale(1.0 / scale)
        norm, losses = self.gradients.norm_with(losses)
        if factor := clip_factor(norm, self.config.optim.clip_grad):
            self.gradients.scale(factor)
        return norm, losses

    def _advance(self, counts: BatchCounts, values: dict) -> None:
        """Count a step that was taken or skipped."""
        counters, skipped = self.counters, values["skipped"]
        counters.iteration += 1
        counters.consumed_train_samples += counts.rows
        counters.consumed_tokens += counts.real_tokens
        counters.consumed_proteins += counts.proteins
        counters.skipped_iterations += skipped
        searching = self.scaler is not None and self.scaler.can_lower(values["loss_scale"])
        counters.skipped_in_a_row = counters.skipped_in_a_row + (not searching) if skipped else 0
        self.interval.add(counts, values)

    def _refuse_to_skip_for_ever(self) -> None:
        """InputError, without saving, once --max-skipped-iterations steps in a row were not finite."""
        most, number = self.config.training.max_skipped_iterations, self.counters.skipped_in_a_row
        if not 0 < most <= number:
            return
        self.saver.wait()
        self._record_exit("non-finite")
        options, saved_at = self.config.checkpoint, self.state.saved_at
        directory = options.load if saved_at == self.resumed else options.save
        raise InputError(
            f"{options.save}: loss or gradients were not finite in {number} iterations in a row, up to "
            f"{self.counters.iteration} (--max-skipped-iterations {most}); the checkpoint before them: "
            f"{'none' if saved_at is None else f'{directory}/{checkpoint_name(saved_at)}'}; a lower --lr may help"
        )

    def _due(self, interval: int | None) -> bool:
        return bool(interval) and self.counters.iteration % interval == 0

    def _why_stop(self, stop: threading.Event, started: float) -> str | None:
        """Decided together: all processes leave after the same step."""
        training = self.config.training
        if self.world.any(stop.is_set()):
            return "preempted"
        minutes = training.exit_duration_in_mins
        if minutes and self.world.any(time.monotonic() - started > 60 * minutes):
            return "exit-duration-in-mins"
        return "exit-interval" if self._due(training.exit_interval) else None

    # ---- what is reported

    def _open_log(self) -> MetricsLog | NoLog:
        self.unigram_entropy = unigram_entropy(self.train_data) if self.world.is_main else None
        if not self.world.is_main:
            return NoLog()
        c = self.config.checkpoint
        self.say(f"train: frequencies of the residues alone give a loss of {self.unigram_entropy:.3f}")
        same_run = c.load is not None and Path(c.load).resolve() == Path(c.save).resolve()
        return MetricsLog(c.save, self.config.logging.tensorboard_dir, self.resumed, same_run)

    def _log_step(self, log: MetricsLog | NoLog, values: dict) -> str:
        line = {**asdict(self.counters), **values, **self.interval.take(), "unigram_entropy": self.unigram_entropy}
        log.write(line)
        skipped = "  NON-FINITE, weights not stepped" if values["skipped"] else ""
        return (
            f"iteration {line['iteration']}  loss {line['lm_loss']:.4f} ([MASK] alone {line['mask_loss']:.4f})  "
            f"grad norm {line['grad_norm']:.3f}  lr {line['learning_rate']:.3g}  "
            f"{line['real_tokens_per_second']:,.0f} real tokens/s{skipped}"
        )

    def _log_evaluation(self, log: MetricsLog) -> list[str]:
        lines = []
        self._evaluated_at = self.counters.iteration
        for name, dataset in self.valid_sets.items():
            limit = self._eval_limit() if dataset is self.held_out else None
            loss, masked = self.evaluate(dataset, limit)
            perplexity = math.exp(min(loss, 700.0))
            values = {"valid_loss": loss, "valid_perplexity": perplexity, "valid_masked": masked}
            log.write({**asdict(self.counters), "dataset": name, **values})
            lines.append(f"iteration {self.counters.iteration}  {name} loss {loss:.4f}  perplexity {perplexity:.3f}")
        return lines

    def _eval_limit(self) -> int | None:
        """--eval-iters counts global batches, as Megatron does; evaluation runs micro-batches. 0: the whole split."""
        training, iters = self.config.training, self.config.logging.eval_iters
        return iters * (training.global_batch_size // training.micro_batch_size) if iters else None

    def _progress(self) -> Progress:
        total, done = self.schedule.total_samples, self.counters.consumed_train_samples
        return Progress("rows", total, done, seconds=math.inf, quiet=not self.world.is_main)  # it has lines of its own

    @torch.no_grad()
    def evaluate(self, dataset: Dataset, limit_batches: int | None = None) -> tuple[float, int]:
        """Mean masked cross-entropy in nats over a whole split (or its first batches), and the residues it is over."""
        self.model.eval()
        total, masked = 0.0, 0
        rows, world = self.config.training.micro_batch_size, self.world
        share = (world.dp_rank, world.dp_size, world.layout.pp)
        for batches in evaluation_batches(dataset, rows, limit_batches, *share, same_shape=not world.alone):
            if self.pipeline:
                total += float(self.pipeline.evaluate(batches))
            else:
                total += sum(float(self._loss(batch.to(self.device))) for batch in batches)
            masked += sum(batch.num_masked for batch in batches)
        release(self.model)
        (total,) = world.sum_over_all([total if world.counts_loss else 0.0])
        (masked,) = world.sum_over_replicas([masked])
        return total / max(1, masked), masked

    # ---- checkpoints

    def _save_due(self) -> bool:
        """Whether a multiple of --save-interval was reached since the last save; while steps are skipped it waits."""
        interval, counters = self.config.checkpoint.save_interval, self.counters
        if not interval or counters.skipped_in_a_row:
            return False
        return counters.iteration // interval > (self.state.saved_at or 0) // interval

    def save(self) -> None:
        """Write `<save>/iter_*` whole or not at all. In a row of skipped steps no earlier checkpoint is removed."""
        options, counters = self.config.checkpoint, self.counters
        tensors = self.state.tensors(not options.no_save_optim, None if options.no_save_rng else self.device)
        keep_last = None if counters.skipped_in_a_row else options.keep_last
        self.saver.save(counters.iteration, tensors, self.state.meta(), keep_last)
        self.state.saved_at = counters.iteration

    def _record_exit(self, reason: str) -> None:
        if self.world.is_main:
            ended = {"reason": reason, "iteration": self.counters.iteration}
            write_json(f"{self.config.checkpoint.save}/exit_reason.json", ended)


def _described(name: str, data: Dataset, seq_length: int) -> str:
    """What a data set holds; proteins longer than a row are cropped, never dropped, and counted here."""
    cropped = f", {data.num_cropped:,} longer than a row and cropped" if data.num_cropped else ""
    return f"{name}: {data.num_proteins:,} proteins in {len(data):,} rows of {seq_length} tokens{cropped}"


def _device(config: Config) -> torch.device:
    local_rank = config.parallel.local_rank
    device = choose_device(config.training.device, local_rank_of_launcher() if local_rank is None else local_rank)
    if device.type == "cpu" and config.parallel.distributed_backend == "nccl":
        raise InputError("--distributed-backend nccl needs GPUs, but this run computes on the CPU; use gloo")
    return device


def _datasets(config: Config, tokenizer: Tokenizer) -> tuple[Dataset, Dataset | None, dict[str, Dataset]]:
    """(what is trained on, what --split holds out of it, every validation set by name)."""
    d, seed = config.data, config.training.seed
    train, held_out, _ = build_datasets(d.data_path, d.split, tokenizer, d.seq_length, d.mask_prob, seed)
    sets: dict[str, Dataset] = {"valid": held_out} if held_out is not None else {}
    for name, prefix in parse_valid_data_path(d.valid_data_path).items():
        shard = IndexedDataset(prefix)
        documents = (0, len(shard.documents) - 1)
        sets[name] = PackedDataset(shard, documents, tokenizer, d.seq_length, d.mask_prob, seed, train=False)
    return train, held_out, sets
