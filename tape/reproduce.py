"""The whole table: five tasks x arms x seeds, each trained and scored on every split, and the page that shows it.

    python -m tape.reproduce MODEL_DIR DATA_DIR [OUT] [--preset cpu] [--tasks ...] [--arms ...] [--seeds ...] [--jobs N]

Arms: `pretrained` (MODEL_DIR), `random` (weights of its shape), `onehot` or another model type (its default shape), and
NAME=DIR (a model more). Every run is tape-train and tape-eval in processes of their own, in
OUT/runs/<arm>/<task>/seed<n> (tape.runs.jobs). Called again it skips what is done and goes on with what was cut off.
Then OUT/table.md, table.html and results.json.

What must hold: no evaluation split is read before its run has ended; a run that failed, or that was made with other
weights or flags than this call's, is named in the page and in the exit status, never left out silently and never shown.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from proteinlm import errors
from proteinlm.errors import InputError
from proteinlm.files import require_file, write_json
from proteinlm.model_dir.find import find_model, read_config
from proteinlm.running.locks import locked
from tape.reporting.published import PUBLISHED
from tape.runs.flags import positive
from tape.runs.jobs import Job, other_runs, run_jobs
from tape.runs.results import require_directory

TASKS = tuple(PUBLISHED)

ARMS = ("pretrained", "random", "onehot")


def build_parser() -> errors.ArgumentParser:
    parser = errors.ArgumentParser("reproduce_table", description="Five TAPE tasks, arms, seeds and splits: a table.")
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="the pretrained encoder, TAPE's or ESM's (its name too)")
    parser.add_argument("data_dir", metavar="DATA_DIR", help="holds the tasks' folders")
    parser.add_argument("out", metavar="OUT", nargs="?", default="table", help="where everything goes (default: table)")
    parser.add_argument("--preset", default="full", help="full, cpu, cpu_long, or a YAML file (tape/recipes/tables/)")
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
    model = find_model(args.model_dir)
    require_directory(model)
    read_config(model)
    require_file(args.data_dir)
    from tape.reporting import pages
    from tape.runs.plan import plan

    pages.import_pyplot()  # refuse now rather than after hours
    jobs = plan(args)
    with locked(args.out, "OUT") as out:
        return run(args, jobs, out, words)


def run(args: argparse.Namespace, jobs: Sequence[Job], out: Path, words: Sequence[str]) -> int:
    """The jobs, then the page of them; no page where none could be done."""
    from tape.reporting import collect, pages

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
        why, number = results["not_run"][0]["why"], len(results["not_run"])
        number = f"{number} of {len(jobs)} runs of preset {args.preset}"
        raise InputError(f"{why} ({number} are not done; {out}/table.md names them)")
    return 0


cli = partial(errors.run, main, resumes=True)  # the console command

if __name__ == "__main__":
    sys.exit(cli())
