"""`python -m fuzz --minutes 10 --seed 0`, with tests/ on the path; `make fuzz` calls it.

Exit status 1 where anything was seen that is neither ok, clear nor defended. --case SEED:NUMBER runs one and keeps its
directory, with the command line that repeats it by hand. `--json all.json --merge A.json B.json` makes one record of
those of several runs, `--repeat all.json` runs again what was no good in them.
"""

import argparse
import itertools
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fuzz import inputs
from fuzz.cases import Case, draw
from fuzz.process import Job, Outcome, adopt_orphans, run_jobs
from fuzz.record import Record, merged, places_of_defects
from fuzz.surfaces import SURFACES
from fuzz.verdict import DEFECTS, SAID, Verdict, judge, outputs, said
from proteinlm.files import write_json


class Fuzzer:
    """Runs cases below a directory of its own; what undamaged inputs give is looked up as it is needed."""

    def __init__(self, folder: Path, workers: int = 1):
        self.folder, self.workers = folder, workers
        self.inputs = inputs.make(folder / "inputs")
        self.honest: dict[str, dict[str, str]] = {}
        self.children: set[int] = set()

    def run(self, cases: Iterator[Case]) -> Iterator[tuple[Case, Outcome, str, Verdict]]:
        """(case, outcome, damage, verdict) as they come."""
        known: dict[int, Case] = {}

        def jobs() -> Iterator[Job]:
            for case in cases:
                known[case.number] = case
                yield case.job(self.inputs, self.folder / f"case{case.number}")

        for job, outcome in run_jobs(jobs(), self.workers, self.children):
            case = known.pop(job.number)
            damage = (job.directory / "damage").read_text()
            honest, work = partial(self.undamaged, case), job.directory / "work"
            yield case, outcome, damage, judge(outcome, case.surface.name, case.line, damage, honest, work)
            shutil.rmtree(job.directory)

    def undamaged(self, case: Case) -> dict[str, str]:
        """What the undamaged input gives, as far as two runs agree. RuntimeError where it is not what it should be."""
        if case.line in self.honest:
            return self.honest[case.line]
        both = []
        for number in (-1, -2):
            undamaged = Case(case.seed, number, case.surface, case.line, damaged=False)
            job = undamaged.job(self.inputs, self.folder / f"honest{number}")
            ((_, outcome),) = run_jobs([job], 1, self.children)
            verdict = judge(outcome, case.surface.name, case.line, "nothing", None, job.directory / "work")
            shutil.rmtree(job.directory)
            if verdict.kind != "ok" or outcome.status:
                raise RuntimeError(f"{case.line}: undamaged, and {verdict}\n{outcome.stderr[-2000:]}")
            both.append(outputs(outcome) | {SAID: said(outcome)})
        same = {name: what for name, what in both[0].items() if both[1].get(name) == what}
        return self.honest.setdefault(case.line, same | {SAID: both[0][SAID]})


def numbers(minutes: float | None, count: int | None, first: int) -> Iterator[int]:
    """first, first + 1 ... until the time or the count is up."""
    end = time.monotonic() + 60 * (minutes if minutes is not None else 1e9)
    for number in itertools.count(first):
        if time.monotonic() >= end or (count is not None and number >= first + count):
            return
        yield number


def show_one(fuzzer: Fuzzer, case: Case) -> int:
    for _, outcome, damage, verdict in fuzzer.run(iter([case])):
        kept = Path(tempfile.mkdtemp(prefix=f"fuzz_{case.name.replace(':', '_')}_"))
        shutil.copytree(fuzzer.folder / f"case{case.number}", kept, symlinks=True, dirs_exist_ok=True, ignore=_fifos)
        print(f"{case.surface.name}: {damage}\n{verdict.kind}: {verdict.cause}\n{verdict.text}\n")
        print(f"cd {kept}/work\npython -m {case.module} {shlex.join(outcome.words)}\nstatus {outcome.status}")
        print(f"stdout:\n{outcome.stdout[-3000:]}\nstderr:\n{outcome.stderr[-6000:]}")
        new = sorted(set(outcome.after) - set(outcome.before))
        print(f"new: {' '.join(new)}")
        return verdict.kind in DEFECTS
    return 0


def _fifos(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (Path(folder, name).is_file() or Path(folder, name).is_dir())]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, help="so many, instead of minutes")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--surface", nargs="+", choices=[surface.name for surface in SURFACES])
    parser.add_argument("--case", metavar="SEED:NUMBER", help="one case, shown in full")
    parser.add_argument("--json", type=Path, help="file of the record")
    parser.add_argument("--repeat", type=Path, metavar="JSON", help="a record: the cases of its defects, again")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="JSON", help="records, of which --json gets the sum")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args(argv)
    if args.merge:
        write_json(args.json, merged([json.loads(path.read_text()) for path in args.merge]))
        return 0
    inputs.warm_up()
    adopt_orphans()
    sys.dont_write_bytecode = True  # of a user's plugin, whose directory is looked through for leftovers
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz_", dir=shared) as folder:
        fuzzer = Fuzzer(Path(folder), args.workers)
        if args.case:
            return show_one(fuzzer, draw(*map(int, args.case.split(":"))))
        record = Record(args.seed, None if args.repeat else args.first)
        cases = (draw(args.seed, number) for number in numbers(args.minutes, args.cases, args.first))
        if args.repeat:
            cases = (draw(*place) for place in places_of_defects(json.loads(args.repeat.read_text())))
        cases = (case for case in cases if not args.surface or case.surface.name in args.surface)
        for case, outcome, damage, verdict in fuzzer.run(cases):
            if record.add(case, outcome, damage, verdict) and verdict.kind in DEFECTS:
                print(f"{case.name} {verdict.kind}: {verdict.cause}", flush=True)
            if args.json and sum(record.counts.values()) % 100 == 0:
                write_json(args.json, record.as_dict())
    print(record.summary())
    if args.json:
        write_json(args.json, record.as_dict())
    return 1 if record.defects else 0


if __name__ == "__main__":
    sys.exit(main())
