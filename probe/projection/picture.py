"""Maps as PNG and SVG, light and dark: a row an arm, a column a method, the numbers under them. One picture a column.

Classes are told apart by six colours of Okabe and Ito's (2008), which colour-blind readers see as six on white and on
black, and after six by another shape; what is beyond STYLES is "other".
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from probe.projection.maps import NAMES, Map
from probe.projection.points import Column, Points
from probe.themes import draw_all, short

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
SHAPES = ("circle", "square", "triangle")
MARKERS = {"circle": "o", "square": "s", "triangle": "^"}
STYLES = len(COLORS) * len(SHAPES)
SCALE = "cividis"  # of numbers
NAMED = 60  # fewer points than this have their names beside them
RASTER = 1500  # with more points an SVG has them as one image


def style_of(place: int) -> tuple[str, str]:
    """(colour, shape) of the class at this place, of STYLES."""
    return COLORS[place % len(COLORS)], SHAPES[place // len(COLORS)]


def _size(points: int) -> float:
    return 46.0 if points < NAMED else float(np.clip(9000 / points, 3.0, 24.0))


def _order(points: int) -> np.ndarray:
    """In which the points are drawn, so that no class lies on top of another everywhere."""
    return np.random.default_rng(0).permutation(points)


def _draw_missing(axes, xy: np.ndarray, column: Column, size: float, theme: Mapping[str, str], flat: bool) -> None:
    edges = {"facecolors": "none", "edgecolors": theme["soft"], "linewidths": 0.5}
    axes.scatter(*xy[~column.known].T, s=size, **edges, rasterized=flat)


def _draw_classes(axes, xy: np.ndarray, column: Column, size: float, theme: Mapping[str, str], flat: bool) -> None:
    colors = np.array([*(style_of(place)[0] for place in range(STYLES)), theme["soft"]])
    places, order = np.minimum(column.values, STYLES), _order(len(xy))
    for number, marker in enumerate([*MARKERS.values(), "D"]):
        own = order[column.known[order] & (places[order] // len(COLORS) == number)]
        look = {"linewidths": 0, "alpha": 0.8, "rasterized": flat}
        axes.scatter(*xy[own].T, s=size, c=colors[places[own]], marker=marker, **look)


def _draw_numbers(axes, xy: np.ndarray, column: Column, size: float, theme: Mapping[str, str], flat: bool):
    own = (order := _order(len(xy)))[column.known[order]]
    return axes.scatter(*xy[own].T, s=size, c=column.values[own], cmap=SCALE, linewidths=0, rasterized=flat)


def _legend(column: Column, theme: Mapping[str, str]) -> list:
    """A mark for each class, the rest of them, and missing ones."""
    from matplotlib.lines import Line2D

    def mark(name: str, count: int, color: str, shape: str, face: str | None = None) -> Line2D:
        look = {"marker": shape, "color": color, "markerfacecolor": face or color, "markersize": 5, "linestyle": "none"}
        return Line2D([], [], label=f"{short(name)} ({count:,})", markeredgewidth=0.7 if face else 0, **look)

    marks, counts = [], column.counts
    for place, name in enumerate(column.classes[:STYLES]):
        color, shape = style_of(place)
        marks.append(mark(name, counts[place], color, MARKERS[shape]))
    if len(counts) > STYLES:
        marks.append(mark(f"{len(counts) - STYLES:,} others", sum(counts[STYLES:]), theme["soft"], "D"))
    if not column.known.all():
        marks.append(mark("missing", int((~column.known).sum()), theme["soft"], "o", "none"))
    return marks


def draw_column(
    stem: Path,
    points: Points,
    column: Column,
    maps: Mapping[str, Mapping[str, Map]],
    caption: str,
    numbers: Sequence[str],
) -> list[Path]:
    """STEM_COLUMN.png, .svg, and for dark pages .dark.png, .dark.svg. maps: arm -> method -> Map; caption: data, model,
    seed; numbers: a line an arm."""
    arms, methods = list(maps), list(next(iter(maps.values())))

    def draw(figure, theme: Mapping[str, str]) -> None:
        panels = figure.subplots(len(arms), len(methods), squeeze=False)
        for row, arm in enumerate(arms):
            for axes, method in zip(panels[row], methods, strict=True):
                scale = _panel(axes, points, column, maps[arm][method], theme)
                axes.set_title(f"{arm}, {NAMES[method]}", fontsize=9)
        if not column.classes:
            figure.colorbar(scale, ax=panels, label=short(column.name), aspect=40, pad=0.01)
        if marks := _legend(column, theme):
            look = {"loc": "outside right center", "fontsize": 7, "frameon": False}
            figure.legend(handles=marks, title=short(column.name) if column.classes else None, **look)
        figure.suptitle(caption, fontsize=9)
        figure.supxlabel("\n".join(numbers), fontsize=8)

    name = "".join(letter if letter.isalnum() else "_" for letter in column.name[:100])
    size = (2.2 + 3.5 * len(methods), 1.2 + 3.3 * len(arms))
    return draw_all(f"{stem}_{name}", size, draw, axes_linewidth=0.5, axes_edgecolor="line")


def _panel(axes, points: Points, column: Column, own: Map, theme: Mapping[str, str]):
    draw_one = _draw_classes if column.classes else _draw_numbers
    _draw_missing(axes, own.xy, column, _size(len(points)), theme, len(points) > RASTER)
    scale = draw_one(axes, own.xy, column, _size(len(points)), theme, len(points) > RASTER)
    if len(points) < NAMED:
        for name, place in zip(points.ids, own.xy, strict=True):
            axes.annotate(short(name), place, (4, 3), textcoords="offset points", fontsize=7)
    axes.set_xlabel(own.axes[0], fontsize=7)
    axes.set_ylabel(own.axes[1], fontsize=7)
    axes.tick_params(labelsize=6, length=2)
    return scale
