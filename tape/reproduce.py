"""The whole table: five tasks x arms x seeds, each trained and scored on every split, and the page that shows it.

    python -m tape.reproduce MODEL_DIR DATA_DIR [OUT] [--preset cpu] [--tasks ...] [--arms ...] [--seeds ...] [--jobs N]

Arms: `pretrained` (MODEL_DIR), `random` (weights of its shape), `onehot` or another model type (its default shape), and
NAME=DIR (a model directory more). Every run is tape-train and tape-eval in processes of their own, in
OUT/runs/<arm>/<task>/seed<n> (tape.runs.jobs). Called again it skips what is done and goes on with what was cut off.
Then OUT/table.md, table.html and results.json.

What must hold: no evaluation split is read before its run has ended; a run that failed, or that was made with other
weights or flags than this call's, is named in the page and in the exit status, never left out silently and never shown.
"""

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from proteinlm import errors
from proteinlm.errors import InputError
from proteinlm.files import write_json
from proteinlm.model_dir.find import model_type_of, read_config
from proteinlm.running.locks import locked
from tape.data.lengths import residue_limit
from tape.data.splits import evaluation_splits, has_split
from tape.models.config import read_keys
from tape.recipes import PRESETS, read_yaml
from tape.registry import model_types, resolve_task
from tape.reporting import collect, pages
from tape.reporting.published import PUBLISHED
from tape.runs.flags import flag_words, positive
from tape.runs.jobs import Arm, Job, other_runs, run_jobs
from tape.runs.results import require_directory, weights_identity

TASKS = tuple(PUBLISHED)
ARMS = ("pretrained", "random", "onehot")


def read_preset(name: str) -> dict:
    """A preset's YAML: `all`, a section a task, `arms`."""
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else PRESETS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))
        raise InputError(f"--preset {name}: no file {path}; should be a YAML file or {known}")
    preset, allowed = read_yaml(path), ("all", "arms", *TASKS)
    for key, section in preset.items():
        if key not in allowed or not isinstance(section, dict):
            raise InputError(f"{path}: {key!r} should be one of {', '.join(allowed)}, each with keys and values")
    return preset


def recipe_of(preset: Mapping, task: str, arm: str) -> dict:
    """The flags of one run by name, and `seeds`."""
    of_arm = preset.get("arms", {}).get(arm) or {}
    return {**preset.get("all", {}), **preset.get(task, {}), **of_arm.get("all", {}), **of_arm.get(task, {})}


def parse_arm(word: str, model: Path) -> Arm:
    """An arm by its name on the command line."""
    name, _, directory = word.partition("=")
    if word == "random":
        shape = {key: value for key, value in read_config(model).items() if key != "converted_from"}
        digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()
        return Arm(word, _model_type(model), ("--model_config_file", str(model / "config.json")), digest)
    if word == "pretrained" or directory:
        source = Path(directory) if directory else model
        model_type, weights = _model_type(source), weights_identity(source)["weights_sha256"]
        return Arm(name, model_type, ("--from_pretrained", str(source)), weights)
    if word not in model_types():
        raise InputError(f"--arms {word}: should be pretrained, random, NAME=DIR or one of {', '.join(model_types())}")
    return Arm(word, word, ())


def _model_type(directory: Path) -> str:
    return model_type_of(read_keys(directory), directory)


def plan(args: argparse.Namespace) -> list[Job]:
    """Every run: all tasks and arms with their first seed, then with the second, so that a table is there early."""
    model, preset = Path(args.model_dir), read_preset(args.preset)
    require_directory(model)
    arms = [parse_arm(word, model) for word in args.arms]
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise InputError(f"--arms {' '.join(names)}: each name once")
    jobs = []
    for task in args.tasks:
        splits = splits_of(task, args.data_dir, args.splits)
        for arm in arms:
            recipe = recipe_of(preset, task, arm.name)
            if recipe.get("max_length"):  # no more than the encoder has positions for, and the same for every arm
                limit = residue_limit(SimpleNamespace(**read_keys(model)), None)
                recipe["max_length"] = min(recipe["max_length"], limit or recipe["max_length"])
            seeds = args.seeds or recipe.get("seeds") or [0]
            jobs += [(place, _job(args, arm, task, int(seed), recipe, splits)) for place, seed in enumerate(seeds)]
    return [job for _, job in sorted(jobs, key=lambda entry: entry[0])]


