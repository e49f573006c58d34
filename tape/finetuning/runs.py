"""What tape-train does once its flags are read: the task, the model, the data, one run or a run a seed, their records.

    status = finetune(options, "tape-train transformer stability ...")

What must hold: with --holdout the valid split is never opened; RUN_DIR is whole at every instant; only rank 0 writes.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from proteinlm.devices import denormals_as_zero
from proteinlm.errors import InputError
from proteinlm.files import is_copy, write_json
from proteinlm.model_dir.find import find_model
from proteinlm.running.locks import locked
from tape import recipes
from tape.data.batching import training_steps
from tape.data.holdout import hold_out
from tape.data.lengths import residue_limit
from tape.data.splits import SplitData, load_split
from tape.finetuning.frozen import attach_states
from tape.finetuning.lora import add_lora
from tape.finetuning.options import TrainOptions, table_choice
from tape.finetuning.trainer import Trainer
from tape.metrics import mean_and_spread
from tape.models.config import CONFIG_DEFAULTS, ProteinBertConfig, check_keys, read_keys
from tape.own_data.read import read_own_data
from tape.registry import own_data_task, resolve_trained_task
from tape.runs.flags import is_main_process
from tape.runs.processes import Processes, choose_precision, run_together
from tape.runs.results import read_run, weights_identity
from tape.runs.run_dir import (
    RunProgress,
    check_same_weights,
    clear,
    prepare_outputs,
    refuse_to_overwrite,
    run_directory,
    save_weights,
)
from tape.tasks import Task
from tape.tasks.own_data import OwnTask
from tape.tokenizers import TAPETokenizer

Splits = tuple[SplitData, SplitData | None, dict]


def build_model(task: Task, options: TrainOptions) -> torch.nn.Module:
    """The model to finetune: a directory's weights or random ones, the same head and LoRA for the same seed."""
    overrides = {"num_labels": task.num_labels, "finetuning_task": task.name}
    overrides |= {key: getattr(options, key) for key in ("head", "pooling") if getattr(options, key)}
    config = None
    if options.model_config_file:
        config_class = getattr(task.model, "config_class", ProteinBertConfig)
        if config_class is ProteinBertConfig:  # only what the file says, so that a directory's other keys stay
            file = read_keys(options.model_config_file)
            check_keys(file, options.model_config_file)
            overrides = {key: value for key, value in file.items() if key in CONFIG_DEFAULTS} | overrides
        else:
            config = config_class.from_json_file(options.model_config_file)
    torch.manual_seed(options.seed)
    model = task.model.from_pretrained(options.from_pretrained, config=config, **overrides)
    if options.recompute:
        _recompute(model)
    if options.lora:
        torch.manual_seed(options.seed)
        add_lora(model, options.lora, options.lora_alpha, options.lora_dropout)
    return model


def _recompute(model: torch.nn.Module) -> None:
    switches = [part for part in model.modules() if getattr(part, "recompute", None) is not None]
    if not switches:
        raise InputError(f"--recompute: {type(model).__name__} cannot compute its encoder again")
    for part in switches:
        part.recompute = True


def choose_validation(task: Task, options: TrainOptions, limit: int | None) -> Splits:
    """(train, validation, how they were chosen): the valid split, or a part held out of train by cluster.

    Without evaluations validation is None, and the valid split is not opened.
    """
    tokenizer = TAPETokenizer(options.tokenizer)
    train = load_split(task, options.data_dir, "train", tokenizer, limit, options.too_long)
    if options.holdout is None or (options.csv and task.own.division["valid_held_out"]):
        if not options.evaluates:
            return train, None, {"method": "none", "train": len(train), "held_out": 0}
        valid = load_split(task, options.data_dir, options.valid_split, tokenizer, limit, options.too_long)
        return train, valid, {"method": f"split {options.valid_split}", "train": len(train), "held_out": len(valid)}
    parts = hold_out(train.sequences, options.holdout, options.holdout_seed, train.classes)
    if is_main_process():
        print(parts.describe(), flush=True)
    summary = parts.summary() | {"fraction": options.holdout, "seed": options.holdout_seed}
    held_out = train.subset(parts.held_out) if options.evaluates else None
    return train.subset(parts.train), held_out, summary


