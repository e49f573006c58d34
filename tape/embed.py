"""Embed the proteins of a FASTA file (.gz too), a handful or millions, with any model type.

    tape-embed transformer proteins.fasta proteins.npz MODEL_DIR                        TAPE's command, TAPE's file
    tape-embed transformer uniref50.fasta.gz uniref50.h5 MODEL_DIR --bf16 --embeddings mean
    torchrun --nproc-per-node 8 -m tape.embed transformer big.fasta.gz big.parquet MODEL_DIR

The input is cut into parts of 8,192 proteins (fewer where every residue is kept). Within a part proteins are sorted by
length and packed into batches by a budget of tokens; a finished part is a file in OUT.parts/, and at the end the parts
become OUT. Process r of n takes parts r, r + n ...

What must hold: memory is one part, whatever the size of the input; a killed run, started again with the same command,
goes on at its last part and ends in the same bytes, also with another number of processes; every protein of the input
is embedded or counted in the last line. Kinds and layers: tape.inference.encoding. Files: tape.inference.files.
"""

import argparse
import hashlib
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from proteinlm import errors
from proteinlm.errors import InputError
from tape.data.lengths import residue_limit
from tape.finetuning.options import add_device_flags, add_tokenizer_flag, check_tokenizer, choose_precision, positive
from tape.inference.encoding import KINDS, Encoder
from tape.inference.fasta import (
    Protein,
    Rules,
    Scan,
    add_fasta_flags,
    read_windows,
    scan_fasta,
    token_batches,
)
from tape.inference.files import FORMATS, Layout, choose_format, write_file
from tape.inference.parts import PartStore, pack_names, plan_parts, split_rows
from tape.registry import add_plugin_flag, load_plugins, resolve_task
from tape.runs.processes import World, run_together

IGNORED = ("vocab_file", "output_dir", "seed", "local_rank", "num_workers", "log_level", "task", "debug")
NPZ_MANY = 100_000  # proteins from which on a notice recommends another format


def build_parser() -> errors.ArgumentParser:
    """The parser of tape-embed."""
    parser = errors.ArgumentParser("tape-embed", description="Embed the proteins of a FASTA file.")
    parser.add_argument("model_type", help="transformer, tape_transformer, lstm, resnet, onehot or a plugin's")
    parser.add_argument("data_file", metavar="IN.fasta", help="FASTA, also .gz")
    parser.add_argument("out_file", metavar="OUT", help=".npz (TAPE's layout), .h5 or .parquet")
    parser.add_argument("from_pretrained", metavar="MODEL_DIR", nargs="?", help="model directory (onehot needs none)")
    parser.add_argument("--embeddings", nargs="+", choices=KINDS[:3], help="default: pooled avg, as TAPE")
    parser.add_argument(
        "--full_sequence_embed", action="store_true", help="every token's state, <cls> and <sep> too (`seq`, not `avg`)"
    )
    parser.add_argument(
        "--layer", type=int, default=-1, help="0: embedding; N: after layer N; -1: last, final norm too"
    )
    parser.add_argument("--format", choices=("auto", *FORMATS), default="auto", help="default: by OUT's suffix")
    parser.add_argument("--save_fp16", action="store_true", help="write float16 (default: float32)")
    parser.add_argument("--part_proteins", type=positive, default=8192, help="proteins between two part files")
    parser.add_argument("--log_interval", type=float, default=30.0, help="seconds between lines of progress")
    add_fasta_flags(parser)
    add_device_flags(parser)
    add_tokenizer_flag(parser)
    parser.add_argument("--model_config_file", help="config.json to check MODEL_DIR by")
    add_plugin_flag(parser)
    for flag in IGNORED:
        spellings = dict.fromkeys((f"--{flag}", f"--{flag.replace('local_', 'local-')}"))  # torch's launcher uses both
        parser.add_argument(*spellings, nargs="?", const=True, help=argparse.SUPPRESS)
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


