"""Stage `pretrain`: an encoder on a FASTA for the minutes there are, and its perplexity on families it never saw.

    python benchmarks/gpu/pretraining.py OUT --fasta train.fasta --config pretrain/configs/proteinlm_35m.yaml

OUT/pretrain gets corpus/ (held-out families where the headers name Pfam's, shards), ckpt/ (checkpoint, metrics.jsonl),
model/ (a TAPE directory in fp16) and pieces/: model/ as a tar cut into files of 14 MiB (`cat pieces/* | tar x`).
The learning rate warms up and is constant for 72% of the time, then falls to 0: nobody knows beforehand how many steps
fit. Called again it goes on from its checkpoint.
"""

import gzip
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np

from benchmarks.gpu.stage import Stage, parser, words_of
from benchmarks.heldout_families import LARGEST, NUM_FAMILIES, SMALLEST, accession

CONSTANT = 0.72  # of the time: the learning rate does not fall
AFTER, START = 75.0, 15.0  # seconds for converting and judging, and for starting a process
PIECE = "14M"
POINTS = 80  # of the loss curve


def num_families(fasta: Path) -> int:
    """Families of a size that can be held out: at most a quarter of them, 0 where headers name none."""
    with (gzip.open if fasta.suffix == ".gz" else open)(fasta, "rt") as lines:
        sizes = Counter(accession(line[1:]) for line in lines if line.startswith(">"))
    return min(NUM_FAMILIES, sum(bool(name) and SMALLEST <= size <= LARGEST for name, size in sizes.items()) // 4)


def shards(stage: Stage, fasta: Path, corpus: Path) -> tuple[str, str | None]:
    """(prefix of what is trained on, of the held-out families or None), made unless they are there."""
    number = num_families(fasta)
    if number and not (corpus / "heldout.fasta").exists():
        stage.run("benchmarks/heldout_families.py", "split", fasta, corpus, "--families", number)
    held_out = corpus / "heldout.fasta"
    if not held_out.exists():
        stage.skip("held-out families", "the headers name too few Pfam families")
    sources = {"train": corpus / "train.fasta" if held_out.exists() else fasta, "heldout": held_out}
    for name, source in sources.items():
        if source.exists() and not Path(f"{corpus / name}_text_document.idx").exists():
            stage.run("-m", "pretrain.preprocess", "--input", source, "--output-prefix", corpus / name)
    prefixes = [str(corpus / f"{name}_text_document") for name in sources]
    return prefixes[0], prefixes[1] if held_out.exists() else None


def log_lines(ckpt: Path) -> list[dict]:
    path = ckpt / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def train(stage: Stage, ckpt: Path, train_prefix: str, held_out: str | None) -> None:
    """Both phases. Each saves when its time is over."""
    args = stage.args
    common = ["-m", "pretrain", "--config", args.config, "--data-path", train_prefix, "--save", ckpt, "--load", ckpt]
    common += ["--valid-data-path", f"heldout={held_out}"] if held_out else []
    common += ["--device", args.device, "--num-workers", args.workers, "--log-interval", 2 if args.rehearse else 20]
    common += ["--eval-interval", 10**9, "--eval-iters", 4, "--save-interval", 10**9, "--override-lr-scheduler"]
    common += words_of(args.pretrain_flags)
    budget = stage.seconds_left() - AFTER * (0.3 if args.rehearse else 1) - 2 * START
    minutes, warm_up = CONSTANT * budget / 60, 2 if args.rehearse else 200
    constant = ["--lr-decay-style", "constant", "--lr-warmup-iters", warm_up, "--train-iters", 10**7]
    stage.run(*common, *constant, "--exit-duration-in-mins", round(minutes, 3))
    if not (steps := [line for line in log_lines(ckpt) if "lm_loss" in line]):
        return
    done = steps[-1]["iteration"]
    pace = np.median([line["seconds"] / args.log_every for line in steps[-20:]])
    left = stage.seconds_left() - AFTER * (0.3 if args.rehearse else 1) - START
    more = max(1, int(min(left, budget * (1 - CONSTANT)) / pace))
    falling = ["--lr-decay-style", "linear", "--min-lr", 0, "--lr-warmup-iters", done]
    falling += ["--lr-decay-iters", done + more, "--train-iters", done + more]
    stage.run(*common, *falling, "--exit-duration-in-mins", round(left / 60, 3))


def summary(ckpt: Path) -> dict:
    """What the log says, with a thinned curve."""
    lines = log_lines(ckpt)
    steps = [line for line in lines if "lm_loss" in line]
    keys = ("iteration", "consumed_tokens", "lm_loss", "mask_loss", "learning_rate")
    chosen = sorted({int(i) for i in np.linspace(0, len(steps) - 1, min(POINTS, len(steps)))})
    return {
        "steps": steps[-1]["iteration"],
        "consumed_tokens": steps[-1]["consumed_tokens"],
        "unigram_entropy": steps[-1]["unigram_entropy"],
        "last_mask_loss": float(np.mean([line["mask_loss"] for line in steps[-5:]])),
        "real_tokens_per_second": float(np.median([line["real_tokens_per_second"] for line in steps])),
        "mfu": float(np.median([line["mfu"] for line in steps])) if steps[-1]["mfu"] else None,
        "seconds": sum(line["seconds"] for line in steps),
        "validation": [line for line in lines if "valid_loss" in line][-3:],
        "curve": [{key: steps[i][key] for key in keys} for i in chosen],
    }


def keep_weights(stage: Stage, folder: Path) -> None:
    """model/ and pieces/ from the newest checkpoint."""
    for name in ("model", "pieces"):
        shutil.rmtree(folder / name, ignore_errors=True)
    words = ["--load", folder / "ckpt", "--save", folder / "model", "--target", "tape", "--dtype", "fp16", "--verify"]
    done = stage.run("-m", "converter", *words, least=5)
    if done and done.returncode == 0:
        (folder / "pieces").mkdir()
        tar = subprocess.Popen(["tar", "-C", folder, "-cf", "-", "model"], stdout=subprocess.PIPE)
        subprocess.run(["split", "-b", PIECE, "-", folder / "pieces/model.tar."], stdin=tar.stdout, check=True)
        stage.add(model=str(folder / "model"), model_bytes=sum(p.stat().st_size for p in (folder / "model").iterdir()))


def main() -> int:
    flags = parser(__doc__)
    flags.add_argument("--fasta", type=Path, required=True)
    flags.add_argument("--config", default="pretrain/configs/proteinlm_35m.yaml", help="(proteinlm_35m)")
    flags.add_argument("--workers", type=int, default=6, help="processes that prepare batches (6)")
    flags.add_argument("--pretrain-flags", help="further flags of python -m pretrain, in one word")
    args = flags.parse_args()
    args.log_every = 2 if args.rehearse else 20
    args.minutes = min(args.minutes, 1.0) if args.rehearse else args.minutes
    stage, folder = Stage("pretrain", args), args.out.resolve() / "pretrain"
    stage.add(config=args.config, fasta=args.fasta.name)
    train_prefix, held_out = shards(stage, args.fasta.resolve(), folder / "corpus")
    train(stage, folder / "ckpt", train_prefix, held_out)
    if not any("lm_loss" in line for line in log_lines(folder / "ckpt")):
        return 1
    stage.add(**summary(folder / "ckpt"))
    keep_weights(stage, folder)
    if held_out:
        result = folder / "heldout_families.json"
        words = ["evaluate", folder / "ckpt", folder / "corpus/heldout.fasta", "--result", result]
        done = stage.run("benchmarks/heldout_families.py", *words, "--device", args.device, least=5)
        if done and done.returncode == 0:
            stage.add(heldout_families=json.loads(result.read_text()))
    return 0 if "model" in stage.result else 1


if __name__ == "__main__":
    sys.exit(main())
