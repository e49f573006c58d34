"""Recipes: what `tape-train` uses where no flag says otherwise. One YAML file a task beside this module.

    tape-train ... --recipe default        the task's file here, if it has one (the default)
    tape-train ... --recipe none           the built-in values alone
    tape-train ... --recipe mine.yaml      a file of yours over the task's; its keys are the names of the flags

Precedence: flag > --recipe FILE > the task's recipe > BUILT_IN. Of two keys that exclude each other (RIVALS) the one of
higher precedence stays. What must hold: every key is checked as its flag is, and where each value came from is kept.
"""

import argparse
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path

from proteinlm.errors import InputError
from proteinlm.untrusted.yaml_files import read_yaml

# Key = flag -> value where neither a flag nor a recipe gives one.
BUILT_IN: dict[str, object] = {
    "num_train_epochs": 10,  # TAPE's
    "max_steps": None,  # all epochs
    "batch_size": 32,  # TAPE's 1,024 fits no small machine and leaves small tasks few steps
    "gradient_accumulation_steps": 1,  # TAPE's
    "learning_rate": 1e-4,  # TAPE's
    "warmup_steps": None,  # TAPE's 10,000 is more than most tasks have; so a fraction:
    "warmup_fraction": 0.1,
    "weight_decay": 0.01,  # TAPE's and the original project's
    "max_grad_norm": 1.0,  # TAPE's
    "encoder_learning_rate_scale": 1.0,
    "layer_decay": 1.0,  # none
    "freeze_layers": 0,
    "freeze_encoder": False,
    "pooling": None,  # the model directory's, else "first", as in TAPE
    "lora": None,
    "lora_alpha": None,  # 2 * lora
    "lora_dropout": 0.0,
    "patience": -1,  # TAPE's: never stop early
}
RIVALS = (("max_steps", "num_train_epochs"), ("warmup_steps", "warmup_fraction"), ("lora", "freeze_encoder"))
OFF = {"lora": 0, "freeze_encoder": False}  # values with which a key excludes nothing
FOLDER = Path(__file__).parent
PRESETS = FOLDER / "tables"  # of tape.reproduce: recipes of whole tables


def read_recipe(path: str | Path, checks: Mapping[str, Callable[[object], object]]) -> dict[str, object]:
    """A YAML file's keys and values, each through its check (as the flag's); null: not set here."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"--recipe {path}: no such file; should be default, none or a YAML file of flags and values")
    recipe, values = {}, read_yaml(path)
    if not values:
        raise InputError(f"{path}: empty; should be lines of `flag: value`, or --recipe none")
    for key, value in values.items():
        if key not in BUILT_IN:
            near = get_close_matches(str(key), BUILT_IN, n=1)
            hint = f"did you mean {near[0]}?" if near else f"a recipe has {', '.join(BUILT_IN)}"
            raise InputError(f"{path}: {key} is not a key of a recipe; {hint}")
        if value is None:
            continue
        try:
            recipe[key] = checks[key](value)
        except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
            raise InputError(f"{path}: {key} {value!r} cannot be used ({error})") from error
    return recipe


def resolve(
    task: str, recipe: str, flags: Mapping[str, object], checks: Mapping[str, Callable[[object], object]]
) -> tuple[dict[str, object], dict[str, str]]:
    """(value, where it came from) of every key of BUILT_IN. flags: of the command line, None where there was none."""
    levels: list[tuple[str, Mapping[str, object]]] = [("built-in", BUILT_IN)]
    path = FOLDER / f"{task}.yaml"
    if recipe != "none" and path.is_file():
        levels.append((f"recipe of {task}", read_recipe(path, checks)))
    if recipe not in ("default", "none"):
        levels.append((recipe, read_recipe(recipe, checks)))
    levels.append(("flag", {key: value for key, value in flags.items() if value is not None}))
    values, sources = {}, {}
    for source, level in levels:
        for key, value in level.items():
            values[key], sources[key] = value, source
            for pair in RIVALS if source != "built-in" else ():
                rival = pair[1 - pair.index(key)] if key in pair and value != OFF.get(key) else None
                if rival and rival not in level:
                    values[rival], sources[rival] = OFF.get(rival), f"{key} instead"
    return values, sources


def describe(values: Mapping[str, object], sources: Mapping[str, str]) -> str:
    """One line for the log: every value that is on, and where it came from."""
    active = {key: value for key, value in values.items() if value is not None and value is not False}
    chosen = [f"{key} {value} ({sources[key]})" for key, value in active.items() if sources[key] != "built-in"]
    rest = [f"{key} {value}" for key, value in active.items() if sources[key] == "built-in"]
    return f"recipe: {', '.join(chosen) or 'nothing but built-in values'}; built-in: {', '.join(rest)}"
