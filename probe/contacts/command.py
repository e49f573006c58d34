"""`proteinlm contacts`: contacts from attention maps without finetuning, fitted, scored and looked at.

proteinlm contacts MODEL IN.fasta OUT.npz                     a map a protein, by the model's own regression
proteinlm contacts MODEL IN.fasta OUT.csv --regression FILE   the likeliest pairs, by one that was fitted
proteinlm contacts MODEL --fit TRAIN --test TEST              the regression fitted on 20 chains and scored on TEST
proteinlm contacts MODEL --fit TRAIN --test TEST --families FASTA    on chains of its large families, beside their
                                                              co-evolution
proteinlm contacts MODEL --heads DATA                         what share of each head's attention lands on contacts
proteinlm contacts MODEL --view PROTEIN                       a page of one protein's attention

IN.fasta: FASTA, or a table of proteins, also .gz. TRAIN, TEST, DATA: TAPE's proteinnet .lmdb or .json, or a folder that
holds proteinnet_train.lmdb (for TRAIN), proteinnet_test.lmdb. What must hold: files are whole or absent; a killed run,
started again with the same command, goes on where it was.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from probe.names import CHAINS, MEMBERS, PRETRAINED, RANDOM, THRESHOLD
from proteinlm import errors
from proteinlm.errors import InputError
from proteinlm.files import require_file, reread
from proteinlm.model_dir.find import find_model
from tape.inference.fasta import DUPLICATES
from tape.runs.flags import DEVICE_FLAGS, add_flags, positive, precision_name, refuse_flags, seed, within

ARMS = (PRETRAINED, RANDOM)  # what needs no encoder always stands beside

WORDS = {"maps": "IN and OUT", "fit": "--fit and --test"}  # what a run does
WORDS |= {name: f"--{name}" for name in ("families", "heads", "view")}

FLAGS = {  # of one of them, or of several, but not of all
    "maps": ("regression", "png", "top", "duplicates", "tokens_per_batch"),
    "fit": ("output", "regression", "export", "seeds", "proteins", "arms", "random_seed", "limit"),
    "families": ("output", "regression", "seeds", "proteins", "arms", "random_seed", "limit", "members"),
    "heads": ("output", "arms", "random_seed", "limit", "threshold"),
    "view": ("output", "id"),
}


def build_parser() -> errors.ArgumentParser:
    usage = "proteinlm contacts MODEL [IN.fasta OUT | --fit TRAIN | --test TEST | --heads DATA | --view PROTEIN] ..."
    description = "Contacts from attention maps, and what heads attend to."
    parser = errors.ArgumentParser("proteinlm contacts", usage=usage, description=description, intermixed=True)
    parser.add_argument("words", nargs="+", metavar="MODEL [IN OUT]", help="a model; proteins; .npz, .h5 or .csv")
    parser.add_argument("--fit", metavar="TRAIN", help="chains of known structure to fit the regression on")
    parser.add_argument("--test", metavar="TEST", help="chains to score contacts on")
    parser.add_argument(
        "--families", metavar="FASTA", help="with Pfam accessions: chains of its large families, beside co-evolution"
    )
    parser.add_argument("--heads", metavar="DATA", help="chains on which each head's attention is counted")
    parser.add_argument("--view", metavar="PROTEIN", help="FASTA (its first protein, or --id), or DATA.lmdb with --id")
    parser.add_argument("--output", metavar="STEM", help="of the files of these four (default: MODEL_contacts)")
    parser.add_argument("--regression", metavar="FILE", help="a contact regression instead of the model's own")
    parser.add_argument("--export", metavar="DIR", help="of --fit: a copy of MODEL with the regression in it")
    parser.add_argument("--seeds", type=seed, nargs="+", default=[0], help="of --fit: each draws its chains (0)")
    parser.add_argument("--proteins", type=positive, default=CHAINS, help="of --fit: chains to draw (%(default)s)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="default: pretrained random")
    parser.add_argument("--random_seed", type=seed, default=0, help="of the random weights (%(default)s)")
    parser.add_argument("--limit", type=positive, metavar="N", help="only N chains of --test and --heads, at random")
    parser.add_argument(
        "--threshold", type=within(float, 0, 1), default=THRESHOLD, help="of --heads: weights that count (%(default)s)"
    )
    parser.add_argument(
        "--members", type=positive, default=MEMBERS, help="of --families: the least of a chain (%(default)s)"
    )
    parser.add_argument("--id", help="of --view: the protein's name")
    parser.add_argument("--png", action="store_true", help="a picture of each map, in OUT_png")
    parser.add_argument("--top", type=positive, help="pairs a protein in a .csv (default: as many as it has residues)")
    parser.add_argument("--duplicates", choices=DUPLICATES[:2], default="error", help="a name met twice (%(default)s)")
    parser.add_argument("--tokens_per_batch", type=positive, help="default: by the device")
    add_flags(parser, "max_length", "too_long", *DEVICE_FLAGS)
    parser.set_defaults(too_long="error")
    return parser


def check_words(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """One thing to do a run, and only its flags."""
    asked = [name for name in ("heads", "view") if getattr(args, name)] + ["fit"] * bool(args.fit or args.test)
    if args.families:
        asked = ["families" if name == "fit" else name for name in asked]
    asked += ["maps"] * (len(args.words) > 1)
    if len(args.words) not in (1, 3) or len(asked) != 1:
        text = "MODEL with IN.fasta and OUT, or with one of --fit (and --test), --test, --heads, --view"
        raise InputError(f"{' '.join(args.words)}: should be {text}")
    if args.families and not args.test:
        raise InputError(f"--families {args.families}: should be with --test, whose chains are looked for in it")
    if args.fit and args.regression:
        raise InputError("--fit makes a regression and --regression gives one; give one of them")
    if args.export and not args.fit:
        raise InputError(f"--export {args.export}: is of --fit")
    if PRETRAINED not in args.arms:
        raise InputError(f"--arms {' '.join(args.arms)}: {PRETRAINED} should be one; the others are compared with it")
    every = {name for names in FLAGS.values() for name in names}
    refuse_flags(parser, args, sorted(every.difference(FLAGS[asked[0]])), f"is not of {WORDS[asked[0]]}")
    if len(set(args.seeds)) < len(args.seeds):
        raise InputError(f"--seeds {' '.join(map(str, args.seeds))}: should differ")


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    args.view = args.view and reread(args.view, ".fasta")
    args.families = args.families and reread(args.families, ".fasta")  # it is read twice
    check_words(parser, args)
    stem = args.output or f"{Path(args.words[0]).resolve().name}_contacts"
    find_model(args.words[0])
    precision_name(args.fp16, args.bf16)
    for path in (*args.words[1:2], args.fit, args.test, args.families, args.heads, args.view, args.regression):
        if path is not None:
            require_file(path)
    from probe.contacts import actions

    if len(args.words) == 3:
        actions.maps(args)
    elif args.families:
        actions.families(args, stem)
    elif args.heads:
        actions.heads(args, stem)
    elif args.view:
        actions.view(args, stem)
    else:
        actions.fit_and_score(args, stem)
    return 0


cli = partial(errors.run, main, resumes=True)

if __name__ == "__main__":
    sys.exit(cli())
