"""Finetuning, one optimizer step after another: `Trainer(...).run()` returns what it reached.

A step: the batch's parts forward and backward, the sum of their losses divided once by how many losses were summed over
the whole batch, clipping, AdamW. Warm-up, then linear decay to 0. The weights of the best evaluation are kept as a TAPE
directory; `last/state.pt` holds what a resumed run needs.

What must hold: step n depends on the seed and n alone (batch order, dropout), so a resumed run repeats the
uninterrupted run bit by bit on a CPU; files are whole at every instant; a loss that is not finite never reaches the
weights.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pretrain.errors import InputError
from pretrain.files import atomic_path
from pretrain.metrics import MetricsLog
from pretrain.optim import LossScaler, build_optimizer, clip_grad_norm, learning_rate, set_learning_rate
from pretrain.safe_load import safe_torch_load
from tape.batching import eval_batches, num_steps, training_steps
from tape.options import TrainOptions, choose_device, choose_precision
from tape.splits import SplitData, batches, to_device
from tape.tasks import Prediction, Task

STATE = Path("last") / "state.pt"
MAX_BAD_STEPS = 20  # losses in a row that are not finite before a run gives up (fp16 first lowers its scale)


@torch.no_grad()
def predict(
    task: Task,
    model: torch.nn.Module,
    data: SplitData,
    batch_size: int,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    num_workers: int = 0,
) -> tuple[list[Prediction], float]:
    """(one Prediction a protein in the split's order, mean loss) of a whole split, in eval mode."""
    was_training = model.training
    model.eval()
    plan = [(0, indices) for indices in eval_batches(data.lengths, batch_size)]
    found: list[Prediction | None] = [None] * len(data)
    total, count = 0.0, 0
    for (_, indices), batch in zip(plan, batches(data, plan, num_workers), strict=True):
        batch = to_device(batch, device)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            logits = task.forward(model, batch)
        loss, number = task.loss(logits.float(), batch)
        total, count = total + float(loss), count + int(number)
        for index, prediction in zip(indices, task.predictions(logits.float(), batch), strict=True):
            found[index] = prediction
    model.train(was_training)
    return found, total / count if count else math.nan


@dataclass
class RunProgress:
    """Where a run stands: everything beside weights and optimizer that a resumed run needs."""

    step: int = 0  # optimizer steps done
    best: float | None = None  # of the task's metric
    best_step: int = 0
    without_improvement: int = 0
    bad_steps: int = 0
    skipped: int = 0
    finished: str = ""  # why the run ended


class Trainer:
    """One finetuning run on one device."""

    def __init__(self, task: Task, model: torch.nn.Module, options: TrainOptions, train: SplitData, valid: SplitData):
        self.task, self.options, self.train, self.valid = task, options, train, valid
        self.device = choose_device(options.device)
        self.precision = choose_precision(options.fp16, options.bf16, self.device)
        self.output = Path(options.output_dir)
        self.model = model.to(self.device)
        if options.freeze_encoder:
            self.model.bert.requires_grad_(False)
        scale = options.encoder_learning_rate_scale
        self.optimizer = build_optimizer(
            self.model,
            options.learning_rate,
            options.weight_decay,
            lr_scale=lambda name: scale if name.startswith("bert.") else 1.0,
        )
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.scaler = LossScaler(2.0**16) if self.precision == torch.float16 else None
        self.steps_per_epoch = num_steps(len(train), options.batch_size)
        self.total_steps = options.max_steps or options.num_train_epochs * self.steps_per_epoch
        warmup = options.warmup_steps
        self.warmup = self.total_steps // 10 if warmup is None else warmup
        self.eval_every = options.eval_steps or options.eval_freq * self.steps_per_epoch
        self.progress = RunProgress()
        self.on_best: Callable[[RunProgress], None] = lambda progress: None  # called when better weights are saved

    # ---- one step

    def learning_rate(self, step: int) -> float:
        """Of the step that is number `step` from 1: warm-up, then a line that would reach 0 one step after the last."""
        options, end = self.options, self.total_steps + 1
        return learning_rate(
            step, lr=options.learning_rate, min_lr=0.0, style="linear", warmup=self.warmup, decay_steps=end
        )

    def train_step(self, parts: list[dict]) -> tuple[float, float]:
        """One optimizer step on the batch's parts. Returns (mean loss, gradient norm before clipping)."""
        step = self.progress.step + 1
        # Dropout is a function of (seed, step): a resumed run needs no generator's state.
        torch.manual_seed(self.options.seed * 1_000_003 + step)
        lr = self.learning_rate(step)
        set_learning_rate(self.optimizer, lr)
        scale = self.scaler.scale if self.scaler else 1.0
        total, count, divisor = 0.0, 0, None
        for part in parts:
            batch = to_device(part, self.device)
            with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                logits = self.task.forward(self.model, batch)
            loss, number = self.task.loss(logits.float(), batch)
            if divisor is None:  # near the final count, so that half-precision gradients stay in range
                divisor = max(1, int(number)) * len(parts)
            (loss * (scale / divisor)).backward()
            total, count = total + loss.detach(), count + int(number)
        correction = divisor / (max(1, count) * scale)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if correction != 1.0:
            torch._foreach_mul_(gradients, correction)
        norm = clip_grad_norm(self.parameters, self.options.max_grad_norm)
        loss = float(total) / max(1, count)
        self._update(math.isfinite(norm) and math.isfinite(loss))
        return loss, norm

    def _update(self, finite: bool) -> None:
        if self.scaler:
            self.scaler.update(not finite)
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
        if self.options.freeze_encoder:
            self.model.bert.eval()

    # ---- evaluation and files

    def evaluate(self, log: MetricsLog) -> None:
        """Score the validation split, keep the weights if they are the best so far, and save the state."""
        progress, options = self.progress, self.options
        begin = time.perf_counter()
        predictions, loss = predict(
            self.task,
            self.model,
            self.valid,
            options.eval_batch_size,
            self.device,
            self.precision,
            options.num_workers,
        )
        scores = self.task.score(predictions)
        value = scores[self.task.metric]
        improved = self._improves(value)
        if improved:
            progress.best, progress.best_step, progress.without_improvement = value, progress.step, 0
            self.save_weights()
            self.on_best(progress)
        else:
            progress.without_improvement += 1
        if 0 < options.patience <= progress.without_improvement:
            progress.finished = f"no improvement in {progress.without_improvement} evaluations"
        line = {"iteration": progress.step, "dataset": options.valid_split if options.holdout is None else "holdout"}
        seconds = time.perf_counter() - begin
        log.write(line | {"loss": loss, **scores, "best": progress.best, "seconds": round(seconds, 3)})
        star = " *" if improved else ""
        print(
            f"step {progress.step} {self.task.metric} {value:.4f} loss {loss:.4f} ({seconds:.1f} s){star}", flush=True
        )

    def _improves(self, value: float) -> bool:
        best = self.progress.best
        if best is None or math.isnan(best):  # an undefined metric decides nothing: the newest weights stay
            return True
        return value > best if self.task.higher_is_better else value < best

    def save_weights(self) -> None:
        """The run's directory becomes a TAPE model directory with the weights as they are now."""
        self.model.save_pretrained(self.output)

    def save_state(self) -> None:
        """Replace last/state.pt."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "progress": vars(self.progress),
        }
        with atomic_path(self.output / STATE) as temporary:
            torch.save(state, temporary)

    def load_state(self) -> None:
        """Go on from last/state.pt."""
        path = self.output / STATE
        if not path.is_file():
            raise InputError(f"{path}: no such file; there is no saved state to --resume from")
        state = safe_torch_load(path)
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.scaler:
                self.scaler.load_state_dict(state["scaler"])
            self.progress = RunProgress(**state["progress"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{path}: not the state of this run ({error})") from error

    # ---- the run

    def run(self, resume: bool = False) -> RunProgress:
        """Train until the steps or the patience run out."""
        if resume:
            self.load_state()
        progress, options = self.progress, self.options
        log = MetricsLog(self.output, options.log_dir, resume_at=progress.step)
        try:
            if not progress.finished:
                self._loop(log)
        finally:
            log.close()
        return progress

    def _loop(self, log: MetricsLog) -> None:
        progress, options = self.progress, self.options
        plan = list(
            training_steps(
                self.train.lengths,
                options.batch_size,
                options.gradient_accumulation_steps,
                options.seed,
                progress.step,
                self.total_steps,
            )
        )
        requests = [
            (step // self.steps_per_epoch, part) for step, parts in enumerate(plan, progress.step) for part in parts
        ]
        prepared = batches(self.train, requests, options.num_workers)
        bar = _bar(self.total_steps, progress.step)
        losses, begin, evaluations = [], time.perf_counter(), 0
        self._train_mode()
        for parts in plan:
            loss, norm = self.train_step([next(prepared) for _ in parts])
            losses.append(loss)
            bar.update(1)
            if progress.step % options.num_log_iter == 0 or progress.step == self.total_steps:
                seconds = time.perf_counter() - begin
                log.write(self._log_line(losses, norm, seconds))
                losses, begin = [], time.perf_counter()
            last = progress.step == self.total_steps
            if last:
                progress.finished = "all steps done"
            if last or progress.step % self.eval_every == 0:
                paused = time.perf_counter()
                best = progress.best_step
                self.evaluate(log)
                self._train_mode()
                evaluations += 1
                improved = progress.best_step != best
                due = improved if options.save_freq == "improvement" else evaluations % options.save_freq == 0
                if due or progress.finished:
                    self.save_state()
                begin += time.perf_counter() - paused
            if progress.finished:
                break
        bar.close()

    def _log_line(self, losses: list[float], norm: float, seconds: float) -> dict:
        progress = self.progress
        return {
            "iteration": progress.step,
            "epoch": round(progress.step / self.steps_per_epoch, 4),
            "loss": sum(losses) / len(losses),
            "grad_norm": norm,
            "learning_rate": self.learning_rate(progress.step),
            "loss_scale": self.scaler.scale if self.scaler else 1.0,
            "skipped_steps": progress.skipped,
            "seconds_per_step": seconds / len(losses),
        }


def _bar(total: int, done: int):
    """tqdm on a terminal, silent elsewhere (evaluations print their own lines)."""
    from tqdm import tqdm

    return tqdm(total=total, initial=done, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True)
