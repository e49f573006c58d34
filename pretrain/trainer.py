"""The training loop: `Trainer(config).run()` reads top to bottom what one pretraining run does.

The same lines run in one process and in hundreds (`pretrain.parallel`): a World that is alone sums over nothing.

A step is read when the next one was started on a GPU (`Trainer.lag`), and at once on a CPU; before an evaluation, a
checkpoint and the end all of them are. So on a GPU the lines of a step, a stop signal and a row of skipped steps are
noticed one step late, by all processes after the same step.

What must hold: everything a resumed run needs is in the checkpoint, so that on CPU it continues bit for bit.
"""

import contextlib
import math
import threading
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch

from pretrain.checkpoint.files import checkpoint_name
from pretrain.checkpoint.saving import Saver
from pretrain.checkpoint.state import RunState
from pretrain.config.options import Config
from pretrain.config.schedules import Schedule
from pretrain.config.validate import for_world
from pretrain.data.blending import build_datasets
from pretrain.data.checking import first_problem
from pretrain.data.dataset import Dataset, PackedDataset
from pretrain.data.indexed import IndexedDataset
from pretrain.data.loader import Batch, PackedLoader, default_workers, evaluation_batches
from pretrain.data.sources import parse_valid_data_path
from pretrain.data.stages import Sampling
from pretrain.interval import Interval, peak_flops, unigram_entropy
from pretrain.numerics import set_numerics
from pretrain.parallel.mesh import World, local_rank_of_launcher, processes_of_torchrun
from pretrain.parallel.replicas import release
from pretrain.replaced_tokens import generator_config
from pretrain.shutdown import stop_signals
from pretrain.train_step import LOSSES, StepReport, StepResult, build_step, detection_means
from proteinlm.devices import choose_device
from proteinlm.errors import InputError
from proteinlm.files import write_json
from proteinlm.metrics_log import MetricsLog, NoLog
from proteinlm.network.attention import activate_flash3
from proteinlm.progress import Progress
from proteinlm.tokenizer import Tokenizer, build_tokenizer


class Evaluation(NamedTuple):
    """Of masked residues, and of those that the model is shown as [MASK]."""

    loss: float  # mean cross-entropy in nats
    masked: int
    mask_loss: float
    mask_accuracy: float  # share whose most likely token is the true one
    rtd_loss: float = 0.0  # with --objective rtd, over all tokens
    rtd_accuracy: float = 0.0


