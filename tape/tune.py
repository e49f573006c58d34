"""Choose a recipe on a part of train: tape-train once for every combination of a grid, the best one as a recipe file.

    python -m tape.tune OUT --grid learning_rate 1e-4 3e-4 1e-3 --grid pooling first mean [--jobs 2] -- \\
        transformer stability --from_pretrained MODEL_DIR --data_dir data --max_steps 300 --eval_steps 100
    tape-train transformer stability --recipe OUT/recipe.yaml ...

Behind `--` stand tape-train's words; with --seeds a combination's score is the mean over them. Each trial is a run in
OUT/trials/<key=value,...>, with what it printed beside it; OUT/trials.json has all scores, OUT/recipe.yaml the winner's
whole recipe. Called again, it goes on with what was cut off, and a longer grid adds its trials to those that are done.

What must hold: scores come from proteins held out of train by cluster (--holdout, 0.1 unless given); no evaluation
split is opened. Every word and value is checked before the first trial starts.
"""

import argparse
import itertools
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from proteinlm import errors
from proteinlm.errors import InputError
from proteinlm.files import write_json, write_text
from proteinlm.running.locks import locked
from tape.finetuning.options import (
    TrainOptions,
    build_parser,
    parse_options,
    recipe_checks,
    require_files,
    table_choice,
)
from tape.metrics import mean_and_spread
from tape.own_data.read import read_own_data
from tape.recipes import BUILT_IN
from tape.runs.flags import flag_words, positive
from tape.runs.jobs import call, side_by_side
from tape.runs.plugins import load_plugins, model_types, task_names
from tape.runs.results import read_run

if TYPE_CHECKING:
    from tape.tasks import Task

HELD_OUT = 0.1
# Flags that each trial gets from here.
SET_HERE = ("output_dir", "exp_name", "time_or_name", "resume", "force_save", "log_dir")
USAGE = "python -m tape.tune OUT --grid KEY VALUE ... [--grid ...] [--jobs N] -- MODEL_TYPE TASK [tape-train's flags]"


@dataclass(frozen=True)
class Trial:
    """One combination of the grid."""

    values: Mapping[str, object]
    directory: Path
    words: tuple[str, ...]  # tape-train's
    options: TrainOptions

    @property
    def runs(self) -> list[Path]:
        """A directory for each seed."""
        seeds = self.options.seeds
        return [self.directory] if seeds is None else [self.directory / f"seed{seed}" for seed in seeds]


@dataclass(frozen=True)
class Score:
    """What a trial came to on the held-out part."""

    trial: Trial
    best: tuple[float, ...]  # of each seed; NaN where the metric was undefined
    steps: tuple[int, ...]  # at which step that was
    minutes: float

    @property
    def mean(self) -> float:
        return mean_and_spread(self.best)[0]


def task_of(options: TrainOptions) -> "Task":
    """The task that the trials train, for its metric."""
    from tape.registry import own_data_task, resolve_trained_task

    if options.csv is None:
        return resolve_trained_task(options.task, options.model_type)
    return own_data_task(read_own_data(options.csv, table_choice(options)), options.model_type)


def read_grid(axes: Sequence[Sequence[str]]) -> dict[str, list]:
    """[['pooling', 'first', 'mean'], ...] -> {'pooling': ['first', 'mean']}, each value as its flag reads it."""
    checks, grid = recipe_checks(build_parser()), {}
    for key, *texts in axes:
        if key not in BUILT_IN:
            raise InputError(f"--grid {key}: not a key of a recipe; should be one of {', '.join(BUILT_IN)}")
        if key in grid or not texts:
            fault = "twice" if key in grid else "without values"
            raise InputError(f"--grid {key}: {fault}; should be one, with values")
        grid[key] = []
        for text in texts:
            try:
                value = checks[key]({"true": True, "false": False}.get(text, text))
            except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
                raise InputError(f"--grid {key} {text}: cannot be used ({error})") from error
            if value in grid[key]:
                raise InputError(f"--grid {key} {text}: is given twice")
            grid[key].append(value)
    return grid


def words_of(cell: Mapping[str, object]) -> list[str]:
    """['--learning_rate', '0.001', '--no-freeze_encoder']: off is a flag too, for a recipe may have it on."""
    return flag_words({f"no-{key}" if value is False else key: value is False or value for key, value in cell.items()})


def plan(out: Path, grid: Mapping[str, Sequence], words: Sequence[str]) -> list[Trial]:
    """Every combination, the first key's values outermost."""
    args = build_parser(model_types()).parse_args(words)
    for name in SET_HERE:
        if getattr(args, name):
            raise InputError(f"--{name}: each trial gets its own; leave it out")
    for key in grid:
        if getattr(args, key) is not None:
            raise InputError(f"--{key}: is in the grid, and a flag of every trial; give one")
    if args.holdout is None:
        words = [*words, "--holdout", str(HELD_OUT)]
    elif not args.holdout:
        raise InputError("--holdout 0: a recipe is chosen on a part of train; should be above 0")
    trials = []
    for values in itertools.product(*grid.values()):
        cell = dict(zip(grid, values, strict=True))
        name = ",".join(f"{key}={value}" for key, value in cell.items())
        line = [*words, *words_of(cell), "--output_dir", str(out / "trials" / name), "--time_or_name", name, "--resume"]
        options = parse_options(line, task_names(), model_types())
        if not options.evaluates:
            raise InputError("--eval_freq 0: a trial's score is its best evaluation; leave it out")
        trials.append(Trial(cell, out / "trials" / name, tuple(line), options))
    return trials


