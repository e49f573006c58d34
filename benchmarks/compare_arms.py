"""What `benchmarks/real_table.sh` measured, as a Markdown table: both arms on valid and their paired difference.

    python benchmarks/compare_arms.py OUT

Intervals are 95% bootstrap intervals over the proteins of valid; the difference resamples the same proteins for both.
"""

import argparse
import json
from pathlib import Path

from tape.bootstrap import load_scores, paired_difference

TASKS = ("contact_prediction", "remote_homology", "secondary_structure", "fluorescence", "stability")


def minutes_of(out: Path) -> dict[tuple[str, str], str]:
    rows = (line.split("\t") for line in (out / "minutes.tsv").read_text(encoding="utf-8").splitlines())
    return {(arm, task): minutes for arm, task, minutes in rows}


def row(out: Path, task: str, minutes: dict[tuple[str, str], str]) -> str:
    cells, scores = [], []
    for arm in ("pretrained", "random"):
        run = out / f"{arm}-{task}"
        result = json.loads((run / f"{task}-valid.json").read_text(encoding="utf-8"))
        interval = result["interval"]
        cells.append(f"{result['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]")
        scores.append(load_scores(run / f"{task}-valid.npz"))
    difference = paired_difference(*scores)
    cells.append(f"{difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]")
    flags = result["args"]
    spent = " / ".join(minutes.get((arm, task), "?") for arm in ("pretrained", "random"))
    recipe = f"{flags['max_steps']} x {flags['batch_size']}"
    return f"| {task} | {result['metric']} | {result['head']} | {recipe} | {' | '.join(cells)} | {spent} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    print("| task | metric | head | steps x proteins | pretrained | random weights | difference | minutes |")
    print("|---" * 8 + "|")
    for task in TASKS:
        print(row(out, task, minutes_of(out)))


if __name__ == "__main__":
    main()
