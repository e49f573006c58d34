"""One finetuned model on one or more splits: numbers over whole splits, with what they were taken over.

    tape-eval transformer stability RUN_DIR --data_dir data --split test --metrics spearmanr --batch_size 64
    tape-eval transformer secondary_structure RUN_DIR --split all --save_predictions parquet
    torchrun --nproc-per-node 4 -m tape.evaluate transformer contact_prediction RUN_DIR --split test

writes RUN_DIR/<task>-<split>.json: every metric of the task, those asked for with a 95% bootstrap interval over
proteins, n_examples, what was cropped, head, checkpoint, seed, steps and the run's flags. `--split all` is every
evaluation split that DATA_DIR holds. --save_predictions adds each protein's scores (tape.scoring.files),
--results_pkl TAPE's results.pkl.

What must hold: nothing is left out of a split; no number depends on --batch_size, padding or the number of processes.
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

from proteinlm import errors
from proteinlm.errors import InputError
from proteinlm.files import write_json
from tape.data.base import TapeDataset
from tape.data.lengths import residue_limit
from tape.data.records import find_data_file
from tape.data.splits import build_tokenizer, load_split
from tape.finetuning.options import (
    add_device_flags,
    add_length_flags,
    add_tokenizer_flag,
    add_worker_flag,
    check_log_level,
    check_tokenizer,
    choose_precision,
    positive,
    start_logging,
)
from tape.metrics import canonical_metric
from tape.registry import add_plugin_flag, load_plugins, resolve_trained_task
from tape.runs.processes import World, is_main_process, run_together
from tape.scoring.bootstrap import Scores, confidence_interval, mean_of
from tape.scoring.files import (
    FORMS,
    check_form,
    per_protein_metrics,
    per_protein_scores,
    save_predictions,
    save_results_pkl,
)
from tape.scoring.inference import predict
from tape.tasks import Prediction, Task

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
IGNORED = ("model_config_file", "vocab_file", "output_dir", "seed", "local_rank", "log_dir", "debug")  # TAPE's


def weights_identity(directory: str | Path) -> dict[str, str]:
    """Which weights a number came from: the directory, the file's name and its sha256."""
    for name in WEIGHTS:
        path = Path(directory) / name
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {"path": str(directory), "weights": name, "weights_sha256": digest}
    raise InputError(f"{directory}: holds neither {' nor '.join(WEIGHTS)}; should be a directory that tape-train wrote")


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
    """NaN and infinities become None, which JSON can carry; inside dicts and lists too."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def has_split(task: Task, data_dir: str | Path, split: str) -> bool:
    """Whether the data directory holds this split of the task."""
    dataset = task.dataset
    try:
        if isinstance(dataset, type) and issubclass(dataset, TapeDataset):
            find_data_file(data_dir, dataset.folder, dataset.folder, split)
            return split in dataset.splits
        dataset(data_dir, split, build_tokenizer("iupac"))  # a plugin's dataset alone knows where its files are
    except (InputError, FileNotFoundError):
        return False
    return True


def choose_splits(task: Task, data_dir: str | Path, wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """(splits to score, splits that `all` means but that are not there). One asked for by name is never left out."""
    found, absent = [], []
    for name in wanted:
        if name != "all":
            found.append(name)
            continue
        for split in ("valid", *task.splits):
            (found if has_split(task, data_dir, split) else absent).append(split)
    if not found:
        raise InputError(f"{data_dir}: --split all found none of {', '.join(absent)} of {task.name}")
    return list(dict.fromkeys(found)), absent


def intervals(task: Task, predictions: Sequence[Prediction], asked: Sequence[str]) -> dict[str, dict]:
    """95% intervals over proteins of the primary metric and of those asked for that are means over proteins."""
    scores = per_protein_scores(task, predictions)
    own = {n: mean_of(v) for n, v in per_protein_metrics(task, predictions, scores).items() if n in task.metrics}
    columns: dict[str, Scores] = own | {task.metric: scores}
    made = {n: confidence_interval(columns[n]) for n in dict.fromkeys([task.metric, *asked]) if n in columns}
    return {name: interval | {"level": 0.95, "over": "proteins"} for name, interval in made.items()}


def all_metrics(task: Task, predictions: Sequence[Prediction], asked: Sequence[str]) -> dict:
    """Every metric of the task, those that plugins registered among them; InputError for one asked for and unknown."""
    found = task.score(predictions)
    found |= {name: metric(predictions) for name, metric in task.metrics.items() if name not in found}
    for name in asked:
        if name not in found:
            raise InputError(f"--metrics {name}: {task.name} has {', '.join(task.metrics)}")
    return found


def evaluate_split(
    task: Task, model: torch.nn.Module, split: str, args: argparse.Namespace, run: dict, world: World | None = None
) -> dict | None:
    """Score one split; returns what goes into the JSON file (None but on rank 0), and writes the files asked for."""
    world, flags = world or World(), run.get("args", {})
    max_length = args.max_length or flags.get("max_length")
    too_long = args.too_long or flags.get("too_long") or "error"
    device = next(model.parameters(), torch.zeros(0)).device
    precision = choose_precision(args.fp16, args.bf16, device)
    limit = residue_limit(model.config, max_length)
    tokenizer = build_tokenizer(args.tokenizer)
    data = world.together(lambda: load_split(task, args.data_dir, split, tokenizer, limit, too_long))
    predictions, loss = predict(task, model, data, args.batch_size, device, precision, args.num_workers, world)
    if not world.is_main:
        return None
    assert len(predictions) == len(data), "a protein has no prediction"
    directory = Path(args.run_dir)
    asked = [canonical_metric(name) for name in args.metrics or [task.metric]]
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
            "processes": world.size,
            "parameters": sum(p.numel() for p in model.parameters()),
            "args": flags,
            "training": {key: value for key, value in run.items() if key != "args"},
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        }
    )


def device_name(device: torch.device) -> str:
    """'NVIDIA H100 80GB HBM3', or the processor's architecture and how many threads compute on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def build_parser() -> errors.ArgumentParser:
    """The parser of tape-eval: TAPE's arguments, and ours."""
    parser = errors.ArgumentParser("tape-eval", description="Score a finetuned model on whole splits.")
    parser.add_argument("model_type", help="transformer, tape_transformer, lstm, resnet, onehot or a plugin's")
    parser.add_argument("task", help="the task that RUN_DIR was finetuned on")
    parser.add_argument("run_dir", metavar="RUN_DIR", help="what tape-train wrote")
    parser.add_argument("--data_dir", default="./data", help="holds <task>/<task>_<split>.lmdb or .json")
    parser.add_argument(
        "--split", nargs="+", default=["test"], help="one or more, e.g. valid test; all: every evaluation split"
    )
    parser.add_argument(
        "--metrics", nargs="*", help="the metrics to print (TAPE's names, L5 too); the file has all of the task's"
    )
    parser.add_argument("--batch_size", type=positive, default=32, help="proteins at a time; changes no number")
    parser.add_argument(
        "--save_predictions", nargs="?", const="npz", choices=FORMS, help="also write each protein's scores (npz)"
    )
    parser.add_argument("--results_pkl", action="store_true", help="also TAPE's results.pkl, of the last split")
    add_tokenizer_flag(parser)
    parser.add_argument("--log_level", type=str.upper, default="INFO", help="DEBUG, INFO, WARN or ERROR")
    add_plugin_flag(parser)
    add_length_flags(parser, None)
    add_device_flags(parser)
    add_worker_flag(parser)
    for name in IGNORED:
        flags = {"action": "store_true"} if name == "debug" else {}
        # --local-rank is how torch's launcher has spelt it since 2.0
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('local_', 'local-')}"))
        parser.add_argument(*spellings, help=argparse.SUPPRESS, **flags)
    return parser


