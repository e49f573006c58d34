"""What was seen in a run of the fuzzer, and the sum of several runs: benchmarks/results/fuzz.json."""

import shlex
import time
from collections import Counter
from collections.abc import Sequence

import torch

from benchmarks.comparison import machine
from fuzz.cases import Case
from fuzz.process import Outcome
from fuzz.surfaces import SURFACES
from fuzz.verdict import DEFECTS, GOOD, Verdict, shape


class Record:
    """Counts and causes."""

    def __init__(self, seed: int, first: int | None = 0):
        self.seed, self.first, self.counts, self.causes = seed, first, Counter(), {}
        self.began = time.monotonic()
        self.about = machine("-m fuzz", torch.device("cpu"))  # now: what stands at the end may be another commit

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
            **self.about, "seed": self.seed, "first": self.first, "cases": total, "seconds": round(seconds, 1),
            "per_second": round(total / seconds, 2),
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


def places_of_defects(record: dict) -> list[tuple[int, int]]:
    """(seed, number) of the cases of a record's defects."""
    causes = record.get("defects", record.get("causes"))
    names = (name for cause in causes if cause["kind"] in DEFECTS for name in cause["cases"])
    return sorted(tuple(map(int, name.split(":"))) for name in names)


def merged(records: Sequence[dict]) -> dict:
    """The sum of several runs' records, with what each of them was. One of repeated cases is shown, and not counted."""
    again = [{name: record[name] for name in ("commit", "classes")} for record in records if record["first"] is None]
    records = [record for record in records if record["first"] is not None]
    seeds, classes, surfaces, defended, defects = Counter(), Counter(), {}, Counter(), []
    for record in records:
        seeds[str(record["seed"])] += record["cases"]
        classes.update(record["classes"])
        for name, counts in record["surfaces"].items():
            surfaces.setdefault(name, Counter()).update(counts)
        for cause in record["causes"]:
            if cause["kind"] == "defended":
                defended[cause["cause"]] += cause["count"]
            elif cause["kind"] in DEFECTS:
                own = {"kind": cause["kind"], "cause": shape(cause["cause"]), "cases": cause["cases"]}
                defects.append({"commit": record["commit"][:7], **own})
    total, minutes = sum(seeds.values()), max(1e-3, sum(record["seconds"] for record in records) / 60)
    own = ("commit", "seed", "first", "cases", "seconds", "classes")
    return {
        **{name: records[-1][name] for name in ("commit", "machine", "threads", "python", "torch", "transformers")},
        **{"command": "python -m fuzz --seed SEED --first FIRST --cases CASES", "cases": total, "seeds": dict(seeds)},
        **{"cases_per_minute": round(total / minutes, 1), "classes": dict(classes), "surfaces": surfaces},
        **{"defended": dict(defended.most_common()), "defects": defects, "defects_again": again},
        "runs": [{name: record[name] for name in own} for record in records],
    }
