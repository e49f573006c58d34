"""`proteinlm project`: proteins (or amino acids) as an encoder sees them, in two dimensions and in numbers.

proteinlm project MODEL proteins.csv --column class domain          a page, pictures, purity and silhouette
proteinlm project MODEL --amino_acids                               the 20 amino acids' input embeddings
proteinlm project MODEL labelled.csv --query new.fasta --column location      labels from the nearest proteins

What must hold: files are whole or absent; a killed run, started again with the same command, finds the vectors and maps
that it has made.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from probe.names import METRICS, POOLINGS, TOO_LONG
from probe.projection.maps import ARMS, ITERATIONS, METHODS
from proteinlm import errors
from proteinlm.errors import InputError
from proteinlm.files import require_file, reread
from proteinlm.model_dir.find import find_model
from tape.runs.flags import DEVICE_FLAGS, add_flags, positive, precision_name, refuse_flags, seed, within

OF_A_MAP = ("limit", "method", "arms", "perplexity", "iterations", "random_seed")
OF_A_TABLE = ("limit", "ignore", "sequence", "id", "exclude_relatives", "pooling", "layer", "max_length", "too_long")


def build_parser() -> errors.ArgumentParser:
    usage = "proteinlm project MODEL TABLE | --amino_acids [flags]"
    description = "Draw proteins as an encoder sees them, with numbers, or find labels for new ones."
    parser = errors.ArgumentParser("proteinlm project", usage=usage, description=description, intermixed=True)
    parser.add_argument("model", metavar="MODEL", help="a model directory")
    parser.add_argument("table", metavar="TABLE", nargs="?", help="proteins: .csv, .tsv or FASTA (KEY=value headers)")
    parser.add_argument("--amino_acids", action="store_true", help="the 20 standard ones instead of proteins")
    parser.add_argument("--output", metavar="OUT", help="default: TABLE_map, MODEL_amino_acids, or QUERY_labels.csv")
    parser.add_argument("--column", nargs="+", metavar="COLUMN", help="that colour; default: those of 2 to 24 classes")
    parser.add_argument("--ignore", nargs="+", default=[], metavar="LABEL", help="labels that mean unknown")
    parser.add_argument("--sequence", metavar="COLUMN", help="of the sequences, where names leave a doubt")
    parser.add_argument("--id", metavar="COLUMN", help="of the names")
    parser.add_argument("--limit", type=positive, metavar="N", help="only N proteins of TABLE, at random")
    parser.add_argument("--query", metavar="NEW", help="name the nearest labelled proteins of TABLE for these")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=["tsne", "pca"], help="default: tsne pca")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS[:2], help="default: pretrained random")
    parser.add_argument("--perplexity", type=within(float, 1), help="of t-SNE; default: 30, of amino acids 5")
    parser.add_argument("--iterations", type=within(int, 250), default=ITERATIONS, help="of t-SNE (%(default)s)")
    parser.add_argument("--neighbors", type=positive, help="default: 10; of amino acids and of --query 3")
    parser.add_argument("--metric", choices=METRICS, default=METRICS[0], help="default: %(default)s")
    parser.add_argument("--exclude_relatives", action="store_true", help="proteins of one cluster are no neighbours")
    parser.add_argument("--pooling", default="mean", metavar="NAME", help=f"{', '.join(POOLINGS)}, or mean_max ...")
    parser.add_argument("--layer", type=int, default=-1, help="0: the embedding; default: the last")
    parser.add_argument("--max_length", type=positive, help="residues that are read (default: all the model can)")
    parser.add_argument("--too_long", choices=TOO_LONG, default=TOO_LONG[0], help="default: %(default)s")
    parser.add_argument("--random_seed", type=seed, default=0, help="of the random weights (%(default)s)")
    parser.add_argument("--seed", type=seed, default=0, help="of maps and intervals (%(default)s)")
    parser.add_argument("--embeddings_dir", metavar="DIR", help="where vectors and maps are kept (default: beside OUT)")
    add_flags(parser, *DEVICE_FLAGS)
    return parser


def settings_of(args: argparse.Namespace) -> dict:
    """What `project` and `annotate` both take."""
    names = ("ignore", "sequence", "metric", "exclude_relatives", "seed", "embeddings_dir", "device")
    names += ("pooling", "layer", "max_length", "too_long")
    dtype = precision_name(args.fp16, args.bf16)
    return {name: getattr(args, name) for name in names} | {"name": args.id, "dtype": dtype}


def print_table(columns: dict[str, list[str]]) -> None:
    widths = [max(map(len, [name, *cells])) for name, cells in columns.items()]
    for row in zip(*([name, *cells] for name, cells in columns.items()), strict=True):
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def stem_of(path: str) -> str:
    return Path(Path(path).name.removesuffix(".gz")).stem


def run_query(args: argparse.Namespace) -> None:
    if not args.column or len(args.column) != 1:
        raise InputError("--query: --column should name one column of TABLE, whose labels are handed on")
    output = Path(args.output or f"{stem_of(args.query)}_labels.csv")
    if output.suffix != ".csv" or output.resolve() in (Path(args.query).resolve(), Path(args.table).resolve()):
        raise InputError(f"--output {output}: should be a .csv of its own")
    settings = settings_of(args) | ({"neighbors": args.neighbors} if args.neighbors else {})
    from probe.projection.transfer import annotate

    results = annotate(args.model, args.table, args.query, output, column=args.column[0], **settings)
    right, reference = results["reference"]["right"], results["reference"]
    print(
        f"on the reference itself the nearest neighbour's {args.column[0]} is right for {right['value']:.3f} "
        f"[{right['low']:.3f}, {right['high']:.3f}] of {results['labelled']:,} proteins"
        f"{', relatives left out' if args.exclude_relatives else ''}; always the largest class: "
        f"{reference['largest_class']:.3f}; error of the calibration {reference['calibration_error']:.3f}"
    )
    print(f"wrote {output}: {results['queries']:,} proteins, {results['farther_than_any']:,} of them farther than any")


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    args.table, args.query = (path and require_file(reread(path, ".fasta")) for path in (args.table, args.query))
    find_model(args.model)
    precision_name(args.fp16, args.bf16)
    if (args.table is None) != args.amino_acids:
        raise InputError("give TABLE, or --amino_acids without it")
    if args.amino_acids:
        refuse_flags(parser, args, OF_A_TABLE, "is of TABLE's proteins; not with --amino_acids")
    if args.query is not None:
        if args.amino_acids:
            raise InputError("--query needs TABLE, whose labels are handed on; not --amino_acids")
        refuse_flags(parser, args, OF_A_MAP, "is of a map; not with --query")
        run_query(args)
        return 0
    stem = f"{Path(args.model).name}_amino_acids" if args.amino_acids else f"{stem_of(args.table)}_map"
    drawing = {"columns": args.column, "arms": args.arms, "methods": args.method, "perplexity": args.perplexity}
    drawing |= {"iterations": args.iterations, "neighbors": args.neighbors, "limit": args.limit}
    drawing |= {"random_seed": args.random_seed}
    from probe.projection.outputs import project, table_of

    results = project(args.model, args.table, args.output or stem, **drawing, **settings_of(args))
    print_table(table_of(results["columns"]))
    return 0


cli = partial(errors.run, main, resumes=True)


if __name__ == "__main__":
    sys.exit(cli())
