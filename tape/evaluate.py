"""One finetuned model on one or more splits: numbers over whole splits, with what they were taken over.

    tape-eval transformer stability RUN_DIR --data_dir data --split test --metrics spearmanr --batch_size 64

writes RUN_DIR/<task>-<split>.json: every metric of the task, the primary one with its 95% bootstrap interval over
proteins, n_examples, what was cropped, head, checkpoint, seed, steps and the run's flags. `--save_predictions` adds
RUN_DIR/<task>-<split>.npz with per-protein scores, for paired comparisons (tape.bootstrap).

What must hold: nothing is left out of a split, and the numbers do not depend on --batch_size.
"""

import argparse
import hashlib
import json
import math
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pretrain import errors
from pretrain.errors import InputError
from pretrain.files import write_json
from tape.bootstrap import Scores, confidence_interval, save_scores
from tape.options import (
    MODEL_TYPES,
    add_device_flags,
    add_length_flags,
    check_task,
    choose_device,
    choose_precision,
    positive,
)
from tape.splits import build_tokenizer, load_split, residue_limit
from tape.tasks import TASKS, Prediction, Task
from tape.trainer import predict

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def weights_identity(directory: str | Path) -> dict[str, str]:
    """Which weights a number came from: the directory, the file's name and its sha256."""
    for name in WEIGHTS:
        path = Path(directory) / name
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {"path": str(directory), "weights": name, "weights_sha256": digest}
    raise InputError(f"{directory}: holds neither {' nor '.join(WEIGHTS)}; should be a directory that tape-train wrote")


def per_protein_scores(task: Task, predictions: Sequence[Prediction]) -> Scores:
    """The two columns per protein that the primary metric is made of."""
    if task.metric == "spearmanr":
        return Scores("spearman", np.array([[p.scores.item(), p.labels.item()] for p in predictions], np.float64))
    if task.metric == "perplexity":
        sums = [[p.scores.sum(dtype=np.float64), p.scores.size] for p in predictions]
        return Scores("perplexity", np.array(sums, np.float64))
    values = task.per_protein(predictions)
    assert values is not None, f"{task.name}: per_protein gives nothing for {task.metric}"
    if values.ndim == 1:
        known = ~np.isnan(values)
        values = np.stack([np.where(known, values, 0.0), known], axis=1)
    return Scores("ratio", values.astype(np.float64))


def read_run(directory: Path) -> dict:
    """What tape-train left in the run's directory (args.json); {} for a model directory from elsewhere."""
    path = directory / "args.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); should be what tape-train wrote") from error


def load_model(task: Task, directory: Path) -> torch.nn.Module:
    """The finetuned model, its head included; a directory of another task or without a head is refused."""
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; should be one that tape-train wrote")
    model = task.model.from_pretrained(directory, require_head=True, num_labels=task.num_labels)
    made_for = getattr(model.config, "finetuning_task", None)
    if made_for not in (None, task.name):
        raise InputError(f"{directory}: finetuned on {made_for}, not on {task.name}")
    return model


def finite(value: object) -> object:
    """NaN and infinities become None, which JSON can carry; inside dicts too."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def evaluate_split(task: Task, model: torch.nn.Module, split: str, args: argparse.Namespace, run: dict) -> dict:
    """Score one split; returns what goes into the JSON file, and writes the npz if asked for."""
    flags = run.get("args", {})
    max_length = args.max_length or flags.get("max_length")
    too_long = args.too_long or flags.get("too_long") or "error"
    device = choose_device(args.device)
    precision = choose_precision(args.fp16, args.bf16, device)
    limit = residue_limit(model, max_length)
    data = load_split(task, args.data_dir, split, build_tokenizer(flags.get("tokenizer", "iupac")), limit, too_long)
    predictions, loss = predict(task, model, data, args.batch_size, device, precision, args.num_workers)
    metrics = task.score(predictions)
    scores = per_protein_scores(task, predictions)
    directory = Path(args.run_dir)
    if args.save_predictions:
        save_scores(directory / f"{task.name}-{split}.npz", scores, [p.id for p in predictions])
    return finite(
        {
            "task": task.name,
            "split": split,
            "metric": task.metric,
            "value": metrics[task.metric],
            "interval": confidence_interval(scores) | {"level": 0.95, "over": "proteins"},
            "n_examples": metrics["n_examples"],
            "requested": {name: metrics[name] for name in args.metrics or [task.metric]},
            "metrics": metrics,
            "loss": loss,
            "truncated": data.truncated,
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
            "args": flags,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        }
    )


def build_parser() -> errors.ArgumentParser:
    """The parser of tape-eval."""
    parser = errors.ArgumentParser("tape-eval", description="Score a finetuned model on whole splits.")
    parser.add_argument("model_type", choices=MODEL_TYPES)
    parser.add_argument("task", help="the task that RUN_DIR was finetuned on")
    parser.add_argument("run_dir", metavar="RUN_DIR", help="what tape-train wrote")
    parser.add_argument("--data_dir", default="./data", help="holds <task>/<task>_<split>.lmdb")
    parser.add_argument("--split", nargs="+", default=["test"], help="one or more splits, e.g. valid test")
    parser.add_argument("--metrics", nargs="+", help="the metrics to print; the file has all of the task's")
    parser.add_argument("--batch_size", type=positive, default=32, help="proteins at a time; changes no number")
    parser.add_argument("--save_predictions", action="store_true", help="also write per-protein scores as npz")
    parser.add_argument("--tokenizer", default="iupac", choices=("iupac",), help=argparse.SUPPRESS)
    add_length_flags(parser, None)
    add_device_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    check_task(args.task, tuple(TASKS))
    task = TASKS[args.task]
    for name in args.metrics or ():
        if name not in task.metrics:
            raise InputError(f"--metrics {name}: {task.name} has {', '.join(task.metrics)}")
    directory = Path(args.run_dir)
    run = read_run(directory)
    model = load_model(task, directory).to(choose_device(args.device))
    for split in args.split:
        result = evaluate_split(task, model, split, args, run)
        target = directory / f"{task.name}-{split}.json"
        write_json(target, result)
        print_result(result, target)
    return 0


def print_result(result: dict, target: Path) -> None:
    """One line a split."""

    def show(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.4f}"

    shown = " ".join(f"{name} {show(value)}" for name, value in result["requested"].items())
    interval = f"[{show(result['interval']['low'])}, {show(result['interval']['high'])}]"
    cropped = result["truncated"]["proteins_cropped"]
    crop = f", {cropped} cropped to {result['truncated']['max_length']} residues" if cropped else ""
    named = f"95% of {result['metric']} {interval}"
    print(
        f"{result['task']} {result['split']} n={result['n_examples']}{crop}: {shown} ({named}) -> {target}", flush=True
    )


def cli() -> int:
    """The console command."""
    return errors.run(main)


if __name__ == "__main__":
    sys.exit(cli())
