"""`python -m pretrain.preprocess`, the whole command with its start-up, beside BERT word-piece tokenizers on one core.

    python benchmarks/preprocess.py [--input train.fasta] [--runs 5] [--result F.json]

Without --input it makes 200,000 random proteins. The peers get the same proteins as spaced text ("M K V"), already in
memory, and only tokenize: transformers' pure-Python BERT tokenizer (the kind the original tool calls for each protein)
and its compiled one. They see fewer proteins (a rate needs no more); their ids must equal the shard's. The same file as
.gz is beside what decompresses it alone: Python's gzip, and `gzip -dc` where it is installed.
"""

import argparse
import gzip
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pretrain.data.indexed import IndexedDataset
from proteinlm.sequences import read_fasta
from proteinlm.tokenizer import PRETRAIN_TOKENS

PEER_PROTEINS = 1000


def random_fasta(path: Path, number: int = 200_000) -> None:
    """Random residues, lengths like Pfam's (log-normal, median 170), wrapped at 60."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(170), 0.7, number).astype(int), 20, 5000)
    pool = rng.choice(np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8), 1 << 20).tobytes().decode()
    starts = rng.integers(0, len(pool) - 5000, number)
    with open(path, "w") as file:
        for i, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
            residues = pool[start : start + length]
            file.write(f">protein_{i}\n" + "".join(residues[at : at + 60] + "\n" for at in range(0, length, 60)))


def rate(
    name: str, proteins: int, function: Callable[[], object], runs: int, before: Callable[[], object] = lambda: None
) -> dict:
    """Median, slowest and fastest proteins/s of `function` by the clock, and the median by CPU time (user + system,
    children included), which a busy machine leaves alone. before: what each run needs first, not timed."""
    clock, processor = [], []
    for _ in range(runs):
        before()
        start, used = time.perf_counter(), sum(os.times()[:4])
        function()
        clock.append(proteins / (time.perf_counter() - start))
        processor.append(proteins / (sum(os.times()[:4]) - used))
    rates = {
        "proteins_per_second": statistics.median(clock),
        "slowest": min(clock),
        "fastest": max(clock),
        "proteins_per_cpu_second": statistics.median(processor),
    }
    return {"name": name, "proteins": proteins, **{key: round(value) for key, value in rates.items()}}


def peers(folder: Path) -> dict[str, Callable[[str], list[int]]]:
    """Name -> (spaced text -> ids), none where transformers is not installed."""
    try:
        from transformers import BertTokenizer
        from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy
    except ImportError as error:
        print(f"no peers: {error}", file=sys.stderr)
        return {}
    (folder / "vocab.txt").write_text("\n".join(PRETRAIN_TOKENS) + "\n")
    python = BertTokenizerLegacy(str(folder / "vocab.txt"), do_lower_case=False)
    compiled = BertTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=False)
    return {
        "BERT tokenizer in Python": lambda text: python.convert_tokens_to_ids(python.tokenize(text)),
        "BERT tokenizer, compiled": lambda text: compiled.encode(text, add_special_tokens=False),
    }


def decompressors(path: Path) -> dict[str, Callable[[], object]]:
    def read() -> None:
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass

    found = {"Python's gzip alone": read}
    if shutil.which("gzip"):
        found["gzip -dc alone"] = lambda: _run(["gzip", "-dc", str(path)])
    return found


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measure(fasta: Path, folder: Path, runs: int) -> list[dict]:
    def preprocess(path: Path) -> None:
        _run([sys.executable, "-m", "pretrain.preprocess", "--input", str(path), "--output-prefix", str(folder / "x")])

    def clear() -> None:  # a run makes its files anew
        for path in folder.glob("x_text_document.*"):
            path.unlink()

    compressed = folder / "x.fasta.gz"
    with open(fasta, "rb") as source, gzip.open(compressed, "wb", 6) as target:
        shutil.copyfileobj(source, target)
    preprocess(fasta)  # the input is in the system's cache before the clock starts
    shard = IndexedDataset(folder / "x_text_document")  # mapped: it is read after its files have lost their names
    rows = [
        rate("pretrain.preprocess, all of it", len(shard), lambda: preprocess(fasta), runs, clear),
        rate("pretrain.preprocess, all of a .gz", len(shard), lambda: preprocess(compressed), runs, clear),
    ]
    rows += [rate(name, len(shard), work, runs) for name, work in decompressors(compressed).items()]
    proteins = [sequence for _, sequence in itertools.islice(read_fasta(str(fasta)), PEER_PROTEINS)]
    spaced = [" ".join(protein) for protein in proteins if protein]
    for name, encode in peers(folder).items():
        token_ids = [shard.read(i).tolist() for i in range(20)]
        assert [encode(text) for text in spaced[:20]] == token_ids, f"{name} gives other ids"
        rows.append(rate(name, len(spaced), lambda f=encode: [f(text) for text in spaced], runs))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, help="FASTA; without it, random proteins")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--result", type=Path, help="also write the numbers here, as JSON")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # one core for everybody, the command's process included
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fasta = args.input or folder / "random.fasta"
        if args.input is None:
            random_fasta(fasta)
        rows = measure(fasta, folder, args.runs)
    for one in rows:
        spread = f"{one['slowest']:,}-{one['fastest']:,}"
        print(
            f"{one['name']:34} {one['proteins_per_second']:>10,} proteins/s ({spread}); "
            f"{one['proteins_per_cpu_second']:,} per CPU second"
        )
    if args.result:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
        about = {"commit": commit, "command": " ".join(sys.argv), "cores_used": 1, "runs": args.runs}
        about |= {"machine": platform.platform(), "processor": _processor_name(), "cores": os.cpu_count()}
        about |= {"python": platform.python_version(), "input": args.input.name if args.input else "random proteins"}
        args.result.write_text(json.dumps(about | {"rows": rows}, indent=2) + "\n")


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
