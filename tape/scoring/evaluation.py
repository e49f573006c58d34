"""What tape-eval does once its flags are read: the model, its predictions of each split, numbers with intervals, files.

    status = evaluate(args, run)            args: tape-eval's flags; run: the run's args.json

What must hold: nothing is left out of a split; no number depends on --batch_size, padding or the number of processes.
"""

import argparse
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from proteinlm.errors import InputError
from proteinlm.files import finite, write_json
from tape.data.lengths import residue_limit
from tape.data.splits import choose_splits, load_split
from tape.metrics import canonical_metric
from tape.own_data.data import DATA_JSON, OwnData
from tape.own_data.report import describe_own, scored_table
from tape.registry import own_data_task, resolve_trained_task
from tape.runs.flags import (
    is_main_process,
)
from tape.runs.plugins import plugins_of
from tape.runs.processes import Processes, choose_precision, run_together
from tape.runs.results import weights_identity
from tape.scoring.bootstrap import Scores, confidence_interval, mean_of, several_intervals
from tape.scoring.files import (
    per_protein_metrics,
    per_protein_scores,
    save_predictions,
    save_results_pkl,
)
from tape.scoring.inference import load_finetuned, predict
from tape.scoring.resampled import resamples
from tape.tasks import Prediction, Task
from tape.tasks.base import describe_constant
from tape.tasks.own_data import OwnTask
from tape.tokenizers import TAPETokenizer


def evaluate(args: argparse.Namespace, run: dict) -> int:
    """The whole command; returns its exit status."""
    directory = Path(args.run_dir)
    with plugins_of(run, args.plugin):
        task = choose_task(args, run)
    for name in map(canonical_metric, args.metrics or ()):
        # a plugin's model may bring metrics of its own, known only from its outputs: all_metrics checks those
        if name not in task.metrics and task.metric != "loss":
            raise InputError(f"--metrics {name}: {task.name} has {', '.join(task.metrics)}")
    splits, absent = choose_splits(task, args.data_dir, args.split)

    def work(processes: Processes, device: torch.device) -> None:
        if absent and processes.is_main:
            print(f"notice: {args.data_dir} holds no split {', '.join(absent)} of {task.name}: left out", flush=True)
        model = processes.together(lambda: load_finetuned(task, directory)).to(device)
        for split in splits:
            result = evaluate_split(task, model, split, args, run, processes)
            if result is not None:
                target = directory / f"{task.name}-{split}.json"
                write_json(target, result)
                print(describe(result, target), flush=True)
        processes.barrier()

    return run_together(args.device, work, args.debug)


def intervals(task: Task, predictions: Sequence[Prediction], asked: Sequence[str]) -> dict[str, dict]:
    """95% intervals over proteins of the primary metric and of those asked for that are means over proteins."""
    if isinstance(task, OwnTask):
        statistics, scores = task.statistics(predictions), sum(p.scores.size for p in predictions)
        spreads = several_intervals(statistics, len(predictions), resamples(scores))
        return {name: interval | {"level": 0.95, "over": "proteins"} for name, interval in spreads.items()}
    scores = per_protein_scores(task, predictions)
    own = {n: mean_of(v) for n, v in per_protein_metrics(task, predictions, scores).items() if n in task.metrics}
    columns: dict[str, Scores] = own | {task.metric: scores}
    spreads = {n: confidence_interval(columns[n]) for n in dict.fromkeys([task.metric, *asked]) if n in columns}
    return {name: interval | {"level": 0.95, "over": "proteins"} for name, interval in spreads.items()}


def all_metrics(task: Task, predictions: Sequence[Prediction], asked: Sequence[str]) -> dict:
    """Every metric of the task, those that plugins registered among them; InputError for one asked for and unknown."""
    values = task.score(predictions)
    values |= {name: metric(predictions) for name, metric in task.metrics.items() if name not in values}
    for name in asked:
        if name not in values:
            raise InputError(f"--metrics {name}: {task.name} has {', '.join(task.metrics)}")
    return values


