"""`proteinlm variants`: mutations of one protein scored by a masked language model, without training.

proteinlm variants MODEL WT.fasta MUTATIONS.csv                        a column of scores, and how well it ranks
proteinlm variants MODEL WT.fasta --scan --output scan.csv             every mutation, with a heat map
proteinlm variants M1 M2 M3 WT.fasta MUTATIONS.csv --score wt-marginals      several models and their mean

MUTATIONS.csv has ProteinGym's columns: mutant (H24C, or H24C:P25A), DMS_score where there are measurements. The output
has its columns and one a model, under the model's name, `ensemble` for their mean, `random` for random weights;
OUT.json has the numbers. What must hold: files are whole or absent; a killed run, started again with the same command,
goes on where it was.
"""

import argparse
import csv
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from probe.names import ENSEMBLE, RANDOM, SCORES, WINDOW
from probe.variants import floors, heat_map
from probe.variants.mutations import AMINO_ACIDS, Assay, WildType, every_mutant, name_of, read_assay, read_wild_type
from probe.variants.ranking import METRICS, TOP, differences, intervals
from proteinlm import errors
from proteinlm.errors import InputError
from proteinlm.files import atomic_path, check_writable, reread, write_json
from proteinlm.model_dir.find import find_model
from proteinlm.running.locks import locked
from proteinlm.tables import is_table
from tape.runs.flags import DEVICE_FLAGS, add_flags, count, positive, precision_name


def build_parser() -> errors.ArgumentParser:
    usage = "proteinlm variants MODEL ... WT.fasta [MUTATIONS.csv] [flags]"
    description = "Score mutations of a protein by a masked language model."
    parser = errors.ArgumentParser("proteinlm variants", usage=usage, description=description, intermixed=True)
    parser.add_argument(
        "words", nargs="+", metavar="MODEL ... WT [MUTATIONS]",
        help="model directories; the wild type (FASTA, or ProteinGym's reference .csv); a .csv of mutants",
    )  # fmt: skip
    parser.add_argument("--output", metavar="OUT.csv", help="default: MUTATIONS_scored.csv, here")
    parser.add_argument("--score", choices=SCORES, default=SCORES[0], help="default: %(default)s")
    parser.add_argument("--random_seed", type=count, help="another column: the first model's shape with random weights")
    parser.add_argument("--scan", action="store_true", help="every amino acid at every site, and a heat map beside OUT")
    parser.add_argument("--offset", type=int, help="number of WT's first residue in the names of mutants (default: 1)")
    parser.add_argument("--mutant_column", metavar="COLUMN", help="default: mutant, or else mutated_sequence")
    parser.add_argument("--score_column", metavar="COLUMN", help="of measured values; default: DMS_score or score")
    parser.add_argument("--alignment", metavar="A3M", help="of WT's family, for the site-independent floor")
    parser.add_argument("--window", type=count, default=WINDOW, help="tokens read at a time (%(default)s; 0: all)")
    parser.add_argument("--tokens_per_batch", type=positive, help="default: by the device")
    add_flags(parser, *DEVICE_FLAGS)
    return parser


def split_words(words: Sequence[str]) -> tuple[list[str], str, str | None]:
    """(models, wild type, mutants) of the command's words: the first table ends the models."""
    first = next((i for i, word in enumerate(words) if is_table(word)), None)
    if first is None or first == 0 or len(words) > first + 2:
        raise InputError(f"{' '.join(words)}: should be MODEL ... WT.fasta [MUTATIONS.csv]")
    return list(words[:first]), words[first], words[first + 1] if len(words) > first + 1 else None


def column_names(models: Sequence[str], columns: Sequence[str], random: bool = False) -> list[str]:
    """The models' names, told apart by what is above them; InputError where the input has such a column."""
    paths = [Path(model).resolve() for model in models]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = ["/".join(path.parts[-2:]) for path in paths]
    if len(set(names)) < len(names):
        raise InputError(f"{', '.join(models)}: one model twice")
    own = (ENSEMBLE, RANDOM) if random else (ENSEMBLE,)
    if clash := set(own).intersection(names):
        raise InputError(f"a model is called {min(clash)!r}, which is a column of its own; should have another name")
    for name in [*names, *own[1:]]:
        if name in columns:
            raise InputError(f"the mutants' file has a column {name!r} already; should be without it")
    return names


def write_scores(path: Path, columns: Sequence[str], rows: Sequence, scores: Mapping[str, np.ndarray]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*columns, *scores])
        for i, row in enumerate(rows):
            writer.writerow([*row, *(f"{values[i]:.6f}" for values in scores.values())])


def rank(
    assay: Assay, scores: Mapping[str, np.ndarray], wild: WildType, alignment: str | None
) -> tuple[dict[str, dict], dict[str, dict]]:
    """(metrics of each column and of the floors, each column minus `random`), of mutants with a measured value."""
    known = np.isfinite(assay.measured)
    if known.sum() < 2:
        raise InputError(f"{assay.table.path}: column {assay.measured_column} has {known.sum()} numbers; needs two")
    columns = dict(scores) | {"blosum62": floors.blosum62(assay.mutants)}
    columns |= {"composition": floors.composition(assay.mutants)}
    if len({len(mutant) for mutant in assay.mutants}) > 1:
        columns["fewer_mutations"] = floors.fewer_mutations(assay.mutants)
    if alignment is not None:
        profile = floors.read_profile(alignment, wild)
        columns["site_independent"] = floors.site_independent(assay.mutants, profile)
    measured = assay.measured[known]
    for name, values in [*scores.items(), (assay.measured_column, measured)]:
        if np.ptp(values[known] if name in scores else values) == 0:
            print(f"notice: every value of {name} is {values[0]:.4g}, so there is nothing to rank", flush=True)
    if known.sum() * TOP < 1:
        print(f"notice: ndcg is of the best tenth, and {known.sum()} measured mutants have none", flush=True)
    metrics = {name: intervals(values[known], measured) for name, values in columns.items()}
    rivals = [name for name in scores if RANDOM in scores and name != RANDOM]
    return metrics, {name: differences(scores[name][known], scores[RANDOM][known], measured) for name in rivals}


