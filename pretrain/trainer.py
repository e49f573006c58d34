"""The training loop: `Trainer(config).run()` reads top to bottom what one pretraining run does.

What must hold: the loss of a step is the sum over the masked residues of its global batch divided once by their number;
a non-finite loss or gradient never reaches the weights; everything a resumed run needs is in the checkpoint, so that on
CPU it continues bit for bit.
"""

import contextlib
import math
import time
from dataclasses import asdict, dataclass

import torch

from pretrain import checkpoint
from pretrain.config import Config
from pretrain.data.indexed import IndexedDataset
from pretrain.data.loader import Batch, PackedDataset, PackedLoader, build_datasets, eval_batches
from pretrain.errors import InputError
from pretrain.files import write_json
from pretrain.loss import masked_lm_loss
from pretrain.metrics import MetricsLog, peak_flops
from pretrain.model import ProteinBert, initialize
from pretrain.optim import LossScaler, build_optimizer, clip_grad_norm, set_learning_rate
from pretrain.progress import Progress, Throughput
from pretrain.schedules import Schedule
from pretrain.shutdown import StopSignal
from pretrain.state import load_state, run_state
from pretrain.tokenizer import build_tokenizer


@dataclass
class Counters:
    """Where a run stands; saved with every checkpoint."""

    iteration: int = 0
    consumed_train_samples: int = 0  # packed rows: the whole state of the data order
    consumed_tokens: int = 0  # real tokens, [CLS] included, padding not
    consumed_proteins: int = 0
    skipped_iterations: int = 0


class Trainer:
    """One pretraining run in one process."""

    def __init__(self, config: Config):
        self.adopt(config)
        self.device = _device(config.training.device)
        self.dtype = _dtype(config)
        if config.training.deterministic:
            torch.use_deterministic_algorithms(True)
        torch.manual_seed(config.training.seed)
        self.tokenizer = build_tokenizer(config.data.tokenizer_type, config.data.vocab_file)
        self.train_data, self.valid_sets = _datasets(config, self.tokenizer)
        for name, data in {"train": self.train_data, **self.valid_sets}.items():
            print(_described(name, data, config.data.seq_length), flush=True)
        self.model_config = config.model_config(self.tokenizer)
        self.model = ProteinBert(self.model_config)
        initialize(self.model, config.training.seed)
        self.model.to(self.device)
        self.model.recompute = config.training.recompute_granularity == "full"
        if config.training.compile:
            for layer in self.model.layers.values():
                layer.compile()
        o = config.optim
        self.optimizer = build_optimizer(self.model, o.lr, o.weight_decay, (o.adam_beta1, o.adam_beta2), o.adam_eps)
        self.scaler = _loss_scaler(config) if config.training.fp16 else None
        self.counters = Counters()
        self.resumed = load_state(self) if config.checkpoint.load else None
        self._saved_at = self._evaluated_at = self.resumed
        self.peak_flops = peak_flops(self.device, self.dtype)

    def adopt(self, config: Config) -> None:
        """Take `config` and the schedule that follows from it."""
        self.config = config
        self.schedule = Schedule(config)

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
            num_workers=c.data.num_workers,
        )
        log = MetricsLog(c.checkpoint.save, c.logging.tensorboard_dir, resume_at=self.resumed)
        reason, started = "completed", time.monotonic()
        with StopSignal() as stop, contextlib.closing(log), self._progress() as bar:
            throughput = Throughput(self.model_config, self.peak_flops)
            for micro_batches in loader:
                with throughput.step(micro_batches):
                    values = self.train_step(micro_batches)
                self._count(micro_batches, values)
                bar.advance(self.counters.consumed_train_samples)
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
        write_json(f"{c.checkpoint.save}/exit_reason.json", {"reason": reason, "iteration": self.counters.iteration})
        return reason

    def train_step(self, micro_batches: list[Batch]) -> dict:
        """One optimizer step on a global batch. Returns lm_loss, grad_norm, learning_rate, loss_scale, skipped."""
        self.model.train()
        masked = max(1, sum(batch.num_masked for batch in micro_batches))
        scale = self.scaler.scale if self.scaler else 1.0
        loss_sum = torch.zeros((), dtype=torch.float64)
        for batch in micro_batches:
            loss = self._loss(batch.to(self.device))
            (loss * (scale / masked)).backward()
            loss_sum += loss.detach().double().cpu()
        counters, rows = self.counters, sum(len(batch.tokens) for batch in micro_batches)
        lr = self.schedule.learning_rate(counters.iteration + 1, counters.consumed_train_samples + rows)
        set_learning_rate(self.optimizer, lr)
        norm = self._unscale_and_clip(scale)
        good = math.isfinite(norm) and math.isfinite(float(loss_sum))
        if good:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler:
            self.scaler.update(overflow=not good)
        return {
            "lm_loss": float(loss_sum) / masked,
            "grad_norm": norm,
            "learning_rate": lr,
            "loss_scale": scale,
            "skipped": not good,
        }

    def _loss(self, batch: Batch) -> torch.Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model(batch.tokens, batch.position_ids, batch.cu_seqlens, batch.masked_positions)
        return masked_lm_loss(logits, batch.labels)

    def _unscale_and_clip(self, scale: float) -> float:
        parameters = list(self.model.parameters())
        if scale != 1.0:
            torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], 1.0 / scale)
        return clip_grad_norm(parameters, self.config.optim.clip_grad)

    def _count(self, micro_batches: list[Batch], values: dict) -> None:
        counters = self.counters
        counters.iteration += 1
        counters.consumed_train_samples += sum(len(batch.tokens) for batch in micro_batches)
        counters.consumed_tokens += sum(batch.num_real_tokens for batch in micro_batches)
        counters.consumed_proteins += sum(batch.num_proteins for batch in micro_batches)
        counters.skipped_iterations += values["skipped"]

    def _due(self, interval: int | None) -> bool:
        return bool(interval) and self.counters.iteration % interval == 0

    def _why_stop(self, stop: StopSignal, started: float) -> str | None:
        training = self.config.training
        if stop.received:
            return "preempted"
        if training.exit_duration_in_mins and time.monotonic() - started > 60 * training.exit_duration_in_mins:
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
            limit = self._eval_limit() if name == "valid" else None
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
        return Progress(self.schedule.total_samples, self.counters.consumed_train_samples)

    @torch.no_grad()
    def evaluate(self, dataset: PackedDataset, limit_batches: int | None = None) -> tuple[float, int]:
        """Mean masked cross-entropy in nats over a whole split (or its first batches), and the residues it is over."""
        self.model.eval()
        total, masked = 0.0, 0
        for batch in eval_batches(dataset, self.config.training.micro_batch_size, limit_batches):
            total += float(self._loss(batch.to(self.device)))
            masked += batch.num_masked
        return total / max(1, masked), masked

    # ---- checkpoints

    def save(self) -> None:
        """Write `<save>/iter_*` whole or not at all."""
        c = self.config.checkpoint
        meta = {
            "model_config": asdict(self.model_config),
            "tokenizer": self.tokenizer.to_dict(),
            "config": self.config.to_dict(),
            "counters": asdict(self.counters),
            "loss_scaler": self.scaler.state_dict() if self.scaler else None,
        }
        checkpoint.save_checkpoint(c.save, self.counters.iteration, run_state(self), meta, keep_last=c.keep_last)
        self._saved_at = self.counters.iteration


