"""results.json as pages: table.md, and table.html with the same tables and a plot a task, in one file without links.

    write_pages(results, Path("OUT"))

Bars are ours with their 95% intervals over proteins; hatched bars are published values, which have none. What must
hold: a published number never stands without its notes on how it was measured differently.
"""

import html
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from proteinlm.errors import InputError
from proteinlm.files import write_text
from tape.reporting.published import SYSTEMS
from tape.reporting.tables import html_table, markdown_table

COLORS = ("#2b6cb0", "#a0aec0", "#dd9a3c", "#4a9d6f", "#8a5fb5", "#c0504d")
STYLE = """body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1500px; padding: 0 1em;
color: #1a202c } table { border-collapse: collapse; margin: 1em 0; font-size: 13px }
td, th { border: 1px solid #cbd5e0; padding: 4px 8px; text-align: left; vertical-align: top } th { background: #edf2f7 }
td { font-variant-numeric: tabular-nums }
code { font-size: 12px; overflow-wrap: anywhere } svg { max-width: 100%; height: auto }"""


Notes = dict[str, int]  # reason -> its number, as they come up


def mark(notes: Notes, reasons: Sequence[str]) -> str:
    """' (1, 4)' for these reasons, which become notes; '' for none."""
    numbers = [notes.setdefault(reason, len(notes) + 1) for reason in reasons]
    return f" ({', '.join(map(str, sorted(numbers)))})" if numbers else ""


def show(value: float | None, sign: str = "") -> str:
    return "undefined" if value is None else f"{value:{sign}.3f}"


def measured_value(row: Mapping, notes: Notes) -> str:
    """'0.644 [0.640, 0.647] ± 0.003 (2)'."""
    interval = row["interval"]
    spread = f" ± {row['spread']:.3f}" if row["spread"] is not None else ""
    ends = f"[{show(interval['low'])}, {show(interval['high'])}]"
    return f"{show(row['value'])} {ends}{spread}{mark(notes, row['warnings'])}"


def published_beside(rows: Sequence[Mapping], row: Mapping, system: str) -> Mapping | None:
    """The system's number, if it belongs to this line: its metric, and its split (or valid, if that is not there)."""
    entry = row["published"].get(system)
    if entry is None or entry["metric"] != row["metric"]:
        return None
    splits = {other["split"] for other in rows if other["task"] == row["task"]}
    split = entry["split"] if entry["split"] in splits else "valid"
    return entry if row["split"] == split else None


def result_table(results: Mapping, notes: Notes) -> list[list[str]]:
    """Header and a line a task, split and metric."""
    arms, rows = results["arms"], results["rows"]
    others = arms[1:]
    header = ["task", "split", "metric", "head", "proteins", "seeds", *arms]
    header += [f"{arms[0]} − {other}" for other in others] + list(SYSTEMS)
    table = [header]
    for key in dict.fromkeys((row["task"], row["split"], row["metric"]) for row in rows):
        line = {row["arm"]: row for row in rows if (row["task"], row["split"], row["metric"]) == key}
        gaps = {d["minus"]: d for d in results["differences"] if (d["task"], d["split"], d["metric"]) == key}
        first = next(iter(line.values()))
        heads, seeds = ({str(row[name]): None for row in line.values()} for name in ("head", "n_seeds"))
        cells = [first["task"], first["split"], first["metric_definition"], " / ".join(heads)]
        cells += [f"{first['n_examples']:,}", " / ".join(seeds)]
        cells += [measured_value(line[arm], notes) if arm in line else "not run" for arm in arms]
        cells += [_gap(gaps.get(other), notes) for other in others]
        for system in SYSTEMS:
            entry = published_beside(rows, first, system)
            cells.append("-" if entry is None else f"{entry['value']:.2f}{mark(notes, entry['reasons'])}")
        table.append(cells)
    return table


