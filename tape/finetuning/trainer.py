"""Finetuning, one optimizer step after another: `Trainer(...).run()` returns what it reached.

A step: the batch's parts forward and backward, the sum of their losses divided once by how many losses were summed over
the whole batch, clipping, AdamW. Warm-up, then linear decay to 0. The weights of the best evaluation are kept as a TAPE
directory; `last/` holds the newest, and what a resumed run needs (tape.runs.run_dir).

With several processes (torchrun) the parts of a step are dealt out, losses and counts and gradients added up, and the
sum divided once: the same step whatever their number, up to the order of fp32 sums and but for dropout, whose masks
differ. BatchNorm: tape.finetuning.norms.

What must hold: step n depends on the seed and n alone (batch order, dropout), so a resumed run repeats the
uninterrupted run bit by bit on a CPU; files are whole at every instant; a loss that is not finite never reaches the
weights.
"""

import contextlib
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from proteinlm.devices import choose_device
from proteinlm.errors import InputError
from proteinlm.metrics_log import MetricsLog, NoLog
from proteinlm.optim import (
    LossScaler,
    build_optimizer,
    clip_grad_norm,
    learning_rate,
    scale_in_place,
    set_learning_rate,
)
from proteinlm.progress import Progress
from tape.data.batching import Share, num_steps, share_step, training_steps
from tape.data.examples import TapeBatch
from tape.data.splits import SplitData, batches
from tape.data.users_code import refuse
from tape.finetuning.layers import encoder_name, freeze, learning_rate_scales
from tape.finetuning.norms import NormKeeper
from tape.finetuning.options import TrainOptions
from tape.runs.processes import Processes, choose_precision
from tape.runs.run_dir import RunProgress, load_state, save_state, save_weights
from tape.scoring.inference import predict
from tape.tasks import Task
from tape.tasks.base import describe_constant, run_batch

STATES_SAVE_SECONDS = 60.0  # between saved states of a head on a frozen encoder's kept states
MAX_BAD_STEPS = 20  # losses in a row that are not finite before a run gives up (fp16 first lowers its scale)


