"""The whole table: five tasks x arms x seeds, each trained and scored on every split, and the page that shows it.

    python -m tape.reproduce MODEL_DIR DATA_DIR [OUT] [--preset cpu] [--tasks ...] [--arms ...] [--seeds ...] [--jobs N]

Arms: `pretrained` (MODEL_DIR), `random` (weights of its shape), `onehot` or another model type (its default shape), and
NAME=DIR (a model directory more). Every run is tape-train and tape-eval in processes of their own, in
OUT/runs/<arm>/<task>/seed<n>; log.txt has what they printed. A run that is done is not run again, one that was cut off
goes on from its last saved state, a run of another recipe is refused. Then OUT/table.md, table.html and results.json.

What must hold: no evaluation split is read before its run has ended; a run that failed is named in the page and in the
exit status, never left out silently.
"""

import hashlib
import json
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from proteinlm import errors
from proteinlm.errors import InputError
from proteinlm.files import write_json
from tape.reporting import RECORD
from tape.reporting.published import PUBLISHED

TASKS = tuple(PUBLISHED)
ARMS = ("pretrained", "random", "onehot")
PRESETS = Path(__file__).parent.parent / "benchmarks"  # table_<name>.yaml


@dataclass(frozen=True)
class Arm:
    """Where a run's weights come from."""

    name: str
    model_type: str
    flags: tuple[str, ...]  # --from_pretrained ... or --model_config_file ...
    source: str = ""  # sha256 of the weights or of the shape that the runs start from


@dataclass(frozen=True)
class Job:
    """One run: train, then score."""

    arm: Arm
    task: str
    seed: int
    directory: Path
    recipe: Mapping[str, object]
    train: tuple[str, ...]  # the words after `python -m tape.train`
    evaluate: tuple[str, ...]  # those after `python -m tape.evaluate`; --split comes last
    splits: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.arm.name} {self.task} seed {self.seed}"

    def missing(self) -> list[str]:
        """Splits that have not been scored yet."""
        paths = {split: self.directory / f"{self.task}-{split}" for split in self.splits}
        return [s for s, p in paths.items() if not (p.with_suffix(".json").exists() and p.with_suffix(".npz").exists())]


def read_preset(name: str) -> dict:
    """A preset's YAML: `all`, a section a task, `arms`."""
    import yaml

    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else PRESETS / f"table_{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem.removeprefix("table_") for found in PRESETS.glob("table_*.yaml")))
        raise InputError(f"--preset {name}: no file {path}; should be a YAML file{f' or {known}' * bool(known)}")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML ({error})") from error
    allowed = ("all", "arms", *TASKS)
    for key, section in found.items() if isinstance(found, dict) else [("", None)]:
        if key not in allowed or not isinstance(section, dict):
            raise InputError(f"{path}: {key!r} should be one of {', '.join(allowed)}, each with keys and values")
    return found


def recipe_of(preset: Mapping, task: str, arm: str) -> dict:
    """The flags of one run by name, and `seeds`."""
    of_arm = (preset.get("arms") or {}).get(arm) or {}
    return {**preset.get("all", {}), **preset.get(task, {}), **of_arm.get("all", {}), **of_arm.get(task, {})}


def flag_words(recipe: Mapping[str, object]) -> list[str]:
    """['--batch_size', '16', '--bf16']: true is the flag alone, false and null are no flag."""
    words = []
    for key, value in recipe.items():
        if value is True:
            words.append(f"--{key}")
        elif value is not None and value is not False:
            words += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return words


def parse_arm(word: str, model: Path) -> Arm:
    """An arm by its name on the command line."""
    from tape.evaluate import weights_identity
    from tape.registry import model_types

    name, _, directory = word.partition("=")
    if word == "random":
        shape = {key: value for key, value in _read_config(model).items() if key != "converted_from"}
        digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()
        return Arm(word, _model_type(model), ("--model_config_file", str(model / "config.json")), digest)
    if word == "pretrained" or directory:
        source = Path(directory) if directory else model
        weights = weights_identity(source)["weights_sha256"]
        return Arm(name, _model_type(source), ("--from_pretrained", str(source)), weights)
    if word not in model_types():
        raise InputError(f"--arms {word}: should be pretrained, random, NAME=DIR or one of {', '.join(model_types())}")
    return Arm(word, word, ())


