"""Packing and row building, beside the usual alternatives, in one run.

    python benchmarks/packing.py --fasta train.fasta                # real lengths and families
    python benchmarks/packing.py                                    # synthetic lengths
    python benchmarks/packing.py --fasta train.fasta --millions 32.6 --output benchmarks/results/packing_pfam.json

Per row length, for next fit (first come, a new row whenever the next protein does not fit), best fit in order of
decreasing length, and ours: the share of tokens that are real, rows, CPU seconds, and the share of the pairs of
companions in a row that are of one family (the second word of a FASTA header; the length where there is none), against
what chance would give. Then rows and tokens a second of the row builder (packed, masked, [CLS] and positions included)
on one core (CPU time), and of the loader with worker processes (wall time). With --millions nothing of this but a
corpus of so many proteins, lengths drawn from the others': seconds and peak memory of a fresh process, from opening
the shard to the first row.
"""

import argparse
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pretrain.data.indexed import CODES, HEADER, MAGIC, IndexedDataset, IndexedWriter  # noqa: E402
from pretrain.data.packing import PackedIndex, best_fit, pack, utilisation  # noqa: E402
from proteinlm.files import write_json  # noqa: E402
from proteinlm.masking import permutation  # noqa: E402
from proteinlm.sequences import read_fasta  # noqa: E402
from proteinlm.tokenizer import build_tokenizer  # noqa: E402

ROW_LENGTHS = (512, 1024, 2176)


def next_fit(lengths: np.ndarray, row_length: int, seed: int) -> PackedIndex:
    """First come, first served, in random order: what a packer does that never looks back."""
    order = permutation(len(lengths), seed, 1)
    row, used, rows = 0, 0, []
    for length in np.minimum(lengths, row_length)[order].tolist():
        if used + length > row_length:
            row, used = row + 1, 0
        used += length
        rows.append(row)
    return _index(order, np.array(rows), row + 1)


def best_fit_decreasing(lengths: np.ndarray, row_length: int, seed: int) -> PackedIndex:
    """The textbook's best: all proteins at once, the longest first (equal lengths in random order)."""
    order = permutation(len(lengths), seed, 1)
    sizes = np.minimum(lengths, row_length)
    order = order[np.argsort(-sizes[order], kind="stable")]
    return _index(order, *best_fit(sizes[order], row_length))


def _index(order: np.ndarray, row_of: np.ndarray, num_rows: int) -> PackedIndex:
    starts = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=num_rows))])
    return PackedIndex(order[np.argsort(row_of, kind="stable")], starts)


METHODS: dict[str, Callable[[np.ndarray, int, int], PackedIndex]] = {
    "next fit": next_fit,
    "best fit, decreasing": best_fit_decreasing,
    "ours": pack,
}


def synthetic_lengths(count: int, seed: int = 0) -> np.ndarray:
    """Residues a protein, like a protein family database's: median 155, a tenth beyond 400."""
    drawn = np.random.default_rng(seed).lognormal(np.log(155), 0.8, count)
    return np.clip(drawn, 20, 30_000).astype(np.int32)


def family_pairs(index: PackedIndex, family: np.ndarray) -> float:
    """The share of the pairs of companions that are of one family."""
    sizes = np.diff(index.row_start)
    row = np.repeat(np.arange(index.num_rows), sizes)
    _, counts = np.unique(row * (family.max() + 1) + family[index.order], return_counts=True)
    return float((counts * (counts - 1)).sum() / (sizes * (sizes - 1)).sum())


def compare(lengths: np.ndarray, family: np.ndarray) -> list[dict]:
    """One line per row length and method. lengths: residues."""
    chance = float(((np.bincount(family) / len(family)) ** 2).sum())
    lines = []
    for row_length in ROW_LENGTHS:
        for name, method in METHODS.items():
            started = time.process_time()
            index = method(lengths + 1, row_length, 1)
            lines.append(
                {
                    "row_length": row_length,
                    "method": name,
                    "real_tokens": utilisation(index, lengths + 1, row_length),
                    "rows": index.num_rows,
                    "seconds": time.process_time() - started,
                    "family_pairs": family_pairs(index, family),
                    "by_chance": chance,
                }
            )
    return lines


def speeds(prefix: str, num_workers: int, seconds: float = 5.0) -> list[dict]:
    """Rows a second of the row builder and of the loader (micro-batches of 8 rows), at every row length."""
    import torch

    from pretrain.data.dataset import PackedDataset
    from pretrain.data.loader import PackedLoader

    torch.set_num_threads(1)
    indexed, lines = IndexedDataset(prefix), []
    for row_length in ROW_LENGTHS:
        data = PackedDataset(indexed, (0, len(indexed)), build_tokenizer(), row_length, 0.15, 1, train=True)
        built = _rate(map(data.sample, range(10**9)), 1, seconds, time.process_time)
        loader = iter(PackedLoader(data, 8, lambda consumed: 128, num_workers=num_workers, prefetch=4))
        for _ in range(4):
            next(loader)  # the workers' start is not counted
        loaded = _rate(loader, 128, seconds, time.perf_counter)
        lines.append({"row_length": row_length, "builder": built, "loader": loaded})
        loader.close()
    return lines


def _rate(items: Iterable, rows: int, seconds: float, clock: Callable[[], float]) -> float:
    started, count = clock(), 0
    for _ in items:
        count += rows
        if clock() - started > seconds:
            break
    return count / (clock() - started)