class Progress:
    """A line an interval: how many of this process's proteins are done, and how fast."""

    def __init__(self, total: int, interval: float, shown: bool):
        self.total, self.interval, self.shown = total, interval, shown
        self.proteins = self.residues = 0
        self.begin = self.told = time.monotonic()

    def add(self, proteins: int, residues: int) -> None:
        self.proteins, self.residues = self.proteins + proteins, self.residues + residues
        now = time.monotonic()
        if self.shown and now - self.told >= self.interval:
            self.told = now
            rate, residues = self.proteins / (now - self.begin), self.residues / (now - self.begin)
            print(
                f"{self.proteins:,} of {self.total:,} proteins, {rate:,.1f} proteins/s, {residues:,.0f} residues/s, "
                f"{(self.total - self.proteins) / rate:,.0f} s left",
                file=sys.stderr,
                flush=True,
            )


def embed_part(
    encoder: Encoder, proteins: Sequence[Protein], kinds: Sequence[str], args: argparse.Namespace, progress: Progress
) -> dict[str, np.ndarray]:
    """One part: ids (packed), length, and the rows of each kind, in input order."""
    lengths = np.array([len(protein.residues) for protein in proteins], np.int32)
    rows = list(split_rows(lengths))
    found = []
    for batch in token_batches(lengths, args.tokens_per_batch, args.batch_size, padded=not encoder.flat):
        found.append((batch, encoder.embed([proteins[i].residues for i in batch], kinds)))
        progress.add(len(batch), int(lengths[batch].sum()))
    dtype = np.float16 if args.save_fp16 else np.float32
    arrays = {}
    for kind in kinds:
        height = rows[-1].stop if kind == "seq" else len(proteins)
        arrays[kind] = np.empty((height, found[0][1][kind].shape[1]), dtype)
        for batch, tensors in found:
            values = tensors.pop(kind).cpu().numpy()
            if kind != "seq":
                arrays[kind][batch] = values
                continue
            for i, its in zip(batch, split_rows(lengths[batch]), strict=True):
                arrays[kind][rows[i]] = values[its]
        if args.save_fp16 and not np.isfinite(arrays[kind]).all():
            raise InputError(f"--save_fp16: {kind} holds numbers beyond float16's 65504; write float32")
    return {"ids": pack_names([protein.id for protein in proteins]), "length": lengths} | arrays


def make_manifest(args: argparse.Namespace, scan: Scan, model_sha256: str, kinds: Sequence[str], device: str) -> dict:
    """All that decides the bytes of the parts."""
    return {
        "input size": scan.bytes,
        "input sha256": scan.sha256,
        "model_type": args.model_type,
        "model sha256": model_sha256,
        "embeddings": list(kinds),
        "--layer": args.layer,
        "--format": args.format,
        "--save_fp16": args.save_fp16,
        "--tokens_per_batch": args.tokens_per_batch,
        "--batch_size": args.batch_size,
        "--part_proteins": args.part_proteins,
        "precision": "fp16" if args.fp16 else "bf16" if args.bf16 else "fp32",
        "device": device,
        "torch": str(torch.__version__),
    } | {f"--{name}": value for name, value in asdict(scan.rules).items()}


def embed_parts(
    encoder: Encoder, scan: Scan, bounds: np.ndarray, store: PartStore, kinds: Sequence[str], args, world: World
) -> Progress:
    """Make this process's parts that are not there yet; returns what that was."""
    wanted = [part for part in world.share(len(bounds) - 1) if not store.has(part)]
    total = sum(int(bounds[part + 1] - bounds[part]) for part in wanted)
    progress = Progress(total, args.log_interval, world.is_main)
    for part, proteins in read_windows(scan, bounds, wanted):
        store.save(part, embed_part(encoder, proteins, kinds, args, progress))
    return progress


