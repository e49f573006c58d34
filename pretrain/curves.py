"""Runs side by side: [MASK] loss and accuracy against residues, FLOPs and minutes, from their metrics.jsonl.

    python -m pretrain.curves RUN [RUN ...] --output curves.html [--png curves.png]

One row of plots for the training set and for each validation set; the dotted line is the loss of amino-acid
frequencies alone. Residues are tokens less one a protein: ESM's second, a protein's end, stays in. The page is one file
without links, in the light or dark colours of its reader. RUN is a directory of --save, or NAME=DIRECTORY.
"""

import html
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from proteinlm.errors import ArgumentParser, InputError, run
from proteinlm.files import atomic_path, check_writable, write_text
from proteinlm.untrusted.json_files import read_json_lines
from proteinlm.untrusted.shapes import NUMBER, misfits

AXES = {"residues": "residues seen", "flops": "FLOPs", "minutes": "minutes"}
MEASURES = {"loss": "[MASK] loss, nats", "accuracy": "[MASK] accuracy"}
COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#b83280", "#6b46c1", "#718096")
WIDTH, HEIGHT, LEFT, BOTTOM, MARGIN = 380, 230, 52, 36, 14
STYLE = """:root { color-scheme: light dark } body { font: 14px/1.5 system-ui, sans-serif; margin: 2em auto;
max-width: 1240px; padding: 0 1em; background: Canvas; color: CanvasText } .plots { display: flex; flex-wrap: wrap }
svg text { fill: currentColor; font-size: 11px } svg { margin-right: 12px } .grid { stroke: currentColor; opacity: .15 }
.unigram { stroke-dasharray: 2 3 } polyline, .unigram { fill: none; stroke-width: 1.6 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } td, th { padding: 2px 12px; text-align: right }
td:first-child, th:first-child { text-align: left }"""

Point = dict[str, float]  # AXES, MEASURES and "unigram", as far as the log has them
# What is read of a line of metrics.jsonl; one of evaluation has `dataset`, one of training has `seconds`.
LONGEST_NAME = 200  # of a set, which is a plot's title
LINE = {"consumed_tokens": int, "consumed_proteins": int, "dataset?": str, "flops?": NUMBER}
LINE |= {f"{prefix}{name}?": NUMBER for prefix in ("", "valid_") for name in ("mask_loss", "mask_accuracy")}
LINE |= {"unigram_entropy?": NUMBER}


@dataclass
class Curves:
    """One run: per data set its points in order."""

    name: str
    path: Path
    sets: dict[str, list[Point]] = field(default_factory=dict)


def read_run(argument: str) -> Curves:
    """InputError where there is no log, or none of a pretraining run; a damaged line is left out, with a notice."""
    name, equals, directory = argument.partition("=")
    if not equals or Path(argument).is_dir():
        name, directory = Path(argument).name, argument
    path = Path(directory) / "metrics.jsonl"
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a directory of --save, or NAME=DIRECTORY")
    curves, sums = Curves(name, path), {"flops": 0.0, "minutes": 0.0}
    damaged = []
    for number, _, values in read_json_lines(path):
        shape = LINE if "dataset" in (values or {}) else LINE | {"seconds": NUMBER}
        if values is None or next(misfits(values, shape), None) or len(values.get("dataset", "")) > LONGEST_NAME:
            damaged.append(f"line {number} is not a line of a pretraining run")
        else:
            curves.sets.setdefault(values.get("dataset", "train"), []).append(_point(values, sums))
    if not curves.sets:
        raise InputError(f"{path}: {damaged[0] if damaged else 'no line yet'}")
    if damaged:
        print(f"notice: {path}: {damaged[0]}; left out ({len(damaged)} such lines)", file=sys.stderr, flush=True)
    return curves


def _point(values: dict, sums: dict[str, float]) -> Point:
    """A line as a point; `sums`: FLOPs and minutes of training up to it (logs from before `flops` have none)."""
    evaluation = "dataset" in values
    if not evaluation:
        sums["flops"] += values.get("flops") or math.nan
        sums["minutes"] += values["seconds"] / 60
    prefix = "valid_" if evaluation else ""
    named = {
        "residues": values["consumed_tokens"] - values["consumed_proteins"],
        "loss": values.get(f"{prefix}mask_loss"),
        "accuracy": values.get(f"{prefix}mask_accuracy"),
        "unigram": values.get("unigram_entropy"),
        **sums,
    }
    return {key: value for key, value in named.items() if value is not None and math.isfinite(value)}


def plotted(runs: Sequence[Curves], name: str, axis: str, measure: str) -> list[tuple[int, list[tuple[float, float]]]]:
    """(number of the run, its points) of every run that has any."""
    found = []
    for number, one in enumerate(runs):
        points = [(p[axis], p[measure]) for p in one.sets.get(name, []) if axis in p and measure in p]
        found += [(number, points)] if points else []
    return found


def unigram(runs: Sequence[Curves], name: str) -> list[tuple[int, float]]:
    """(number of the run, the loss of frequencies alone) of every run whose log has it."""
    lasts = [(number, one.sets[name][-1]) for number, one in enumerate(runs) if name in one.sets]
    return [(number, last["unigram"]) for number, last in lasts if "unigram" in last]


