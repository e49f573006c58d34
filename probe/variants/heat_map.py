"""A picture of a deep scan: the score of every amino acid at every site, as PNG and SVG, for light and dark pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probe.variants.mutations import AMINO_ACIDS, WildType
from proteinlm.files import atomic_path

PER_LINE = 100  # sites
ROWS = "GAVLIMCFYWHKRQNDESTP"  # neighbours are alike: small, hydrophobic, aromatic, charged, polar
THEMES = {  # ink, paper, no change; what hurts, what helps
    "": ("#1f2933", "#ffffff", "#f4f4f2", "#b3352b", "#1f5fa8"),
    ".dark": ("#dde3ea", "#14181d", "#2a3038", "#f0806f", "#6fb0f5"),
}


@dataclass(frozen=True)
class Caption:
    """What the picture is of."""

    data: str
    model: str
    method: str


def draw(paths: Sequence[Path], wild: WildType, scores: np.ndarray, caption: Caption, theme: str) -> None:
    """scores [L, 20], the wild type's being 0, columns AMINO_ACIDS. paths: .png and .svg; theme: a key of THEMES."""
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    ink, paper, zero, low, high = THEMES[theme]
    length = len(scores)
    lines = -(-length // PER_LINE)
    widest = min(length, PER_LINE)
    colors = LinearSegmentedColormap.from_list("change", [low, zero, high]).with_extremes(bad=paper)
    limit = float(np.percentile(abs(scores), 99)) or 1.0
    rows = scores[:, [AMINO_ACIDS.index(letter) for letter in ROWS]].T
    style = {"svg.hashsalt": "proteinlm", "svg.fonttype": "none", "font.size": 8}
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink)
    with matplotlib.rc_context(style):
        size = (max(5.0, 1.6 + 0.105 * widest), 1.0 + 2.75 * lines)
        figure = Figure(figsize=size, dpi=130, layout="constrained", facecolor=paper)
        for line, axes in enumerate(figure.subplots(lines, 1, squeeze=False)[:, 0]):
            begin, end = line * PER_LINE, min((line + 1) * PER_LINE, length)
            block = np.full((len(ROWS), widest), np.nan)
            block[:, : end - begin] = rows[:, begin:end]
            image = axes.imshow(block, cmap=colors, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
            sites = [i for i in range(begin, end) if wild.sequence[i] in ROWS]
            places = [ROWS.index(wild.sequence[i]) for i in sites]
            axes.plot([i - begin for i in sites], places, ".", color=ink, markersize=2.5)
            axes.set_facecolor(paper)
            axes.spines[:].set_visible(False)
            axes.set_yticks(range(len(ROWS)), list(ROWS), fontsize=6)
            ticks = [i for i in range(begin, end) if (i + wild.offset) % 10 == 0]
            axes.set_xticks([i - begin for i in ticks], [i + wild.offset for i in ticks])
            axes.set_ylabel("amino acid put in")
        axes.set_xlabel(f"position in {wild.name} (dot: its own amino acid)")
        figure.colorbar(
            image,
            ax=figure.axes,
            label=f"{caption.method}, change from the wild type",
            pad=0.01,
            aspect=30,
            extend="both",
        )
        text = f"{caption.data}: every single mutation of {length:,} residues\n{caption.model}, {caption.method}"
        figure.suptitle(text, fontsize=9)
        for path in paths:
            form = path.suffix[1:]
            with atomic_path(path) as temporary:
                figure.savefig(temporary, format=form, metadata={"Date": None} if form == "svg" else None)


def draw_all(stem: Path, wild: WildType, scores: np.ndarray, caption: Caption) -> list[Path]:
    """STEM.png, STEM.svg, and for dark pages STEM.dark.png and STEM.dark.svg."""
    pictures = {theme: [Path(f"{stem}{theme}{suffix}") for suffix in (".png", ".svg")] for theme in THEMES}
    for theme, paths in pictures.items():
        draw(paths, wild, scores, caption, theme)
    return [path for paths in pictures.values() for path in paths]
