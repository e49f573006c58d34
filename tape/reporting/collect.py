"""What the runs of tape.reproduce measured, as one dictionary: results.json, of which the pages are a view.

    results = collect(jobs, failed, {"command": "..."})
    results["rows"]          one a task, split, metric and arm: mean over seeds, 95% interval over proteins, spread
    results["differences"]   pretrained minus every other arm on the same proteins, paired
    results["not_run"]       what is missing, and why

Several seeds: each bootstrap draw of proteins is scored by every seed and the scores averaged; the spread is the
sample standard deviation over seeds. What must hold: every number is in the result files of tape-eval or follows from
the per-protein scores beside them; wherever two numbers are not the same measurement, the reason is given with them.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from proteinlm.errors import InputError
from proteinlm.files import finite
from proteinlm.untrusted.json_files import read_json
from proteinlm.untrusted.shapes import NUMBER
from tape.metrics import mean_and_spread
from tape.reporting.published import PUBLISHED, metric_definition, reasons
from tape.runs.jobs import RECORD, SHAPE, Job
from tape.runs.results import VALIDATION, read_result
from tape.scoring.bootstrap import Scores, confidence_interval, paired_difference
from tape.scoring.files import load_ids, load_scores
from tape.tasks import TASKS

EXTRA_METRICS = {"contact_prediction": ("precision_at_l5_medium_long",)}  # TAPE's published definition

# What is read of a result beside what every table reads.
MORE = {"model_type": str, "args": dict, "metrics": {"*": NUMBER | None}, "parameters": int, "precision": str}
MORE |= {
    "device_name": str,
    "truncated": {"proteins_cropped": int},
    "training?": {"steps?": int, "total_steps?": int, "best_step?": object, "residues?": object},
    "validation?": VALIDATION,
}


@dataclass(frozen=True)
class Measured:
    """All seeds of one arm on one split, in one metric."""

    task: str
    split: str
    metric: str
    arm: str
    results: tuple[dict, ...]  # of tape-eval, a seed each
    records: tuple[dict, ...]  # RECORD of each run
    scores: tuple[Scores, ...]
    ids: tuple[str, ...]


def measure(jobs: Sequence[Job], task: str, split: str, metric: str, arm: str) -> Measured | None:
    """The finished runs of one arm; None if there is none."""
    scored = [job for job in jobs if (job.task, job.arm.name) == (task, arm) and split in job.splits]
    directories = [job.directory for job in scored if split not in job.missing()]
    if not directories:
        return None
    results = tuple(read_result(directory / f"{task}-{split}.json", MORE) for directory in directories)
    records = tuple(read_json(directory / RECORD, "what tape.reproduce wrote", SHAPE) for directory in directories)
    files = [directory / f"{task}-{split}.npz" for directory in directories]
    scores = tuple(load_scores(file, None if metric == results[0]["metric"] else metric) for file in files)
    ids = [tuple(load_ids(file)) for file in files]
    for file, result, own, names in zip(files, results, scores, ids, strict=True):
        if not len(own.columns) == len(names) == result["n_examples"]:
            count = f"{len(own.columns)} scores of {len(names)} proteins, where {file.stem}.json has"
            raise InputError(f"{file}: {count} {result['n_examples']}; tape-eval --save_predictions makes both again")
        if names != ids[0]:
            raise InputError(f"{file}: other proteins than in {files[0]}; should be runs on the same data")
    return Measured(task, split, metric, arm, results, records, scores, ids[0])


def row_of(measured: Measured) -> dict:
    """The row of results.json."""
    first, number = measured.results[0], len(measured.results)
    values = [result["metrics"][measured.metric] for result in measured.results]  # None: not finite
    mean, spread = mean_and_spread(values)
    interval = {key: value for key, value in confidence_interval(measured.scores).items() if key != "value"}
    training = [result.get("training") or {} for result in measured.results]
    validation = first.get("validation") or {}
    row = {
        "task": measured.task,
        "split": measured.split,
        "metric": measured.metric,
        "metric_definition": metric_definition(measured.task, measured.metric),
        "arm": measured.arm,
        "model_type": first["model_type"],
        "head": first["head"],
        "value": mean,
        "interval": interval | {"level": 0.95, "over": "proteins"},
        "seeds": [result["seed"] for result in measured.results],
        "per_seed": values,
        "spread": spread if number > 1 else None,
        "n_seeds": number,
        "n_examples": first["n_examples"],
        "n_left": first["metrics"].get(f"n_left_{measured.metric}", 0),
        "train_proteins": _train_proteins(validation),
        "validation": validation,
        "parameters": first["parameters"],
        "batch_size": first["args"].get("batch_size"),
        "steps": [entry.get("steps", entry.get("total_steps")) for entry in training],
        "finished": [entry.get("finished") for entry in training],
        "best_step": [entry.get("best_step") for entry in training],
        "residues_seen": [entry.get("residues") for entry in training],
        "truncated": first["truncated"],
        "precision": {"training": _precision(first["args"]), "evaluation": first["precision"]},
        "device": first["device_name"],
        "training_device": [entry.get("device") for entry in training],
        "processes": [entry.get("processes", 1) for entry in training],
        "train_minutes": [record.get("train_minutes") for record in measured.records],
        "eval_minutes": [record.get("eval_minutes") for record in measured.records],
        "commands": [[entry["train_command"], *entry.get("eval_commands", [])] for entry in measured.records],
        "recipe": measured.records[0].get("recipe"),
        "recipe_values": training[0].get("recipe") or first["args"],
        "checkpoints": [result["checkpoint"] for result in measured.results],
    }
    row["warnings"] = _warnings(row, measured)
    steps = first["args"].get("max_steps")
    row["early"] = f"{steps} steps of {row['batch_size']} proteins, not to convergence" if steps else None
    row["published"] = _comparisons(row)
    return row


def _precision(flags: Mapping) -> str:
    names = {"bf16": "bfloat16", "fp16": "float16"}
    return next((name for flag, name in names.items() if flags.get(flag)), "float32")


def _train_proteins(validation: Mapping) -> int | None:
    """Proteins of the train split, those held out of it included."""
    if "train" not in validation:
        return None
    whole = str(validation.get("method", "")).startswith("split ")
    return validation["train"] + (0 if whole else validation.get("held_out", 0))


def _warnings(row: dict, measured: Measured) -> list[str]:
    """What a reader should know of the row's number."""
    warnings = []
    if len({json.dumps(result["head"]) for result in measured.results}) > 1:
        warnings.append("seeds have different heads")
    if row["n_seeds"] == 1:
        warnings.append("one seed: the interval is over proteins only")
    if any(record.get("resumed") for record in measured.records):
        warnings.append("resumed: minutes are those of the last call")
    truncated = row["truncated"]
    if truncated["proteins_cropped"]:
        warnings.append(f"{truncated['proteins_cropped']} proteins cropped to {truncated['max_length']} residues")
    if row["n_left"]:
        warnings.append(f"{row['n_left']} proteins have no value and leave the mean")
    if row["split"] == "valid" and "split valid" in str(row["validation"].get("method")):
        warnings.append("valid chose the best evaluation: the number is optimistic")
    return warnings


