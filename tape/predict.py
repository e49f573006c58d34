"""A finetuned model's predictions for the proteins of a FASTA file (.gz too), for every task.

    tape-predict RUN_DIR proteins.fasta out.tsv                 or out.csv
    tape-predict RUN_DIR proteins.csv out.csv                   one's own data: a table goes in and comes out too
    tape-predict RUN_DIR proteins.fasta maps.npz                contacts: also maps_png/000001_<id>.png ...

RUN_DIR is what tape-train wrote: its args.json or config.json names the task and the model type (--task and
--model_type where they do not). The files are described in tape.inference.predictors.

What must hold: results are in input order and do not depend on how proteins are batched (1e-5); memory is one window of
proteins whatever the size of the input; every protein is in the output or counted in the last line.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from proteinlm import errors
from proteinlm.errors import InputError
from proteinlm.files import check_writable, require_file
from tape.inference.fasta import add_fasta_flags
from tape.runs.flags import DEVICE_FLAGS, add_flags, positive, precision_name
from tape.runs.plugins import load_plugins


def build_parser() -> errors.ArgumentParser:
    parser = errors.ArgumentParser("tape-predict", description="Predict with a finetuned model.")
    parser.add_argument("run_dir", metavar="RUN_DIR", help="what tape-train wrote")
    parser.add_argument("data_file", metavar="IN", help="FASTA, or a table of proteins (.csv, .tsv), also .gz")
    parser.add_argument("out_file", metavar="OUT", help=".tsv or .csv; contacts: .npz")
    parser.add_argument("--task", help="default: as RUN_DIR says")
    parser.add_argument("--model_type", help="default: as RUN_DIR says")
    parser.add_argument("--top_k", type=positive, default=5, help="classes a protein (remote homology)")
    parser.add_argument("--masked", action="store_true", help="masked LM: hide each residue in turn; a pass a residue")
    parser.add_argument("--png", action=argparse.BooleanOptionalAction, help="contacts: a picture each, in <OUT>_png/")
    add_fasta_flags(parser)
    add_flags(parser, *DEVICE_FLAGS, "plugin")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    load_plugins(argv)
    args = build_parser().parse_args(argv)
    directory, output = Path(args.run_dir), Path(args.out_file)
    if not directory.exists():
        raise InputError(f"{directory}: no such directory; should be one that tape-train wrote")
    check_writable(output, require_file(args.data_file))
    if output.suffix not in (".npz", ".tsv", ".csv", ".txt"):
        raise InputError(f"{output}: should end in .tsv or .csv, or in .npz for contacts")
    precision_name(args.fp16, args.bf16)
    from tape.inference.prediction import run

    run(args)
    return 0


cli = partial(errors.run, main)  # the console command

if __name__ == "__main__":
    sys.exit(cli())
