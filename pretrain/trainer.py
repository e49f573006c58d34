"""The training loop: `Trainer(config).run()` reads top to bottom what one pretraining run does.

The same lines run in one process and in hundreds (`pretrain.parallel`): a World that is alone sums over nothing.

What must hold: the loss of a step is the sum over the masked residues of its global batch divided once by their number;
a non-finite loss or gradient never reaches the weights; everything a resumed run needs is in the checkpoint, so that on
CPU it continues bit for bit.
"""

import contextlib
import math
import time
from dataclasses import asdict, dataclass

import torch

from pretrain.checkpoint.saving import Saver
from pretrain.checkpoint.state import load_state, run_state
from pretrain.config.options import Config
from pretrain.config.schedules import Schedule
from pretrain.config.validate import for_world
from pretrain.data.blending import build_datasets
from pretrain.data.dataset import Dataset, PackedDataset
from pretrain.data.indexed import IndexedDataset
from pretrain.data.loader import Batch, PackedLoader, evaluation_batches
from pretrain.data.sources import parse_valid_data_path
from pretrain.parallel.apply import build_model, compute_dtype, reduce_dtype
from pretrain.parallel.mesh import World, local_device
from pretrain.parallel.replicas import Gradients, communicate, release
from pretrain.shutdown import StopSignal
from pretrain.throughput import BatchCounts, Throughput, peak_flops
from proteinlm.errors import InputError
from proteinlm.files import write_json
from proteinlm.metrics_log import MetricsLog, NoLog
from proteinlm.optim import LossScaler, build_optimizer, clip_factor, set_learning_rate
from proteinlm.progress import Progress
from proteinlm.tokenizer import Tokenizer, build_tokenizer


@dataclass
class Counters:
    """Where a run stands; saved with every checkpoint."""

    iteration: int = 0
    consumed_train_samples: int = 0  # packed rows: the whole state of the data order
    consumed_tokens: int = 0  # real tokens, [CLS] included, padding not
    consumed_proteins: int = 0
    skipped_iterations: int = 0


