"""Real tokens a second of the loader, packed and masked, and the share of a CPU training step that waits for it.

    python benchmarks/loader.py                                       # 100,000 random proteins
    python benchmarks/loader.py --data-path PREFIX --output benchmarks/results/loader.json

Per row length, micro-batches of 8,192 tokens: made in the calling process (CPU time), and by one worker process (wall
time, its start left out). Every batch is counted by its real tokens: [CLS] and residues, no padding. Then 30 steps of
proteinlm_2m's shape and batch (bf16, AdamW, one thread) with batches made between them, as a CPU run has them unless
--num-workers says otherwise: the share of the time that is the loader's. Medians of --repeats, with the range.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.comparison import machine, random_proteins
from pretrain.config.read import parse_config
from pretrain.data.dataset import PackedDataset
from pretrain.data.indexed import IndexedDataset, IndexedWriter
from pretrain.data.loader import Batch, PackedLoader
from proteinlm.files import write_json
from proteinlm.loss import masked_lm_loss
from proteinlm.network.model import ProteinBert
from proteinlm.optim import build_optimizer
from proteinlm.tokenizer import build_tokenizer

ROW_LENGTHS = (512, 1024, 2176)
TOKENS = 8192  # of a micro-batch, about
CONFIG = Path(__file__).resolve().parent.parent / "pretrain/configs/proteinlm_2m.yaml"


def dataset(prefix: str, row_length: int) -> PackedDataset:
    indexed = IndexedDataset(prefix)
    return PackedDataset(indexed, (0, len(indexed)), build_tokenizer(), row_length, 0.15, 1, train=True)


def rate(batches: Iterator[list[Batch]], seconds: float, clock: Callable[[], float]) -> float:
    """Real tokens a second."""
    for _ in range(8):
        next(batches)
    began, tokens = clock(), 0
    while (passed := clock() - began) < seconds:
        tokens += sum(batch.num_real_tokens for batch in next(batches))
    return tokens / passed


def rates(prefix: str, row_length: int, seconds: float, repeats: int) -> dict:
    data, rows = dataset(prefix, row_length), TOKENS // row_length
    result = {"row_length": row_length, "micro_batch_rows": rows}
    for name, workers, clock in (("in_process", 0, time.process_time), ("one_worker", 1, time.perf_counter)):
        values = []
        for _ in range(repeats):
            batches = iter(PackedLoader(data, rows, lambda consumed: rows, num_workers=workers, prefetch=8))
            values.append(round(rate(batches, seconds, clock)))
            batches.close()
        result[name] = {"real_tokens_per_second": statistics.median(values), "range": [min(values), max(values)]}
    return result


def data_wait(prefix: str, steps: int, repeats: int) -> dict:
    """Seconds of a step of proteinlm_2m on this CPU, and the share that is the loader's."""
    config = parse_config(["--config", str(CONFIG), "--device", "cpu", "--data-path", prefix, "--save", "unused"])
    rows, row_length = config.training.micro_batch_size, config.data.seq_length
    model = ProteinBert(config.model_config(build_tokenizer())).train()
    optimizer = build_optimizer(model, 1e-4, 0.01)
    batches = iter(PackedLoader(dataset(prefix, row_length), rows, lambda consumed: rows))
    seconds, shares = [], []
    for repeat in range(repeats + 1):  # the first one warms up
        began, waited = time.perf_counter(), 0.0
        for _ in range(steps):
            asked = time.perf_counter()
            (batch,) = next(batches)
            waited += time.perf_counter() - asked
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch.tokens, batch.position_ids, batch.cu_seqlens, batch.masked_positions)
            (masked_lm_loss(logits, batch.labels) / batch.num_masked).backward()
            optimizer.step()
            optimizer.zero_grad()
        passed = time.perf_counter() - began
        if repeat:
            seconds.append(passed / steps)
            shares.append(waited / passed)
    return {
        "rows": rows,
        "row_length": row_length,
        "step_seconds": round(statistics.median(seconds), 4),
        "data_share": round(statistics.median(shares), 5),
        "range": [round(min(shares), 5), round(max(shares), 5)],
    }


def random_shard(folder: str) -> str:
    tokenizer, prefix = build_tokenizer(), f"{folder}/random"
    proteins = [tokenizer.encode(protein) for protein in random_proteins(100_000)]
    with IndexedWriter(prefix) as writer:
        writer.add(np.concatenate(proteins), np.array([len(protein) for protein in proteins]))
    return prefix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-path", help="prefix of a shard; random proteins when absent")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    parser.add_argument("--steps", type=int, default=30, help="training steps of one measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", help="also write the numbers here, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        prefix = args.data_path or random_shard(folder)
        loader = []
        for row_length in ROW_LENGTHS:
            loader.append(rates(prefix, row_length, args.seconds, args.repeats))
            one, other = (loader[-1][name]["real_tokens_per_second"] for name in ("in_process", "one_worker"))
            print(f"rows of {row_length}: {one:,} real tokens/s in the process, {other:,} by one worker", flush=True)
        wait = data_wait(prefix, args.steps, args.repeats)
    print(f"a step of proteinlm_2m on this CPU: {wait['step_seconds']} s, {wait['data_share']:.3%} of it the loader's")
    if args.output:
        about = machine("benchmarks/loader.py", torch.device("cpu"))
        write_json(args.output, about | {"loader": loader, "training_step": wait})


if __name__ == "__main__":
    main()
