"""`proteinlm probe`: small heads on an encoder's frozen embeddings, beside random weights and the bare sequence.

proteinlm probe MODEL data                                            TAPE's secondary structure: Q3, Q8, disorder
proteinlm probe MODEL deeploc.csv --target location membrane          one's own table, a class a protein or a residue
proteinlm probe MODEL train.csv --test valid.csv --heads fnn logistic light_attention --layers all
proteinlm probe MODEL data --checkpoint secstruct_checkpoint.pt       a head that is trained already, scored

OUT/results.json and OUT/table.md have the numbers with their intervals, OUT/*.png and *.svg the confusion matrices and
the curve over layers. A killed run, started again with the same command, goes on where it was.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from probe.names import ARMS, HEADS, POOLINGS, TOO_LONG
from proteinlm import errors
from proteinlm.errors import InputError
from proteinlm.files import require_file, reread
from proteinlm.model_dir.find import find_model
from proteinlm.tables import is_table
from tape.data.records import find_data_file
from tape.own_data.data import Choice
from tape.runs.flags import DEVICE_FLAGS, add_flags, fraction, non_negative, positive, precision_name, seed
from tape.runs.names import FOLDERS


def layer_words(words: Sequence[str]) -> tuple[int, ...] | str:
    """--layers: whole numbers, or all."""
    if list(words) == ["all"]:
        return "all"
    try:
        return tuple(map(int, words))
    except ValueError:
        raise InputError(f"--layers {' '.join(words)}: should be whole numbers, or all") from None


def build_parser() -> errors.ArgumentParser:
    description = "Train small heads on an encoder's frozen embeddings and score them."
    parser = errors.ArgumentParser("proteinlm probe", description=description)
    parser.add_argument("model", metavar="MODEL", help="a model directory; none: only --arms one_hot, composition")
    parser.add_argument("data", metavar="DATA", help="TAPE's data directory, or a table: .csv, .tsv, FASTA")
    parser.add_argument("--output", metavar="OUT", help="a directory (default: DATA's name and _probe, here)")
    parser.add_argument(
        "--heads", nargs="+", choices=HEADS, default=(), help="default: cnn of residues, fnn of proteins"
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=(), help="default: all that the head can read")
    parser.add_argument("--poolings", nargs="+", default=["mean"], metavar="POOLING",
                        help=f"of proteins: {', '.join(POOLINGS)}, or joined (mean_max); default: mean")  # fmt: skip
    parser.add_argument("--layers", nargs="+", default=["-1"], metavar="N", help="0: the embedding; -1: the last; all")
    parser.add_argument("--seeds", nargs="+", type=seed, default=[0, 1, 2], help="of the heads (default: 0 1 2)")
    parser.add_argument("--random_seed", type=seed, default=0, help="of the random weights (%(default)s)")
    parser.add_argument("--checkpoint", metavar="FILE.pt", help="of the head: it is scored, not trained")
    table = parser.add_argument_group("a table")
    table.add_argument("--target", nargs="+", metavar="COLUMN", help="columns of labels, trained together")
    table.add_argument(
        "--test", nargs="+", default=(), metavar="TABLE", help="more tables, to be scored; DATA is train"
    )
    table.add_argument("--sequence", metavar="COLUMN")
    table.add_argument("--id", metavar="COLUMN", help="of the proteins' names; none: there is none")
    table.add_argument("--split_column", metavar="COLUMN", help="of train, valid, test; none: divided by cluster")
    table.add_argument("--ignore", nargs="+", default=(), metavar="LABEL", help="labels that mean unknown")
    table.add_argument("--kind", choices=("classification", "per_residue"), help="of label (default: as they look)")
    training = parser.add_argument_group("training (default: the head's own)")
    training.add_argument("--learning_rate", type=non_negative)
    training.add_argument("--batch_size", type=positive, help="proteins")
    training.add_argument("--epochs", type=positive, help="at most")
    training.add_argument("--patience", type=positive, help="epochs without a better loss on the held-out part")
    training.add_argument("--holdout", type=fraction, default=0.1, help="of train, for early stopping (%(default)s)")
    embedding = parser.add_argument_group("embedding")
    embedding.add_argument("--embeddings_dir", metavar="DIR", help="where embeddings are kept (default: beside OUT)")
    embedding.add_argument("--max_length", type=positive, help="residues that are embedded (default: all it can)")
    embedding.add_argument("--too_long", choices=TOO_LONG, default="error", help="a longer protein: crop, or stop")
    embedding.add_argument("--tokens_per_batch", type=positive, help="default: by the device")
    embedding.add_argument("--limit", type=positive, metavar="N", help="only N proteins of each split, at random")
    add_flags(parser, *DEVICE_FLAGS)
    return parser


def read_data(args: argparse.Namespace):
    """The probe.probes.data.ProbeData of DATA."""
    from probe.probes.data import limited, read_columns, read_structure

    if is_table(args.data):
        choice = Choice(args.sequence, None, args.id, args.split_column, args.kind, tuple(args.ignore))
        data = read_columns(args.data, args.target, choice, args.test)
    else:
        data = read_structure(args.data)
    return data if args.limit is None else limited(data, args.limit)


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    args.data, *args.test = (reread(path, ".fasta") for path in (args.data, *args.test))
    of_table = ("target", "test", "sequence", "id", "split_column", "ignore", "kind")
    if not is_table(args.data) and (given := [name for name in of_table if getattr(args, name)]):
        raise InputError(f"--{given[0]}: is of a table; {args.data} should be a .csv, .tsv or FASTA file")
    if not is_table(args.data):
        folder = FOLDERS["secondary_structure"]
        find_data_file(args.data, folder, folder, "train")
    for path in (args.data, *args.test):
        require_file(path)
    if args.model != "none":
        find_model(args.model)
    layers, dtype = layer_words(args.layers), precision_name(args.fp16, args.bf16)
    from probe.probes.experiment import Options, run

    options = Options(
        args.heads, args.arms, args.poolings, layers, args.seeds, args.random_seed, args.holdout,
        args.learning_rate, args.batch_size, args.epochs, args.patience, args.checkpoint, args.embeddings_dir,
        args.max_length, args.too_long, args.device, dtype,
        args.tokens_per_batch,
    )  # fmt: skip
    data = read_data(args)
    print("\n".join(data.describe()), file=sys.stderr, flush=True)
    output = args.output or f"{Path(args.data).resolve().name.split('.')[0]}_probe"
    run(None if args.model == "none" else args.model, data, output, options)
    return 0


cli = partial(errors.run, main, resumes=True)


if __name__ == "__main__":
    sys.exit(cli())