def evaluate_split(
    task: Task, model: torch.nn.Module, split: str, args: argparse.Namespace, run: dict, processes: Processes
) -> dict | None:
    """Score one split; returns what goes into the JSON file (None but on rank 0), and writes the files asked for."""
    flags = run.get("args", {})
    max_length = args.max_length or flags.get("max_length")
    too_long = args.too_long or flags.get("too_long") or "error"
    device = next(model.parameters(), torch.zeros(0)).device
    precision = choose_precision(args.fp16, args.bf16, device)
    limit = residue_limit(model.config, max_length)
    tokenizer = TAPETokenizer(args.tokenizer)
    data = processes.together(lambda: load_split(task, args.data_dir, split, tokenizer, limit, too_long))
    data.check_ids(model.config)
    predictions, loss = predict(task, model, data, args.batch_size, device, precision, args.num_workers, processes)
    if not processes.is_main:
        return None
    assert len(predictions) == len(data), "a protein has no prediction"
    directory = Path(args.run_dir)
    own = isinstance(task, OwnTask)
    asked = [canonical_metric(name) for name in args.metrics or (task.metrics if own else [task.metric])]
    metrics = all_metrics(task, predictions, asked)
    spread = intervals(task, predictions, asked)
    if args.save_predictions:
        save_predictions(directory / f"{task.name}-{split}.{args.save_predictions}", task, split, predictions)
    if args.results_pkl:
        save_results_pkl(directory / "results.pkl", {name: metrics[name] for name in asked}, predictions)
    return finite(
        {
            "task": task.name,
            "model_type": args.model_type,
            "split": split,
            "metric": task.metric,
            "value": metrics[task.metric],
            "interval": spread[task.metric],
            "intervals": spread,
            "n_examples": metrics["n_examples"],
            "requested": {name: metrics[name] for name in asked},
            "metrics": metrics,
            "loss": loss,
            "truncated": data.truncated,
            "constant": describe_constant(predictions) or None,
            **({"own_data": task.summary(predictions)} if own else {}),
            "head": getattr(model.config, "head", None),
            "run": flags.get("time_or_name"),
            "seed": flags.get("seed"),
            "steps": run.get("best_step"),
            "checkpoint": weights_identity(directory) | {"from_pretrained": run.get("from_pretrained")},
            "validation": run.get("validation"),
            "data_dir": str(args.data_dir),
            "batch_size": args.batch_size,
            "precision": str(precision).removeprefix("torch."),
            "device": device.type,
            "device_name": device_name(device),
            "processes": processes.size,
            "parameters": sum(p.numel() for p in model.parameters()),
            "args": flags,
            "training": {key: value for key, value in run.items() if key != "args"},
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        }
    )


def choose_task(args: argparse.Namespace, run: dict) -> Task:
    """The task of RUN_DIR: TAPE's or a plugin's by its name, or the user's table as the run has it (or another one)."""
    directory, name = Path(args.run_dir), args.task or run.get("args", {}).get("task")
    if not (directory / DATA_JSON).exists():
        if args.csv or name is None:
            need = f"--csv {args.csv}: {directory} is no run on one's own table" if args.csv else "no task"
            raise InputError(
                f"{need}; {directory} should hold {DATA_JSON if args.csv else 'args.json, or TASK be given'}"
            )
        return resolve_trained_task(name, args.model_type)
    data = OwnData.load(directory)
    if args.task and args.task not in (data.name, data.table):
        raise InputError(f"task {args.task!r}: {directory} was finetuned on {data.name} ({data.table})")
    if args.csv:
        args.split = [Path(args.csv).name]
        data = scored_table(data, args.csv, args.ignore, args.split[0])
    elif is_main_process() and (note := data.changed()):
        print(f"notice: {note}; the run's copy is scored", flush=True)
    return own_data_task(data, args.model_type)


def device_name(device: torch.device) -> str:
    """'NVIDIA H100 80GB HBM3', or the processor's architecture and how many threads compute on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} {'thread' if threads == 1 else 'threads'}"


def describe(result: dict, target: Path) -> str:
    """One line a split."""

    def show(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.4f}"

    requested = {result["metric"]: result["value"]} if "own_data" in result else result["requested"]
    values = " ".join(f"{name} {show(value)}" for name, value in requested.items())
    cropped = result["truncated"]["proteins_cropped"]
    crop = f", {cropped} cropped to {result['truncated']['max_length']} residues" if cropped else ""
    low, high = (show(result["interval"][end]) for end in ("low", "high"))
    interval = f"95% of {result['metric']} [{low}, {high}]"
    line = f"{result['task']} {result['split']} n={result['n_examples']}{crop}: {values} ({interval}) -> {target}"
    line += f"; {result['constant']}" if result["constant"] else ""
    return "\n".join([line, *(describe_own(result) if "own_data" in result else [])])
