"""One JSON and the Markdown of what the stages of gpu.sh wrote.

    python benchmarks/gpu/report.py OUT [--results benchmarks/results/gpu.json]

OUT/gpu.json has every stage's result, OUT/gpu.md the tables for docs/results.md.
"""

import argparse
import itertools
import json
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from proteinlm.errors import ArgumentParser
from proteinlm.files import write_json, write_text

STAGES = ("correctness", "ladder-200m", "ladder-3b", "peers", "pretrain", "tasks")
KERNELS = 10  # of a profile, in the Markdown


def number(value: float | None, form: str = ",.0f") -> str:
    return "" if value is None else format(value, form)


def percent(value: float | None) -> str:
    return number(value, ".1%")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(str(cell) for cell in line)} |" for line in lines] + [""]


def correctness(stage: dict) -> list[str]:
    lines = [f"Tests marked `gpu`: {', '.join(f'{n} {what}' for what, n in stage.get('counts', {}).items())}.", ""]
    bad = [test for test in stage.get("tests", []) if test["outcome"] in ("failure", "error")]
    return lines + (table(("test", "why"), [(test["test"], test.get("why", "")) for test in bad]) if bad else [])


def gigabytes(row: dict) -> str:
    return number(row["peak_bytes"] / 1e9, ".1f") if "peak_bytes" in row else ""


def step(row: dict) -> list[str]:
    parts = [1e3 * row[f"{part}_seconds"] / row["steps"] for part in ("forward", "backward", "optimizer")]
    rates = [number(row["real_tokens_per_second"]), percent(row.get("mfu")), percent(row["share_of_gemm_rate"])]
    return [row["row"], row["ms_per_step"], *rates, ", ".join(number(part, ".1f") for part in parts), gigabytes(row)]


def ladder(stage: dict) -> list[str]:
    lines = []
    for key in sorted((k for k in stage if k.startswith("rows_")), key=lambda k: int(k[5:])):
        count, rows = key[5:], stage[key]
        size = f"{stage['layers']} layers, {stage[f'parameters_{count}'] / 1e6:,.0f}M parameters"
        length, precision = rows[0]["seq_length"], rows[0]["precision"]
        lines += [f"{stage['shape']}, {size}, {count} rows of {length} tokens, {precision}:", ""]
        head = ("", "ms a step", "real tokens/s", "MFU", "of the GEMM rate", "forward, backward, rest (ms)", "GB")
        lines += table(head, map(step, rows))
        if profile := stage.get(f"profile_{count}"):
            top = [(f"`{k['kernel'][:70]}`", k["calls"], k["ms"], percent(k["share"])) for k in profile["kernels"]]
            lines += [f"Kernels of the row *{profile['row']}*, three steps:", ""]
            lines += table(("kernel", "calls", "ms", "share"), top[:KERNELS])
    return lines


def arm(name: str, row: dict) -> list[str]:
    tokens = number(row["residues_per_second"]), number(row["padded_tokens_per_second"]), percent(row["padding"])
    shares = percent(row.get("mfu")), percent(row.get("mfu_6n")), percent(row["share_of_gemm_rate"])
    return [name, *tokens, *shares, gigabytes(row), f"{row['ours_faster_wall']}x"]


def peers(stage: dict) -> list[str]:
    lines = []
    for name, run in stage.get("runs", {}).items():
        size = f"{run['parameters'] / 1e6:,.0f}M parameters, {run['precision']}, {run['proteins']} proteins"
        lines += [f"{name}: {size}; the layer's products run at {run['gemm_tflops']:,.1f} TFLOP/s:", ""]
        head = ("arm", "real residues/s", "padded tokens/s", "padding", "MFU", "MFU by 6N", "of the GEMM rate", "GB")
        lines += table((*head, "ours is faster by"), (arm(*item) for item in run["arms"].items()))
    if rates := stage.get("calibration"):
        best, attention = max(row["tflops"] for row in rates["gemm_tflops"]), rates["attention_tflops"]
        lines += [
            f"Rates for the planner: products up to {best:,.1f} TFLOP/s, memory {rates['hbm_gbs']:,.0f} GB/s, "
            f"attention {attention['forward']} forward and {attention['backward']} backward TFLOP/s, "
            f"{rates['launch_us']} us a kernel; error {rates['error']:.0%}.",
            "",
        ]
    if plan := stage.get("planner"):
        lines += [f"From them the planner predicts {plan['predicted_ms']:,.1f} ms for a step of the first comparison, "]
        lines[-1] += f"which took {plan['measured_ms']:,.1f} ms."
        lines += [""]
    return lines


def pretrain(stage: dict) -> list[str]:
    if "steps" not in stage:
        return []
    mfu = f", MFU {percent(stage['mfu'])}" if stage["mfu"] else ""
    lines = [f"`{Path(stage['config']).name}` on {stage['fasta']}: {stage['steps']:,} steps, "]
    lines[-1] += f"{stage['consumed_tokens'] / 1e6:,.1f}M tokens in {stage['seconds'] / 60:,.1f} minutes, "
    lines[-1] += f"{stage['real_tokens_per_second']:,.0f} real tokens/s{mfu}; loss of [MASK] alone "
    lines[-1] += f"{stage['last_mask_loss']:.3f}, that of the residues' frequencies {stage['unigram_entropy']:.3f}."
    if judged := stage.get("heldout_families"):
        low, high = judged["interval_95"]
        lines += [f"{judged['families']} held-out families: perplexity {judged['perplexity']:.2f} "]
        lines[-1] += f"[{low:.2f}, {high:.2f}], of the best unigram model {judged['unigram_of_these_residues']:.2f}."
    return [*lines, ""]


def tasks(stage: dict) -> list[str]:
    """The first table of table.md; its notes stay there."""
    lines = stage.get("table", "").splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith("|")), len(lines))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[first:])
    return [*(re.sub(r" \([\d, ]+\)", "", row) for row in rows), ""]


def markdown(stages: dict[str, dict]) -> str:
    lines = ["# On one GPU", ""]
    sections = dict(zip(STAGES, (correctness, ladder, ladder, peers, pretrain, tasks), strict=True))
    for name, stage in stages.items():
        where = f"{stage['machine']}, torch {stage['torch']}, commit {stage['commit'][:7]}"
        lines += [f"## {name}", "", f"{where}, {stage['stage_seconds']:,.0f} s.", ""]
        if stage["rehearsal"]:
            lines += ["**A rehearsal: tiny shapes, no measurement.**", ""]
        lines += sections[name](stage)
        if stage["not_run"]:
            lines += ["Not run:", "", *(f"- {item['what']}: {item['why']}" for item in stage["not_run"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--results", type=Path, help="a copy of gpu.json")
    args = parser.parse_args()
    paths = {name: args.out / f"{name}.json" for name in STAGES}
    stages = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    if not stages:
        parser.error(f"{args.out} holds no stage's result ({', '.join(f'{name}.json' for name in STAGES)})")
    write_json(args.out / "gpu.json", stages)
    write_text(args.out / "gpu.md", markdown(stages))
    if args.results:
        shutil.copyfile(args.out / "gpu.json", args.results)
    print(f"wrote {args.out}/gpu.json and gpu.md: {', '.join(stages)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
