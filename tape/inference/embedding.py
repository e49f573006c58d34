"""What tape-embed does once its flags are read: the scan, the parts that are missing, the file of all parts, a report.

    status = embed(args)                    args: tape-embed's flags

What must hold: memory is one part, whatever the size of the input; a killed run goes on at its last part; every protein
is embedded, or counted and listed with the reason. Outputs and layers: tape.inference.encoding.
"""

import argparse
import contextlib
import heapq
import itertools
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from proteinlm.encoder import default_batch_tokens
from proteinlm.errors import InputError
from proteinlm.files import atomic_path
from proteinlm.progress import Progress
from tape.data.lengths import residue_limit
from tape.inference.encoding import TrunkEncoder, model_digest
from tape.inference.fasta import Rules, Scan, left_out, read_windows, scan_fasta
from tape.inference.files import KEYS, NAME_KEYS, PER_PROTEIN, WRITERS, Contents
from tape.inference.parts import PartStore, is_per_token, pack_names, plan_parts, unpack_names
from tape.registry import resolve_task
from tape.runs.processes import Processes, choose_precision, run_together

MANIFEST_FLAGS = ("layer", "format", "save_fp16", "tokens_per_batch", "batch_size", "part_proteins")

NPZ_MANY = 100_000  # proteins from which on a notice recommends another format

EXIT_SOME_FAILED = 3


def load_trunk(model_type: str, directory: str | None, config_file: str | None = None) -> torch.nn.Module:
    """The model of (embed, model_type) with its weights."""
    model_class = resolve_task("embed", model_type).model
    config = None if config_file is None else model_class.config_class.from_json_file(config_file)
    return model_class.from_pretrained(directory, config=config)


def make_manifest(args: argparse.Namespace, scan: Scan, model_sha256: str, outputs: Sequence[str], device: str) -> dict:
    """All that decides the bytes of the parts. Newer flags are in it only where they are given."""
    flags = [*MANIFEST_FLAGS, *(name for name in ("layers", "h5_keys") if getattr(args, name))]
    return {
        "input size": scan.bytes,
        "input sha256": scan.sha256,
        "model_type": args.model_type,
        "model sha256": model_sha256,
        "embeddings": list(outputs),
        **{f"--{flag}": getattr(args, flag) for flag in flags},
        "precision": next((name for name in ("fp16", "bf16") if getattr(args, name)), "fp32"),
        "device": device,
        "torch": str(torch.__version__),
    } | {f"--{name}": value for name, value in asdict(scan.rules).items()}


def embed_parts(
    encoder: TrunkEncoder,
    scan: Scan,
    bounds: np.ndarray,
    store: PartStore,
    outputs: list[str],
    args,
    processes: Processes,
) -> int:
    """Make this process's parts that are not there yet; returns the number of their proteins."""
    missing = [part for part in processes.share(len(bounds) - 1) if not store.has(part)]
    total = sum(int(bounds[part + 1] - bounds[part]) for part in missing)
    with Progress("proteins", total, seconds=args.log_interval, quiet=not processes.is_main) as progress:
        for part, proteins in read_windows(scan, bounds, missing):
            arrays = encoder.embed_part(proteins, outputs, args, progress)
            if args.h5_keys:
                failed = set(arrays.get("failed_numbers", np.zeros(0)).tolist())
                keys = [KEYS[args.h5_keys](protein) for protein in proteins if protein.number not in failed]
                arrays["keys"] = pack_names(keys)
            store.save(part, arrays)
    return total


