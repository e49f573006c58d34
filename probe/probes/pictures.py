"""Confusion matrices, and the curve over layers, as PNG and SVG for light and dark pages."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from proteinlm.files import atomic_path

THEMES = {  # ink, paper, and what no protein is in; the curves
    "": ("#1f2933", "#ffffff", "#f4f4f2", ("#1f5fa8", "#b3352b", "#6b7280")),
    ".dark": ("#dde3ea", "#14181d", "#2a3038", ("#6fb0f5", "#f0806f", "#9aa5b1")),
}
MARKERS = "os^D"
MOST_NAMED = 24  # classes whose cells have room for a number


def _draw_all(stem: Path, size: tuple[float, float], draw: Callable) -> list[Path]:
    """STEM.png, STEM.svg, STEM.dark.png and STEM.dark.svg of draw(figure, theme)."""
    import matplotlib
    from matplotlib.figure import Figure

    paths = []
    for theme, (ink, paper, _, _) in THEMES.items():
        style = {"svg.hashsalt": "proteinlm", "svg.fonttype": "none", "font.size": 8, "axes.facecolor": paper}
        style |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink)
        with matplotlib.rc_context(style):
            figure = Figure(figsize=size, dpi=130, layout="constrained", facecolor=paper)
            draw(figure, theme)
            for form in ("png", "svg"):
                paths.append(Path(f"{stem}{theme}.{form}"))
                with atomic_path(paths[-1]) as temporary:
                    metadata = {"Date": None} if form == "svg" else None
                    figure.savefig(temporary, format=form, metadata=metadata, bbox_inches="tight", pad_inches=0.1)
    return paths


def draw_confusion(
    stem: Path, panels: Mapping[str, Sequence[Sequence[int]]], classes: Sequence[str], title: str, caption: str
) -> list[Path]:
    """panels: title -> K [C, C], labels down, predictions across. Colours: the share of each label's row."""
    from matplotlib.colors import LinearSegmentedColormap

    side = max(2.6, 0.36 * len(classes))
    longest = max(map(len, classes))
    size = (1.6 + 0.055 * longest + len(panels) * (side + 0.3), side + 1.3 + 0.055 * longest)

    def draw(figure, theme: str) -> None:
        ink, paper, zero, curves = THEMES[theme]
        colors = LinearSegmentedColormap.from_list("share", [zero, curves[0]]).with_extremes(bad=paper)
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for place, (name, table) in zip(axes, panels.items(), strict=True):
            table = np.asarray(table)
            total = table.sum(1, keepdims=True)
            share = np.divide(table, total, out=np.full(table.shape, np.nan), where=total > 0)
            image = place.imshow(share, cmap=colors, vmin=0, vmax=1)
            place.set_title(name, fontsize=8)
            place.set_xticks(range(len(classes)), classes, rotation=90 if longest > 2 else 0)
            place.set_yticks(range(len(classes)), classes)
            place.set_xlabel("predicted")
            place.spines[:].set_visible(False)
            place.tick_params(length=0)
            for i, j in np.argwhere(share >= 0.005) if len(classes) <= MOST_NAMED else ():
                on_dark = (share[i, j] > 0.5) == (theme == "")
                place.text(j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", fontsize=6,
                           color="#ffffff" if on_dark else "#101418" if share[i, j] > 0.5 else ink)  # fmt: skip
        axes[0].set_ylabel("true class")
        bar = figure.colorbar(image, ax=axes, label="share of the true class (numbers: %)", pad=0.02, aspect=30)
        bar.outline.set_visible(False)
        figure.suptitle(f"{title}\n{caption}", fontsize=8)

    return _draw_all(stem, size, draw)


def draw_layers(
    stem: Path, curves: Mapping[str, Mapping[int, Mapping]], level: Mapping[str, float], title: str, caption: str
) -> list[Path]:
    """curves: name -> layer -> {value, low, high}; level: name -> one value for all layers."""

    def draw(figure, theme: str) -> None:
        ink, _, zero, colors = THEMES[theme]
        axes = figure.subplots()
        for (name, points), color, marker in zip(curves.items(), colors, MARKERS, strict=False):
            layers = sorted(points)
            values, low, high = ([points[n][key] for n in layers] for key in ("value", "low", "high"))
            axes.plot(layers, values, color=color, marker=marker, markersize=4, label=name)
            axes.fill_between(layers, low, high, color=color, alpha=0.18, linewidth=0)
        for name, value in level.items():
            axes.axhline(value, color=ink, linestyle="--", linewidth=1, label=name)
        axes.set_xlabel("layer (0: the embedding)")
        axes.set_ylabel("accuracy (band: 95% over proteins)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color=zero)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.suptitle(f"{title}\n{caption}", fontsize=8)

    return _draw_all(stem, (6.0, 3.8), draw)