def choose_task(options: TrainOptions) -> Task:
    """TAPE's task or a plugin's by its name, or the user's table, read and divided."""
    if options.csv is None:
        return resolve_trained_task(options.task, options.model_type)
    data = replace(read_own_data(options.csv, table_choice(options)), name=options.task)
    data = data.divided(options.holdout, options.test_holdout, options.holdout_seed)
    if is_main_process():
        print("\n".join(data.describe()), flush=True)
    return own_data_task(data, options.model_type)


def expand(options: TrainOptions, directory: str) -> list[TrainOptions]:
    """One TrainOptions a run: of --seeds, each an ordinary run in <directory>/seed<S>."""
    if options.seeds is None:
        return [replace(options, output_dir=directory)]
    runs = []
    for seed in options.seeds:
        output, log_dir = str(Path(directory) / f"seed{seed}"), options.log_dir
        log_dir = log_dir and str(Path(log_dir) / f"seed{seed}")
        runs.append(replace(options, seed=seed, seeds=None, output_dir=output, log_dir=log_dir))
    return runs


def finetune(options: TrainOptions, command: str, debug: bool = False) -> int:
    """The whole command; returns its exit status. command: as it was typed; debug: of tape.runs.processes."""
    task = choose_task(options)
    with denormals_as_zero():
        return run_together(
            options.device, lambda processes, device: run(task, options, command, processes, device), debug
        )


def run(task: Task, options: TrainOptions, command: str, processes: Processes, device: torch.device) -> None:
    """The whole command, on every process."""
    choose_precision(options.fp16, options.bf16, device)  # refuse before loading anything
    if options.force_save not in (None, "TRUE"):
        if processes.is_main:
            save_untrained(task, options)
        return
    runs = expand(options, processes.broadcast(run_directory(options)))
    data, results = None, []
    with contextlib.ExitStack() as locks:

        def prepare() -> list[bool]:
            if not processes.is_main:
                return []
            for each in runs:
                locks.enter_context(locked(each.output_dir, "--output_dir"))
            return prepare_outputs(runs)

        prepared = processes.together(prepare)
        for each, resume in zip(runs, processes.broadcast(prepared), strict=True):
            data, progress = train_one(task, each, processes, device, resume, data, command)
            results.append(progress.best)
    if len(runs) > 1 and processes.is_main and None not in results:
        spread = "{} {:.4f}, standard deviation {:.4f}".format(task.metric, *mean_and_spread(results))
        print(f"{len(runs)} seeds: best {spread} -> {Path(runs[0].output_dir).parent}", flush=True)


def save_untrained(task: Task, options: TrainOptions) -> None:
    """--force_save DIR, the original project's way to a model directory of the right shape."""
    refuse_to_overwrite(Path(options.force_save), "--force_save")
    save_weights(build_model(task, options), Path(options.force_save))
    print(f"untrained model -> {options.force_save}", flush=True)


def train_one(
    task: Task,
    options: TrainOptions,
    processes: Processes,
    device: torch.device,
    resume: bool,
    data: Splits | None,
    command: str,
) -> tuple[Splits, RunProgress]:
    """One run, from its model to its last weights; returns the data, which the next run uses too."""

    def prepare() -> tuple[torch.nn.Module, Splits, dict | None]:
        model = build_model(task, options)
        splits = data or choose_validation(task, options, residue_limit(model.config, options.max_length))
        for part in filter(None, splits[:2]):
            part.check_ids(model.config)
        source = None
        if options.from_pretrained and processes.is_main:
            source = weights_identity(find_model(options.from_pretrained))  # for a name, the directory it means
        if processes.is_main and resume:
            check_same_weights(source, Path(options.output_dir))
            task.remember(Path(options.output_dir), resume)
        return model, splits, source

    model, splits, source = processes.together(prepare)
    train, valid, validation = splits
    if options.csv and options.freeze_encoder and options.embeddings_dir != "none":
        keep_states(task, model, options, [part for part in (train, valid) if part], processes, device)
    trainer = Trainer(task, model, options, train, valid, processes, device)
    record = {
        "args": asdict(options),
        "command": command,
        "recipe": {"name": options.recipe["name"], "values": _values(options), "from": options.recipe["from"]},
        "from_pretrained": source,
        "validation": validation,
        "truncated": {"train": train.truncated} | ({"validation": valid.truncated} if valid else {}),
        "head": getattr(model.config, "head", None),
        "pooling": getattr(model.config, "pooling", None),
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": sum(p.numel() for p in trainer.parameters),
        "total_steps": trainer.total_steps,
        "warmup_steps": trainer.warmup,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": processes.size,
        "precision": str(trainer.precision).removeprefix("torch."),
    }
    path = trainer.output / "args.json"
    before = read_run(trainer.output) if resume and processes.is_main else {}
    trainer.on_best = lambda progress: write_json(
        path, record | {"best_step": progress.best_step, "best": progress.best}
    )

    def keep_record() -> None:
        if options.force_save == "TRUE":
            clear(trainer.output)
        task.remember(trainer.output, resume)
        write_json(path, record)

    if processes.is_main:
        describe(task, options, record, trainer)
        if not resume:
            trainer.on_first_step = keep_record
    begin = time.perf_counter()
    progress = trainer.run(resume)
    minutes = (time.perf_counter() - begin) / 60
    if processes.is_main and "minutes" not in before:  # a run that was finished already stays as it is
        write_json(path, record | _summary(options, train, progress, minutes))
    if processes.is_main:
        best = f"best {task.metric} {progress.best:.4f}" if progress.best is not None else "not evaluated, weights"
        print(
            f"{progress.finished} at step {progress.step}; {best} at step {progress.best_step} -> {trainer.output} "
            f"({minutes:.1f} min, {progress.skipped} steps skipped)",
            flush=True,
        )
    return splits, progress


