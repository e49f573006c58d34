"""Embed the proteins of a FASTA file (.gz too), a handful or millions, with any model type.

    tape-embed transformer proteins.fasta proteins.npz MODEL_DIR                        TAPE's command, TAPE's file
    tape-embed transformer uniref50.fasta.gz uniref50.h5 MODEL_DIR --bf16 --embeddings mean
    torchrun --nproc-per-node 8 -m tape.embed transformer big.fasta.gz big.parquet MODEL_DIR

The input is cut into parts of 8,192 proteins (fewer where every residue is kept). Within a part proteins are sorted by
length and packed into batches by a budget of tokens; a finished part is a file in OUT.parts/, and at the end the parts
become OUT. Process r of n takes parts r, r + n ...

What must hold: memory is one part, whatever the size of the input; a killed run, started again with the same command,
goes on at its last part and ends in the same bytes, also with another number of processes; every protein of the input
is embedded or counted in the last line. Outputs and layers: tape.inference.encoding. Files: tape.inference.files.
"""

import argparse
import hashlib
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from proteinlm import errors
from proteinlm.encoder import default_batch_tokens
from proteinlm.errors import InputError
from proteinlm.progress import Progress
from tape.data.lengths import residue_limit
from tape.inference.encoding import OUTPUTS, TrunkEncoder
from tape.inference.fasta import Rules, Scan, add_fasta_flags, read_windows, scan_fasta
from tape.inference.files import FORMATS, WRITERS, Contents, choose_format
from tape.inference.parts import PartStore, pack_names, plan_parts
from tape.registry import load_plugins, resolve_task
from tape.runs.flags import DEVICE_FLAGS, add_flags, add_ignored_flags, check_flags, choose_precision, positive
from tape.runs.processes import Processes, run_together

IGNORED = ("vocab_file", "output_dir", "debug")  # TAPE's
SILENTLY_IGNORED = ("seed", "num_workers", "log_level", "task")
MANIFEST_FLAGS = ("layer", "format", "save_fp16", "tokens_per_batch", "batch_size", "part_proteins")
NPZ_MANY = 100_000  # proteins from which on a notice recommends another format


def build_parser() -> errors.ArgumentParser:
    parser = errors.ArgumentParser("tape-embed", description="Embed the proteins of a FASTA file.")
    parser.add_argument("model_type", help="transformer, tape_transformer, lstm, resnet, onehot or a plugin's")
    parser.add_argument("data_file", metavar="IN.fasta", help="FASTA, also .gz")
    parser.add_argument("out_file", metavar="OUT", help=".npz (TAPE's layout), .h5 or .parquet")
    parser.add_argument("from_pretrained", metavar="MODEL_DIR", nargs="?", help="model directory (onehot needs none)")
    parser.add_argument("--embeddings", nargs="+", choices=OUTPUTS[:3], help="default: pooled avg, as TAPE")
    parser.add_argument("--full_sequence_embed", action="store_true", help="every token's state (`seq`), not `avg`")
    parser.add_argument("--layer", type=int, default=-1, help="0: embedding; N: after layer N; -1: last, with its norm")
    parser.add_argument("--format", choices=("auto", *FORMATS), default="auto", help="default: by OUT's suffix")
    parser.add_argument("--save_fp16", action="store_true", help="write float16 (default: float32)")
    parser.add_argument("--part_proteins", type=positive, default=8192, help="proteins between two part files")
    add_fasta_flags(parser)
    add_flags(parser, *DEVICE_FLAGS, "tokenizer", "plugin")
    parser.add_argument("--model_config_file", help="config.json to check MODEL_DIR by")
    add_ignored_flags(parser, (*IGNORED, *SILENTLY_IGNORED))
    return parser


def load_trunk(model_type: str, directory: str | None, config_file: str | None = None) -> torch.nn.Module:
    """The model of (embed, model_type) with its weights."""
    model_class = resolve_task("embed", model_type).model
    if directory is None and model_type != "onehot":
        raise InputError("MODEL_DIR: missing; tape-embed MODEL_TYPE IN.fasta OUT MODEL_DIR")
    config = None if config_file is None else model_class.config_class.from_json_file(config_file)
    return model_class.from_pretrained(directory, config=config)