def check_flags(task: Task, args: argparse.Namespace) -> None:
    """What can be refused before anything is loaded, and a word on the flags of TAPE's that do nothing here."""
    for name in IGNORED:
        if getattr(args, name) not in (None, False) and name != "local_rank" and is_main_process():
            print(f"notice: --{name} changes nothing in an evaluation and is ignored", file=sys.stderr)
    check_tokenizer(args.tokenizer)
    check_log_level(args.log_level)
    for name in map(canonical_metric, args.metrics or ()):
        # a plugin's model may bring metrics of its own, which only its outputs tell (all_metrics)
        if name not in task.metrics and task.metric != "loss":
            raise InputError(f"--metrics {name}: {task.name} has {', '.join(task.metrics)}")
    check_form(args.save_predictions)


def main(argv: Sequence[str] | None = None) -> int:
    load_plugins(argv)
    args = build_parser().parse_args(argv)
    task = resolve_trained_task(args.task, args.model_type)
    start_logging(args.log_level)
    check_flags(task, args)
    directory = Path(args.run_dir)
    splits, absent = choose_splits(task, args.data_dir, args.split)
    run = read_run(directory)

    def work(world: World, device: torch.device) -> None:
        if absent and world.is_main:
            print(f"notice: {args.data_dir} holds no split {', '.join(absent)} of {task.name}: left out", flush=True)
        model = world.together(lambda: load_model(task, directory)).to(device)
        for split in splits:
            result = evaluate_split(task, model, split, args, run, world)
            if result is not None:
                target = directory / f"{task.name}-{split}.json"
                write_json(target, result)
                print(describe(result, target), flush=True)
        world.barrier()

    return run_together(args.device, work)


def describe(result: dict, target: Path) -> str:
    """One line a split."""

    def show(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.4f}"

    shown = " ".join(f"{name} {show(value)}" for name, value in result["requested"].items())
    interval = f"[{show(result['interval']['low'])}, {show(result['interval']['high'])}]"
    cropped = result["truncated"]["proteins_cropped"]
    crop = f", {cropped} cropped to {result['truncated']['max_length']} residues" if cropped else ""
    named = f"95% of {result['metric']} {interval}"
    return f"{result['task']} {result['split']} n={result['n_examples']}{crop}: {shown} ({named}) -> {target}"


def cli() -> int:
    """The console command."""
    return errors.run(main)


if __name__ == "__main__":
    sys.exit(cli())