def keep_states(
    task: OwnTask,
    model: torch.nn.Module,
    options: TrainOptions,
    splits: Sequence[SplitData],
    processes: Processes,
    device: torch.device,
) -> None:
    """Let a frozen encoder run once a protein, if its head can be run without it."""
    if not hasattr(model, "head_logits"):
        return
    table, run = Path(options.csv), Path(options.output_dir)
    beside = table.with_name(f"{table.name}.embeddings")
    place = beside if os.access(table.parent, os.W_OK) and not is_copy(table) else run / "embeddings"
    directory = Path(options.embeddings_dir) if options.embeddings_dir else place
    precision = choose_precision(options.fp16, options.bf16, device)
    output = "seq" if task.own.kind == "per_residue" else "pooled"
    attach_states(model, output, task.own.sequences, splits, directory, device, precision, processes)


def _values(options: TrainOptions) -> dict[str, object]:
    return {key: getattr(options, key) for key in recipes.BUILT_IN}


def _summary(options: TrainOptions, train: SplitData, progress: RunProgress, minutes: float) -> dict:
    """What a finished run adds to args.json. minutes: since the last start."""
    steps = training_steps(train.lengths, options.batch_size, 1, options.seed, 0, progress.step)
    return {
        "best_step": progress.best_step,
        "best": progress.best,
        "finished": progress.finished,
        "steps": progress.step,
        "residues": sum(int(train.lengths[part].sum()) for parts in steps for part in parts),
        "minutes": round(minutes, 2),
    }


def describe(task: Task, options: TrainOptions, record: dict, trainer: Trainer) -> None:
    """What is about to run and by which recipe, and what was cropped."""
    weights = options.from_pretrained or "random weights"
    validate = f"{len(trainer.valid):,} validate" if trainer.valid else "no evaluation"
    trained = record["trained_parameters"]
    part = "" if trained == record["parameters"] else f" ({trained:,} of them trained)"
    times = f" x {record['processes']} processes" if record["processes"] > 1 else ""
    print(
        f"{task.name}: {weights}, head {record['head']}, seed {options.seed}, {record['parameters']:,} parameters{part}"
        f"; {len(trainer.train):,} proteins train, {validate}; {trainer.total_steps} steps of {options.batch_size} on "
        f"{trainer.device.type}{times} in {record['precision']}",
        flush=True,
    )
    print(recipes.describe(_values(options), options.recipe["from"]), flush=True)
    if trainer.norms.unsynced and options.gradient_accumulation_steps < trainer.processes.size:
        print(
            f"notice: {trainer.norms.unsynced} BatchNorm layers take their statistics from one process's proteins; "
            f"--gradient_accumulation_steps {trainer.processes.size} or more makes them those of one process",
            flush=True,
        )
    for name, cropped in record["truncated"].items():
        if cropped["proteins_cropped"]:
            print(f"{name}: {cropped['proteins_cropped']} proteins cropped to {cropped['max_length']} residues")