class Trainer:
    """One pretraining run, or this process's part of it."""

    def __init__(self, config: Config):
        self.device = _device(config)
        self.world = World.join(config, self.device)
        config = for_world(config, self.world.size)
        set_numerics(config.training, self.device)
        self.tokenizer = build_tokenizer(config.data.tokenizer_type, config.data.vocab_file)
        self.train_data, self.held_out, self.valid_sets = _datasets(config, self.tokenizer)
        sets = {"train": self.train_data, **self.valid_sets}
        for name, data in sets.items():
            self.say(_described(name, data, config.data.seq_length))
        rows = Schedule(config).total_samples or math.inf
        readers = [reader for data in sets.values() for reader in data.readers]
        tokens = rows * config.data.seq_length
        self.world.raise_together(first_problem(readers, tokens, self.world.rank, self.world.size))
        self.model_config = config.model_config(self.tokenizer)
        if self.model_config.attention_dropout == 0.0:
            activate_flash3(self.device)
        ids = self.tokenizer.mask_id, self.tokenizer.pad_id
        self.step = build_step(config, self.model_config, self.world, *ids)
        self.model, self.optimizer, self.scaler = self.step.model, self.step.optimizer, self.step.scaler
        # Steps started and not read yet. A GPU has the next one to do while the host reads the last.
        self.pending: deque[StepResult] = deque()
        self.lag = 1 if self.device.type == "cuda" else 0
        self.stop, self.interrupt, self.started = threading.Event(), threading.Event(), math.inf
        peak = peak_flops(self.device, self.step.dtype)
        training, generator = config.training, None
        if training.objective == "rtd":
            generator = generator_config(self.model_config, training.generator_size)
        self.interval = Interval(self.model_config, peak and peak * self.world.size, generator)
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
        reason, self.started = None, time.monotonic()
        answering = self.world.answering(self.config.parallel.distributed_timeout_minutes)
        with (
            answering,
            stop_signals() as (self.stop, self.interrupt),
            contextlib.closing(self._open_log()) as log,
            self._progress() as bar,
        ):
            loader = self._loader()
            self.interval.start()
            for micro_batches in loader:
                bar.add(self.train_step(micro_batches).rows)
                reason = self._settle(log, bar, 0 if self._pause_due() else self.lag)
                if not self.pending:
                    with self.interval.paused():
                        if self._due(self.config.logging.eval_interval):
                            bar.show(*self._log_evaluation(log))
                        if self._save_due() and not self.counters.skipped_in_a_row:
                            self.save()
                    reason = reason or ("exit-interval" if self._due(self.config.training.exit_interval) else None)
                if reason:
                    break
            self._settle(log, bar, 0)
            if reason is None and self._evaluated_at != self.counters.iteration:
                bar.show(*self._log_evaluation(log))
            if self.state.saved_at != self.counters.iteration:
                self.save()
            self.saver.wait()
        self._record_exit(reason or "completed")
        return reason or "completed"

    def _loader(self) -> PackedLoader:
        c, consumed, end = self.config, self.counters.consumed_train_samples, self.schedule.total_samples
        if end is not None and consumed >= end:
            self.say(f"notice: nothing left to train on: the schedule ends at sample {end:,}; {consumed:,} consumed")
        rows, share = c.training.micro_batch_size, (self.world.dp_rank, self.world.dp_size)
        workers, pin = c.data.num_workers, self.device.type == "cuda"
        workers = default_workers(self.device) if workers is None else workers
        return PackedLoader(
            self.train_data, rows, self.schedule.batch_size, consumed, end, *share, workers, pin_memory=pin
        )

    def train_step(self, micro_batches: list[Batch]) -> StepResult:
        """Start a step on the next global batch, of which this replica has `micro_batches`; `advance` ends it."""
        rows = sum(len(batch.tokens) for batch in micro_batches) * self.world.dp_size
        consumed = self.counters.consumed_train_samples + sum(result.rows for result in self.pending) + rows
        lr = self.schedule.learning_rate(self._started() + 1, consumed)
        self.pending.append(self.step(micro_batches, lr, self._stops))
        return self.pending[-1]

    def _stops(self) -> tuple[bool, ...]:
        """This process's wishes to stop, as pretrain.train_step.STOPS names them."""
        minutes = self.config.training.exit_duration_in_mins
        over = minutes is not None and time.monotonic() - self.started > 60 * minutes
        return self.stop.is_set(), self.interrupt.is_set(), over

    def advance(self) -> StepReport:
        """Read the oldest step that was started, and count it as taken or skipped."""
        report = self.pending.popleft().read()
        counts, values, counters = report.counts, report.values, self.counters
        counters.iteration += 1
        counters.consumed_train_samples += counts.rows
        counters.consumed_tokens += counts.real_tokens
        counters.consumed_proteins += counts.proteins
        counters.skipped_iterations += values["skipped"]
        searching = self.scaler is not None and self.scaler.can_lower(values["loss_scale"])
        counters.skipped_in_a_row = counters.skipped_in_a_row + (not searching) if values["skipped"] else 0
        self.interval.add(counts, values)
        return report

    def _settle(self, log: MetricsLog | NoLog, bar: Progress, lag: int) -> str | None:
        """Read and log the steps started, but for the last `lag`. Returns why to stop, the same on every process."""
        reason = None
        while len(self.pending) > lag:
            report = self.advance()
            if self._due(self.config.logging.log_interval) or report.values["skipped"]:
                bar.show(self._log_step(log, report.values))
            self._refuse_to_skip_for_ever()
            reason = reason or report.stop
        return reason

    def _started(self) -> int:
        """Steps of the run that were started."""
        return self.counters.iteration + len(self.pending)

    def _pause_due(self) -> bool:
        """Whether something follows this step that needs the state as it is after it."""
        intervals = self.config.logging.eval_interval, self.config.training.exit_interval
        return any(interval and self._started() % interval == 0 for interval in intervals) or self._save_due()

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

    # ---- what is reported

    def _open_log(self) -> MetricsLog | NoLog:
        self.unigram_entropies: dict[str, float] = {}
        if not self.world.is_main:
            return NoLog()
        sets = {"train": self.train_data, **self.valid_sets}
        self.unigram_entropies = {name: unigram_entropy(data) for name, data in sets.items()}
        c = self.config.checkpoint
        self.say(f"train: frequencies of the residues alone give a loss of {self.unigram_entropies['train']:.3f}")
        return MetricsLog(c.save, self.config.logging.tensorboard_dir, self.resumed, self._loads_its_own())

    def _log_step(self, log: MetricsLog | NoLog, values: dict) -> str:
        unigram = self.unigram_entropies.get("train")
        line = {**asdict(self.counters), **values, **self.interval.take(), "unigram_entropy": unigram}
        log.write(line)
        skipped = "  NON-FINITE, weights not stepped" if values["skipped"] else ""
        return (
            f"iteration {line['iteration']}  loss {line['lm_loss']:.4f} ([MASK] alone {line['mask_loss']:.4f}, "
            f"{line['mask_accuracy']:.1%} right)  "
            f"grad norm {line['grad_norm']:.3f}  lr {line['learning_rate']:.3g}  "
            f"{line['real_tokens_per_second']:,.0f} real tokens/s{skipped}"
        )

    def _log_evaluation(self, log: MetricsLog) -> list[str]:
        lines = []
        self._evaluated_at = self.counters.iteration
        for name, dataset in self.valid_sets.items():
            limit = self._eval_limit() if dataset is self.held_out else None
            result, unigram = self.evaluate(dataset, limit), self.unigram_entropies.get(name, math.nan)
            perplexity = math.exp(min(result.loss, 700.0))
            values = {
                "valid_loss": result.loss,
                "valid_perplexity": perplexity,
                "valid_masked": result.masked,
                "valid_mask_loss": result.mask_loss,
                "valid_mask_accuracy": result.mask_accuracy,
                "unigram_entropy": unigram,
            }
            if self.config.training.objective == "rtd":
                values |= {"valid_rtd_loss": result.rtd_loss, "valid_rtd_accuracy": result.rtd_accuracy}
            log.write({**asdict(self.counters), "dataset": name, **values})
            lines.append(
                f"iteration {self.counters.iteration}  {name} loss {result.loss:.4f}  perplexity {perplexity:.3f}  "
                f"[MASK] alone {result.mask_loss:.4f}, {unigram - result.mask_loss:.4f} below frequencies alone, "
                f"{result.mask_accuracy:.1%} right"
            )
        return lines

    def _eval_limit(self) -> int | None:
        """--eval-iters counts global batches, as Megatron does; evaluation runs micro-batches. 0: the whole split."""
        training, iters = self.config.training, self.config.logging.eval_iters
        return iters * (training.global_batch_size // training.micro_batch_size) if iters else None

    def _progress(self) -> Progress:
        total, done = self.schedule.total_samples, self.counters.consumed_train_samples
        return Progress("rows", total, done, seconds=math.inf, quiet=not self.world.is_main)  # it has lines of its own

    @torch.no_grad()
    def evaluate(self, dataset: Dataset, limit_batches: int | None = None) -> Evaluation:
        """Of a whole split, or of its first batches."""
        self.model.eval()
        rows, world = self.config.training.micro_batch_size, self.world
        total = torch.zeros(1 + len(LOSSES), dtype=torch.float64, device=self.device)
        share = (world.dp_rank, world.dp_size, world.layout.pp)
        for batches in evaluation_batches(dataset, rows, limit_batches, *share, same_shape=not world.alone):
            total[1:] += self.step.evaluate(batches)
            total[0] += sum(batch.num_masked for batch in batches)
        release(self.model)
        sums = world.sum_over_all(total * world.counts_loss).tolist()
        n = dict(zip(("masked", *LOSSES), sums, strict=True))
        masked, shown = max(1, n["masked"]), max(1, n["shown_mask"])
        means = n["loss"] / masked, int(n["masked"]), n["mask_loss"] / shown, n["mask_correct"] / shown
        return Evaluation(*means, **detection_means(n))

    # ---- checkpoints

    def _save_due(self) -> bool:
        """Whether a multiple of --save-interval was reached since the last save."""
        interval = self.config.checkpoint.save_interval
        return bool(interval) and self._started() // interval > (self.state.saved_at or 0) // interval

    def save(self) -> None:
        """Write `<save>/iter_*` whole or not at all. In a row of skipped steps no earlier checkpoint is removed."""
        options, counters = self.config.checkpoint, self.counters
        tensors = self.state.tensors(not options.no_save_optim, None if options.no_save_rng else self.device)
        keep_last = None if counters.skipped_in_a_row else options.keep_last
        self.saver.save(counters.iteration, tensors, self.state.meta(), keep_last)
        self.state.saved_at = counters.iteration

    def how_to_go_on(self) -> str:
        """For the user who interrupted the run."""
        command = "the same command" if self._loads_its_own() else f"--load {self.config.checkpoint.save}"
        return f"iteration {self.counters.iteration} is saved, {command} goes on"

    def _loads_its_own(self) -> bool:
        options = self.config.checkpoint
        return options.load is not None and Path(options.load).resolve() == Path(options.save).resolve()

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
    if device.type == "cuda" and (processes := processes_of_torchrun()) > (gpus := torch.cuda.device_count()):
        raise InputError(f"torchrun started {processes} processes on this machine, but there are {gpus} GPUs")
    if device.type == "cpu" and config.parallel.distributed_backend == "nccl":
        raise InputError("--distributed-backend nccl needs GPUs, but this run computes on the CPU; use gloo")
    return device


def _datasets(config: Config, tokenizer: Tokenizer) -> tuple[Dataset, Dataset | None, dict[str, Dataset]]:
    """(what is trained on, what --split holds out of it, every validation set by name)."""
    d, seed = config.data, config.training.seed
    sampling = Sampling.of(d)
    train, held_out, _ = build_datasets(d.data_path, d.split, tokenizer, d.seq_length, d.mask_prob, seed, sampling)
    sets: dict[str, Dataset] = {"valid": held_out} if held_out is not None else {}
    for name, prefix in parse_valid_data_path(d.valid_data_path).items():
        shard = IndexedDataset(prefix)
        documents = (0, len(shard.documents) - 1)
        sets[name] = PackedDataset(shard, documents, tokenizer, d.seq_length, d.mask_prob, seed, train=False)
    return train, held_out, sets
