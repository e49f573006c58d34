"""Every run of tape.reproduce: tasks x arms x seeds, each with its recipe, weights and splits.

jobs = plan(args)                       args: the command's flags
"""

import argparse
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

from proteinlm.errors import InputError
from proteinlm.model_dir.find import find_model, model_type_of, read_config
from proteinlm.untrusted.shapes import misfits
from proteinlm.untrusted.yaml_files import read_yaml
from tape.data.lengths import residue_limit
from tape.data.splits import evaluation_splits, has_split
from tape.models.config import read_keys
from tape.recipes import PRESETS
from tape.registry import model_types, resolve_task
from tape.reporting.published import PUBLISHED
from tape.runs.flags import flag_words
from tape.runs.jobs import Arm, Job
from tape.runs.results import weights_identity


def read_preset(name: str) -> dict:
    """A preset's YAML: `all`, a section a task, `arms`."""
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else PRESETS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))
        raise InputError(f"--preset {name}: no file {path}; should be a YAML file or {known}")
    preset, allowed = read_yaml(path), ("all", "arms", *PUBLISHED)
    for key, section in preset.items():
        if key not in allowed or not isinstance(section, dict):
            raise InputError(f"{path}: {key!r} should be one of {', '.join(allowed)}, each with keys and values")
    sections = {f"{name}?": {"seeds?": [int], "max_length?": int} for name in ("all", *PUBLISHED)}
    for fault in misfits(preset, sections | {"arms?": {"*?": sections}}):
        raise InputError(f"{path}: {fault}")
    return preset


def recipe_of(preset: Mapping, task: str, arm: str) -> dict:
    """The flags of one run by name, and `seeds`."""
    of_arm = preset.get("arms", {}).get(arm) or {}
    return {**preset.get("all", {}), **preset.get(task, {}), **of_arm.get("all", {}), **of_arm.get(task, {})}


def parse_arm(word: str, model: Path) -> Arm:
    """An arm by its word on the command line. model: the pretrained one, a directory or a name."""
    name, _, other = word.partition("=")
    if word == "random":
        directory = find_model(model)
        shape = {key: value for key, value in read_config(directory).items() if key != "converted_from"}
        digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()
        return Arm(word, _model_type(directory), ("--model_config_file", str(directory / "config.json")), digest)
    if word == "pretrained" or other:
        source = Path(other) if other else model
        directory = find_model(source)
        model_type, weights = _model_type(directory), weights_identity(directory)["weights_sha256"]
        return Arm(name, model_type, ("--from_pretrained", str(source)), weights)
    if word not in model_types():
        raise InputError(f"--arms {word}: should be pretrained, random, NAME=DIR or one of {', '.join(model_types())}")
    return Arm(word, word, ())


def _model_type(directory: Path) -> str:
    return model_type_of(read_keys(directory), directory)


def plan(args: argparse.Namespace) -> list[Job]:
    """Every run: all tasks and arms with their first seed, then with the second, so that a table is there early."""
    model, preset = Path(args.model_dir), read_preset(args.preset)
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
                limit = residue_limit(SimpleNamespace(**read_keys(find_model(model))), None)
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