def _comparisons(row: dict) -> dict[str, dict]:
    """system -> its number and why it is another measurement."""
    entries = {}
    for system, published in PUBLISHED.get(row["task"], {}).items():
        entry = {"value": published.value, "split": published.split, "metric": published.metric}
        entries[system] = entry | {"head": published.head_name, "reasons": reasons(row, published)}
    return entries


def difference_of(first: Measured, second: Measured) -> dict:
    """first minus second on the same proteins, paired, with what keeps it from being one change alone."""
    pair = {"task": first.task, "split": first.split, "metric": first.metric, "arm": first.arm, "minus": second.arm}
    compared = {key: (first.results[0][key], second.results[0][key]) for key in ("head", "precision")}
    compared["seeds"] = tuple([result["seed"] for result in measured.results] for measured in (first, second))
    warnings = [f"{key}: {first.arm} {a}, {second.arm} {b}" for key, (a, b) in compared.items() if a != b]
    a, b = (dict(measured.records[0].get("recipe") or {}) for measured in (first, second))
    changed = sorted(key for key in {*a, *b} - {"seeds"} if a.get(key) != b.get(key))
    if changed:
        warnings.append("recipe: " + ", ".join(f"{key} {a.get(key)} against {b.get(key)}" for key in changed))
    if first.results[0]["truncated"] != second.results[0]["truncated"]:
        warnings.append("length: cropped at different lengths")
    if first.ids != second.ids:
        warnings.append("the arms scored different proteins: no paired difference")
        return pair | {"value": None, "low": None, "high": None, "warnings": warnings}
    return pair | paired_difference(first.scores, second.scores) | {"level": 0.95, "warnings": warnings}


def collect(jobs: Sequence[Job], failed: Mapping[str, str], about: Mapping[str, object]) -> dict:
    """Everything that is there, as results.json has it. failed: job name -> why.

    A job that failed shows no number, even where an earlier call left one: it may be another recipe's.
    """
    done = [job for job in jobs if job.name not in failed]
    rows, differences = [], []
    arms = list(dict.fromkeys(job.arm.name for job in done))
    for task, splits in {job.task: job.splits for job in done}.items():
        for split in splits:
            for metric in (TASKS[task].metric, *EXTRA_METRICS.get(task, ())):
                measured = [m for arm in arms if (m := measure(done, task, split, metric, arm)) is not None]
                rows += [row_of(one) for one in measured]
                differences += [difference_of(measured[0], m) for m in measured[1:] if measured[0].arm == arms[0]]
    return finite(
        {
            **about,
            "arms": arms,
            "rows": rows,
            "differences": differences,
            "not_run": [entry for job in jobs if (entry := _missing(job, failed)) is not None],
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        }
    )


def _missing(job: Job, failed: Mapping[str, str]) -> dict | None:
    missing = list(job.splits) if job.name in failed else job.missing()
    if not missing:
        return None
    why = failed.get(job.name, f"{job.directory}: not run yet")
    return {"task": job.task, "arm": job.arm.name, "seed": job.seed, "splits": missing, "why": why}