def run_trial(trial: Trial) -> Score:
    """Train, or go on, or find it done."""
    call("tape.train", trial.words, trial.directory.parent / f"{trial.directory.name}.txt")
    runs = [read_run(path) for path in trial.runs]
    best = tuple(math.nan if run["best"] is None else float(run["best"]) for run in runs)
    return Score(trial, best, tuple(run["best_step"] for run in runs), sum(run["minutes"] for run in runs))


def ranked(scores: Sequence[Score], task: "Task") -> list[Score]:
    """Best mean first; trials without a number last."""
    sign = -1 if task.higher_is_better else 1
    return sorted(scores, key=lambda score: (math.isnan(score.mean), sign * score.mean))


def at_the_edge(grid: Mapping[str, Sequence], winner: Mapping[str, object]) -> list[str]:
    """Keys of numbers whose best value is the smallest or the largest tried: a wider grid might have a better one."""
    numbers = {k: v for k, v in grid.items() if len(v) > 1 and all(type(value) in (int, float) for value in v)}
    return [key for key, values in numbers.items() if winner[key] in (min(values), max(values))]


def recipe_text(best: Score, task: "Task", trials: int) -> str:
    """recipe.yaml: the winner's whole recipe, and where it is from."""
    run = read_run(best.trial.runs[0])
    values = {key: value for key, value in run["recipe"]["values"].items() if value is not None}
    score, held_out = f"{task.metric} {best.mean:.4f}", run["validation"]["held_out"]
    origin = f"{score}, the best of {trials} trials on a part of train ({held_out:,} proteins held out by cluster)"
    return f"# {task.name}: {origin}.\n" + yaml.safe_dump(values, sort_keys=False)


def table(scores: Sequence[Score], task: "Task") -> str:
    """One line a trial."""
    lines = []
    for score in scores:
        mean, spread = mean_and_spread(score.best)
        value = f"{mean:.4f}" + (f" +- {spread:.4f}" if len(score.best) > 1 else "")
        steps = ", ".join(map(str, score.steps))
        lines.append(f"{task.metric} {value} at step {steps} ({score.minutes:.1f} min)  {score.trial.directory.name}")
    return "\n".join(lines)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """(the flags of this command, tape-train's words)."""
    parser = errors.ArgumentParser("tape.tune", usage=USAGE, description="Choose a recipe on a part of train.")
    parser.add_argument("out", metavar="OUT", help="gets recipe.yaml, trials.json and trials/")
    parser.add_argument(
        "--grid", action="append", nargs="+", required=True, metavar="KEY VALUE", help="a key of a recipe, its values"
    )
    parser.add_argument("--jobs", type=positive, default=1, help="trials side by side")
    place = argv.index("--") if "--" in argv else len(argv)
    args, words = parser.parse_args(argv[:place]), list(argv[place + 1 :])
    if not words:
        parser.error("behind -- should stand tape-train's words: MODEL_TYPE TASK ...")
    return args, words


def main(argv: Sequence[str] | None = None) -> int:
    argv = [str(word) for word in (sys.argv[1:] if argv is None else argv)]
    args, words = parse(argv)
    load_plugins(words)
    out, grid = Path(args.out), read_grid(args.grid)
    trials = plan(out, grid, words)
    require_files(trials[0].options)
    task = task_of(trials[0].options)

    def one(trial: Trial) -> Score:
        score = run_trial(trial)
        print(table([score], task), flush=True)
        return score

    with locked(out, "OUT"), side_by_side(args.jobs) as pool:  # what is wrong with one trial is mostly wrong with all
        waiting = [pool.submit(one, trial) for trial in trials]
        scores = ranked([trial.result() for trial in waiting], task)
    best = scores[0]
    if math.isnan(best.mean):
        start = trials[0].options.from_pretrained
        of = f" of {start}" if start else ""
        what = f"{task.metric} is undefined in every trial{of} (predictions or labels all alike)"
        raise InputError(f"{out}: {what}; should have more proteins held out, or other values in the grid")
    record = {"command": f"python -m tape.tune {shlex.join(argv)}", "task": task.name, "metric": task.metric}
    rows = [{**vars(score), "trial": dict(score.trial.values), "mean": score.mean} for score in scores]
    write_json(out / "trials.json", record | {"higher_is_better": task.higher_is_better, "trials": rows})
    write_text(out / "recipe.yaml", recipe_text(best, task, len(trials)))
    print(f"best: {table([best], task)} -> {out / 'recipe.yaml'}")
    for key in at_the_edge(grid, best.trial.values):
        print(f"notice: {key} {best.trial.values[key]} is at the edge of the grid; a wider one might have a better one")
    return 0


cli = partial(errors.run, main, resumes=True)  # the console command


if __name__ == "__main__":
    sys.exit(cli())
