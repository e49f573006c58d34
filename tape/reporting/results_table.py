"""The table of tape-table: results of tape-eval beside the published numbers, a line for the runs of one kind.

    rows = build_table(["runs/"])           # the text of each cell, see COLUMNS
    to_text(rows), to_markdown(rows), to_html(rows)

Numbers are those of the files; nothing is recomputed. What must hold: different experiments never share a line, and
a note names how each published number was measured differently.
"""

import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from proteinlm.errors import InputError
from proteinlm.untrusted.json_files import read_json
from tape.metrics import mean_and_spread
from tape.reporting.published import PUBLISHED, SYSTEMS, metric_definition, reasons
from tape.reporting.tables import html_table, markdown_table
from tape.runs.results import read_result

COLUMNS = ("task", "split", "metric", "head", "weights", "ours", "runs", "proteins", *SYSTEMS[1:], "note")
NOT_THE_RECIPE = ("seed", "seeds", "output_dir", "log_dir", "data_dir", "device", "num_workers", "resume", "force_save")


@dataclass(frozen=True)
class Line:
    """One line of the table: every run of one kind on one split."""

    task: str
    split: str
    metric: str
    head: str
    weights: str  # the run's name, else "pretrained" or "random"
    results: tuple[dict, ...]


def find_results(paths: Iterable[str | Path]) -> list[Path]:
    """The result files named, and those below the directories named; each once."""
    files = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path}: no such file or directory; should be a run directory or a result of tape-eval")
        results = [file for file in sorted(path.rglob("*.json")) if _is_result(file)] if path.is_dir() else [path]
        if not results:
            raise InputError(f"{path}: no result of tape-eval below it (<task>-<split>.json)")
        files += results
    return list({file.resolve(): file for file in files}.values())


def _is_result(file: Path) -> bool:
    """Whether a JSON file has keys of a result, or cannot be read where one would be: read_result names the fault.

    A plugin's task, or one's own table, may have any name.
    """
    if "-" not in file.name:
        return False
    with contextlib.suppress(OSError, InputError):
        if file.is_file():  # what a pipe gives can be read once
            return len({"task", "split", "metric"} & read_json(file).keys()) > 1
    in_a_run = (file.parent / "args.json").is_file()
    return in_a_run or any(file.name.startswith(f"{task}-") for task in PUBLISHED)


def recipe_of(result: dict) -> str:
    """The flags that make two runs different experiments: all but the seed and where files lie."""
    flags = result.get("args") or {}
    return json.dumps({name: value for name, value in flags.items() if name not in NOT_THE_RECIPE}, sort_keys=True)


def group(results: Sequence[dict]) -> list[Line]:
    """Lines in the order of the published table; runs that differ only in the seed (and in paths) share one."""
    lines: dict[tuple, list[dict]] = {}
    for result in results:
        source = result["checkpoint"].get("from_pretrained") or {}
        identity = source.get("weights_sha256")
        kind = result.get("model_type") or "transformer"
        key = (result["task"], result["split"], result["metric"], result["head"], result.get("run"), identity, kind)
        key += (recipe_of(result),)
        lines.setdefault(key, []).append(result)
    unnamed = [key for key in lines if not key[4] and key[5]]
    several = len({key[5] for key in unnamed}) > 1  # two pretrained models: tell them apart
    table = []
    for (task, split, metric, head, name, identity, kind, _), members in lines.items():
        weights = "random" if kind == "transformer" else kind
        if identity is not None:
            weights = f"pretrained {identity[:8]}" if several else "pretrained"
        ordered = sorted(members, key=lambda result: (result["seed"] is None, result["seed"] or 0))
        table.append(Line(task, split, metric, str(head), name or weights, tuple(ordered)))
    places = {task: place for place, task in enumerate(PUBLISHED)}
    return sorted(table, key=lambda line: (places.get(line.task, len(places)), line.split, line.head, line.weights))


def _value_of(line: Line) -> str:
    values = np.array([result["value"] for result in line.results], np.float64)  # None (not finite) becomes NaN
    if len(values) > 1:
        return "{:.3f} ± {:.3f}".format(*mean_and_spread(values))
    interval = line.results[0].get("interval") or {"low": None, "high": None}
    if None in (interval["low"], interval["high"]):
        return f"{values[0]:.3f}"
    return f"{values[0]:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _notes(line: Line) -> list[str]:
    notes = []
    seeds = [result["seed"] for result in line.results]
    if len(set(seeds)) < len(seeds):
        notes.append("some runs share a seed")
    cropped = [result.get("truncated") or {} for result in line.results]
    most = max((entry.get("proteins_cropped", 0) for entry in cropped), default=0)
    if most:
        limit = next(entry["max_length"] for entry in cropped if entry.get("proteins_cropped", 0) == most)
        notes.append(f"{most} proteins cropped to {limit} residues")
    if line.task not in PUBLISHED:
        return [*notes, "nothing published to compare with"]
    result = line.results[0] | {"n_seeds": len(line.results), "truncated": None}
    systems: dict[str, list[str]] = {}
    for system in SYSTEMS[1:]:
        for reason in reasons(result, PUBLISHED[line.task][system]):
            systems.setdefault(reason, []).append(system)
    return notes + [f"{reason} ({', '.join(names)})" for reason, names in systems.items()]


def cells(line: Line) -> list[str]:
    """The text of one line, one string a column."""
    published = PUBLISHED.get(line.task, {})
    proteins = sorted({result["n_examples"] for result in line.results})
    return [
        line.task,
        line.split,
        metric_definition(line.task, line.metric),
        line.head,
        line.weights,
        _value_of(line),
        str(len(line.results)),
        " or ".join(f"{number:,}" for number in proteins),
        *(f"{published[system].value:.2f}" if published else "-" for system in SYSTEMS[1:]),
        "; ".join(_notes(line)),
    ]


def to_text(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns for a terminal; the notes below, numbered."""
    short = [[*row[:-1], f"({number})"] for number, row in enumerate(rows, 1)]
    table = [list(COLUMNS), *short]
    widths = [max(len(row[place]) for row in table) for place in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([*lines, "", *(f"({number}) {row[-1]}" for number, row in enumerate(rows, 1))]) + "\n"


def to_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A GitHub table."""
    return markdown_table([COLUMNS, *rows]) + "\n"


def to_html(rows: Sequence[Sequence[str]]) -> str:
    """One <table> element, for a page of its own or another's."""
    return html_table([COLUMNS, *rows]) + "\n"


def build_table(paths: Iterable[str | Path]) -> list[list[str]]:
    """The rows of the table for these results (see COLUMNS)."""
    return [cells(line) for line in group([read_result(path) for path in find_results(paths)])]