def peak_memory() -> int:
    """Bytes: the largest resident size this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def check(args: argparse.Namespace) -> None:
    """What needs no file; fills in --format."""
    args.format = choose_format(args.out_file, args.format)
    if args.duplicates == "keep" and args.format == "npz":
        raise InputError("--duplicates keep: the names are the keys of an .npz file; write .h5 or .parquet")
    if Path(args.out_file).resolve() == Path(args.data_file).resolve():
        raise InputError(f"{args.out_file}: is the input; give the output a name of its own")
    for flag in IGNORED:
        if getattr(args, flag) is not None and flag not in ("task", "local_rank", "log_level", "seed", "num_workers"):
            print(f"notice: --{flag} means nothing here and is ignored", file=sys.stderr)


def run(args: argparse.Namespace, world: World, device: torch.device) -> None:
    """The whole command, on every process."""
    kinds = set(args.embeddings or (["pooled"] if args.full_sequence_embed else ["pooled", "avg"]))
    kinds = [kind for kind in KINDS if kind in kinds or (kind == "seq" and args.full_sequence_embed)]
    args.tokens_per_batch = args.tokens_per_batch or (65536 if device.type == "cuda" else 8192)
    precision = choose_precision(args.fp16, args.bf16, device)
    model = load_trunk(args.model_type, args.from_pretrained, args.model_config_file)
    check_tokenizer(args.tokenizer)
    rules = Rules(residue_limit(model.config, args.max_length), args.too_long, args.duplicates)
    scan = world.together(lambda: scan_fasta(args.data_file, rules) if world.is_main else None)
    scan = world.broadcast(scan)
    manifest = make_manifest(args, scan, model_digest(model), kinds, device.type)
    encoder = Encoder(model, args.layer, device, precision)
    widths = {kind: encoder.sizes[kind] for kind in kinds}
    number = 2 if args.save_fp16 else 4
    bounds = plan_parts(scan.kept_lengths, args.part_proteins, number * widths.get("seq", 0))
    store = PartStore(args.out_file, manifest)
    world.together(lambda: begin(store, scan, len(bounds) - 1, args.format) if world.is_main else None)
    began = time.monotonic()
    done = world.together(lambda: embed_parts(encoder, scan, bounds, store, kinds, args, world)).proteins
    shares = world.all_gather((done, peak_memory()))  # waits for all parts
    seconds = time.monotonic() - began
    if world.is_main:
        tokens = int(scan.kept_lengths.sum(dtype=np.int64)) + 2 * len(scan)
        attributes = {name.removeprefix("--"): value for name, value in manifest.items()}
        layout = Layout(len(scan), tokens, widths, "float16" if args.save_fp16 else "float32", attributes)
        parts = (store.load(part) for part in range(len(bounds) - 1))
        store.finish(lambda path: write_file(args.format, path, layout, parts))
        peaks = [max(shares[0][1], peak_memory()), *(peak for _, peak in shares[1:])]
        report(args, scan, layout, (sum(done for done, _ in shares), seconds), peaks)


def begin(store: PartStore, scan: Scan, count: int, name: str) -> None:
    """Open the parts' directory and say what lies ahead."""
    resumed = store.open()
    done = sum(store.has(part) for part in range(count))
    print(f"{scan.path}: {len(scan):,} proteins in {count} parts" + (f", {done} of them done" * resumed), flush=True)
    if name == "npz" and len(scan) >= NPZ_MANY:
        print("notice: .npz needs memory for every protein's name; .h5 and .parquet are for millions", file=sys.stderr)


def report(args: argparse.Namespace, scan: Scan, layout: Layout, work: tuple, peaks: Sequence[int]) -> None:
    """The last line. work: (proteins embedded by this run, seconds that took); peaks: bytes, of each process."""
    done, seconds = work
    shown = ", ".join(f"{kind} [{width}]" for kind, width in layout.widths.items())
    memory = " + ".join(f"{peak / 2**20:,.0f}" for peak in peaks)
    print(
        f"wrote {args.out_file}: {layout.proteins:,} proteins ({layout.tokens - 2 * layout.proteins:,} residues)"
        f"{scan.summary()}; {shown}; {done:,} embedded in {seconds:,.1f} s, {done / seconds:,.1f} proteins/s; "
        f"peak memory {memory} MiB",
        flush=True,
    )


def main(argv: Sequence[str] | None = None) -> int:
    load_plugins(argv)
    args = build_parser().parse_args(argv)
    check(args)
    return run_together(args.device, lambda world, device: run(args, world, device))


def cli() -> int:
    """The console command."""
    return errors.run(main)


if __name__ == "__main__":
    sys.exit(cli())
