"""Files of proteins -> `<prefix>_text_document.{bin,idx}` and a summary beside them.

    python -m pretrain.preprocess --input A.fasta.gz B.lmdb C.jsonl --output-prefix DIR/pfam [--workers N] [--strict]
    python -m pretrain.preprocess --input A.fasta --output-prefix DIR/p --tokenizer-type SentencePiece \\
        --train-tokenizer --vocab-size 1000 --vocab-file x.model

What must hold: the two files are the same bytes for every number of workers; they appear whole or not at all; letters
outside the vocabulary become [UNK] and are counted, or refused with --strict. Nothing here imports torch, so that the
command starts at once (an LMDB's pickles are the exception). One core reads, cleans and writes about 10^8 residues/s;
more workers pay off for .gz, JSON lines, LMDB and SentencePiece.
"""

import argparse
import contextlib
import functools
import itertools
import os
import re
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pretrain.data.clustering import cluster
from pretrain.data.groups import RULES, GroupNumbers, checksum, compile_rule, keys_of, write_groups
from pretrain.data.indexed import IndexedDataset, IndexedWriter
from proteinlm.errors import ArgumentParser, InputError, run
from proteinlm.files import atomic_path, reread, write_json
from proteinlm.progress import Progress
from proteinlm.sequences import UPPER, Chunk, Proteins, find_unknown, id_table, input_kind, parse_chunk, read_chunks
from proteinlm.tokenizer import TOKENIZER_TYPES, Tokenizer, build_tokenizer, split_residues, train_sentencepiece

# Upper ends of the length histogram's bars, residues; the last bar is open.
LENGTH_EDGES = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
LARGEST_BLOCK = 1 << 24  # bytes; more than a chunk's copies take


@dataclass(frozen=True)
class Encoded:
    """A chunk's proteins as ids, and its share of the summary. Travels between processes."""

    path: str
    ids: np.ndarray  # [T], the tokenizer's dtype
    lengths: np.ndarray  # [N], tokens
    proteins: Proteins  # as read, without the residues themselves; lengths [N] are in residues
    longer: int  # proteins left out for their length
    groups: list[str | None]  # of each, by --group-by


def encode_chunk(
    chunk: Chunk, tokenizer: Tokenizer, strict: bool, max_length: int | None = None, rule: re.Pattern | None = None
) -> Encoded:
    """Read, clean and tokenize one chunk; InputError (file, line, letter) where `strict` and a letter is unknown."""
    table = id_table(tokenizer.table) if tokenizer.one_to_one else UPPER
    proteins = parse_chunk(chunk, table, headers=rule is not None)
    if strict and proteins.unknown:
        raise InputError(f"{find_unknown(chunk)} is not in the vocabulary (without --strict it becomes [UNK])")
    residues, counts = proteins.residues, proteins.lengths
    groups = keys_of(proteins.headers, rule) if rule else []
    if max_length is not None:
        short = counts <= max_length
        groups = list(itertools.compress(groups, short))
        residues = np.frombuffer(residues, np.uint8)[np.repeat(short, counts)].tobytes()
        counts = counts[short]
    if tokenizer.one_to_one:
        ids, lengths = np.frombuffer(residues, tokenizer.dtype), counts
    else:
        ids, lengths = tokenizer.encode_many(residues, counts)
    longer = len(proteins.lengths) - len(counts)
    return Encoded(
        chunk.path, ids, lengths, replace(proteins, residues=b"", lengths=counts, headers=()), longer, groups
    )


