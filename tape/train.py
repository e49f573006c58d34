"""Finetune a pretrained protein BERT (or random weights, the baseline) on one TAPE task.

    tape-train transformer secondary_structure --from_pretrained MODEL_DIR --data_dir data --output_dir RUN_DIR \\
        --batch_size 32 --learning_rate 1e-4 --num_train_epochs 10 --holdout 0.1 --patience 3 --bf16
    tape-train ... --resume                         goes on where the run was stopped

RUN_DIR gets config.json + model.safetensors (the best weights on the validation metric, a TAPE directory), args.json
(the flags, where the weights came from, how the validation proteins were chosen, the best step), metrics.jsonl and
last/state.pt. What must hold: with --holdout the valid split is never opened; RUN_DIR is whole at every instant.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from pretrain import errors
from pretrain.errors import InputError
from pretrain.files import write_json
from tape.config import CONFIG_DEFAULTS
from tape.evaluate import finite, read_run, weights_identity
from tape.holdout import hold_out
from tape.options import TrainOptions, check_resumable, choose_device, choose_precision, parse_options
from tape.pretrained import read_config
from tape.splits import SplitData, build_tokenizer, load_split, residue_limit
from tape.tasks import TASKS, Task
from tape.trainer import STATE, Trainer


def build_model(task: Task, options: TrainOptions) -> torch.nn.Module:
    """The model to finetune: a directory's weights or random ones, the same head for the same seed."""
    overrides = {"num_labels": task.num_labels, "finetuning_task": task.name}
    if options.model_config_file:
        file = read_config(options.model_config_file)
        overrides = {key: value for key, value in file.items() if key in CONFIG_DEFAULTS} | overrides
    if options.head:
        overrides["head"] = options.head
    torch.manual_seed(options.seed)
    return task.model.from_pretrained(options.from_pretrained, **overrides)


def choose_validation(task: Task, options: TrainOptions, limit: int) -> tuple[SplitData, SplitData, dict]:
    """(train, validation, how they were chosen): the valid split, or a part held out of train by cluster."""
    tokenizer = build_tokenizer(options.tokenizer)
    train = load_split(task, options.data_dir, "train", tokenizer, limit, options.too_long)
    if options.holdout is None:
        valid = load_split(task, options.data_dir, options.valid_split, tokenizer, limit, options.too_long)
        return train, valid, {"method": f"split {options.valid_split}", "train": len(train), "held_out": len(valid)}
    chosen = hold_out(train.sequences, options.holdout, options.holdout_seed, train.classes)
    print(chosen.describe(), flush=True)
    summary = chosen.summary() | {"fraction": options.holdout, "seed": options.holdout_seed}
    return train.subset(chosen.train), train.subset(chosen.held_out), summary


def prepare_output(options: TrainOptions) -> bool:
    """Make the run's directory; returns whether there is a saved state to go on from."""
    output = Path(options.output_dir)
    if options.from_pretrained and output.resolve() == Path(options.from_pretrained).resolve():
        raise InputError(f"--output_dir {output} is --from_pretrained too; finetuning would overwrite that model")
    (output / STATE.parent).mkdir(parents=True, exist_ok=True)
    started = read_run(output)
    if not options.resume:
        if started:
            raise InputError(f"{output}: already holds a run; --resume goes on with it, or give another --output_dir")
        return False
    if not (output / STATE).is_file():
        print(f"notice: {output} holds no saved state yet; starting afresh", flush=True)
        return False
    check_resumable(options, started.get("args", {}), output / "args.json")
    return True


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(argv, tuple(TASKS))
    task = TASKS[options.task]
    choose_precision(options.fp16, options.bf16, choose_device(options.device))  # refuse before loading anything
    resume = prepare_output(options)
    model = build_model(task, options)
    train, valid, validation = choose_validation(task, options, residue_limit(model, options.max_length))
    source = weights_identity(options.from_pretrained) if options.from_pretrained else None
    trainer = Trainer(task, model, options, train, valid)
    record = {
        "args": options.to_dict(),
        "from_pretrained": source,
        "validation": validation,
        "truncated": {"train": train.truncated, "validation": valid.truncated},
        "head": getattr(model.config, "head", None),
        "parameters": sum(p.numel() for p in model.parameters()),
        "total_steps": trainer.total_steps,
        "warmup_steps": trainer.warmup,
    }
    trainer.on_best = lambda progress: write_json(
        trainer.output / "args.json", finite(record | {"best_step": progress.best_step, "best": progress.best})
    )
    if not resume:
        write_json(trainer.output / "args.json", record)
    describe(task, options, record, trainer)
    begin = time.perf_counter()
    progress = trainer.run(resume)
    minutes = (time.perf_counter() - begin) / 60
    print(
        f"{progress.finished} at step {progress.step}; best {task.metric} {progress.best:.4f} at step "
        f"{progress.best_step} -> {trainer.output} ({minutes:.1f} min, {progress.skipped} steps skipped)",
        flush=True,
    )
    return 0


def describe(task: Task, options: TrainOptions, record: dict, trainer: Trainer) -> None:
    """What is about to run, on one line, and what was cropped."""
    weights = options.from_pretrained or "random weights"
    print(
        f"{task.name}: {weights}, head {record['head']}, {record['parameters']:,} parameters; {len(trainer.train):,} "
        f"proteins train, {len(trainer.valid):,} validate; {trainer.total_steps} steps of {options.batch_size} on "
        f"{trainer.device} in {str(trainer.precision).removeprefix('torch.')}",
        flush=True,
    )
    for name, cropped in record["truncated"].items():
        if cropped["proteins_cropped"]:
            print(f"{name}: {cropped['proteins_cropped']} proteins cropped to {cropped['max_length']} residues")


def cli() -> int:
    """The console command."""
    return errors.run(main)


if __name__ == "__main__":
    sys.exit(cli())
