"""report.html: what one run of the demo measured, in one self-contained file (figures inside as PNG).

    write_report(paths, facts) -> the verdict lines          reads the run's own files and nothing else

Verdict of a task: the 95% bootstrap interval, over test proteins, of the pretrained score minus the random-weights
score (both finetuned and scored the same way, paired by protein) excludes 0, or it does not. Figures show the same
files.
"""

import base64
import html
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from demo.budget import TEST_SPLIT
from demo.datasets import CORPUS
from demo.paths import STARTS, Paths
from proteinlm.files import write_text
from proteinlm.untrusted.json_files import read_json_lines
from tape.data.lengths import residue_limit
from tape.data.splits import load_split
from tape.reporting.results_table import build_table, to_html
from tape.scoring.bootstrap import confidence_interval, paired_difference
from tape.scoring.files import load_scores
from tape.scoring.inference import load_finetuned, predict
from tape.tasks import TASKS
from tape.tokenizers import TAPETokenizer

MUST_EXCEED = ("contact_prediction", "remote_homology", "secondary_structure", "stability")
METRIC = {
    "contact_prediction": "P@L/5, separation ≥ 6, head tape",
    "remote_homology": "top-1 accuracy over folds",
    "secondary_structure": "3-class accuracy over residues",
    "fluorescence": "Spearman's ρ",
    "stability": "Spearman's ρ",
}
COMPARISON_COLUMNS = (
    "task",
    "metric",
    "split",
    "proteins",
    "pretrained",
    "random weights",
    "difference",
    "must exceed 0",
    "verdict",
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px } td, th { border: 1px solid #ccc; padding: 4px
8px } th { background: #f1f1f1; text-align: left } img { max-width: 100% } .yes { color: #07652a } .no { color:
#a11212 }
"""


@dataclass(frozen=True)
class Comparison:
    """One task: both scores and their paired difference, {'value', 'low', 'high'} with 95% intervals over proteins."""

    task: str
    split: str
    proteins: int
    pretrained: dict
    random: dict
    difference: dict

    @property
    def excludes_zero(self) -> bool:
        """Whether pretrained is better beyond the interval."""
        return self.difference["low"] > 0

    @property
    def verdict(self) -> str:
        if self.excludes_zero:
            return "pretrained is better; the interval excludes 0"
        if self.difference["high"] < 0:
            return "pretrained is WORSE; the interval excludes 0"
        return "no difference shown; the interval includes 0"


def compare(task: str, split: str, pretrained: Path, random: Path) -> Comparison:
    """Read both runs' per-protein scores (tape-eval --save_predictions) and pair them."""
    scores, baseline = (load_scores(directory / f"{task}-{split}.npz") for directory in (pretrained, random))
    return Comparison(
        task,
        split,
        len(scores.columns),
        confidence_interval(scores),
        confidence_interval(baseline),
        paired_difference(scores, baseline),
    )


def verdict_lines(comparisons: list[Comparison]) -> list[str]:
    """The last words of the demo: one line a task, then whether every task that must exceed random weights did."""
    lines = [f"{c.task} ({c.split}, n={c.proteins}): {_signed(c.difference)}: {c.verdict}" for c in comparisons]
    failed = [c.task for c in comparisons if c.task in MUST_EXCEED and not c.excludes_zero]
    if failed:
        return [*lines, f"FAILED: {', '.join(failed)}: pretrained minus random does not exclude 0 from below"]
    return [*lines, f"passed: pretrained exceeds random weights on {', '.join(MUST_EXCEED)}"]


def write_report(paths: Paths, facts: dict) -> list[str]:
    """Write `paths.root`/report.html and comparisons.json; returns the verdict lines."""
    comparisons = [
        compare(task, split, paths.run(task, "pretrained"), paths.run(task, "random"))
        for task, split in TEST_SPLIT.items()
    ]
    verdicts = verdict_lines(comparisons)
    sections = [
        "<h1>ProteinLM demo: a synthetic world, one pretrained model, five tasks</h1>",
        f"<p>{html.escape(_summary(facts))}</p>",
        "<h2>Pretrained against random weights</h2>",
        comparison_table(comparisons),
        f"<p><b>{html.escape(verdicts[-1])}</b></p>",
        "<h2>Pretraining</h2>",
        figure(loss_curve(paths), "Masked-LM loss against tokens seen"),
        "<h2>Contacts (head <code>tape</code>)</h2>",
        figure(contact_maps(paths), "Predicted beside true contacts"),
        "<h2>Predicted and true values</h2>",
        figure(scatter_plots(paths), "Fluorescence and stability"),
        "<h2>The table of tape-table</h2><p>The published columns are measured on real proteins; ours are on this "
        "synthetic world and are not comparable with them.</p>",
        to_html(build_table([paths.root / "runs"])),
        "<h2>Data and times</h2>",
        facts_table(facts),
    ]
    write_text(paths.root / "report.html", page(sections))
    rows = [{**vars(c), "verdict": c.verdict} for c in comparisons]
    write_text(paths.root / "comparisons.json", json.dumps(rows, indent=2) + "\n")
    return verdicts


def page(sections: list[str]) -> str:
    """A whole HTML document that refers to no other file."""
    head = f'<head><meta charset="utf-8"><title>ProteinLM demo</title><style>{STYLE}</style></head>'
    return f'<!doctype html>\n<html lang="en">{head}\n<body>\n' + "\n".join(sections) + "\n</body></html>\n"


def comparison_table(comparisons: list[Comparison]) -> str:
    """The table of verdicts."""
    rows = []
    for c in comparisons:
        must = "yes" if c.task in MUST_EXCEED else "no"
        cells = [c.task, METRIC[c.task], c.split, str(c.proteins), *map(_plain, (c.pretrained, c.random))]
        cells += [_signed(c.difference), must, c.verdict]
        colour = "yes" if c.excludes_zero else "no"
        body = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells[:-1])
        rows.append(f'<tr>{body}<td class="{colour}">{html.escape(cells[-1])}</td></tr>')
    header = "".join(f"<th>{name}</th>" for name in COMPARISON_COLUMNS)
    return f"<table><tr>{header}</tr>{''.join(rows)}</table>"