@dataclass
class Summary:
    """What was read, added up over the chunks."""

    paths: Sequence[str]
    proteins: Counter = field(default_factory=Counter)  # by path
    residues: int = 0
    tokens: int = 0
    longer: int = 0
    empty: int = 0
    shortest: int = 2**31 - 1
    longest: int = 0
    removed: Counter = field(default_factory=Counter)
    unknown: Counter = field(default_factory=Counter)
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(len(LENGTH_EDGES) + 1, np.int64))

    def add(self, part: Encoded) -> None:
        lengths = part.proteins.lengths
        self.longer += part.longer
        self.empty += part.proteins.empty
        self.removed += part.proteins.removed
        self.unknown += part.proteins.unknown
        self.proteins[part.path] += len(lengths)
        self.residues += int(lengths.sum(dtype=np.int64))
        self.tokens += len(part.ids)
        self.shortest = int(lengths.min(initial=self.shortest))
        self.longest = int(lengths.max(initial=self.longest))
        bars = np.searchsorted(LENGTH_EDGES, lengths)
        self.histogram += np.bincount(bars, minlength=len(LENGTH_EDGES) + 1)

    def to_dict(self, tokenizer: Tokenizer, seconds: float) -> dict:
        starts, ends = (1, *(edge + 1 for edge in LENGTH_EDGES)), (*LENGTH_EDGES, None)
        proteins = self.proteins.total()
        bars = zip(starts, ends, self.histogram.tolist(), strict=True)
        return {
            "proteins": proteins,
            "residues": self.residues,
            "tokens": self.tokens,
            "empty_records_skipped": self.empty,
            "longer_left_out": self.longer,
            "shortest": self.shortest,
            "longest": self.longest,
            "mean_length": round(self.residues / proteins, 2),
            "length_histogram": [{"from": start, "to": end, "proteins": count} for start, end, count in bars],
            "removed": dict(sorted(self.removed.items())),
            "unknown": dict(self.unknown.most_common()),
            "inputs": [
                {"path": p, "kind": input_kind(p), "proteins": self.proteins[p]} for p in dict.fromkeys(self.paths)
            ],
            "dtype": tokenizer.dtype.name,
            "seconds": round(seconds, 3),
            "proteins_per_second": round(proteins / seconds),
            "tokenizer": tokenizer.to_dict(),
        }


def format_summary(summary: dict, prefix: str) -> str:
    """The summary as the lines the command ends with."""
    lines = [
        f"{summary['proteins']:,} proteins, {summary['residues']:,} residues, {summary['tokens']:,} tokens "
        f"({summary['dtype']}); lengths {summary['shortest']}-{summary['longest']}, mean {summary['mean_length']}"
    ]
    for bar in summary["length_histogram"]:
        name = f"{bar['from']}-{bar['to']}" if bar["to"] else f"over {bar['from'] - 1}"
        share = bar["proteins"] / summary["proteins"]
        lines.append(f"  {name:>10} {bar['proteins']:>12,} {share:6.1%} {'#' * round(40 * share)}".rstrip())
    counts = [f"{letter} {count:,}" for letter, count in summary["unknown"].items()]
    lines.append(f"unknown letters, now [UNK]: {', '.join(counts) or 'none'}")
    counts = [f"{sign!r} {count:,}" for sign, count in summary["removed"].items()]
    lines.append(
        f"removed: {', '.join(counts) or 'nothing'}; empty records skipped: {summary['empty_records_skipped']:,}"
    )
    if groups := summary.get("groups"):
        lines.append(
            f"groups by {groups['by']}: {groups['number']:,}, {groups['of_one_protein']:,} of one protein; "
            f"the largest has {groups['largest']:,}"
        )
    if summary["longer_left_out"]:
        lines.append(f"left out, longer than --max-length: {summary['longer_left_out']:,} proteins")
    lines += [f"notice: {one['path']}: no proteins" for one in summary["inputs"] if one["proteins"] == 0]
    lines.append(f"{summary['seconds']} s, {summary['proteins_per_second']:,} proteins/s -> {prefix}.bin, .idx")
    return "\n".join(lines)


