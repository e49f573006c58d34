"""The directory of a finetuning run: its name, starting and resuming it, and the state between two calls.

    RUN_DIR/config.json, model.safetensors      a TAPE directory: the best weights (without evaluations, the newest)
    RUN_DIR/args.json, metrics.jsonl            flags, recipe and origin; every logged line
    RUN_DIR/last/config.json, model.safetensors the weights at the last saved state, a TAPE directory too
    RUN_DIR/last/state.pt                       what a resumed run needs: weights, optimizer, loss scale, progress

What must hold: each file is whole at every instant; only rank 0 writes.
"""

import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from proteinlm.errors import InputError
from proteinlm.files import atomic_path, check_writable
from proteinlm.model_dir.files import check_finite, count_not_finite
from proteinlm.model_dir.find import CONFIG_NAME, SAFE_NAME, TORCH_NAME, find_model
from proteinlm.optim import LossScaler
from proteinlm.untrusted.safe_load import safe_torch_load
from tape.finetuning.lora import load_trained_state, merged, trained_state
from tape.finetuning.options import TrainOptions, changed_flag
from tape.runs.results import read_run

STATE = Path("last") / "state.pt"


@dataclass
class RunProgress:
    """Where a run stands: everything beside weights and optimizer that a resumed run needs."""

    step: int = 0  # optimizer steps done
    best: float | None = None  # of the task's metric
    best_loss: float | None = None  # at that evaluation
    best_step: int = 0
    without_improvement: int = 0
    bad_steps: int = 0
    skipped: int = 0
    finished: str = ""  # why the run ended
    losses: list[float] = field(default_factory=list)  # of the steps since the last line of the log


def run_directory(options: TrainOptions) -> str:
    """Where the run goes: --output_dir; with --exp_name, as in TAPE, that name inside it.

    Without either, ./results/<task>-<model type>-<--time_or_name, else time and six digits>, the original project's
    rule. Not a pure function (the time): ask once.
    """
    if options.exp_name:
        return str(Path(options.output_dir or "results") / options.exp_name)
    if options.output_dir:
        return options.output_dir
    name = options.time_or_name
    if name in (None, "time"):
        name = f"{time.strftime('%y-%m-%d-%H-%M-%S')}_{random.SystemRandom().randrange(10**6):06d}"
    return str(Path("results") / f"{options.task}-{options.model_type}-{name}")


def refuse_to_overwrite(directory: Path, flag: str) -> None:
    """InputError where the directory holds a model or a run, whose record would be false afterwards."""
    for name in (CONFIG_NAME, "args.json", SAFE_NAME, TORCH_NAME):
        if (directory / name).exists():
            raise InputError(f"{flag} {directory}: already holds {name}; give a new directory")


def prepare_outputs(runs: Sequence[TrainOptions]) -> list[bool]:
    """For each run whether there is a saved state to go on from; nothing is written.

    InputError for a directory that holds what the run would overwrite. Where a run was cut off, the command that
    started it goes on: of several runs with those that are not done.
    """
    started = [_started(options) for options in runs]
    goes_on = any(started) and not all(kept.get("finished") for kept in started)
    return [_prepare(options, kept, options.resume or goes_on) for options, kept in zip(runs, started, strict=True)]


def _started(options: TrainOptions) -> dict:
    """The record of what the run's directory holds, {} where nothing was started."""
    output = Path(options.output_dir)
    if options.from_pretrained and output.resolve() == find_model(options.from_pretrained).resolve():
        raise InputError(f"--output_dir {output} is --from_pretrained too; finetuning would overwrite that model")
    own = ("metrics.jsonl", CONFIG_NAME, SAFE_NAME)
    for name in ("args.json", *own, *(STATE.parent / name for name in own[1:]), STATE):
        check_writable(output / name)
    started = read_run(output)
    if not started:
        refuse_to_overwrite(output, "--output_dir")
    return started


def _prepare(options: TrainOptions, started: dict, goes_on: bool) -> bool:
    output = Path(options.output_dir)
    if options.force_save == "TRUE" or not (started or options.resume):
        return False
    change = changed_flag(options, started.get("args", {}))
    holds = [name for name in (STATE, SAFE_NAME, TORCH_NAME) if (output / name).is_file()]
    if holds and not options.resume and (change or not goes_on):
        raise InputError(
            f"{output}: already holds a run; --resume goes on with it, --force_save begins it anew, or give "
            "another --output_dir"
        )
    if STATE not in holds:
        print(f"notice: {output} holds no saved state yet; starting afresh", flush=True)
        return False
    if change:
        raise InputError(f"{output / 'args.json'}: the run to resume was started with {change}")
    if not options.resume and not started.get("finished"):
        print(f"notice: {output} holds this run, which was cut off; going on", flush=True)
    return True


def check_same_weights(source: dict | None, output: Path) -> None:
    """A resumed run must start from the weights it was started with."""
    before = read_run(output).get("from_pretrained")
    if before and source and before["weights_sha256"] != source["weights_sha256"]:
        raise InputError(f"{source['path']}: its {source['weights']} is not the one that {output} was started with")


def clear(output: Path) -> None:
    """Remove what a run left, its results of evaluation included, args.json last: until then it is a started run."""
    shutil.rmtree(output / "last", ignore_errors=True)
    for name in ("metrics.jsonl", "data.json", "data.csv", CONFIG_NAME, SAFE_NAME, TORCH_NAME):
        (output / name).unlink(missing_ok=True)
    task = read_run(output).get("args", {}).get("task")
    for path in output.glob(f"{task}-*.*") if task else ():
        path.unlink()
    (output / "args.json").unlink(missing_ok=True)


def save_weights(model: nn.Module, directory: Path) -> None:
    """A TAPE directory of the weights as they are now, LoRA's updates merged in."""
    with merged(model) as plain:
        plain.save_pretrained(directory)


def save_state(
    output: Path, model: nn.Module, optimizer: Optimizer, scaler: LossScaler | None, progress: RunProgress
) -> None:
    """Replace RUN_DIR/last."""
    state = {
        "model": trained_state(model),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler else None,
        "progress": vars(progress),
    }
    save_weights(model, output / STATE.parent)
    with atomic_path(output / STATE) as temporary:
        torch.save(state, temporary)


def load_state(output: Path, model: nn.Module, optimizer: Optimizer, scaler: LossScaler | None) -> RunProgress:
    """Go on from last/state.pt."""
    path = output / STATE
    if not path.is_file():
        raise InputError(f"{path}: no such file; there is no saved state to --resume from")
    state = safe_torch_load(path)
    try:
        load_trained_state(model, state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if scaler:
            scaler.load_state_dict(state["scaler"])
        progress = RunProgress(**state["progress"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path}: not the state of this run ({error})") from error
    check_finite(count_not_finite(state["model"]), path)
    return progress