def _described(name: str, data, seq_length: int) -> str:
    """What a data set holds; proteins longer than a row are cropped, never dropped, and said here."""
    cropped = f", {data.num_cropped:,} longer than a row and cropped" if data.num_cropped else ""
    return f"{name}: {data.num_proteins:,} proteins in {len(data):,} rows of {seq_length} tokens{cropped}"


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this PyTorch sees no CUDA device; use --device cpu or auto")
    return torch.device(name)


def _dtype(config: Config) -> torch.dtype:
    if config.training.bf16:
        return torch.bfloat16
    return torch.float16 if config.training.fp16 else torch.float32


def _loss_scaler(config: Config) -> LossScaler:
    o = config.optim
    return LossScaler(o.initial_loss_scale, o.loss_scale, o.loss_scale_window, o.hysteresis, o.min_loss_scale)


def _datasets(config: Config, tokenizer) -> tuple[object, dict[str, PackedDataset]]:
    """The training stream and the named validation sets: `valid` from --split, and each --valid-data-path whole."""
    d, seed = config.data, config.training.seed
    train, valid, _ = build_datasets(d.data_path, d.split, tokenizer, d.seq_length, d.mask_prob, seed)
    if train is None:
        raise InputError(f"--split {d.split} leaves no protein of {' '.join(d.data_path)} to train on")
    sets = {"valid": valid} if valid is not None else {}
    for entry in d.valid_data_path:
        name, _, prefix = entry.rpartition("=")
        indexed = IndexedDataset(prefix)
        sets[name or prefix.rsplit("/", 1)[-1]] = PackedDataset(
            indexed, (0, len(indexed.documents) - 1), tokenizer, d.seq_length, d.mask_prob, seed, train=False
        )
    return train, sets
