"""What makes a small encoder learn: one recipe, and the same with one thing changed, at equal residues.

    python benchmarks/learning/ablation.py CORPUS OUT [--arms NAME ...] [--seeds 0 1] [--residues 2.0]

CORPUS is what benchmarks/learning/corpus.sh made. Every run trains on the same number of tokens, its learning rate
falling to 0 at their end, and is judged on families and proteins that no run trained on, and by linear probes of its
frozen embeddings (secondary structure, location; on parts of the tasks' train splits). It is written as
OUT/NAME-SEED/{ckpt,model,run.json}; a run that is there is not run again, one that was stopped goes on.
OUT/ablation.json has all of them; benchmarks/learning/table.py makes a table of it.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from benchmarks.comparison import machine
from proteinlm.files import write_json

RECIPE = Path(__file__).parent / "recipe.yaml"
ROW = 512  # tokens
ROWS = 4  # of a step, in the recipe
SETS = ("choose_families", "choose_diverse")
SAME_TIME = 0.05
PROBES = {"structure": "per_residue", "location": "classification"}

# name -> flags after the recipe's; {N} stands for N percent of the run's rows
ARMS: dict[str, list[str]] = {
    "recipe": [],
    "learned_positions": ["--position-embedding-type", "learned_absolute"],
    "adamw": ["--optimizer", "adam"],
    "adamw_learned_positions": ["--optimizer", "adam", "--position-embedding-type", "learned_absolute"],
    "raw_corpus": ["--group-cap", "1000000"],
    "cap_2000": ["--group-cap", "2000"],
    "cap_100": ["--group-cap", "100"],
    "short_first": ["--seq-length-rampup", "70:{10}", "128:{25}", "256:{45}"],
    "lr_1e-3": ["--lr", "1e-3"],
    "lr_4e-3": ["--lr", "4e-3"],
    "batch_1": ["--micro-batch-size", "1", "--global-batch-size", "1"],
    "batch_16": ["--global-batch-size", "16"],
    "init_0.05": ["--init-method-std", "0.05"],
    "qk_layernorm": ["--qk-layernorm"],
    "untied": ["--untie-embeddings-and-output-weights"],
    "mask_20": ["--mask-prob", "0.20"],
    "mask_30": ["--mask-prob", "0.30"],
    "mask_only_first": ["--mask-only-samples", "{30}"],
    "dropout_0.1": ["--attention-dropout", "0.1", "--hidden-dropout", "0.1"],
    "deep": ["--num-layers", "10", "--hidden-size", "128", "--num-attention-heads", "4", "--ffn-hidden-size", "512"],
    "wide": ["--num-layers", "3", "--hidden-size", "256", "--num-attention-heads", "8", "--ffn-hidden-size", "1024"],
    "swiglu_rmsnorm": ["--swiglu", "--normalization", "RMSNorm", "--disable-bias-linear"],
    "shared_layers": ["--share-layers", "--embedding-size", "32"],
    "rtd": ["--objective", "rtd"],
}


def with_rows(flag: str, rows: int) -> str:
    """A flag in which {N} stands for N percent of the run's rows."""
    head, brace, tail = flag.partition("{")
    return f"{head}{rows * int(tail[:-1]) // 100}" if brace else flag