def peak_memory() -> int:
    """Bytes: the largest resident size this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def embed(args: argparse.Namespace) -> int:
    """The whole command; returns its exit status. args.outputs: which of OUTPUTS."""
    return run_together(args.device, lambda processes, device: run(args, processes, device), args.debug)


def run(args: argparse.Namespace, processes: Processes, device: torch.device) -> int:
    """The whole command, on every process; returns the exit status."""
    outputs = args.outputs
    args.tokens_per_batch = args.tokens_per_batch or default_batch_tokens(device)
    precision = choose_precision(args.fp16, args.bf16, device)
    model = load_trunk(args.model_type, args.from_pretrained, args.model_config_file)
    rules = Rules(residue_limit(model.config, args.max_length), args.too_long, args.duplicates, args.sequence, args.id)
    key = NAME_KEYS.get(args.h5_keys, str)
    scan = processes.together(lambda: scan_fasta(args.data_file, rules, key) if processes.is_main else None)
    scan = processes.broadcast(scan)
    manifest = make_manifest(args, scan, model_digest(model), outputs, device.type)
    encoder = TrunkEncoder(model, args.layers or args.layer, device, precision)
    if scan.counts.get("windowed"):
        encoder.window = rules.max_length, args.tokens_per_batch
    widths = encoder.widths(outputs)
    token_bytes = (2 if args.save_fp16 else 4) * sum(width for name, width in widths.items() if is_per_token(name))
    # a part of several layers is no larger than one of one
    part_proteins = max(1, args.part_proteins * len(outputs) // len(widths))
    bounds = plan_parts(scan.selected_lengths, part_proteins, token_bytes)
    store = PartStore(args.out_file, manifest, [*output_files(args, widths), failed_path(args)])
    with contextlib.ExitStack() as stack:
        processes.together(lambda: begin(stack, store, scan, len(bounds) - 1, args.format) if processes.is_main else 0)
        started = time.monotonic()
        embedded = processes.together(lambda: embed_parts(encoder, scan, bounds, store, outputs, args, processes))
        shares = processes.all_gather((embedded, peak_memory()))  # waits for all parts
        seconds = time.monotonic() - started
        if not processes.is_main:
            return 0
        contents = write_files(args, scan, store, len(bounds) - 1, widths, manifest)
    peaks = [max(shares[0][1], peak_memory()), *(peak for _, peak in shares[1:])]
    report(args, scan, contents, sum(count for count, _ in shares), seconds, peaks)
    return EXIT_SOME_FAILED if contents.proteins < len(scan) else 0


def write_files(
    args: argparse.Namespace, scan: Scan, store: PartStore, parts: int, widths: dict[str, int], manifest: dict
) -> Contents:
    """OUT (of h5-per-protein with several layers a file a layer) and OUT.failed.tsv, of all the parts."""
    lengths = np.concatenate([store.load_one(part, "length") for part in range(parts)])
    tokens = int(lengths.sum(dtype=np.int64)) + 2 * len(lengths)
    attributes = {name.removeprefix("--"): value for name, value in manifest.items()}
    if args.format == PER_PROTEIN:  # ProtSpace asks for this one
        attributes["model_name"] = Path(args.from_pretrained or args.model_type).resolve().name
    contents = Contents(len(lengths), tokens, widths, "float16" if args.save_fp16 else "float32", attributes)
    write_failed(failed_path(args), scan, store, parts)
    if not len(lengths):
        store.finish({})
        raise InputError(f"{scan.path}: no protein could be embedded; {failed_path(args)} says why")

    def writer(own: dict[str, int]) -> Callable[[Path], None]:
        return lambda path: WRITERS[args.format](path, replace(contents, widths=own), map(store.load, range(parts)))

    store.finish({path: writer(own) for path, own in output_files(args, widths).items()})
    return contents


def output_files(args: argparse.Namespace, widths: dict[str, int]) -> dict[Path, dict[str, int]]:
    """The files to write, and the outputs in each."""
    path = Path(args.out_file)
    if args.format != PER_PROTEIN or args.layers is None:
        return {path: widths}
    of_layer = {name: path.with_name(f"{path.stem}.{name.partition('_')[2]}{path.suffix}") for name in widths}
    return {of_layer[name]: {name: width} for name, width in widths.items()}


def failed_path(args: argparse.Namespace) -> Path:
    return Path(f"{args.out_file}.failed.tsv")


def write_failed(path: Path, scan: Scan, store: PartStore, parts: int) -> None:
    """The proteins that have no embedding: id, the record's number in the input, residues, reason. No file for none."""
    by_rule = left_out(scan) if not scan.selected.all() else ()
    rows = heapq.merge(by_rule, failures(store, parts))
    first = next(rows, None)
    if first is None:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("id\trecord\tresidues\treason\n")
        for number, name, residues, reason in itertools.chain([first], rows):
            file.write(f"{name}\t{number}\t{residues}\t{reason}\n")


def failures(store: PartStore, parts: int) -> Iterator[tuple[int, str, int, str]]:
    """(number in the file, name, residues, why) of every selected protein that could not be embedded."""
    for part in range(parts):
        if (numbers := store.load_one(part, "failed_numbers")) is not None:
            lengths = store.load_one(part, "failed_length").tolist()
            names, reasons = (unpack_names(store.load_one(part, f"failed_{name}")) for name in ("ids", "reasons"))
            yield from zip(numbers.tolist(), names, lengths, reasons, strict=True)


def begin(stack: contextlib.ExitStack, store: PartStore, scan: Scan, count: int, name: str) -> None:
    """Open the parts' directory until the stack's end; print how many parts there are and how many are done."""
    resumed = stack.enter_context(store.open())
    done = f", {sum(store.has(part) for part in range(count))} of them done" if resumed else ""
    print(f"{scan.path}: {len(scan):,} proteins in {count} parts{done}", flush=True)
    if name == "npz" and len(scan) >= NPZ_MANY:
        print("notice: .npz needs memory for every protein's name; .h5 and .parquet are for millions", file=sys.stderr)


def report(
    args: argparse.Namespace, scan: Scan, contents: Contents, count: int, seconds: float, peaks: Sequence[int]
) -> None:
    """The last line. count, seconds: proteins that this run embedded, in what time; peaks: bytes, of each process."""
    outputs = ", ".join(f"{name} [{width}]" for name, width in contents.widths.items())
    memory = " + ".join(f"{peak / 2**20:,.0f}" for peak in peaks)
    failed = len(scan) - contents.proteins
    missing = f", {failed:,} that could not be embedded" if failed else ""
    missing += f" (listed in {failed_path(args)})" if failed or not scan.selected.all() else ""
    print(
        f"wrote {', '.join(map(str, output_files(args, contents.widths)))}: {contents.proteins:,} proteins "
        f"({contents.tokens - 2 * contents.proteins:,} residues){scan.summary()}{missing}; {outputs}; "
        f"{count:,} embedded in {seconds:,.1f} s, {count / seconds:,.1f} proteins/s; peak memory {memory} MiB",
        flush=True,
    )