def _model_type(directory: Path) -> str:
    return str(_read_config(directory).get("base_model", "transformer"))


def _read_config(directory: Path) -> dict:
    path = directory / "config.json"
    if not path.is_file():
        raise InputError(f"{directory}: no config.json in it; should be a TAPE model directory (scripts/convert.sh)")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: not a model's config.json ({error})") from error


def plan(args) -> list[Job]:
    """Every run: all tasks and arms with their first seed, then with the second, so that a table is there early."""

    model, out, preset = Path(args.model_dir), Path(args.out), read_preset(args.preset)
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
                positions = _read_config(model).get("max_position_embeddings") or recipe["max_length"] + 2
                recipe["max_length"] = min(recipe["max_length"], positions - 2)
            for place, seed in enumerate(args.seeds or recipe.get("seeds") or [0]):
                jobs.append((place, _job(args, arm, task, int(seed), recipe, splits, out)))
    return [job for _, job in sorted(jobs, key=lambda entry: entry[0])]


def splits_of(task: str, data_dir: str, wanted: Sequence[str]) -> tuple[str, ...]:
    """Those of the wanted splits (`all`: every evaluation split) that are there; absent ones are told."""
    from tape.evaluate import has_split
    from tape.registry import resolve_task

    resolved = resolve_task(task, "transformer")
    if not has_split(resolved, data_dir, "train"):
        raise InputError(
            f"{data_dir}: no train split of {task}; scripts/download_data.sh fetches it, --tasks can leave it out"
        )
    names = dict.fromkeys(s for w in wanted for s in (("valid", *resolved.splits) if w == "all" else (w,)))
    found = tuple(name for name in names if has_split(resolved, data_dir, name))
    if not found:
        raise InputError(f"{data_dir}: {task} has none of the splits {', '.join(names)}")
    absent = [name for name in names if name not in found]
    if absent:
        print(f"notice: {data_dir} holds no split {', '.join(absent)} of {task}: left out", flush=True)
    return found


def _job(args, arm: Arm, task: str, seed: int, recipe: dict, splits: tuple[str, ...], out: Path) -> Job:
    directory = out / "runs" / arm.name / task / f"seed{seed}"
    shared = ("--data_dir", str(args.data_dir), "--device", args.device)
    flags = flag_words({key: value for key, value in recipe.items() if key != "seeds"})
    train = (arm.model_type, task, *arm.flags, *shared, "--output_dir", str(directory), "--seed", str(seed))
    train += ("--time_or_name", arm.name, *flags, *shlex.split(args.train_flags))
    batch = args.batch_size or (1 if task == "contact_prediction" else 16)  # maps of L x L
    evaluate = (arm.model_type, task, str(directory), *shared, "--batch_size", str(batch))
    evaluate += ("--save_predictions",)
    return Job(arm, task, seed, directory, recipe, train, evaluate, splits)


def call(module: str, words: Sequence[str], log: Path) -> float:
    """Run a command of ours to its end, its output at the end of `log`; minutes. InputError if it fails."""
    command = [sys.executable, "-m", module, *words]
    begin = time.perf_counter()
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ python -m {module} {shlex.join(words)}\n")
        file.flush()
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
    if status != 0:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1]
        raise InputError(f"{log}: {module} ended with status {status}: {last}")
    return (time.perf_counter() - begin) / 60


def identity(command: str) -> list[str]:
    """A command's words but for those that change nothing in a run: where it reads, writes and computes."""
    words = shlex.split(command)
    for flag in ("--data_dir", "--device", "--output_dir"):
        place = words.index(flag)
        del words[place : place + 2]
    return words


