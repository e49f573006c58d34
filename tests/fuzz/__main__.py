"""`python -m fuzz --minutes 10 --seed 0`, with tests/ on the path; `make fuzz` calls it.

Exit status 1 where anything was seen that is neither ok, clear nor defended. --case SEED:NUMBER runs one and keeps its
directory, with the command line that repeats it by hand.
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
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fuzz import inputs
from fuzz.cases import Case, draw
from fuzz.process import Job, Outcome, adopt_orphans, run_jobs
from fuzz.surfaces import SURFACES
from fuzz.verdict import DEFECTS, GOOD, SAID, Verdict, judge, outputs, said


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


class Record:
    """Counts and causes."""

    def __init__(self, seed: int):
        self.seed, self.counts, self.causes = seed, Counter(), {}
        self.began = time.monotonic()

    def add(self, case: Case, outcome: Outcome, damage: str, verdict: Verdict) -> bool:
        """Whether the cause is new."""
        self.counts[case.surface.name, verdict.kind] += 1
        key = f"{verdict.kind} {verdict.cause}"
        new = key not in self.causes
        entry = {"kind": verdict.kind, "cause": verdict.cause, "text": verdict.text[:600], "count": 0, "cases": []}
        entry |= {"damage": damage[:300], "command": f"{case.line.split()[0]} {shlex.join(outcome.words)}"[:600]}
        entry = self.causes.setdefault(key, entry)
        entry["count"] += 1
        entry["cases"] = [*entry["cases"], case.name][:5]
        if verdict.kind == "defended":  # to be read by a person now and then
            entry["examples"] = [*entry.get("examples", []), f"{case.line.split()[0]}: {damage[:100]}"][:40]
        return new

    @property
    def defects(self) -> int:
        return sum(count for (_, kind), count in self.counts.items() if kind in DEFECTS)

    def as_dict(self) -> dict:
        total = sum(self.counts.values())
        seconds = time.monotonic() - self.began
        return {
            "seed": self.seed, "cases": total, "seconds": round(seconds, 1), "per_second": round(total / seconds, 2),
            "classes": {kind: self._of(kind) for kind in (*GOOD, *DEFECTS)},
            "surfaces": {s.name: {k: c for (n, k), c in sorted(self.counts.items()) if n == s.name} for s in SURFACES},
            "causes": sorted(self.causes.values(), key=lambda entry: (entry["kind"], -entry["count"])),
        }  # fmt: skip

    def _of(self, kind: str) -> int:
        return sum(count for (_, own), count in self.counts.items() if own == kind)

    def summary(self) -> str:
        values = self.as_dict()
        lines = [f"{'surface':18s}" + "".join(kind.rjust(10) for kind in (*GOOD, *DEFECTS))]
        rows = [*values["surfaces"].items(), ("all", values["classes"])]
        lines += [
            f"{name:18s}" + "".join(str(own.get(k, 0) or ".").rjust(10) for k in (*GOOD, *DEFECTS))
            for name, own in rows
        ]
        lines.append(f"{values['cases']} cases in {values['seconds']} s, {values['per_second']} a second")
        for entry in values["causes"]:
            if entry["kind"] in DEFECTS:
                lines.append(f"{entry['kind']} x{entry['count']}: {entry['cause']}")
                lines.append(f"    {entry['text'][:300]}")
                lines.append(f"    {entry['damage'][:120]} | {entry['command'][:200]}")
                lines.append(f"    make fuzz CASE={entry['cases'][0]}")
        return "\n".join(lines)


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
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args(argv)
    inputs.warm_up()
    adopt_orphans()
    sys.dont_write_bytecode = True  # of a user's plugin, whose directory is looked through for leftovers
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz_", dir=shared) as folder:
        fuzzer = Fuzzer(Path(folder), args.workers)
        if args.case:
            return show_one(fuzzer, draw(*map(int, args.case.split(":"))))
        record = Record(args.seed)
        cases = (draw(args.seed, number) for number in numbers(args.minutes, args.cases, args.first))
        cases = (case for case in cases if not args.surface or case.surface.name in args.surface)
        for case, outcome, damage, verdict in fuzzer.run(cases):
            if record.add(case, outcome, damage, verdict) and verdict.kind in DEFECTS:
                print(f"{case.name} {verdict.kind}: {verdict.cause}", flush=True)
            if args.json and sum(record.counts.values()) % 100 == 0:
                args.json.write_text(json.dumps(record.as_dict(), indent=1))
    print(record.summary())
    if args.json:
        args.json.write_text(json.dumps(record.as_dict(), indent=1) + "\n")
    return 1 if record.defects else 0


if __name__ == "__main__":
    sys.exit(main())
