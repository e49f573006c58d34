"""Results of `tape-eval` beside the published numbers.

    tape-table runs/                          every <task>-<split>.json below it
    tape-table runs/a runs/b/stability-test.json --markdown --output table.md

Runs that differ only in their seed share a line: their mean, their spread (sample standard deviation) and how many. One
run alone shows its 95% interval over proteins. A published number stands beside ours only to be compared with care: the
note of a line says what differs (split, head, metric, proteins left out). Numbers are what the files say; nothing is
recomputed. Imports no torch.
"""

import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from proteinlm import errors
from proteinlm.errors import InputError
from proteinlm.files import write_text
from tape.metrics import mean_and_spread
from tape.reporting.published import SPLITS, VALUES, metric_definition
from tape.reporting.tables import html_table, markdown_table

# (TAPE Transformer, ProteinLM-200M, ProteinLM-3B) and the split they were measured on.
PUBLISHED = {task: (SPLITS[task][0], values[1:]) for task, values in VALUES.items()}
# What keeps even the same split and head from being the same measurement.
CAVEATS = {
    "contact_prediction": "published P@L/5 pools contacts over a batch; ProteinLM dropped proteins over 512 residues",
    "remote_homology": "ProteinLM dropped proteins over 512 residues and its final LayerNorm",
    "secondary_structure": "ProteinLM dropped proteins over 512 residues and its final LayerNorm",
    "fluorescence": "ProteinLM dropped its final LayerNorm",
    "stability": "ProteinLM dropped its final LayerNorm",
}
HEAD_CAVEATS = {
    "tape": "ProteinLM used head proteinlm",
    "proteinlm": "TAPE used its own head",
}
COLUMNS = (
    "task",
    "split",
    "metric",
    "head",
    "weights",
    "ours",
    "runs",
    "proteins",
    "TAPE Transformer",
    "ProteinLM-200M",
    "ProteinLM-3B",
    "note",
)
NOT_THE_RECIPE = ("seed", "seeds", "output_dir", "log_dir", "data_dir", "device", "num_workers", "resume", "force_save")
REQUIRED = ("task", "split", "metric", "value", "n_examples", "head", "checkpoint", "seed")


@dataclass(frozen=True)
class Line:
    """One line of the table: every run of one kind on one split."""

    task: str
    split: str
    metric: str
    head: str
    weights: str  # the run's name, else "pretrained" or "random"
    results: tuple[dict, ...]

    @property
    def values(self) -> list[float]:
        return [math.nan if result["value"] is None else float(result["value"]) for result in self.results]


def find_results(paths: Iterable[str | Path]) -> list[Path]:
    """The result files named, and those below the directories named; each once."""
    found = {}
    for path in map(Path, paths):
        if path.is_dir():
            below = [file for file in sorted(path.rglob("*.json")) if _is_result(file)]
            if not below:
                raise InputError(f"{path}: no result of tape-eval below it (<task>-<split>.json)")
            found.update((file.resolve(), file) for file in below)
        elif path.is_file():
            found[path.resolve()] = path
        else:
            raise InputError(f"{path}: no such file or directory; should be a run directory or a result of tape-eval")
    return list(found.values())


def _is_result(file: Path) -> bool:
    """Whether a JSON file says what the table needs; a plugin's task may have any name."""
    if "-" not in file.name:
        return False
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return any(file.name.startswith(f"{task}-") for task in PUBLISHED)  # read_result says what is wrong with it
    return isinstance(found, dict) and {"task", "split", "metric"} <= found.keys()


def read_result(path: Path) -> dict:
    """One result file, checked for what the table needs."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a JSON file ({error})") from error
    missing = [key for key in REQUIRED if not isinstance(result, dict) or key not in result]
    if missing:
        raise InputError(f"{path}: key {missing[0]!r} is missing; should be a result that tape-eval wrote")
    return result


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
    made = []
    for key, members in lines.items():
        task, split, metric, head, name, identity, kind, _ = key
        unpretrained = "random" if kind == "transformer" else kind
        weights = unpretrained if identity is None else f"pretrained {identity[:8]}" if several else "pretrained"
        ordered = sorted(members, key=lambda result: (result["seed"] is None, result["seed"] or 0))
        made.append(Line(task, split, metric, head, name or weights, tuple(ordered)))
    places = {task: place for place, task in enumerate(PUBLISHED)}
    return sorted(made, key=lambda line: (places.get(line.task, len(places)), line.split, line.head, line.weights))


def _ours(line: Line) -> str:
    values = line.values
    if len(values) > 1:
        return "{:.3f} ± {:.3f}".format(*mean_and_spread(values))
    interval = line.results[0].get("interval")
    shown = f"{values[0]:.3f}"
    return f"{shown} [{interval['low']:.3f}, {interval['high']:.3f}]" if _known(interval) else shown


def _known(interval: dict | None) -> bool:
    return bool(interval) and interval["low"] is not None and interval["high"] is not None


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
    split, _ = PUBLISHED[line.task]
    if line.split != split:
        notes.append(f"not comparable: published on {split}")
    return [*notes, HEAD_CAVEATS.get(line.head, ""), CAVEATS[line.task]]


def cells(line: Line) -> list[str]:
    """The text of one line, one string a column."""
    _, published = PUBLISHED.get(line.task, ("", (None, None, None)))
    metric = metric_definition(line.task, line.metric)
    proteins = sorted({result["n_examples"] for result in line.results})
    return [
        line.task,
        line.split,
        metric,
        line.head,
        line.weights,
        _ours(line),
        str(len(line.results)),
        " or ".join(f"{number:,}" for number in proteins),
        *("-" if value is None else f"{value:.2f}" for value in published),
        "; ".join(filter(None, _notes(line))),
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = errors.ArgumentParser("tape-table", description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="+", help="run directories or result files of tape-eval")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="a GitHub table")
    form.add_argument("--html", action="store_true", help="an HTML table")
    parser.add_argument("--output", help="write here instead of to the terminal")
    args = parser.parse_args(argv)
    rows = build_table(args.results)
    text = (to_markdown if args.markdown else to_html if args.html else to_text)(rows)
    if args.output:
        write_text(args.output, text)
        print(f"wrote {len(rows)} lines to {args.output}")
    else:
        sys.stdout.write(text)
    return 0


def cli() -> int:
    """The console command."""
    return errors.run(main)


if __name__ == "__main__":
    sys.exit(cli())
