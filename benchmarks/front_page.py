"""The README's picture, from what a finished demo leaves: a loss curve, and a protein's contacts, true and predicted.

    python benchmarks/front_page.py demo_output docs/front_page.png

The curves and maps are drawn by the demo's own report (demo/report.py), so the two always show the same thing.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # demo/ is not installed

from demo.paths import Paths
from demo.report import draw_contacts, draw_loss


def draw(paths: Paths, facts: dict):
    """The figure: the loss curve above, the contact maps below it, and a line that says what was run."""
    from matplotlib.figure import Figure

    config = json.loads((paths.model / "config.json").read_text(encoding="utf-8"))
    figure = Figure(figsize=(11, 6.4), layout="constrained", facecolor="white")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.45))
    axis = above.subplots()
    draw_loss(axis, paths)
    axis.set_title("pretraining")
    protein = draw_contacts(below.subplots(1, 3), paths)
    below.supxlabel(
        f"make demo, seed {facts['seed']}: synthetic proteins, a BERT of {config['num_hidden_layers']} layers and "
        f"width {config['hidden_size']}; {protein} is the test protein with the median P@L/5",
        fontsize="small",
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo_output", type=Path, help="what `make demo` wrote")
    parser.add_argument("picture", type=Path, help="a .png or .svg to write")
    args = parser.parse_args()
    facts = json.loads((args.demo_output / "facts.json").read_text(encoding="utf-8"))
    draw(Paths(args.demo_output), facts).savefig(args.picture, dpi=130)


if __name__ == "__main__":
    main()
