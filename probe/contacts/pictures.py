"""A layers-by-heads picture of what share of attention lands on contacts, as PNG and SVG, for light and dark pages."""

from pathlib import Path

import numpy as np

from probe.contacts.heads import FEWEST, HeadShares
from proteinlm.files import atomic_path

THEMES = {  # ink, paper, a cell that is not judged
    "": ("#1f2933", "#ffffff", "#dfe3e8"),
    ".dark": ("#dde3ea", "#14181d", "#3a424c"),
}
NUMBERED = 200  # cells up to which each shows its number; of more, the SHOWN largest do
SHOWN = 20
BACKGROUND = "#e4572e"  # a line that is seen on every colour of the scale


def draw_heads(stem: str | Path, shares: HeadShares, model: str, data: str) -> list[Path]:
    """STEM.heads.png and .svg, and for dark pages STEM.heads.dark.png and .svg. model, data: for the caption."""
    paths = []
    for theme in THEMES:
        own = [Path(f"{stem}.heads{theme}{suffix}") for suffix in (".png", ".svg")]
        _draw(own, shares, f"{model}; {shares.chains:,} chains of {data}", theme)
        paths += own
    return paths


def _draw(paths: list[Path], shares: HeadShares, source: str, theme: str) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    ink, paper, _ = THEMES[theme]
    layers, heads = shares.weighted.shape
    panels = {
        f"weights of {shares.threshold:g} or more, each counted once": shares.share,
        "all attention, by its weight": shares.weighted,
    }
    style = {"svg.hashsalt": "proteinlm", "svg.fonttype": "none", "font.size": 8}
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink)
    with matplotlib.rc_context(style):
        size = (max(7.0, 1.6 + 0.72 * heads), max(3.4, 1.9 + 0.26 * layers))
        figure = Figure(figsize=size, dpi=130, layout="constrained", facecolor=paper)
        for axes, (title, values) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            _panel(figure, axes, 100 * values, 100 * shares.background, title, theme)
        lines = f"Share of each head's attention that lands on contacts\n{source}"
        figure.suptitle(lines, fontsize=9)
        figure.supxlabel(
            "contact: C-alpha within 8 Å, residues 6 or more apart; red line: share of all pairs in contact; "
            f"grey: fewer than {FEWEST} such weights",
            fontsize=7,
        )
        for path in paths:
            form = path.suffix[1:]
            with atomic_path(path) as temporary:
                figure.savefig(temporary, format=form, metadata={"Date": None} if form == "svg" else None)


def _panel(figure, axes, values: np.ndarray, background: float, title: str, theme: str) -> None:
    """One picture of values [layers, H] in percent; `background` in percent is marked on its scale."""
    import matplotlib

    blank = THEMES[theme][2]
    layers, heads = values.shape
    known = values[~np.isnan(values)]
    top = max(float(known.max()) if len(known) else 0.0, 2 * background)
    colors = matplotlib.colormaps["cividis"].with_extremes(bad=blank)
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