def splits_of(task: str, data_dir: str, names: Sequence[str]) -> tuple[str, ...]:
    """Those of the splits asked for that are there; a notice names the others."""
    resolved = resolve_task(task, "transformer")
    if not has_split(resolved, data_dir, "train"):
        raise InputError(
            f"{data_dir}: no train split of {task}; scripts/download_data.sh fetches it, --tasks can leave it out"
        )
    names = evaluation_splits(resolved, names)
    present = tuple(name for name in names if has_split(resolved, data_dir, name))
    if not present:
        raise InputError(f"{data_dir}: {task} has none of the splits {', '.join(names)}")
    absent = [name for name in names if name not in present]
    if absent:
        print(f"notice: {data_dir} holds no split {', '.join(absent)} of {task}: left out", flush=True)
    return present


def _job(args: argparse.Namespace, arm: Arm, task: str, seed: int, recipe: dict, splits: tuple[str, ...]) -> Job:
    directory = Path(args.out) / "runs" / arm.name / task / f"seed{seed}"
    shared = ("--data_dir", str(args.data_dir), "--device", args.device)
    train = (arm.model_type, task, *arm.flags, *shared, "--output_dir", str(directory), "--seed", str(seed))
    train += ("--time_or_name", arm.name, *flag_words(recipe | {"seeds": None}), *shlex.split(args.train_flags))
    batch = args.batch_size or (1 if task == "contact_prediction" else 16)  # maps of L x L
    evaluate = (arm.model_type, task, str(directory), *shared, "--batch_size", str(batch), "--save_predictions")
    return Job(arm, task, seed, directory, recipe, train, evaluate, splits)


def build_parser() -> errors.ArgumentParser:
    parser = errors.ArgumentParser("reproduce_table", description="Five TAPE tasks, arms, seeds and splits: a table.")
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="a directory of TAPE's or ESM's: the pretrained encoder")
    parser.add_argument("data_dir", metavar="DATA_DIR", help="holds the tasks' folders")
    parser.add_argument("out", metavar="OUT", nargs="?", default="table", help="where everything goes (default: table)")
    parser.add_argument("--preset", default="full", help="full, cpu, or a YAML file like tape/recipes/tables/cpu.yaml")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), metavar="ARM", help=" ".join(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, help="default: the preset's")
    parser.add_argument("--splits", nargs="+", default=["all"], help="default: all that are in DATA_DIR")
    parser.add_argument("--jobs", type=positive, default=1, help="runs side by side")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch_size", type=positive, help="proteins scored at a time; changes no number")
    parser.add_argument("--train_flags", default="", help="further flags of tape-train, in one quoted word")
    parser.add_argument("--report_only", action="store_true", help="run nothing; write the page of what is done")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(words)
    pages.import_pyplot()  # refuse now rather than after hours
    jobs = plan(args)
    with locked(args.out, "OUT") as out:
        return run(args, jobs, out, words)


def run(args: argparse.Namespace, jobs: Sequence[Job], out: Path, words: Sequence[str]) -> int:
    """The jobs, then the page of them; no page where none could be done."""
    failed = other_runs(jobs) if args.report_only else run_jobs(jobs, args.jobs)
    if len(failed) == len(jobs) and not args.report_only and not any(job.directory.exists() for job in jobs):
        name, why = next(iter(failed.items()))
        raise InputError(f"{out}: none of the {len(jobs)} runs could be done; {name}: {why}")
    command = f"bash scripts/reproduce_table.sh {shlex.join(words)}"
    results = collect.collect(jobs, failed, {"command": command, "preset": args.preset, "model_dir": args.model_dir})
    write_json(out / "results.json", results)
    pages.write_pages(results, out)
    print(f"wrote {out}/table.md, {out}/table.html and {out}/results.json", flush=True)
    if results["not_run"]:
        raise InputError(f"{out}: {len(results['not_run'])} of {len(jobs)} runs are not done; table.md names them")
    return 0


cli = partial(errors.run, main, resumes=True)  # the console command


if __name__ == "__main__":
    sys.exit(cli())
