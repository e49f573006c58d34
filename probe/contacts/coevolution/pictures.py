"""Contact maps of an encoder, DCA and mutual information beside the true one: PNG and SVG, light and dark, and a page.

paths = draw_maps("out.families", chosen(chains), "esm2_2m, regression of seed 0", "corpus.fasta")
Path("out.families.html").write_text(families_page(chains, paths, caption))
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from probe.contacts.coevolution.evaluation import DCA, DRAWN, MI, FamilyChain
from probe.names import PRETRAINED
from probe.page import make_page, table
from probe.themes import draw_all
from tape.metrics import BANDS, IGNORE

SHOWN = 6  # chains of a picture
PANEL = 165  # points of a map's side
TITLES = {PRETRAINED: "encoder", DCA: "co-evolution, DCA", MI: "co-evolution, mutual information"}
STYLE = """img { max-width: 100% } img.dark { display: none }
@media (prefers-color-scheme: dark) { :root:not([data-theme="light"]) img.dark { display: block }
  :root:not([data-theme="light"]) img.light { display: none } }
:root[data-theme="dark"] img.dark { display: block } :root[data-theme="dark"] img.light { display: none }"""
LEGEND = (
    "Above the diagonal the true contacts (C-alpha within 8 Å, residues 6 or more apart); below it the L likeliest "
    "pairs of a prediction, L residues being the domain: right ones as dots, wrong ones as crosses."
)


def chosen(chains: Sequence[FamilyChain]) -> list[FamilyChain]:
    """What is drawn: one chain a family, those with the most effective members a residue, whatever was predicted."""
    order = sorted(chains, key=lambda row: -row.neff / (row.end - row.begin))
    best = {row.family: row for row in reversed(order)}
    return [row for row in order if best[row.family] is row][:SHOWN]


def likeliest(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(i [P], j [P], bool [P]: in contact): the L best of the scored pairs i < j, in the order of P@L's."""
    first, second = np.triu_indices(len(scores), BANDS[""][0])
    known = labels[first, second] != IGNORE
    first, second = first[known], second[known]
    best = np.argsort(-scores[first, second].astype(np.float64), kind="stable")[: len(scores)]
    return first[best], second[best], labels[first[best], second[best]] == 1


def draw_maps(stem: str | Path, chains: Sequence[FamilyChain], model: str, corpus: str) -> list[Path]:
    """STEM.png, .svg, .dark.png and .dark.svg. model (and seed), corpus: for the caption."""

    def draw(figure, theme: Mapping[str, str]) -> None:
        grid = figure.subplots(len(chains), len(DRAWN), squeeze=False)
        for panels, row in zip(grid, chains, strict=True):
            for axes, arm in zip(panels, DRAWN, strict=True):
                _panel(axes, row, arm, theme)
        figure.suptitle(f"Predicted contacts below true ones: {model}, and what {corpus} says alone", fontsize=9)
        figure.supxlabel(_wrapped(LEGEND), fontsize=7)

    return draw_all(stem, (9.0, 0.7 + 3.15 * len(chains)), draw)


def _wrapped(text: str) -> str:
    middle = text.index("; ") + 2
    return f"{text[:middle].strip()}\n{text[middle:]}"


def _panel(axes, row: FamilyChain, arm: str, theme: Mapping[str, str]) -> None:
    low, high = row.begin + 1, row.end
    first, second = np.nonzero(np.triu(row.labels == 1, BANDS[""][0]))
    size = max(0.8, (PANEL / (high - low + 1)) ** 2)
    axes.scatter(second + low, first + low, s=size, c=theme["soft"], marker="s", linewidths=0, label="true contact")
    first, second, right = likeliest(row.maps[arm], row.labels)
    dots = {"s": size * 1.6, "linewidths": 0.8}
    axes.scatter(
        first[~right] + low, second[~right] + low, c=theme["mark"], marker="x", label="predicted, wrong", **dots
    )
    axes.scatter(first[right] + low, second[right] + low, c=theme["accent"], label="predicted, right", **dots)
    axes.plot([low, high], [low, high], color=theme["line"], linewidth=0.8)
    axes.set(xlim=(low, high), ylim=(high, low), aspect="equal", xlabel="residue", ylabel="residue")
    what = f"{row.name}, {row.family}, {row.members:,} members, Neff {row.neff:,.0f}"
    axes.set_title(f"{TITLES[arm]}: P@L {row.percent(arm, 1):.0f}%\n{what}", fontsize=7.5)


def families_page(chains: Sequence[FamilyChain], pictures: Sequence[Path], caption: str) -> str:
    """The page: the picture, then every chain with its P@L by each arm."""
    pngs = {"light": next(p for p in pictures if p.suffix == ".png" and ".dark" not in p.name)}
    pngs["dark"] = next(p for p in pictures if p.name.endswith(".dark.png"))
    body = "\n".join(
        f'<img class="{theme}" alt="contact maps, predicted and true" '
        f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for theme, path in pngs.items()
    )
    columns = {
        "chain": [row.name for row in chains],
        "family": [row.family for row in chains],
        "residues": [f"{row.begin + 1}-{row.end} of {row.length}" for row in chains],
        "members": [f"{row.members:,}" for row in chains],
        "Neff": [f"{row.neff:,.0f}" for row in chains],
    }
    for arm in chains[0].precisions:
        columns[TITLES.get(arm, arm)] = [f"{row.percent(arm):.1f}" for row in chains]
    return make_page(
        "Contacts of large families", f"<p>{LEGEND}</p>{body}<h2>P@L, percent</h2>{table(columns)}", caption=caption,
        style=STYLE,
    )  # fmt: skip
