"""A layers-by-heads picture of what share of attention lands on contacts, as PNG and SVG, for light and dark pages."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from probe.contacts.heads import FEWEST, HeadShares
from probe.themes import draw_all

NUMBERED = 200  # cells up to which each shows its number; of more, the SHOWN largest do
SHOWN = 20
BACKGROUND = "#e4572e"  # a line that is seen on every colour of the scale


def draw_heads(stem: str | Path, shares: HeadShares, model: str, data: str) -> list[Path]:
    """STEM.heads.png and .svg, and for dark pages STEM.heads.dark.png and .svg. model, data: for the caption."""
    layers, heads = shares.weighted.shape
    panels = {
        f"weights of {shares.threshold:g} or more, each counted once": shares.share,
        "all attention, by its weight": shares.weighted,
    }

    def draw(figure, theme: Mapping[str, str]) -> None:
        for axes, (title, values) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            _panel(figure, axes, 100 * values, 100 * shares.background, title, theme)
        lines = f"Share of each head's attention that lands on contacts\n{model}; {shares.chains:,} chains of {data}"
        figure.suptitle(lines, fontsize=9)
        figure.supxlabel(
            "contact: C-alpha within 8 Å, residues 6 or more apart; red line: share of all pairs in contact; "
            f"grey: fewer than {FEWEST} such weights",
            fontsize=7,
        )

    size = (max(7.0, 1.6 + 0.72 * heads), max(3.4, 1.9 + 0.26 * layers))
    return draw_all(f"{stem}.heads", size, draw)


def _panel(figure, axes, values: np.ndarray, background: float, title: str, theme: Mapping[str, str]) -> None:
    """One picture of values [layers, H] in percent; `background` in percent is marked on its scale."""
    import matplotlib

    layers, heads = values.shape
    known = values[~np.isnan(values)]
    top = max(float(known.max()) if len(known) else 0.0, 2 * background)
    colors = matplotlib.colormaps["cividis"].with_extremes(bad=theme["line"])
    image = axes.imshow(values, cmap=colors, vmin=0, vmax=top, aspect="auto", interpolation="nearest", origin="lower")
    axes.set_title(title, fontsize=8)
    axes.set(xlabel="head", ylabel="layer")
    for axis, count in ((axes.xaxis, heads), (axes.yaxis, layers)):
        step = max(1, -(-count // 17))
        axis.set_ticks(range(0, count, step), [str(place + 1) for place in range(0, count, step)])
    bar = figure.colorbar(image, ax=axes, label="percent on contacts", aspect=25, pad=0.02)
    bar.ax.axhline(background, color=BACKGROUND, linewidth=2)
    if len(known):
        least = np.sort(known)[-SHOWN:][0] if values.size > NUMBERED else -np.inf
        for (layer, head), value in np.ndenumerate(values):
            if value >= least:
                shade = "#111111" if value > 0.55 * top else "#f4f4f4"
                axes.text(head, layer, f"{value:.1f}", ha="center", va="center", fontsize=6.5, color=shade)