def read_corpus(fasta: str | None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(lengths int32 [N] in residues, family int64 [N], sequences)."""
    if fasta is None:
        lengths = synthetic_lengths(400_000)
        letters = np.random.default_rng(0).choice(list("ACDEFGHIKLMNPQRSTVWY"), int(lengths.max()))
        text = "".join(letters)
        return lengths, lengths.astype(np.int64), [text[:length] for length in lengths]
    headers, sequences = zip(*read_fasta(fasta), strict=True)
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    words = [header.split() for header in headers]
    names = [word[1] if len(word) > 1 else f"length {length}" for word, length in zip(words, lengths, strict=True)]
    return lengths, np.unique(names, return_inverse=True)[1], list(sequences)


def write_shard(prefix: Path, sequences: list[str]) -> None:
    tokenizer = build_tokenizer()
    with IndexedWriter(prefix) as writer:
        for start in range(0, len(sequences), 10_000):
            block = sequences[start : start + 10_000]
            writer.add(tokenizer.encode("".join(block)), np.array([len(sequence) for sequence in block]))


def write_index(prefix: str, lengths: np.ndarray) -> None:
    """A shard of proteins of `lengths` residues whose tokens are a hole in the file: its index is what counts."""
    lengths = lengths.astype("<i4")
    ends, bounds = np.cumsum(lengths, dtype="<i8"), np.arange(len(lengths) + 1, dtype="<i8")
    with open(f"{prefix}.idx", "wb") as file:
        file.write(HEADER.pack(MAGIC, 1, CODES[np.dtype(np.uint8)], len(lengths), len(bounds)))
        for array in (lengths, ends - lengths, bounds):
            array.tofile(file)
    with open(f"{prefix}.bin", "wb") as file:
        file.truncate(int(ends[-1]))


def plan(prefix: str, row_length: int) -> dict:
    """From opening a shard to the first row of the first epoch, part by part. Peak memory counts mapped files, too."""
    from pretrain.data.dataset import PackedDataset

    clock = [time.perf_counter()]
    indexed = IndexedDataset(prefix)  # every number of the index checked
    clock.append(time.perf_counter())
    data = PackedDataset(indexed, (0, len(indexed)), build_tokenizer(), row_length, 0.15, 1, train=True)
    clock.append(time.perf_counter())
    data.sample(0)
    clock.append(time.perf_counter())
    return {
        "proteins": data.num_proteins,
        "tokens": indexed.num_tokens,
        "row_length": row_length,
        "rows": len(data),
        "real_tokens": data.utilisation,
        "seconds": dict(zip(("open", "pack", "order_and_first_row"), np.diff(clock).round(2).tolist(), strict=True)),
        "seconds_in_all": round(clock[-1] - clock[0], 2),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def planned(millions: float, lengths: np.ndarray) -> list[dict]:
    """`plan` at every row length, each in a process of its own."""
    drawn = lengths[np.random.default_rng(0).integers(0, len(lengths), round(millions * 1e6))]
    lines = []
    with tempfile.TemporaryDirectory() as directory:
        write_index(f"{directory}/corpus", drawn)
        for row_length in ROW_LENGTHS:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                lines.append(pool.submit(plan, f"{directory}/corpus", row_length).result())
            line = "{proteins:,} proteins, rows of {row_length}: {seconds_in_all} s, {peak_memory_gb} GiB at the peak"
            print(line.format(**lines[-1]), flush=True)
    return lines


def where() -> dict:
    """What a result needs beside its numbers."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "commit": commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "command": " ".join(sys.argv),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fasta", help="proteins to measure on; synthetic ones when absent")
    parser.add_argument("--millions", type=float, help="only plan a corpus of this many million proteins")
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--output", help="write the results as JSON")
    arguments = parser.parse_args()
    lengths, family, sequences = read_corpus(arguments.fasta)
    print(f"{len(lengths):,} proteins, {int(lengths.sum()):,} residues\n")
    if arguments.millions:
        results = {**where(), "planned": planned(arguments.millions, lengths)}
        if arguments.output:
            write_json(arguments.output, results)
        return
    packing = compare(lengths, family)
    print("| row | method | real tokens | rows | CPU s | family pairs (by chance) |\n|---|---|---|---|---|---|")
    for p in packing:
        pairs = f"{p['family_pairs']:.2%} ({p['by_chance']:.2%})"
        share, rows = f"{p['real_tokens']:.2%}", f"{p['rows']:,}"
        print(f"| {p['row_length']} | {p['method']} | {share} | {rows} | {p['seconds']:.2f} | {pairs} |")
    with tempfile.TemporaryDirectory() as directory:
        write_shard(Path(directory) / "shard", sequences)
        loading = speeds(f"{directory}/shard", arguments.num_workers)
    print(f"\n| row | rows/s, one core | M tokens/s | rows/s, {arguments.num_workers} worker(s) |\n|---|---|---|---|")
    for s in loading:
        tokens = s["builder"] * s["row_length"] / 1e6
        print(f"| {s['row_length']} | {s['builder']:,.0f} | {tokens:.1f} | {s['loader']:,.0f} |")
    results = {**where(), "packing": packing, "loading": loading}
    if arguments.output:
        write_json(arguments.output, results)


if __name__ == "__main__":
    main()