def model_digest(model: torch.nn.Module) -> str:
    """sha256 over the model's class, configuration and weights."""
    digest = hashlib.sha256(type(model).__name__.encode())
    digest.update(json.dumps(model.config.to_dict(), sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def make_manifest(args: argparse.Namespace, scan: Scan, model_sha256: str, outputs: Sequence[str], device: str) -> dict:
    """All that decides the bytes of the parts."""
    return {
        "input size": scan.bytes,
        "input sha256": scan.sha256,
        "model_type": args.model_type,
        "model sha256": model_sha256,
        "embeddings": list(outputs),
        **{f"--{flag}": getattr(args, flag) for flag in MANIFEST_FLAGS},
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
            names = {"ids": pack_names([protein.id for protein in proteins])}
            lengths = {"length": np.array([len(protein.residues) for protein in proteins], np.int32)}
            store.save(part, names | lengths | encoder.embed_part(proteins, outputs, args, progress))
    return total


def peak_memory() -> int:
    """Bytes: the largest resident size this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run(args: argparse.Namespace, processes: Processes, device: torch.device) -> None:
    """The whole command, on every process."""
    requested = args.embeddings or (["pooled"] if args.full_sequence_embed else ["pooled", "avg"])
    outputs = [name for name in OUTPUTS if name in requested or (name == "seq" and args.full_sequence_embed)]
    args.tokens_per_batch = args.tokens_per_batch or default_batch_tokens(device)
    precision = choose_precision(args.fp16, args.bf16, device)
    model = load_trunk(args.model_type, args.from_pretrained, args.model_config_file)
    rules = Rules(residue_limit(model.config, args.max_length), args.too_long, args.duplicates)
    scan = processes.together(lambda: scan_fasta(args.data_file, rules) if processes.is_main else None)
    scan = processes.broadcast(scan)
    manifest = make_manifest(args, scan, model_digest(model), outputs, device.type)
    encoder = TrunkEncoder(model, args.layer, device, precision)
    widths = {name: width for name, width in encoder.widths.items() if name in outputs}
    bounds = plan_parts(scan.selected_lengths, args.part_proteins, (2 if args.save_fp16 else 4) * widths.get("seq", 0))
    store = PartStore(args.out_file, manifest)
    processes.together(lambda: begin(store, scan, len(bounds) - 1, args.format) if processes.is_main else None)
    started = time.monotonic()
    embedded = processes.together(lambda: embed_parts(encoder, scan, bounds, store, outputs, args, processes))
    shares = processes.all_gather((embedded, peak_memory()))  # waits for all parts
    seconds = time.monotonic() - started
    if processes.is_main:
        tokens = int(scan.selected_lengths.sum(dtype=np.int64)) + 2 * len(scan)
        attributes = {name.removeprefix("--"): value for name, value in manifest.items()}
        contents = Contents(len(scan), tokens, widths, "float16" if args.save_fp16 else "float32", attributes)
        parts = (store.load(part) for part in range(len(bounds) - 1))
        store.finish(lambda path: WRITERS[args.format](path, contents, parts))
        peaks = [max(shares[0][1], peak_memory()), *(peak for _, peak in shares[1:])]
        report(args.out_file, scan, contents, sum(count for count, _ in shares), seconds, peaks)


def begin(store: PartStore, scan: Scan, count: int, name: str) -> None:
    """Open the parts' directory; print how many parts there are and how many are done."""
    resumed = store.open()
    done = f", {sum(store.has(part) for part in range(count))} of them done" if resumed else ""
    print(f"{scan.path}: {len(scan):,} proteins in {count} parts{done}", flush=True)
    if name == "npz" and len(scan) >= NPZ_MANY:
        print("notice: .npz needs memory for every protein's name; .h5 and .parquet are for millions", file=sys.stderr)


def report(path: str, scan: Scan, contents: Contents, count: int, seconds: float, peaks: Sequence[int]) -> None:
    """The last line. count, seconds: proteins that this run embedded, in what time; peaks: bytes, of each process."""
    outputs = ", ".join(f"{name} [{width}]" for name, width in contents.widths.items())
    memory = " + ".join(f"{peak / 2**20:,.0f}" for peak in peaks)
    print(
        f"wrote {path}: {contents.proteins:,} proteins ({contents.tokens - 2 * contents.proteins:,} residues)"
        f"{scan.summary()}; {outputs}; {count:,} embedded in {seconds:,.1f} s, {count / seconds:,.1f} proteins/s; "
        f"peak memory {memory} MiB",
        flush=True,
    )


def main(argv: Sequence[str] | None = None) -> int:
    load_plugins(argv)
    args = build_parser().parse_args(argv)
    args.format = choose_format(args.out_file, args.format)
    if args.duplicates == "keep" and args.format == "npz":
        raise InputError("--duplicates keep: the names are the keys of an .npz file; write .h5 or .parquet")
    if Path(args.out_file).resolve() == Path(args.data_file).resolve():
        raise InputError(f"{args.out_file}: is the input; give the output a name of its own")
    check_flags(args, IGNORED)
    return run_together(args.device, lambda processes, device: run(args, processes, device))


cli = partial(errors.run, main)  # the console command


if __name__ == "__main__":
    sys.exit(cli())