def set_names(runs: Sequence[Curves]) -> list[str]:
    return list(dict.fromkeys(name for one in runs for name in one.sets))


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers that span `low` to `high` in at most `most` steps."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    return [step * number for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """1.5M, 2e+15, 0.25."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1e12:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def svg(runs: Sequence[Curves], name: str, axis: str, measure: str) -> str:
    """One plot; '' where no run has anything for it."""
    lines = plotted(runs, name, axis, measure)
    if not lines:
        return ""
    levels = unigram(runs, name) if measure == "loss" else []
    xs = [x for _, points in lines for x, _ in points]
    ys = [y for _, points in lines for _, y in points] + [y for _, y in levels]
    (low, high), right = (min(ys), max(ys)), max(xs) or 1.0
    low, high = (low - 0.5, high + 0.5) if low == high else (low, high)

    def place(x: float, y: float) -> tuple[str, str]:
        across = LEFT + x / right * (WIDTH - LEFT - MARGIN)
        return f"{across:.1f}", f"{MARGIN + (high - y) / (high - low) * (HEIGHT - BOTTOM - MARGIN):.1f}"

    parts = [f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">']
    for y in ticks(low, high):
        _, down = place(0, y)
        parts.append(f'<path class="grid" d="M{LEFT} {down}H{WIDTH - MARGIN}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down}" dy="4" text-anchor="end">{short(y)}</text>')
    for x in ticks(0, right):
        parts.append(f'<text x="{place(x, low)[0]}" y="{HEIGHT - 20}" text-anchor="middle">{short(x)}</text>')
    middle = (LEFT + WIDTH) // 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{AXES[axis]}</text>')
    for number, y in levels:
        path = f"M{LEFT} {place(0, y)[1]}H{WIDTH - MARGIN}"
        parts.append(f'<path class="unigram" stroke="{COLOURS[number % len(COLOURS)]}" d="{path}"/>')
    for number, points in lines:
        joined = " ".join(",".join(place(*point)) for point in points)
        parts.append(f'<polyline stroke="{COLOURS[number % len(COLOURS)]}" points="{joined}"/>')
    return "".join([*parts, "</svg>"])


def table(runs: Sequence[Curves]) -> Iterator[list[str]]:
    """Where each run stands on each set: its last line."""
    yield ["run", "set", "residues", "minutes", "[MASK] loss", "below frequencies alone", "accuracy"]
    for one in runs:
        for name, points in one.sets.items():
            last = points[-1]
            loss, level, right = (last.get(key, math.nan) for key in ("loss", "unigram", "accuracy"))
            numbers = [short(last["residues"]), f"{last.get('minutes', math.nan):.1f}"]
            yield [one.name, name, *numbers, f"{loss:.4f}", f"{level - loss:.4f}", f"{right:.2%}"]


def page(runs: Sequence[Curves]) -> str:
    """The HTML file."""
    legend = "".join(
        f'<span style="color:{COLOURS[number % len(COLOURS)]}">&#9632;</span> {html.escape(one.name)} &nbsp; '
        for number, one in enumerate(runs)
    )
    parts = [f"<!doctype html><meta charset=utf-8><title>Curves</title><style>{STYLE}</style><p>{legend}</p>"]
    for name in set_names(runs):
        for measure, title in MEASURES.items():
            if plots := "".join(svg(runs, name, axis, measure) for axis in AXES):
                parts.append(f'<h3>{html.escape(name)}: {title}</h3><div class="plots">{plots}</div>')
    head, *rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in table(runs)]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return "\n".join([*parts, f"<table><tr>{head.replace('td>', 'th>')}</tr>{body}</table>\n"])


def write_png(runs: Sequence[Curves], path: str) -> None:
    """The same plots with matplotlib."""
    from matplotlib.figure import Figure

    rows = [(name, measure) for name in set_names(runs) for measure in MEASURES]
    figure = Figure(figsize=(4.2 * len(AXES), 2.6 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(AXES), squeeze=False)
    for (name, measure), cells in zip(rows, grid, strict=True):
        for axis, cell in zip(AXES, cells, strict=True):
            for number, points in plotted(runs, name, axis, measure):
                cell.plot(*zip(*points, strict=True), color=COLOURS[number % len(COLOURS)], label=runs[number].name)
            for number, level in unigram(runs, name) if measure == "loss" else []:
                cell.axhline(level, color=COLOURS[number % len(COLOURS)], linestyle=":")
            cell.set(xlabel=AXES[axis], title=f"{name}: {MEASURES[measure]}", xlim=(0, None))
    grid[0][0].legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser("python -m pretrain.curves", description="Pretraining runs side by side.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="directory of --save, or NAME=DIRECTORY")
    parser.add_argument("--output", default="curves.html", help="the page")
    parser.add_argument("--png", help="the same plots as a picture")
    args = parser.parse_args(argv)
    runs = [read_run(argument) for argument in args.runs]
    for path in filter(None, (args.output, args.png)):
        check_writable(path, *(one.path for one in runs))
    try:
        write_text(Path(args.output), page(runs))
        if args.png:
            write_png(runs, args.png)
    except OSError as error:
        raise InputError(f"{error.filename or args.output}: cannot write: {error.strerror or error}") from error
    for row in table(runs):
        print("  ".join(cell.rjust(12) for cell in row))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