def _gap(difference: Mapping | None, notes: Notes) -> str:
    if difference is None:
        return "-"
    value, low, high = (show(difference[key], "+") for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]{mark(notes, difference['warnings'])}"


def run_table(results: Mapping) -> list[list[str]]:
    """Header and a line a task and arm: what each number cost."""
    header = ["task", "arm", "model", "head", "parameters", "steps x proteins", "best step", "residues seen"]
    table = [[*header, "precision", "device", "minutes training", "minutes scoring", "weights"]]
    for key in dict.fromkeys((row["task"], row["arm"]) for row in results["rows"]):
        row = next(row for row in results["rows"] if (row["task"], row["arm"]) == key)
        source = (row["checkpoints"][0].get("from_pretrained") or {}).get("weights_sha256")
        table.append(
            [
                *key,
                row["model_type"],
                str(row["head"]),
                f"{row['parameters']:,}",
                f"{_several(row['steps'])} x {row['batch_size']}",
                _several(row["best_step"]),
                _several(row["residues_seen"]),
                row["precision"]["training"],
                row["device"],
                _several(row["train_minutes"], ".1f"),
                _several(row["eval_minutes"], ".1f"),
                f"pretrained {source[:8]}" if source else "random",
            ]
        )
    return table


def _several(values: Sequence, form: str = ",") -> str:
    """'240' where all seeds agree, else '240 / 180 / 240'; what a run did not store is named so."""
    texts = ["not stored" if value is None else format(value, form) for value in values]
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)


def intro(results: Mapping) -> list[str]:
    """What the tables are, in a few lines."""
    return [
        "Each number is the mean over seeds, [its 95% bootstrap interval over proteins] ± the standard deviation over "
        "seeds. Differences resample the same proteins for both arms. Published columns are other people's "
        "measurements: the notes say in what they differ.",
        f"Command: `{results['command']}`",
    ]


def missing(results: Mapping) -> list[str]:
    return [
        f"{e['arm']} {e['task']} seed {e['seed']}: {', '.join(e['splits'])} ({e['why']})" for e in results["not_run"]
    ]


def commands(results: Mapping) -> list[str]:
    """Every command behind the numbers, once."""
    return list(dict.fromkeys(c for row in results["rows"] for seed in row["commands"] for c in seed))


def to_markdown(results: Mapping) -> str:
    """table.md."""
    notes: Notes = {}
    parts = ["# The five TAPE tasks", *intro(results), markdown_table(result_table(results, notes))]
    parts.append("Notes\n\n" + "\n".join(f"{number}. {text}" for text, number in notes.items()))
    parts += ["## Runs", markdown_table(run_table(results))]
    if results["not_run"]:
        parts += ["## Not run", "\n".join(f"- {line}" for line in missing(results))]
    parts += ["## Commands", "```bash\n" + "\n".join(commands(results)) + "\n```"]
    return "\n\n".join(parts) + "\n"


def to_html(results: Mapping) -> str:
    """table.html: one self-contained file."""
    notes: Notes = {}

    def listing(tag: str, lines: Sequence[str]) -> str:
        return f"<{tag}>" + "".join(f"<li>{html.escape(line)}</li>\n" for line in lines) + f"</{tag}>"

    paragraphs = "".join(f"<p>{html.escape(text)}</p>\n" for text in intro(results))
    parts = ["<h1>The five TAPE tasks</h1>", paragraphs, plots(results)]
    parts.append(html_table(result_table(results, notes)))
    parts += ["<h2>Notes</h2>", listing("ol", list(notes)), "<h2>Runs</h2>", html_table(run_table(results))]
    if results["not_run"]:
        parts += ["<h2>Not run</h2>", listing("ul", missing(results))]
    lines = html.escape("\n".join(commands(results)))
    parts += ["<details><summary>Commands</summary>", f"<pre><code>{lines}</code></pre></details>"]
    head = f'<head>\n<meta charset="utf-8">\n<title>The five TAPE tasks</title>\n<style>{STYLE}</style>\n</head>'
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en">\n{head}\n<body>\n{body}\n</body>\n</html>\n'


