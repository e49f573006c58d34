"""Pictures as PNG and SVG, each for light and for dark pages, in the colours of probe.page.

def draw(figure, theme): figure.subplots().plot([0, 1], color=theme["accent"])
draw_all("out/curve", (6.0, 3.8), draw)             # out/curve.png, .svg, .dark.png, .dark.svg
"""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from probe.page import DARK, LIGHT
from proteinlm.files import atomic_path

THEMES: dict[str, Mapping[str, str]] = {"": LIGHT, ".dark": DARK}  # what a file's name has before its suffix
INKED = ("text.color", "axes.labelcolor", "axes.titlecolor", "axes.edgecolor", "xtick.color", "ytick.color")


def short(name: str) -> str:
    """A user's name as there is room for it, without what no picture can hold."""
    name = name if len(name) <= 60 else f"{name[:59]}…"
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def draw_all(stem: str | Path, size: tuple[float, float], draw: Callable, **style: object) -> list[Path]:
    """The files of draw(figure, theme), which are returned. size: in inches; style: more of matplotlib's rcParams, with
    `_` for `.`, a colour of the page by its name."""
    import matplotlib
    from matplotlib.figure import Figure

    paths = []
    for ending, theme in THEMES.items():
        own = {"svg.hashsalt": "proteinlm", "svg.fonttype": "none", "font.size": 8}
        own |= {"text.parse_math": False, "axes.facecolor": theme["paper"]}
        own |= dict.fromkeys(INKED, theme["ink"])
        own |= {name.replace("_", "."): theme.get(value, value) for name, value in style.items()}
        with matplotlib.rc_context(own), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure = Figure(figsize=size, dpi=130, layout="constrained", facecolor=theme["paper"])
            draw(figure, theme)
            for form in ("png", "svg"):
                paths.append(Path(f"{stem}{ending}.{form}"))
                with atomic_path(paths[-1]) as temporary:
                    metadata = {"Date": None} if form == "svg" else None
                    figure.savefig(temporary, format=form, metadata=metadata, bbox_inches="tight", pad_inches=0.1)
    return paths
