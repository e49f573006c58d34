"""What a run of probes leaves: results.json, table.md, confusion matrices and curves over layers."""

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from probe.names import PRETRAINED, RANDOM
from probe.probes.data import ProbeData
from probe.probes.heads import Recipe
from probe.probes.pictures import draw_confusion, draw_layers
from probe.probes.scoring import METRICS, differences, intervals, values_of
from proteinlm.files import write_json, write_text
from tape.reporting.tables import markdown_table

TITLES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "mcc": "MCC", "f1_macro": "macro F1"}
MOST_DRAWN = 60  # classes of a confusion matrix
COLUMNS = ("target", "split", "head", "pooling", "layer", "arm")


def write_report(
    output: Path,
    model: str | None,
    data: ProbeData,
    options,
    recipes: Mapping[str, Recipe],
    notes: Mapping[str, object],
    results: Sequence,
    seconds: float,
) -> dict:
    """Write everything under `output`, print the table, return what results.json holds."""
    rows = list(_rows(data, results))
    name = Path(model).resolve().name if model else "no model"
    name += f" (random: seed {options.random_seed})" if any(row["arm"] == RANDOM for row in rows) else ""
    settings = {"model": model, "data": data.name, "options": asdict(options)}
    settings |= {"splits": {split: len(places) for split, places in data.splits.items()}}
    settings |= {"classes": {target.name: list(target.classes) for target in data.targets.values()}}
    recipe = {head: {k: v for k, v in asdict(own).items() if k != "make"} for head, own in recipes.items()}
    settings |= {"heads": recipe, "notices": list(data.notices), **notes}
    settings |= {"torch": torch.__version__, "python": platform.python_version()}
    report = {"settings": settings, "seconds": round(seconds, 1), "rows": rows}
    write_json(output / "results.json", report)
    table = [list(map(str, line)) for line in _table(rows)]
    write_text(output / "table.md", markdown_table(table) + "\n")
    pictures = [*_confusions(output, name, data, rows), *_curves(output, name, data, rows)]
    print_table(table)
    print(f"wrote {output / 'results.json'}, table.md, {len(pictures)} pictures")
    return report


def _rows(data: ProbeData, results: Sequence) -> Iterator[dict]:
    """A row a setup, split and target."""
    random = {result.setup[:3]: result for result in results if result.setup.arm == RANDOM}
    for result in results:
        twin = random.get(result.setup[:3]) if result.setup.arm == PRETRAINED else None
        for (split, target), runs in result.counted.items():
            if not len(runs[0].places):
                continue
            classes = data.targets[target].classes
            row = dict(zip(COLUMNS, (target, split, *result.setup), strict=True))
            row |= {"proteins": len(runs[0].places), "labels": len(runs[0].pairs)}
            row["metrics"] = intervals(runs, len(classes))
            if twin is not None:
                row["minus_random"] = differences(runs, twin.counted[split, target], len(classes))
            row["of_each_seed"] = [values_of(run, len(classes)) for run in runs]
            row["fits"] = [asdict(outcome) for outcome in result.outcomes]
            if len(classes) <= MOST_DRAWN:
                row["confusion"] = sum(run.confusion(len(classes)) for run in runs).astype(int).tolist()
            yield row


def _table(rows: Sequence[Mapping]) -> Iterator[Sequence[object]]:
    """Text of the rows: each metric with its interval, and the difference to random weights where there is one."""
    yield [*COLUMNS, "proteins", *(TITLES[name] for name in METRICS), "accuracy minus random"]
    for row in rows:
        words = ["-" if row[name] is None else row[name] for name in COLUMNS]
        words[0] = f"{row['target']} (Q{len(row['confusion'])})" if "confusion" in row else row["target"]
        cells = [_interval(row["metrics"][name]) for name in METRICS]
        difference = _interval(row["minus_random"]["accuracy"], "+") if "minus_random" in row else ""
        yield [*words, row["proteins"], *cells, difference]


def _interval(value: Mapping, sign: str = "") -> str:
    return f"{value['value']:{sign}.3f} [{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]"


def print_table(table: Sequence[Sequence[str]]) -> None:
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _groups(rows: Sequence[Mapping], *keys: str) -> dict[tuple, list[Mapping]]:
    groups: dict[tuple, list[Mapping]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def _stem(output: Path, *words: str | None) -> Path:
    return output / re.sub(r"\W", "_", "_".join(filter(None, words)))


def _caption(model: str, row: Mapping, *words: str) -> str:
    """What the picture is of; `words`: more of what all its values share."""
    pooling = [] if row["pooling"] is None else [f"{row['pooling']} pooling"]
    seeds = len(row["fits"])
    return ", ".join([model, row["head"], *pooling, *words, f"{seeds} seed{'s' if seeds > 1 else ''} of the head"])


def _confusions(output: Path, model: str, data: ProbeData, rows: Sequence[Mapping]) -> Iterator[Path]:
    """A picture a split and target: the arms, with the first head and pooling, at its last layer."""
    first = rows[0]
    layer = max((row["layer"] for row in rows if row["layer"] is not None), default=None)
    alike = [row for row in rows if row["head"] == first["head"] and row["layer"] in (layer, None)]
    alike = [row for row in alike if row["pooling"] == first["pooling"] or row["layer"] is None]
    for (target, split), own in _groups(alike, "target", "split").items():
        if "confusion" not in own[0]:
            continue
        panels = {f"{row['arm']} (accuracy {row['metrics']['accuracy']['value']:.3f})": row["confusion"] for row in own}
        title = f"{target}, {own[0]['proteins']:,} proteins of {data.name}, split {split}: what is taken for what"
        caption = _caption(model, first, *([] if layer is None else [f"layer {layer}"]))
        classes = data.targets[target].classes
        yield from draw_confusion(_stem(output, "confusion", target, split), panels, classes, title, caption)


def _curves(output: Path, model: str, data: ProbeData, rows: Sequence[Mapping]) -> Iterator[Path]:
    """A picture a head, pooling, split and target, where several layers were probed."""
    for (target, split, head), own in _groups(rows, "target", "split", "head").items():
        level = {row["arm"]: row["metrics"]["accuracy"]["value"] for row in own if row["layer"] is None}
        for (pooling,), of_pooling in _groups([row for row in own if row["layer"] is not None], "pooling").items():
            by_arm = _groups(of_pooling, "arm")
            curves = {arm: {row["layer"]: row["metrics"]["accuracy"] for row in r} for (arm,), r in by_arm.items()}
            if max(map(len, curves.values())) < 2:
                continue
            title = f"{target}, {own[0]['proteins']:,} proteins of {data.name}, split {split}: layer by layer"
            stem = _stem(output, "layers", target, split, head, pooling)
            yield from draw_layers(stem, curves, level, title, _caption(model, of_pooling[0]))