def import_pyplot() -> ModuleType:
    """matplotlib with a backend that needs no screen, or how to get it."""
    try:
        import matplotlib

        matplotlib.use("svg")
        from matplotlib import pyplot
    except ImportError as error:
        raise InputError("the table's plots need matplotlib: pip install matplotlib") from error
    return pyplot


def plots(results: Mapping) -> str:
    """One inline SVG: a panel a task and metric, a group of bars a split, published values hatched."""
    pyplot = import_pyplot()
    rows = results["rows"]
    panels = list(dict.fromkeys((row["task"], row["metric"]) for row in rows))
    if not panels:
        return ""
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    with pyplot.rc_context({"svg.hashsalt": "tape", "svg.fonttype": "none", "font.size": 9}):
        figure, axes = pyplot.subplots(lines, columns, figsize=(5 * columns, 3.2 * lines), squeeze=False)
        for place, axis in enumerate(axes.flat):
            if place < len(panels):
                _panel(axis, results, *panels[place])
            else:
                axis.axis("off")
        colors = itertools.islice(itertools.cycle(COLORS), len(results["arms"]))
        handles = [pyplot.Rectangle((0, 0), 1, 1, color=color) for color in colors]
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / (3.2 * lines)))
        figure.legend(handles, results["arms"], loc="upper center", ncols=len(handles), frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]  # without the XML head


def _panel(axis, results: Mapping, task: str, metric: str) -> None:
    rows = [row for row in results["rows"] if (row["task"], row["metric"]) == (task, metric)]
    splits, arms = list(dict.fromkeys(row["split"] for row in rows)), results["arms"]
    width = 0.8 / len(arms)
    for place, (arm, color) in enumerate(zip(arms, itertools.cycle(COLORS), strict=False)):
        bars = [row for row in rows if row["arm"] == arm and row["value"] is not None]
        at = [splits.index(row["split"]) + (place - (len(arms) - 1) / 2) * width for row in bars]
        heights = [row["value"] for row in bars]
        errors = [[_reach(row, side) for row in bars] for side in ("low", "high")]
        axis.bar(at, heights, width, yerr=errors, capsize=2, color=color)
    published = {s: e for s, e in rows[0]["published"].items() if e["metric"] == metric}
    width = 0.8 / max(1, len(published))
    for place, (system, entry) in enumerate(published.items()):
        at = len(splits) + (place - (len(published) - 1) / 2) * width
        axis.bar(at, entry["value"], width, facecolor="white", edgecolor="#4a5568", hatch="///")
        label = f" {system} {entry['value']:.2f}"
        axis.text(at, entry["value"], label, rotation=90, fontsize=6, ha="center", va="bottom")
    group = next((f"published\n{entry['split']}" for entry in published.values()), None)
    names = [split.replace("_holdout", "").replace("test_", "test\n") for split in splits] + ([group] if group else [])
    axis.set_xticks(range(len(names)), names)
    axis.axhline(0, color="black", linewidth=0.5)
    low, high = axis.get_ylim()  # room for the names above the bars
    axis.set_ylim(low, max([high, 0.05, *(e["value"] + 0.55 * (high - low) for e in published.values())]))
    axis.set_title(f"{task}\n{rows[0]['metric_definition']}", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def _reach(row: Mapping, side: str) -> float:
    """How far the interval reaches below or above the value; 0 where it is undefined."""
    end = row["interval"][side]
    if end is None:
        return 0.0
    return max(0.0, row["value"] - end if side == "low" else end - row["value"])


def write_pages(results: Mapping, out: Path) -> None:
    """OUT/table.md and OUT/table.html."""
    write_text(out / "table.md", to_markdown(results))
    write_text(out / "table.html", to_html(results))