def map_in_order(function: Callable, items: Iterable, workers: int) -> Iterator:
    """`map`, over `workers` processes where there are more than one; results in the items' order, memory bounded."""
    if workers == 1:
        yield from map(function, items)
        return
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    pending: deque = deque()
    items = iter(items)
    # A terminal's Ctrl-C reaches the workers too; that is for the main process to tell.
    with ProcessPoolExecutor(workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            pending.extend(pool.submit(function, item) for item in itertools.islice(items, 4 * workers))
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
                yield result
        except BrokenProcessPool as error:
            raise InputError("a worker process was killed (out of memory?); try fewer --workers") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def read_inputs(args: argparse.Namespace) -> Iterator[Chunk]:
    return itertools.chain.from_iterable(read_chunks(path, args.json_key) for path in args.input)


@contextlib.contextmanager
def trained_tokenizer(args: argparse.Namespace) -> Iterator[str]:
    """A SentencePiece model trained on the input, which has its name (`--vocab-file`, or beside the output) at the end:
    not before the shard is there, or the same command would refuse to replace it."""
    path = args.vocab_file or f"{args.output_prefix}.model"
    if os.path.exists(path):
        raise InputError(f"{path}: exists; --train-tokenizer does not replace a model (leave the flag out to use it)")

    def proteins() -> Iterator[str]:
        for chunk in read_inputs(args):
            parsed = parse_chunk(chunk)
            yield from split_residues(parsed.residues, parsed.lengths)

    first = next(stream := proteins(), None)
    if first is None:
        raise InputError(f"{', '.join(args.input)}: no proteins to train a tokenizer on")
    print(f"training {path} on a sample of the proteins: about a minute", file=sys.stderr)
    with atomic_path(path) as temporary:
        temporary.write_bytes(train_sentencepiece(itertools.chain([first], stream), args.vocab_size, args.seed))
        yield str(temporary)
    print(f"trained {path}: {args.vocab_size} tokens")


def preprocess(args: argparse.Namespace, tokenizer: Tokenizer, started: float) -> dict:
    """Tokenize every input into one shard; returns the summary that was also written beside it."""
    prefix = f"{args.output_prefix}_text_document"
    summary = Summary(args.input)
    rule, numbers = args.group_by and compile_rule(args.group_by), GroupNumbers()
    encode = functools.partial(
        encode_chunk, tokenizer=tokenizer, strict=args.strict, max_length=args.max_length, rule=rule
    )
    progress = Progress("proteins", seconds=1.0, every=args.log_interval)
    with progress, IndexedWriter(prefix, tokenizer.dtype) as writer:
        for part in map_in_order(encode, read_inputs(args), args.workers):
            writer.add(part.ids, part.lengths)
            summary.add(part)
            numbers.add(part.groups)
            progress.add(len(part.lengths))
        if not summary.proteins.total():
            empty = f", {summary.empty} empty records" if summary.empty else ""
            empty += f", {summary.longer} longer than --max-length {args.max_length}" if summary.longer else ""
            raise InputError(f"{', '.join(args.input)}: no proteins{empty}; nothing written")
    groups = cluster_shard(prefix, tokenizer) if args.cluster else numbers.groups() if rule else None
    result = summary.to_dict(tokenizer, time.monotonic() - started)
    if groups is not None:
        write_groups(prefix, groups)
        result["groups"] = describe_groups(groups, "k-mers" if args.cluster else args.group_by)
    write_json(f"{prefix}.summary.json", result)
    return result


def cluster_shard(prefix: str, tokenizer: Tokenizer) -> np.ndarray:
    """The clusters of a shard that was just written, int32 [N]; the same for every vocabulary of letters."""
    shard = IndexedDataset(prefix)
    letters = np.array([ord(token) if len(token) == 1 else 0 for token in tokenizer.tokens], np.uint8)
    return cluster(letters[np.fromfile(f"{prefix}.bin", shard.dtype)], np.asarray(shard.lengths))


def describe_groups(groups: np.ndarray, rule: str) -> dict:
    """Of the summary."""
    sizes = np.bincount(groups)
    counts = {"number": len(sizes), "of_one_protein": int((sizes == 1).sum()), "largest": int(sizes.max())}
    return {"by": rule, **counts, "crc32": checksum(groups)}


def build_parser() -> ArgumentParser:
    parser = ArgumentParser("python -m pretrain.preprocess", description="Files of proteins to token shards.")
    add = parser.add_argument
    add("--input", nargs="+", required=True, help="FASTA, JSON lines, plain text (all also .gz, - or a pipe), .lmdb")
    add("--output-prefix", required=True, help="writes PREFIX_text_document.bin, .idx, .summary.json (.groups.npy)")
    add("--json-key", "--json-keys", dest="json_key", default="text", help="key of the residues in JSON lines")
    add("--tokenizer-type", default="iupac", help=f"{', '.join(TOKENIZER_TYPES[:-1])} (the first three are the same)")
    add("--vocab-file", help="SentencePiece model; for the others a token list, checked against the built-in one")
    add("--train-tokenizer", action="store_true", help="first train the SentencePiece model --vocab-file on the input")
    add("--vocab-size", type=int, help="tokens of the trained SentencePiece model, 5 special ones included")
    add("--seed", type=int, default=1234, help="of the proteins drawn to train SentencePiece")
    add("--workers", type=int, default=1, help="processes; the output does not depend on it")
    add("--strict", action="store_true", help="refuse letters outside the vocabulary instead of writing [UNK]")
    add("--max-length", type=int, help="leave longer proteins out (residues); a curriculum starts with short ones")
    rules = f"{', '.join(RULES)}, or a regular expression"
    add("--group-by", metavar="RULE", help=f"groups for balanced sampling, from FASTA headers: {rules}")
    add("--cluster", action="store_true", help="groups for balanced sampling, from the k-mers that proteins share")
    add("--log-interval", type=int, default=1_000_000, help="proteins between progress lines")
    add("--dataset-impl", default="mmap", help="mmap, the one format written")
    add("--append-eod", action="store_true", help="refused: proteins are stored without separators")
    for flag in ("--split-sentences", "--keep-newlines"):
        add(flag, action="store_true", help="accepted, without meaning here")
    add("--merge-file", help="accepted, without meaning here")
    return parser


def check_arguments(parser: ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what cannot be done, and say in a line what is accepted without effect."""
    for flag in ("workers", "log_interval", "max_length"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            parser.error(f"--{flag.replace('_', '-')} {getattr(args, flag)}: at least 1")
    if args.append_eod:
        parser.error("--append-eod: shards hold residues only; the loader places [CLS] before each protein")
    if args.dataset_impl != "mmap":
        parser.error(f"--dataset-impl {args.dataset_impl}: only mmap is written")
    if args.tokenizer_type.lower() == "tape":
        parser.error("--tokenizer-type tape: shards hold pretraining ids; use iupac")
    if args.group_by and args.cluster:
        parser.error("--group-by and --cluster exclude each other; give one")
    if args.cluster and args.tokenizer_type.lower() == "sentencepiece":
        parser.error("--cluster needs a token for each residue, which SentencePiece does not have; use --group-by")
    if args.train_tokenizer and args.tokenizer_type.lower() != "sentencepiece":
        parser.error(f"--train-tokenizer needs --tokenizer-type SentencePiece, not {args.tokenizer_type}")
    if args.train_tokenizer != (args.vocab_size is not None):
        parser.error("--train-tokenizer and --vocab-size go together")
    for flag in ("split_sentences", "keep_newlines", "merge_file"):
        if getattr(args, flag):
            print(f"notice: --{flag.replace('_', '-')} has no meaning for proteins; ignored", file=sys.stderr)
    args.input = [reread(path) for path in args.input]
    for path in args.input:
        if not os.path.exists(path):
            raise InputError(f"{path}: no such file")
        if args.group_by and (kind := input_kind(path)) != "fasta":
            raise InputError(f"{path}: --group-by reads FASTA headers, this is {kind}; use --cluster")
    if args.group_by:
        compile_rule(args.group_by)


def main(argv: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    # glibc returns memory of this size to the system and asks for it anew, chunk for chunk, until it has seen a larger
    # block come and go; a fifteenth of the command's time.
    bytes(LARGEST_BLOCK)
    parser = build_parser()
    args = parser.parse_args(argv)
    check_arguments(parser, args)
    with trained_tokenizer(args) if args.train_tokenizer else contextlib.nullcontext(args.vocab_file) as vocab_file:
        summary = preprocess(args, build_tokenizer(args.tokenizer_type, vocab_file), started)
    print(format_summary(summary, f"{args.output_prefix}_text_document"))
    return 0


def cli() -> int:
    return run(main)
