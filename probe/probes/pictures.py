"""Confusion matrices, and the curve over layers, as PNG and SVG for light and dark pages."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from probe.page import LIGHT
from probe.themes import draw_all, short

MARKERS = "os^D"
MOST_NAMED = 24  # classes whose cells have room for a number


def draw_confusion(
    stem: Path, panels: Mapping[str, Sequence[Sequence[int]]], classes: Sequence[str], title: str, caption: str
) -> list[Path]:
    """panels: title -> K [C, C], labels down, predictions across. Colours: the share of each label's row."""
    from matplotlib.colors import LinearSegmentedColormap

    side, classes = max(2.6, 0.36 * len(classes)), [short(name) for name in classes]
    longest = max(map(len, classes))
    size = (1.6 + 0.055 * longest + len(panels) * (side + 0.3), side + 1.3 + 0.055 * longest)

    def draw(figure, theme: Mapping[str, str]) -> None:
        colors = LinearSegmentedColormap.from_list("share", [theme["band"], theme["accent"]])
        colors = colors.with_extremes(bad=theme["paper"])
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
                full = share[i, j] > 0.5
                color = "#ffffff" if full == (theme is LIGHT) else "#101418" if full else theme["ink"]
                place.text(j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", fontsize=6, color=color)
        axes[0].set_ylabel("true class")
        bar = figure.colorbar(image, ax=axes, label="share of the true class (numbers: %)", pad=0.02, aspect=30)
        bar.outline.set_visible(False)
        figure.suptitle(f"{title}\n{caption}", fontsize=8)

    return draw_all(stem, size, draw)


def draw_layers(
    stem: Path, curves: Mapping[str, Mapping[int, Mapping]], level: Mapping[str, float], title: str, caption: str
) -> list[Path]:
    """curves: name -> layer -> {value, low, high}; level: name -> one value for all layers."""

    def draw(figure, theme: Mapping[str, str]) -> None:
        axes, colors = figure.subplots(), (theme["accent"], theme["mark"], theme["soft"])
        for (name, points), color, marker in zip(curves.items(), colors, MARKERS, strict=False):
            layers = sorted(points)
            values, low, high = ([points[n][key] for n in layers] for key in ("value", "low", "high"))
            axes.plot(layers, values, color=color, marker=marker, markersize=4, label=name)
            axes.fill_between(layers, low, high, color=color, alpha=0.18, linewidth=0)
        for name, value in level.items():
            axes.axhline(value, color=theme["ink"], linestyle="--", linewidth=1, label=name)
        axes.set_xlabel("layer (0: the embedding)")
        axes.set_ylabel("accuracy (band: 95% over proteins)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color=theme["band"])
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.suptitle(f"{title}\n{caption}", fontsize=8)

    return draw_all(stem, (6.0, 3.8), draw)