def facts_table(facts: dict) -> str:
    """Proteins in every file and seconds of every phase."""
    rows = [(f"{name} (proteins)", f"{count:,}") for name, count in facts["counts"].items()]
    rows += [(f"{name} (seconds)", f"{seconds:.1f}") for name, seconds in facts["seconds"].items()]
    return "<table>" + "".join(f"<tr><td>{html.escape(a)}</td><td>{b}</td></tr>" for a, b in rows) + "</table>"


def _summary(facts: dict) -> str:
    return (
        f"Budget {facts['budget']}, seed {facts['seed']}, {facts['cores']} cores. The unlabelled corpus holds "
        "relatives from every family, as Pfam does; no protein of a task is in it. Test proteins of secondary "
        "structure, contacts and stability are of families without a labelled protein in train (another family of "
        "their superfamily has some), those of homology of superfamilies without any. "
        "Both starting points had the same head, steps, batches and learning rate. Scores with 95% bootstrap "
        "intervals over test proteins."
    )


def _plain(interval: dict) -> str:
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _signed(interval: dict) -> str:
    return f"{interval['value']:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}]"


# ---- figures


def figure(drawing, caption: str) -> str:
    """A matplotlib figure as an <img> that carries its own data."""
    data = io.BytesIO()
    drawing.savefig(data, format="png", dpi=110, bbox_inches="tight")
    source = base64.b64encode(data.getvalue()).decode()
    return f'<p><img alt="{html.escape(caption)}" src="data:image/png;base64,{source}"></p>'


def _axes(rows: int, columns: int, width: float = 9.0, height: float = 3.6):
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height * rows), layout="constrained")
    return drawing, drawing.subplots(rows, columns, squeeze=False)


def unigram_entropy(fasta: Path) -> float:
    """Nats per residue of a model that knows the frequencies of the residues and nothing else."""
    lines = fasta.read_bytes().split(b"\n")[1::2]
    counts = np.bincount(np.frombuffer(b"".join(lines), np.uint8), minlength=256)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def loss_curve(paths: Paths):
    """Training and validation loss of the run."""
    drawing, ((axis,),) = _axes(1, 1)
    draw_loss(axis, paths)
    return drawing


