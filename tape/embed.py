"""Embed the proteins of a FASTA file (.gz too), a handful or millions, with any model type.

    tape-embed transformer proteins.fasta proteins.npz MODEL_DIR                        TAPE's command, TAPE's file
    tape-embed transformer uniref50.fasta.gz uniref50.h5 MODEL_DIR --bf16 --embeddings mean
    tape-embed transformer proteins.fasta proteins.h5 MODEL_DIR --format h5-per-protein --half --layers 4 -1
    torchrun --nproc-per-node 8 -m tape.embed transformer big.fasta.gz big.parquet MODEL_DIR

The input is cut into parts of 8,192 proteins (fewer where every residue is kept). Within a part proteins are sorted by
length and packed into batches by a budget of tokens; a finished part is a file in OUT.parts/, and at the end the parts
become OUT. Process r of n takes parts r, r + n ...

What must hold: memory is one part, whatever the size of the input; a killed run, started again with the same command,
goes on at its last part and ends in the same bytes, also with another number of processes; every protein of the input
is embedded or counted in the last line and listed, with the reason, in OUT.failed.tsv. The exit status is 3 where one
of them should have been embedded (too little memory, numbers that are not finite); those that a flag leaves out do not
count. Outputs and layers: tape.inference.encoding. Files: tape.inference.files.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from proteinlm import errors
from proteinlm.errors import InputError
from proteinlm.files import check_writable, require_file
from proteinlm.model_dir.find import require_model
from tape.inference.fasta import add_fasta_flags
from tape.inference.files import FORMATS, KEYS, NAME_KEYS, OUTPUTS, PER_PROTEIN, choose_format
from tape.runs.flags import (
    DEVICE_FLAGS,
    add_flags,
    add_ignored_flags,
    check_flags,
    positive,
    precision_name,
    start_logging,
)
from tape.runs.names import require_model_type
from tape.runs.plugins import load_plugins, model_types

IGNORED = ("vocab_file", "output_dir")  # TAPE's

SILENTLY_IGNORED = ("seed", "num_workers", "task")


def build_parser() -> errors.ArgumentParser:
    parser = errors.ArgumentParser("tape-embed", description="Embed the proteins of a FASTA file.")
    parser.add_argument(
        "model_type", help="transformer, huggingface, tape_transformer, lstm, resnet, onehot or a plugin's"
    )
    parser.add_argument("data_file", metavar="IN.fasta", help="FASTA, or a table of proteins (.csv, .tsv), also .gz")
    parser.add_argument("out_file", metavar="OUT", help=".npz (TAPE's layout), .h5 or .parquet")
    parser.add_argument("from_pretrained", metavar="MODEL_DIR", nargs="?", help="model directory (onehot needs none)")
    parser.add_argument("--embeddings", nargs="+", choices=OUTPUTS[:3], help="default: pooled avg, as TAPE")
    parser.add_argument("--full_sequence_embed", action="store_true", help="every token's state (`seq`), not `avg`")
    layers = parser.add_mutually_exclusive_group()
    layers.add_argument("--layer", type=int, default=-1, help="0: embedding; N: after layer N; -1: last, with its norm")
    layers.add_argument("--layers", type=int, nargs="+", metavar="N", help="several, each named: avg_layer_0 ...")
    parser.add_argument("--format", choices=("auto", *FORMATS), default="auto", help="default: by OUT's suffix")
    parser.add_argument("--h5_keys", choices=KEYS, help="of h5-per-protein (default: id)")
    parser.add_argument("--save_fp16", "--half", action="store_true", help="write float16 (default: float32)")
    parser.add_argument("--part_proteins", type=positive, default=8192, help="proteins between two part files")
    add_fasta_flags(parser)
    add_flags(parser, *DEVICE_FLAGS, "tokenizer", "plugin", "log_level")
    parser.add_argument("--model_config_file", help="config.json to check MODEL_DIR by")
    add_ignored_flags(parser, (*IGNORED, *SILENTLY_IGNORED))
    return parser


def choose_outputs(args: argparse.Namespace) -> list[str]:
    """Which of OUTPUTS the flags ask for, in their order."""
    if args.format == PER_PROTEIN:
        requested = [*(args.embeddings or []), *(["seq"] if args.full_sequence_embed else [])] or ["mean"]
        if len(requested) > 1:
            raise InputError(
                f"--format {PER_PROTEIN}: holds one kind of embedding, {' and '.join(requested)} were asked for; give "
                "one --embeddings, or --full_sequence_embed alone (a row a residue)"
            )
    else:
        requested = args.embeddings or (["pooled"] if args.full_sequence_embed else ["pooled", "avg"])
    return [name for name in OUTPUTS if name in requested or (name == "seq" and args.full_sequence_embed)]


def main(argv: Sequence[str] | None = None) -> int:
    load_plugins(argv)
    args = build_parser().parse_args(argv)
    args.format = choose_format(args.out_file, args.format)
    if args.h5_keys and args.format != PER_PROTEIN:
        raise InputError(f"--h5_keys {args.h5_keys}: is for --format {PER_PROTEIN}")
    if args.format == PER_PROTEIN:
        args.h5_keys = args.h5_keys or "id"
    if args.duplicates == "keep" and (args.format == "npz" or args.h5_keys in NAME_KEYS):
        file = "an .npz" if args.format == "npz" else f"an {PER_PROTEIN}"
        raise InputError(f"--duplicates keep: the names are the keys of {file} file; write .h5 or .parquet")
    check_writable(args.out_file, args.data_file)
    check_flags(args, IGNORED)
    precision_name(args.fp16, args.bf16)
    args.outputs = choose_outputs(args)
    require_model_type(args.model_type, model_types())
    require_file(args.data_file)
    if args.from_pretrained is None and args.model_type != "onehot":
        raise InputError("MODEL_DIR: missing; tape-embed MODEL_TYPE IN.fasta OUT MODEL_DIR")
    require_model(args.from_pretrained, args.model_config_file, args.model_type)
    start_logging(args.log_level)
    from tape.inference.embedding import embed

    return embed(args)


cli = partial(errors.run, main, resumes=True)  # the console command

if __name__ == "__main__":
    sys.exit(cli())