class Trainer:
    """One finetuning run on one device, or this process's part of it."""

    def __init__(
        self,
        task: Task,
        model: torch.nn.Module,
        options: TrainOptions,
        train: SplitData,
        valid: SplitData | None,  # None: no evaluations
        processes: Processes | None = None,
        device: torch.device | None = None,
    ):
        self.task, self.options, self.train, self.valid = task, options, train, valid
        self.processes = processes or Processes()
        self.device = device or choose_device(options.device)
        self.precision = choose_precision(options.fp16, options.bf16, self.device)
        self.output = Path(options.output_dir)
        self.model = model.to(self.device)
        self.processes.same_tensors(itertools.chain(model.parameters(), model.buffers()))
        self.norms = NormKeeper(self.model, self.processes)
        self.frozen = freeze(self.model, options.freeze_layers, options.freeze_encoder)
        scales = learning_rate_scales(self.model, options.layer_decay, options.encoder_learning_rate_scale)
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            refuse(self.model, "__init__ should make a parameter that can be trained; there is none")
        self.optimizer = build_optimizer(self.model, options.learning_rate, options.weight_decay, lr_scale=scales)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        half = self.precision == torch.float16
        self.scaler = LossScaler(2.0**16, static=options.loss_scale or None) if half else None
        self.steps_per_epoch = num_steps(len(train), options.batch_size)
        self.total_steps = options.max_steps or options.num_train_epochs * self.steps_per_epoch
        warmup = int(self.total_steps * (options.warmup_fraction or 0.0) + 1e-9)
        self.warmup = warmup if options.warmup_steps is None else options.warmup_steps
        self.eval_every = options.eval_steps or max(1, options.eval_freq) * self.steps_per_epoch
        self.best_head: dict[str, torch.Tensor] | None = None  # better weights that are not on disk yet
        self.written = time.monotonic()
        self.progress = RunProgress()
        self.on_first_step: Callable[[], None] = lambda: None  # called after it: until then nothing is written
        self.on_best: Callable[[RunProgress], None] = lambda progress: None  # called when better weights are saved

    # ---- one step

    def learning_rate(self, step: int) -> float:
        """Of the step that is number `step` from 1: warm-up, then a line that would reach 0 one step after the last."""
        peak, end = self.options.learning_rate, self.total_steps + 1
        return learning_rate(step, lr=peak, min_lr=0.0, style="linear", warmup=self.warmup, decay_steps=end)

    def train_step(self, parts: Sequence[TapeBatch], share: Share) -> tuple[float, float]:
        """One optimizer step on the batch's parts (this process's share of them).

        Returns (mean loss over the whole batch, gradient norm before clipping), the same on every process.
        """
        step = self.progress.step + 1
        # Dropout is a function of (seed, step) and the process: a resumed run needs no generator's state.
        seed = self.options.seed * 1_000_003 + step + self.processes.rank * 7_368_787_000_000
        if self.device.type == "cpu":  # torch.manual_seed queues a call for each other device, with a stack trace
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        set_learning_rate(self.optimizer, self.learning_rate(step))
        before = self.norms.begin(share)
        total, numbers, divisor, scale = 0.0, 0, None, float(self.scaler.scale) if self.scaler else 1.0
        for part, idle in zip(parts, share.idle, strict=True):
            self.norms.set_idle(idle)
            loss, number = self._forward(part)
            loss, number = (torch.nan_to_num(loss) * 0.0, 0) if idle else (loss, int(number))
            if divisor is None:
                # Near the final count, so that half-precision gradients stay in range; the same on every process,
                # for a synchronised norm passes gradients from one to another.
                (first,) = self.processes.sum([number], self.device)
                divisor = max(1, first if share.split else first / self.processes.size) * share.total
            (loss * (scale / divisor)).backward()
            total, numbers = total + loss.detach(), numbers + number
        total, numbers = self.processes.sum([float(total), numbers], self.device)
        self.norms.end(share, before)
        self.processes.sum_gradients(self.parameters)
        correction = divisor / (max(1, numbers) * scale)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if correction != 1.0:
            scale_in_place(gradients, correction)
        norm = clip_grad_norm(self.parameters, self.options.max_grad_norm)
        loss = total / max(1, numbers)
        self._update(math.isfinite(norm) and math.isfinite(loss))
        return loss, norm

    def _forward(self, part: TapeBatch) -> tuple[torch.Tensor, torch.Tensor | int]:
        """(sum of the losses of a part, how many were summed)."""
        _, loss, number = run_batch(self.task, self.model, part.to(self.device), self.precision)
        return loss, number

    def _update(self, finite: bool) -> None:
        if self.scaler:
            self.scaler.update(torch.tensor(not finite))
        if finite:
            self.optimizer.step()
            self.progress.bad_steps = 0
        else:
            self.progress.bad_steps += 1
            self.progress.skipped += 1
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        limit = MAX_BAD_STEPS + (20 if self.scaler else 0)
        if self.progress.bad_steps >= limit:
            raise InputError(
                f"{self.output}: the loss was not finite for {limit} steps in a row, up to step {self.progress.step}; "
                f"a lower --learning_rate than {self.options.learning_rate} may help"
            )

    def _train_mode(self) -> None:
        self.model.train()
        for module in self.frozen:
            module.eval()

    # ---- evaluation and files

    def evaluate(self, log: MetricsLog | NoLog) -> None:
        """Score the validation split, keep the weights if they are the best so far, count evaluations without."""
        progress, options = self.progress, self.options
        begin = time.perf_counter()
        size, workers = options.eval_batch_size, options.num_workers
        predictions, loss = predict(
            self.task, self.model, self.valid, size, self.device, self.precision, workers, self.processes
        )
        scores = self.processes.broadcast(self.task.score(predictions) if self.processes.is_main else None)
        value = scores[self.task.metric]
        improved = self._improves(value, loss)
        if improved:
            progress.best, progress.best_step, progress.without_improvement = value, progress.step, 0
            progress.best_loss = loss
            self.keep_weights()
        else:
            progress.without_improvement += 1
        if 0 < options.patience <= progress.without_improvement:
            progress.finished = f"no improvement in {progress.without_improvement} evaluations"
        line = {"iteration": progress.step, "dataset": options.valid_split if options.holdout is None else "holdout"}
        seconds = time.perf_counter() - begin
        log.write(line | {"loss": loss, **scores, "best": progress.best, "seconds": round(seconds, 3)})
        if self.processes.is_main:
            score = f"{self.task.metric} {value:.4f} loss {loss:.4f}"
            constant = describe_constant(predictions)
            remark = f"{' *' if improved else ''}{f'; {constant}' if constant else ''}"
            print(f"step {progress.step} {score} ({seconds:.1f} s){remark}", flush=True)

    def _improves(self, value: float, loss: float) -> bool:
        best, best_loss = self.progress.best, self.progress.best_loss
        if value == best and self.task.loss_breaks_ties and best_loss is not None:
            return loss < best_loss
        if best is None or math.isnan(best):  # an undefined metric decides nothing: the newest weights stay
            return True
        return value > best if self.task.higher_is_better else value < best

    def keep_weights(self) -> None:
        """The run's directory becomes a TAPE model directory with the weights as they are now.

        Where a frozen encoder's states are kept an epoch takes less time than writing the encoder: its head is put
        aside, and written with the next saved state.
        """
        if self.train.states is not None:
            self.best_head = self._head()
        elif self.processes.is_main:
            save_weights(self.model, self.output)
            self.on_best(self.progress)

    def _head(self) -> dict[str, torch.Tensor]:
        """A copy of what is not the encoder."""
        prefix = encoder_name(self.model) + "."
        return {name: v.clone() for name, v in self.model.state_dict().items() if not name.startswith(prefix)}

    def _write_best_head(self) -> None:
        if self.best_head is None or not self.processes.is_main:
            return
        now = self._head()
        self.model.load_state_dict(self.best_head, strict=False)
        save_weights(self.model, self.output)
        self.on_best(self.progress)
        self.model.load_state_dict(now, strict=False)
        self.best_head = None

    # ---- the run

    def run(self, resume: bool = False) -> RunProgress:
        """Train until the steps or the patience run out."""
        if resume:
            state = (self.output, self.model, self.optimizer, self.scaler)
            self.progress = self.processes.together(lambda: load_state(*state))
        progress, log = self.progress, NoLog()
        if self.processes.is_main:
            log = MetricsLog(self.output, self.options.log_dir, resume_at=progress.step)
        with contextlib.closing(log):
            if not progress.finished:
                self._loop(log)
        self.processes.barrier()  # whoever reads the directory next finds it whole
        return progress

    def _loop(self, log: MetricsLog | NoLog) -> None:
        progress, options, first = self.progress, self.options, self.progress.step + 1
        steps = enumerate(self._plan(), progress.step)
        requests = ((step // self.steps_per_epoch, part) for step, share in steps for part in share.parts)
        prepared = batches(self.train, requests, options.num_workers)
        quiet = not (self.processes.is_main and sys.stderr.isatty())  # elsewhere evaluations print their own lines
        begin, timed, pauses = time.perf_counter(), progress.step, 0
        self._train_mode()
        with Progress("steps", self.total_steps, progress.step, quiet=quiet) as bar:
            for share in self._plan():
                loss, norm = self.train_step([next(prepared) for _ in share.parts], share)
                progress.losses.append(loss)
                bar.add(1)
                if progress.step == first:
                    self.on_first_step()
                if progress.step % options.num_log_iter == 0 or progress.step == self.total_steps:
                    seconds = (time.perf_counter() - begin) / (progress.step - timed)
                    log.write(self._log_line(progress.losses, norm, seconds))
                    progress.losses, timed, begin = [], progress.step, time.perf_counter()
                if progress.step == self.total_steps:
                    progress.finished = "all steps done"
                if progress.finished or progress.step % self.eval_every == 0:
                    paused = time.perf_counter()
                    pauses += 1
                    self._pause(log, pauses)
                    begin += time.perf_counter() - paused
                if progress.finished:
                    break

    def _plan(self) -> Iterator[Share]:
        """This process's share of every step that is left."""
        options, first, last = self.options, self.progress.step, self.total_steps
        accumulation = options.gradient_accumulation_steps
        steps = training_steps(self.train.lengths, options.batch_size, accumulation, options.seed, first, last)
        return (share_step(parts, self.processes.rank, self.processes.size) for parts in steps)

    def _pause(self, log: MetricsLog | NoLog, number: int) -> None:
        """Between two steps, for the `number`-th time: evaluate, and save the state if it is due."""
        progress, options = self.progress, self.options
        best = progress.best_step
        if self.valid is not None:
            self.evaluate(log)
            self._train_mode()
        improved = progress.best_step != best
        due = improved if options.save_freq == "improvement" else number % options.save_freq == 0
        if self.train.states is not None and time.monotonic() - self.written < STATES_SAVE_SECONDS:
            due = False
        if due or progress.finished:
            if self.valid is None:  # no evaluation says which weights are best: the newest
                progress.best_step = progress.step
                self.keep_weights()
            self._write_best_head()
            self.written = time.monotonic()
            if self.processes.is_main:
                save_state(self.output, self.model, self.optimizer, self.scaler, self.progress)

    def _log_line(self, losses: list[float], norm: float, seconds_per_step: float) -> dict:
        step = self.progress.step
        return {
            "iteration": step,
            "epoch": round(step / self.steps_per_epoch, 4),
            "loss": sum(losses) / len(losses),
            "grad_norm": norm,
            "learning_rate": self.learning_rate(step),
            "loss_scale": float(self.scaler.scale) if self.scaler else 1.0,
            "skipped_steps": self.progress.skipped,
            "seconds_per_step": seconds_per_step,
        }
