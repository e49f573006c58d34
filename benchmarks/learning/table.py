"""The table of docs/learning.md: what each change to the recipe gave.

    python benchmarks/learning/table.py OUT/ablation.json

A cell is the mean over seeds of the arm's number minus the recipe's with the same seed, in brackets the least and the
most of them. Losses are at [MASK], in thousandths of a nat, below 0 where the arm is better; probes in percent right,
above 0 where it is better. What is better with every seed, of more than one, is in bold.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path

COLUMNS: dict[str, tuple[Callable[[dict], float | None], int]] = {  # -> value, and the sign of better
    "held-out families": (lambda run: 1000 * run["choose_families"]["mask_loss"], -1),
    "diverse proteins": (lambda run: 1000 * run["choose_diverse"]["mask_loss"], -1),
    "structure": (lambda run: 100 * run["probes"]["structure"]["pretrained"], 1),
    "location": (lambda run: 100 * run["probes"]["location"]["pretrained"], 1),
}
GENERATOR = "rtd"  # its masked-LM losses are the generator's


def cell(differences: Iterable[float], better: int) -> str:
    """'-4.1 [-5.0, -3.2]', in bold where all have one sign."""
    values = sorted(differences)
    mean = sum(values) / len(values)
    text = f"{mean:+.1f}" if len(values) == 1 else f"{mean:+.1f} [{values[0]:+.1f}, {values[-1]:+.1f}]"
    return f"**{text}**" if len(values) > 1 and min(better * value for value in values) > 0 else text


def table(runs: list[dict]) -> list[str]:
    recipe = {run["seed"]: run for run in runs if run["arm"] == "recipe"}
    names = list(dict.fromkeys((run["arm"], run["equal"]) for run in runs if run["arm"] != "recipe"))
    lines = [f"| change | equal | time | {' | '.join(COLUMNS)} |", "|---" * (3 + len(COLUMNS)) + "|"]
    for name, equal in names:
        pairs = [(run, recipe[run["seed"]]) for run in runs if (run["arm"], run["equal"]) == (name, equal)]
        time = sum(run["cpu_seconds"] / base["cpu_seconds"] for run, base in pairs) / len(pairs)
        cells = []
        for column, (value, better) in COLUMNS.items():
            mean = name == GENERATOR and column in ("held-out families", "diverse proteins")
            cells.append("-" if mean else cell((value(run) - value(base) for run, base in pairs), better))
        lines.append(f"| {name} | {equal} | {time:.2f} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ablation", type=Path)
    args = parser.parse_args()
    record = json.loads(args.ablation.read_text())
    print("\n".join(table(record["runs"])))
    for run in record["runs"]:
        if run["arm"] == "recipe":
            values = ", ".join(f"{column} {value(run):.1f}" for column, (value, _) in COLUMNS.items())
            random = ", ".join(f"{name} {100 * probe['random']:.1f}" for name, probe in run["probes"].items())
            what = f"{run['tokens']:,} tokens, {run['cpu_seconds']} s; {values}; random weights: {random}"
            print(f"\nrecipe, seed {run['seed']}: {what}")


if __name__ == "__main__":
    main()
