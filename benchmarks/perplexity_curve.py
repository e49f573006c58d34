"""Perplexity against residues seen, from a run's metrics.jsonl: a Markdown table and, with --svg, a picture.

    python benchmarks/perplexity_curve.py CKPT --unigram valid=valid.fasta heldout=heldout.fasta [--svg curve.svg]

--unigram gives each validation set's FASTA, so that the perplexity of its own amino-acid frequencies (the best that a
model without context can do) stands beside the curve.
"""

import argparse
import json
from pathlib import Path

import numpy as np


def unigram_perplexity(fasta: str) -> float:
    """exp of the entropy of the residues' frequencies."""
    from proteinlm.sequences import read_fasta

    counts = np.zeros(256)
    for _, residues in read_fasta(fasta):
        counts += np.bincount(np.frombuffer(residues.encode("latin-1"), np.uint8), minlength=256)
    frequencies = counts[counts > 0] / counts.sum()
    return float(np.exp(-(frequencies * np.log(frequencies)).sum()))


def read_curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Per validation set: (residues seen, perplexity). A protein's [CLS] is a token but no residue."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        if "valid_perplexity" in values:
            seen = values["consumed_tokens"] - values["consumed_proteins"]
            curves.setdefault(values["dataset"], []).append((seen, values["valid_perplexity"]))
    return curves


def table(curves: dict[str, list[tuple[int, float]]], unigrams: dict[str, float]) -> str:
    names = list(curves)
    rows = [f"| residues seen | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    if unigrams:
        rows.append("| unigram | " + " | ".join(f"{unigrams[n]:.2f}" if n in unigrams else "" for n in names) + " |")
    for points in zip(*curves.values(), strict=True):
        rows.append(f"| {points[0][0] / 1e6:.1f} M | " + " | ".join(f"{value:.2f}" for _, value in points) + " |")
    return "\n".join(rows)


def draw(curves: dict[str, list[tuple[int, float]]], unigrams: dict[str, float], target: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    for name, points in curves.items():
        (line,) = axes.plot([seen / 1e6 for seen, _ in points], [value for _, value in points], "o-", label=name)
        if name in unigrams:
            axes.axhline(unigrams[name], color=line.get_color(), linestyle=":", label=f"{name}, unigram")
    axes.set_xlabel("million residues seen")
    axes.set_ylabel("perplexity of masked residues")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--unigram", nargs="*", default=[], metavar="NAME=FASTA")
    parser.add_argument("--svg")
    args = parser.parse_args()
    curves = read_curves(args.run)
    unigrams = {name: unigram_perplexity(path) for name, _, path in (entry.partition("=") for entry in args.unigram)}
    print(table(curves, unigrams))
    if args.svg:
        draw(curves, unigrams, args.svg)


if __name__ == "__main__":
    main()