def run_job(job: Job) -> str:
    """Train and score what is not done yet; returns what was done, in words."""
    job.directory.mkdir(parents=True, exist_ok=True)
    place, log = job.directory / RECORD, job.directory / "log.txt"
    record = json.loads(place.read_text(encoding="utf-8")) if place.exists() else {}
    command = f"python -m tape.train {shlex.join(job.train)}"
    if record and (identity(record["train_command"]), record["source"]) != (identity(command), job.arm.source):
        raise InputError(
            f"{job.directory}: trained by another command or from other weights ({record['train_command']}); "
            "remove it or give another OUT"
        )
    did = []
    if "train_minutes" not in record:
        resumed = (job.directory / "args.json").exists()
        again = resumed or record.get("resumed", False)
        record |= {"train_command": command, "source": job.arm.source, "resumed": again}
        write_json(place, record)
        minutes = call("tape.train", [*job.train, *(["--resume"] if resumed else [])], log)
        record |= {"train_minutes": minutes, "recipe": dict(job.recipe)}
        write_json(place, record)
        did.append(f"trained in {minutes:.1f} min")
    missing = job.missing()
    if missing:
        words = [*job.evaluate, "--split", *missing]
        minutes = call("tape.evaluate", words, log)
        commands = [*record.get("eval_commands", []), f"python -m tape.evaluate {shlex.join(words)}"]
        spent = record.get("eval_minutes", 0.0) + minutes
        write_json(place, record | {"eval_commands": commands, "eval_minutes": spent})
        did.append(f"scored {', '.join(missing)} in {minutes:.1f} min")
    return "; ".join(did) or "was done"


def run_all(jobs: Sequence[Job], side_by_side: int) -> dict[str, str]:
    """Run the jobs; returns what failed: name -> why. One line a job on stdout."""
    failed: dict[str, str] = {}
    lock, finished = threading.Lock(), []

    def one(job: Job) -> None:
        try:
            told = run_job(job)
        except (InputError, OSError) as error:
            told = f"FAILED: {error}"
            failed[job.name] = str(error)
        with lock:
            finished.append(job)
            print(f"[{len(finished)}/{len(jobs)}] {job.name}: {told}", flush=True)

    with ThreadPoolExecutor(side_by_side) as pool:
        list(pool.map(one, jobs))
    return failed


def build_parser() -> errors.ArgumentParser:
    """The parser of python -m tape.reproduce."""
    parser = errors.ArgumentParser("reproduce_table", description="Five TAPE tasks, arms, seeds and splits: a table.")
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="a TAPE model directory: the pretrained encoder")
    parser.add_argument("data_dir", metavar="DATA_DIR", help="holds the tasks' folders")
    parser.add_argument("out", metavar="OUT", nargs="?", default="table", help="where everything goes (default: table)")
    parser.add_argument("--preset", default="full", help="full, cpu, or a YAML file like benchmarks/table_cpu.yaml")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), metavar="ARM", help=" ".join(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, help="default: the preset's")
    parser.add_argument("--splits", nargs="+", default=["all"], help="default: all that are in DATA_DIR")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch_size", type=int, help="proteins scored at a time; changes no number")
    parser.add_argument("--train_flags", default="", help="further flags of tape-train, in one quoted word")
    parser.add_argument("--report_only", action="store_true", help="run nothing; write the page of what is done")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    from tape.reporting import collect, pages  # torch only where it is used

    words = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(words)
    if args.jobs < 1:
        raise InputError(f"--jobs {args.jobs}: should be at least 1")
    pages.import_pyplot()  # refuse now rather than after hours
    jobs = plan(args)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    failed = {} if args.report_only else run_all(jobs, args.jobs)
    command = f"bash scripts/reproduce_table.sh {shlex.join(words)}"
    results = collect.collect(jobs, failed, {"command": command, "preset": args.preset, "model_dir": args.model_dir})
    write_json(out / "results.json", results)
    pages.write_pages(results, out)
    print(f"wrote {out}/table.md, {out}/table.html and {out}/results.json", flush=True)
    if results["not_run"]:
        raise InputError(f"{out}: {len(results['not_run'])} of {len(jobs)} runs are not done; table.md names them")
    return 0


def cli() -> int:
    """The console command."""
    return errors.run(main)


if __name__ == "__main__":
    sys.exit(cli())