def print_metrics(metrics: Mapping[str, Mapping]) -> None:
    width = max(map(len, metrics))
    print(f"{'':<{width}}" + "".join(f"  {name:<24}" for name in METRICS).rstrip())
    for column, values in metrics.items():
        cells = [f"{v['value']:7.4f} [{v['low']:.4f}, {v['high']:.4f}]" for v in (values[name] for name in METRICS)]
        print(f"{column:<{width}}" + "".join(f"  {cell:<24}" for cell in cells).rstrip())


def scan_output(output: Path, wild: WildType, scores: dict[str, np.ndarray], method: str) -> None:
    """OUT: a line a mutation; the heat map of the only model, or the ensemble, beside it."""
    mutants = every_mutant(wild.sequence)
    rows = [(name_of(m, wild.offset), m[0].site + wild.offset, m[0].wild, m[0].letter) for m in mutants]
    write_scores(output, ("mutant", "position", "wild_type", "amino_acid"), rows, scores)
    models = [name for name in scores if name not in (ENSEMBLE, RANDOM)]
    column, model = (ENSEMBLE, f"mean of {len(models)} models") if ENSEMBLE in scores else (models[0], models[0])
    caption = heat_map.Caption(wild.name, model, method)
    table = scores[column].reshape(-1, len(AMINO_ACIDS))
    own = [row[AMINO_ACIDS.index(a)] for row, a in zip(table, wild.sequence, strict=True) if a in AMINO_ACIDS]
    table = table - (own[0] if own else 0.0)  # all alike, and 0 for marginals and differences
    pictures = heat_map.draw_all(output.with_suffix(""), wild, table, caption)
    print(f"wrote {', '.join(map(str, [output, *pictures]))}")


def mutants_output(
    output: Path, assay: Assay, wild: WildType, scores: dict[str, np.ndarray], args: argparse.Namespace
) -> dict[str, dict]:
    """OUT: the rows of the input and the scores. Returns what `rank` gives, empty without measured values."""
    columns, rows = assay.table.columns, assay.table.rows
    if "mutant" not in columns:
        columns = ("mutant", *columns)
        rows = [[name_of(m, wild.offset), *row] for m, row in zip(assay.mutants, rows, strict=True)]
    metrics, gaps = ({}, {}) if assay.measured is None else rank(assay, scores, wild, args.alignment)
    write_scores(output, columns, rows, scores)
    if metrics:
        print_metrics(metrics | {f"{name} - {RANDOM}": gap for name, gap in gaps.items()})
    print(f"wrote {output}: {len(rows):,} mutants")
    return {"metrics": metrics, "minus_random": gaps}


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    models, wild_path, mutants_path = split_words([reread(word, ".fasta") for word in args.words])
    if args.scan and mutants_path is not None:
        raise InputError("give MUTATIONS.csv, or --scan without it")
    if not args.scan and mutants_path is None:
        raise InputError("no MUTATIONS.csv and no --scan; should be one of them")
    precision_name(args.fp16, args.bf16)
    for model in models:
        find_model(model)
    wild = read_wild_type(wild_path, args.offset, mutants_path)
    stem = Path(mutants_path or wild_path).name.removesuffix(".gz")
    output = Path(args.output or f"{Path(stem).stem}_{'scan' if args.scan else 'scored'}.csv")
    if output.suffix != ".csv" or output.resolve() in (Path(p).resolve() for p in (wild_path, mutants_path) if p):
        raise InputError(f"--output {output}: should be a .csv of its own")
    assay = None if args.scan else read_assay(mutants_path, wild, args.mutant_column, args.score_column)
    mutants = every_mutant(wild.sequence) if assay is None else assay.mutants
    if args.alignment is not None:
        args.alignment = reread(args.alignment)
        floors.read_profile(args.alignment, wild)  # what is wrong with it shows before the work
    names = column_names(models, () if assay is None else assay.table.columns, args.random_seed is not None)
    check_writable(output)
    with locked(f"{output}.partial", "--output") as partial:
        write(args, dict(zip(names, models, strict=True)), wild, mutants, assay, output, partial)
        shutil.rmtree(partial)
    return 0


def write(
    args: argparse.Namespace,
    models: Mapping[str, str],
    wild: WildType,
    mutants: list,
    assay: Assay | None,
    output: Path,
    partial: Path,
) -> None:
    """Score, then OUT, OUT.json and the pictures."""
    from probe.variants.models import score_all

    scores, seconds = score_all(models, wild, mutants, args, partial)
    if assay is None:
        scan_output(output, wild, scores, args.score)
    metrics = {"metrics": {}} if assay is None else mutants_output(output, assay, wild, scores, args)
    settings = {"wild_type": wild.name, "residues": len(wild.sequence), "offset": wild.offset, "score": args.score}
    settings |= {"window": args.window, "mutants": len(mutants), "data": Path(args.words[-1]).name}
    settings |= {"models": dict(models), "random_seed": args.random_seed, "seconds": seconds}
    write_json(output.with_suffix(".json"), settings | metrics)


cli = partial(errors.run, main, resumes=True)

if __name__ == "__main__":
    sys.exit(cli())
