"""A picture of a deep scan: the score of every amino acid at every site, as PNG and SVG, for light and dark pages."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probe import themes
from probe.variants.mutations import AMINO_ACIDS, WildType

PER_LINE = 100  # sites
ROWS = "GAVLIMCFYWHKRQNDESTP"  # neighbours are alike: small, hydrophobic, aromatic, charged, polar


@dataclass(frozen=True)
class Caption:
    """What the picture is of."""

    data: str
    model: str
    method: str


def draw_all(stem: Path, wild: WildType, scores: np.ndarray, caption: Caption) -> list[Path]:
    """STEM.png, STEM.svg, and for dark pages STEM.dark.png and STEM.dark.svg.

    scores [L, 20], the wild type's being 0, columns AMINO_ACIDS.
    """
    lines = -(-len(scores) // PER_LINE)
    size = (max(5.0, 1.6 + 0.105 * min(len(scores), PER_LINE)), 1.0 + 2.75 * lines)
    return themes.draw_all(stem, size, lambda figure, theme: _draw(figure, theme, wild, scores, caption))


def _draw(figure, theme: Mapping[str, str], wild: WildType, scores: np.ndarray, caption: Caption) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    length = len(scores)
    lines, widest = -(-length // PER_LINE), min(length, PER_LINE)
    shades = [theme[name] for name in ("mark", "band", "accent")]  # what hurts, no change, what helps
    colors = LinearSegmentedColormap.from_list("change", shades).with_extremes(bad=theme["paper"])
    limit = float(np.percentile(abs(scores), 99)) or 1.0
    rows = scores[:, [AMINO_ACIDS.index(letter) for letter in ROWS]].T
    for line, axes in enumerate(figure.subplots(lines, 1, squeeze=False)[:, 0]):
        begin, end = line * PER_LINE, min((line + 1) * PER_LINE, length)
        block = np.full((len(ROWS), widest), np.nan)
        block[:, : end - begin] = rows[:, begin:end]
        image = axes.imshow(block, cmap=colors, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        sites = [i for i in range(begin, end) if wild.sequence[i] in ROWS]
        places = [ROWS.index(wild.sequence[i]) for i in sites]
        axes.plot([i - begin for i in sites], places, ".", color=theme["ink"], markersize=2.5)
        axes.spines[:].set_visible(False)
        axes.set_yticks(range(len(ROWS)), list(ROWS), fontsize=6)
        ticks = [i for i in range(begin, end) if (i + wild.offset) % 10 == 0]
        axes.set_xticks([i - begin for i in ticks], [i + wild.offset for i in ticks])
        axes.set_ylabel("amino acid put in")
    axes.set_xlabel(f"position in {wild.name} (dot: its own amino acid)")
    label = f"{caption.method}, change from the wild type"
    figure.colorbar(image, ax=figure.axes, label=label, pad=0.01, aspect=30, extend="both")
    text = f"{caption.data}: every single mutation of {length:,} residues\n{caption.model}, {caption.method}"
    figure.suptitle(text, fontsize=9)