class Trainer:
    """One pretraining run, or this process's part of it."""

    def __init__(self, config: Config):
        self.device = _device(config)
        self.world = World.join(config, self.device)
        config = for_world(config, self.world.size)
        self.adopt(config)
        self.dtype = compute_dtype(config.training)
        if config.training.deterministic:
            torch.use_deterministic_algorithms(True)
        self.tokenizer = build_tokenizer(config.data.tokenizer_type, config.data.vocab_file)
        self.train_data, self.held_out, self.valid_sets = _datasets(config, self.tokenizer)
        for name, data in {"train": self.train_data, **self.valid_sets}.items():
            self.say(_described(name, data, config.data.seq_length))
        self.model_config = config.model_config(self.tokenizer)
        self.model, self.loss, self.pipeline = build_model(config, self.model_config, self.world)
        self.gradients = Gradients(self.model, self.world, reduce_dtype(config.parallel))
        o = config.optim
        self.optimizer = build_optimizer(self.model, o.lr, o.weight_decay, (o.adam_beta1, o.adam_beta2), o.adam_eps)
        self.scaler = _loss_scaler(config) if config.training.fp16 else None
        self.counters = Counters()
        self.saver = Saver(config.checkpoint, self.world.side_group)
        self.resumed = load_state(self) if config.checkpoint.load else None
        self._saved_at = self._evaluated_at = self.resumed
        peak = peak_flops(self.device, self.dtype)
        self.peak_flops = peak and peak * self.world.size

    def adopt(self, config: Config) -> None:
        """Take `config` and the schedule that follows from it."""
        self.config = config
        self.schedule = Schedule(config)

    def say(self, message: str) -> None:
        """One line on stdout, by one process."""
        if self.world.is_main:
            print(message, flush=True)

    # ---- the loop

    def run(self) -> str:
        """Train to the end of the schedule or until told to stop. Returns the reason, also in exit_reason.json."""
        c = self.config
        loader = PackedLoader(
            self.train_data,
            c.training.micro_batch_size,
            self.schedule.batch_size,
            self.counters.consumed_train_samples,
            self.schedule.total_samples,
            dp_rank=self.world.dp_rank,
            dp_size=self.world.dp_size,
            num_workers=c.data.num_workers,
        )
        log = NoLog()
        if self.world.is_main:
            log = MetricsLog(c.checkpoint.save, c.logging.tensorboard_dir, resume_at=self.resumed)
        done, total = self.counters.consumed_train_samples, self.schedule.total_samples
        if self.world.is_main and total is not None and done >= total:
            print(f"notice: nothing left to train on: the schedule ends at sample {total:,}, {done:,} are consumed")
        reason, started = "completed", time.monotonic()
        with StopSignal() as stop, contextlib.closing(log), self._progress() as bar:
            throughput = Throughput(self.model_config, self.peak_flops)
            for micro_batches in loader:
                counts = BatchCounts.of(micro_batches, self.world.sum_over_replicas)
                with throughput.step(counts):
                    values = self.train_step(micro_batches, counts)
                self._count(counts, values)
                bar.add(counts.rows)
                if self._due(c.logging.log_interval) or values["skipped"]:
                    bar.show(self._log_step(log, values, throughput))
                if self._due(c.logging.eval_interval):
                    bar.show(*self._log_evaluation(log))
                if self._due(c.checkpoint.save_interval):
                    self.save()
                if why := self._why_stop(stop, started):
                    reason = why
                    break
            if reason == "completed" and self._evaluated_at != self.counters.iteration:
                bar.show(*self._log_evaluation(log))
            if self._saved_at != self.counters.iteration:
                self.save()
            self.saver.wait()
        if self.world.is_main:
            ended = {"reason": reason, "iteration": self.counters.iteration}
            write_json(f"{c.checkpoint.save}/exit_reason.json", ended)
        return reason

    def train_step(self, micro_batches: list[Batch], counts: BatchCounts) -> dict:
        """One optimizer step on a global batch, of which this replica has `micro_batches` and `counts` tells the whole.

        Returns lm_loss, grad_norm, learning_rate, loss_scale, skipped, the same on every process.
        """
        self.model.train()
        scale = self.scaler.scale if self.scaler else 1.0
        masked = max(1, counts.masked)  # a row of two or three tokens may hide none
        loss_sum = self._accumulate(micro_batches, scale / masked)
        self.gradients.finish()
        counters = self.counters
        lr = self.schedule.learning_rate(counters.iteration + 1, counters.consumed_train_samples + counts.rows)
        set_learning_rate(self.optimizer, lr)
        norm, loss_sum = self._unscale_and_clip(scale, loss_sum)
        good = math.isfinite(norm) and math.isfinite(loss_sum)
        if good:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler:
            self.scaler.update(overflow=not good)
        return {
            "lm_loss": loss_sum / masked,
            "grad_norm": norm,
            "learning_rate": lr,
            "loss_scale": scale,
            "skipped": not good,
        }

    def _accumulate(self, micro_batches: list[Batch], weight: float) -> float:
        """Add up the gradients of weight x loss. Returns the sum of this process's losses (not every one has one)."""
        if self.pipeline:
            return float(self.pipeline.step(micro_batches, weight))
        loss_sum = torch.zeros((), dtype=torch.float64)
        for number, batch in enumerate(micro_batches, 1):
            communicate(self.model, number == len(micro_batches), self.config.parallel.use_torch_fsdp2)
            loss = self._loss(batch.to(self.device))
            (loss * weight).backward()
            loss_sum += loss.detach().double().cpu()
        return float(loss_sum)

    def _loss(self, batch: Batch) -> torch.Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model(batch.tokens, batch.position_ids, batch.cu_seqlens, batch.masked_positions)
        return self.loss(logits, batch.labels)

    def _unscale_and_clip(self, scale: float, loss_sum: float) -> tuple[float, float]:
        """(gradient norm of the whole model before clipping, loss of the whole global batch)."""
        if scale != 1.0:
            self.gradients.scale(1.0 / scale)
        norm, loss_sum = self.gradients.norm_with(loss_sum)
        if factor := clip_factor(norm, self.config.optim.clip_grad):
            self.gradients.scale(factor)
        return norm, loss_sum

    def _count(self, counts: BatchCounts, values: dict) -> None:
        counters = self.counters
        counters.iteration += 1
        counters.consumed_train_samples += counts.rows
        counters.consumed_tokens += counts.real_tokens
        counters.consumed_proteins += counts.proteins
        counters.skipped_iterations += values["skipped"]

    def _due(self, interval: int | None) -> bool:
        return bool(interval) and self.counters.iteration % interval == 0

    def _why_stop(self, stop: StopSignal, started: float) -> str | None:
        """Decided together: all processes leave after the same step."""
        training = self.config.training
        if self.world.any(stop.received):
            return "preempted"
        minutes = training.exit_duration_in_mins
        if minutes and self.world.any(time.monotonic() - started > 60 * minutes):
            return "exit-duration-in-mins"
        return "exit-interval" if self._due(training.exit_interval) else None

    # ---- what is reported

    def _log_step(self, log: MetricsLog, values: dict, throughput: Throughput) -> str:
        line = {**asdict(self.counters), **values, **throughput.take()}
        log.write(line)
        skipped = "  NON-FINITE, weights not stepped" if values["skipped"] else ""
        return (
            f"iteration {line['iteration']}  loss {line['lm_loss']:.4f}  grad norm {line['grad_norm']:.3f}  "
            f"lr {line['learning_rate']:.3g}  {line['real_tokens_per_second']:,.0f} real tokens/s{skipped}"
        )

    def _log_evaluation(self, log: MetricsLog) -> list[str]:
        lines = []
        self._evaluated_at = self.counters.iteration
        for name, dataset in self.valid_sets.items():
            limit = self._eval_limit() if dataset is self.held_out else None
            loss, masked = self.evaluate(dataset, limit)
            position = asdict(self.counters)
            perplexity = math.exp(min(loss, 700.0))
            values = {"valid_loss": loss, "valid_perplexity": perplexity, "valid_masked": masked}
            log.write({**position, "dataset": name, **values})
            lines.append(f"iteration {self.counters.iteration}  {name} loss {loss:.4f}  perplexity {perplexity:.3f}")
        return lines

    def _eval_limit(self) -> int | None:
        """--eval-iters counts global batches, as Megatron does; evaluation runs micro-batches. 0: the whole split."""
        training = self.config.training
        iters = self.config.logging.eval_iters
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

    def save(self) -> None:
        """Write `<save>/iter_*` whole or not at all."""
        meta = {
            "model_config": asdict(self.model_config),
            "tokenizer": self.tokenizer.to_dict(),
            "config": self.config.to_dict(),
            "counters": asdict(self.counters),
            "layout": asdict(self.world.layout),
            "loss_scaler": self.scaler.state_dict() if self.scaler else None,
        }
        self.saver.save(self.counters.iteration, run_state(self), meta)
        self._saved_at = self.counters.iteration


def _described(name: str, data: Dataset, seq_length: int) -> str:
    """What a data set holds; proteins longer than a row are cropped, never dropped, and counted here."""
    cropped = f", {data.num_cropped:,} longer than a row and cropped" if data.num_cropped else ""
    return f"{name}: {data.num_proteins:,} proteins in {len(data):,} rows of {seq_length} tokens{cropped}"


def _device(config: Config) -> torch.device:
    name = config.training.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this PyTorch sees no CUDA device; use --device cpu or auto")
    device = local_device(name, config.parallel.local_rank)
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise InputError(f"process {device.index} of this node has no GPU: the node shows {torch.cuda.device_count()}")
    if device.type == "cpu" and config.parallel.distributed_backend == "nccl":
        raise InputError("--distributed-backend nccl needs GPUs, but this run computes on the CPU; use gloo")
    return device


def _loss_scaler(config: Config) -> LossScaler:
    o = config.optim
    return LossScaler(o.initial_loss_scale, o.loss_scale, o.loss_scale_window, o.hysteresis, o.min_loss_scale)


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
