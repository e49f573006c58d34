"""The scores of one's own data in words, and another table to score a run on.

What must hold: every number that is printed is in the result file too.
"""

from collections.abc import Sequence
from dataclasses import replace

from tape.data.holdout import cluster_sequences
from tape.own_data.data import Choice, OwnData
from tape.own_data.read import read_own_data
from tape.own_data.splits import describe_leak, find_leak
from tape.runs.flags import is_main_process

MOST_CLASSES = 50  # rows that are printed


def scored_table(data: OwnData, path: str, ignore: Sequence[str], split: str) -> OwnData:
    """Another table as the one split of a run's data, with the leak looked for; printed."""
    other = read_own_data(path, Choice(ignore=tuple(ignore)), like=data)
    test = [replace(protein, split=split) for protein in other.proteins]
    seen = [*data.proteins, *test]
    sequences, splits = [p.sequence for p in seen], [p.split for p in data.proteins]
    splits = ["train" if split == "train" else "" for split in splits] + [split] * len(test)
    leak = find_leak(splits, sequences, cluster_sequences(sequences))
    other = replace(other, proteins=test, division={"leak": leak})
    if is_main_process():
        lines = [f"{path}: {len(test):,} proteins", *describe_leak(leak)]
        print("\n".join(lines + [f"notice: {notice}" for notice in other.notices]), flush=True)
    return other


def describe_own(result: dict) -> list[str]:
    """Each metric with its interval, what leaks, and a row a class."""

    def show(value: float | int | None) -> str:
        return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"

    own = result["own_data"]
    lines = [
        f"  {name:<18}{show(value):>9}  [{show(result['intervals'][name]['low'])}, "
        f"{show(result['intervals'][name]['high'])}]"
        for name, value in result["requested"].items()
        if name in result["intervals"]
    ]
    lines += [f"  {line}" for line in describe_leak({k: v for k, v in own["leak"].items() if k == result["split"]})]
    rows = own["per_class"]
    if rows:
        names = [name for name in rows[0] if name != "class"]
        width = max(len("class"), *(len(row["class"]) for row in rows))
        lines.append(f"  {'class':<{width}}" + "".join(f"{name:>11}" for name in names))
        for row in rows[:MOST_CLASSES]:
            lines.append(f"  {row['class']:<{width}}" + "".join(f"{show(row[name]):>11}" for name in names))
        if len(rows) > MOST_CLASSES:
            lines.append(f"  ... {len(rows) - MOST_CLASSES} more classes in the file")
    return lines