def command(arm: str, seed: int, corpus: Path, out: Path, rows: int) -> list[str]:
    flags = [with_rows(flag, rows) for flag in ARMS[arm]]
    batch = int(flags[flags.index("--global-batch-size") + 1]) if "--global-batch-size" in flags else ROWS
    steps = max(1, rows // batch)
    return [
        *(sys.executable, "-m", "pretrain", "--config", str(RECIPE), "--device", "cpu", "--seed", str(1234 + seed)),
        *("--data-path", str(corpus / "train_text_document")),
        *("--valid-data-path", *(f"{name}={corpus}/{name}_text_document" for name in SETS)),
        *(
            "--train-samples",
            str(rows),
            "--eval-interval",
            str(max(1, steps // 4)),
            "--log-interval",
            str(max(1, steps // 40)),
        ),
        *("--save-interval", str(max(1, steps // 4)), "--keep-last", "1"),
        *("--save", str(out / "ckpt"), "--load", str(out / "ckpt"), *flags),
    ]


def probe(model: Path, corpus: Path, name: str, arms: tuple[str, ...], log: TextIO) -> dict[str, float]:
    """Linear probes of choose/NAME.csv: the accuracy of each arm (pretrained, random)."""
    out = model.parent / f"probe_{name}"
    words = ["-m", "probe", "probe", str(model), str(corpus / "choose" / f"{name}.csv"), "--target", "label"]
    words += ["--id", "none", "--kind", PROBES[name], "--heads", "logistic", "--seeds", "0", "--split_column", "split"]
    words += ["--arms", *arms, "--device", "cpu", "--output", str(out), "--embeddings_dir", str(out / "cache")]
    subprocess.run([sys.executable, *words], check=True, stdout=log, stderr=log)
    shutil.rmtree(out / "cache")
    rows = json.loads((out / "results.json").read_text())["rows"]
    return {row["arm"]: row["metrics"]["accuracy"]["value"] for row in rows if row["split"] == "test"}


def run(arm: str, seed: int, corpus: Path, root: Path, rows: int, minutes: str = "") -> dict:
    """One run and its answer, as it is in OUT/NAME-SEED/run.json. minutes: a suffix of the name, at equal minutes."""
    out = root / f"{arm}-{seed}{minutes}"
    result = out / "run.json"
    if result.exists():
        return json.loads(result.read_text())
    out.mkdir(parents=True, exist_ok=True)
    words = command(arm, seed, corpus, out, rows)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (out / "log.txt").open("a") as log:
        subprocess.run(words, check=True, stdout=log, stderr=log)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        convert = ["-m", "converter", "--load", str(out / "ckpt"), "--save", str(out / "model"), "--target", "tape"]
        subprocess.run([sys.executable, *convert], check=True, stdout=log, stderr=log)
        arms = ("pretrained", "random") if arm == "recipe" else ("pretrained",)
        probes = {name: probe(out / "model", corpus, name, arms, log) for name in PROBES}
    lines = [json.loads(line) for line in (out / "ckpt" / "metrics.jsonl").read_text().splitlines()]
    last = {line["dataset"]: line for line in lines if "dataset" in line}
    answer = {
        "arm": arm,
        "seed": seed,
        "equal": "minutes" if minutes else "residues",
        "flags": " ".join(words[words.index("--load") + 2 :]),
        "tokens": max(line["consumed_tokens"] for line in lines),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime),
        **{
            name: {
                "mask_loss": line["valid_mask_loss"],
                "below_unigram": line["unigram_entropy"] - line["valid_mask_loss"],
                "perplexity": line["valid_perplexity"],
            }
            for name, line in last.items()
        },
        "probes": probes,
    }
    write_json(result, answer)
    return answer


def rows_in_equal_minutes(arm: dict, recipe: dict, rows: int) -> int | None:
    """How many rows an arm takes in the recipe's processor time; None where the two differ by less than SAME_TIME."""
    ratio = recipe["cpu_seconds"] / arm["cpu_seconds"]
    return None if abs(ratio - 1) < SAME_TIME else round(rows * ratio) // 16 * 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--residues", type=float, default=2.0, help="millions of tokens a run (2)")
    parser.add_argument(
        "--equal-minutes", action="store_true", help="afterwards, arms of another speed at equal minutes"
    )
    args = parser.parse_args()
    rows = round(args.residues * 1e6 / ROW) // 16 * 16
    for seed in args.seeds:
        for arm in args.arms:
            answer = run(arm, seed, args.corpus, args.out, rows)
            if args.equal_minutes:
                recipe = run("recipe", seed, args.corpus, args.out, rows)
                if other := rows_in_equal_minutes(answer, recipe, rows):
                    answer = run(arm, seed, args.corpus, args.out, other, "-minutes")
            gains = {name: round(answer[name]["below_unigram"], 4) for name in SETS}
            print(arm, seed, answer["cpu_seconds"], gains, flush=True)
            runs = [json.loads(path.read_text()) for path in sorted(args.out.glob("*/run.json"))]
            origin = machine("benchmarks/learning/ablation.py", torch.device("cpu"))
            write_json(args.out / "ablation.json", {"row": ROW, "rows": rows, "origin": origin, "runs": runs})


if __name__ == "__main__":
    main()