def draw_loss(axis, paths: Paths) -> None:
    """Training and validation loss; the dashed line is the residues' frequencies alone."""
    lines = [values or {} for _, _, values in read_json_lines(paths.checkpoint / "metrics.jsonl")]
    styles = {"lm_loss": ("training", {"lw": 1}), "valid_loss": ("validation", {"marker": "o", "ms": 4})}
    for key, (label, style) in styles.items():
        rows = [(line["iteration"], line[key]) for line in lines if line.get(key) is not None]
        axis.plot(*zip(*rows, strict=True), label=label, **style)
    entropy = unigram_entropy(paths.data / CORPUS)
    axis.axhline(entropy, ls="--", color="grey", label=f"amino-acid frequencies alone: {entropy:.2f}")
    axis.set(xlabel="iteration", ylabel="loss, nats per masked residue")
    axis.legend()


def predict_contacts(paths: Paths, start: str):
    """The test split's predictions of one run, in the split's order."""
    task = TASKS["contact_prediction"]
    model = load_finetuned(task, paths.run(task.name, start))
    data = load_split(task, paths.data, "test", TAPETokenizer(), residue_limit(model.config, None), "error")
    return predict(task, model, data, 8, torch.device("cpu"))[0], task


def contact_maps(paths: Paths):
    """One test protein's true contacts and both runs' predictions."""
    drawing, (axes,) = _axes(1, 3, 11.0)
    draw_contacts(axes, paths)
    return drawing


def draw_contacts(axes, paths: Paths) -> str:
    """The test protein whose pretrained P@L/5 is the median: true contacts on the first of three axes, then each
    run's probabilities with the L/5 pairs it is surest of. Returns the protein's id.
    """
    runs = {}
    for start in STARTS:
        predictions, task = predict_contacts(paths, start)
        runs[start] = predictions, task.per_protein(predictions)
    scores = runs["pretrained"][1]
    chosen = int(np.argsort(np.nan_to_num(scores))[len(scores) // 2])
    truth = runs["pretrained"][0][chosen]
    maps = [1 / (1 + np.exp(-predictions[chosen].scores)) for predictions, _ in runs.values()]
    _contact_map(axes[0], truth.labels, truth.labels, 1.0)
    axes[0].set_title(f"true contacts of {truth.id}\n(blue: not counted)")
    for axis, values, (start, (_, precision)) in zip(axes[1:], maps, runs.items(), strict=True):
        shading = _contact_map(axis, values, truth.labels, float(np.max(maps)))
        _mark_surest(axis, values, truth.labels)
        axis.set_title(f"predicted, {start} weights\nP@L/5 {precision[chosen]:.2f}")
    axes[2].legend(loc="lower left", fontsize="small", markerscale=1.5, handletextpad=0)
    axes[0].figure.colorbar(shading, ax=axes, shrink=0.8, label="probability of a contact")
    return truth.id


def _contact_map(axis, values: np.ndarray, labels: np.ndarray, most: float):
    """A map [L, L], white to black; pairs that are not counted (near in sequence, not resolved) are light blue."""
    from matplotlib import colormaps

    colours = colormaps["Greys"].with_extremes(bad="#d6e4f0")
    axis.set(xlabel="residue", ylabel="residue")
    return axis.imshow(np.where(labels < 0, np.nan, values), cmap=colours, vmin=0, vmax=most, interpolation="nearest")


def _mark_surest(axis, values: np.ndarray, labels: np.ndarray) -> None:
    """The L/5 highest pairs above the diagonal, as P@L/5 counts them: contacts green, others red."""
    first, second = np.nonzero(np.triu(labels >= 0, k=1))
    surest = np.argsort(-values[first, second], kind="stable")[: len(values) // 5]
    for contact, colour, name in ((True, "#2a9d3a", "top L/5: a contact"), (False, "#d1322b", "top L/5: no contact")):
        pairs = [k for k in surest if (labels[first[k], second[k]] == 1) == contact]
        axis.scatter(second[pairs], first[pairs], s=12, color=colour, label=name)


def scatter_plots(paths: Paths):
    """Predicted against measured values of the two regression tasks, from both starts."""
    drawing, grid = _axes(2, 2)
    for axes, task in zip(grid, ("fluorescence", "stability"), strict=True):
        for axis, start in zip(axes, STARTS, strict=True):
            scores = load_scores(paths.run(task, start) / f"{task}-test.npz")
            axis.scatter(scores.columns[:, 1], scores.columns[:, 0], s=6, alpha=0.5)
            axis.set(xlabel="true", ylabel="predicted")
            axis.set_title(f"{task}, {start}: ρ {confidence_interval(scores)['value']:.2f}")
    return drawing
