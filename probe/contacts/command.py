"""`proteinlm contacts`: contacts from attention maps without finetuning, fitted, scored and looked at.

proteinlm contacts MODEL IN.fasta OUT.npz                     a map a protein, by the model's own regression
proteinlm contacts MODEL IN.fasta OUT.csv --regression FILE   the likeliest pairs, by one that was fitted
proteinlm contacts MODEL --fit TRAIN --test TEST              the regression fitted on 20 chains and scored on TEST
proteinlm contacts MODEL --heads DATA                         what share of each head's attention lands on contacts
proteinlm contacts MODEL --view PROTEIN                       a page of one protein's attention

IN.fasta: FASTA, or a table of proteins, also .gz. TRAIN, TEST, DATA: TAPE's proteinnet .lmdb or .json, or a folder that
holds proteinnet_train.lmdb (for TRAIN), proteinnet_test.lmdb. What must hold: files are whole or absent; a killed run,
started again with the same command, goes on where it was.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from probe.arms import identity_of, open_encoder
from probe.contacts.chains import Chains
from probe.contacts.heads import attention_on_contacts
from probe.contacts.output import write_contacts
from probe.contacts.pictures import draw_heads
from probe.contacts.scoring import evaluate, stored_fits, table_text
from probe.contacts.view import head_view
from probe.names import CHAINS, PRETRAINED, RANDOM, THRESHOLD
from proteinlm import errors
from proteinlm.encoder import Encoder
from proteinlm.errors import InputError
from proteinlm.files import check_writable, plain, reread, write_json, write_text
from proteinlm.model_dir.regression import check_export, export_regression, read_regression, write_regression
from proteinlm.tables import is_fasta
from tape.inference.fasta import DUPLICATES, Protein, Rules, read_proteins, scan_fasta
from tape.inference.parts import PartStore
from tape.runs.flags import DEVICE_FLAGS, add_flags, positive, precision_name, refuse_flags, seed, within

ARMS = (PRETRAINED, RANDOM)  # what needs no encoder always stands beside
WORDS = {"maps": "IN and OUT", "fit": "--fit and --test", "heads": "--heads", "view": "--view"}  # what a run does
FLAGS = {  # of one of them, or of several, but not of all
    "maps": ("regression", "png", "top", "duplicates", "tokens_per_batch"),
    "fit": ("output", "regression", "export", "seeds", "proteins", "arms", "random_seed", "limit"),
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
    asked += ["maps"] * (len(args.words) > 1)
    if len(args.words) not in (1, 3) or len(asked) != 1:
        text = "MODEL with IN.fasta and OUT, or with one of --fit (and --test), --test, --heads, --view"
        raise InputError(f"{' '.join(args.words)}: should be {text}")
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


def open_model(args: argparse.Namespace, random_seed: int | None = None) -> Encoder:
    dtype = precision_name(args.fp16, args.bf16)
    encoder = open_encoder(args.words[0], random_seed=random_seed, device=args.device, dtype=dtype)
    encoder.num_maps  # noqa: B018 - refused here where there are none
    if args.regression and random_seed is None:
        encoder.set_contacts(read_regression(args.regression), args.regression)
    return encoder


def open_chains(path: str, split: str, encoder: Encoder, args: argparse.Namespace, number: int | None = None) -> Chains:
    chains = Chains(path, split, encoder.residue_limit(args.max_length), args.too_long)
    if number is not None:
        chains.draw(number)
    if split == "test":  # of train a few are drawn
        chains.check()
    return chains


def regression_digest(encoder: Encoder) -> str:
    head = encoder.contact_head
    if head is None:
        return ""
    numbers = torch.cat([head.weight.flatten(), head.bias]).double().cpu().numpy()
    return hashlib.sha256(numbers.tobytes()).hexdigest()


def maps(args: argparse.Namespace) -> None:
    """IN.fasta to OUT."""
    _, source, output = args.words
    encoder = open_model(args)
    rules = Rules(encoder.residue_limit(args.max_length), args.too_long, args.duplicates)
    pictures = Path(output).with_name(f"{Path(output).stem}_png") if args.png else None
    if pictures is not None and pictures.exists() and not pictures.is_dir():
        raise InputError(f"{pictures}: is no directory; --png puts its pictures there")
    scan = write_contacts(
        encoder, source, output, rules=rules, identity=f"{identity_of(encoder)} {regression_digest(encoder)}",
        top=args.top, pictures=pictures, batch_tokens=args.tokens_per_batch,
    )  # fmt: skip
    print(f"wrote {output}: contacts of {len(scan):,} proteins{scan.summary()}")


def fit_and_score(args: argparse.Namespace, stem: str) -> None:
    """STEM.json and its table; of --fit also STEM.safetensors, a file a seed."""
    if args.export:
        check_export(args.words[0], args.export)
    encoder = open_model(args)
    train = open_chains(args.fit, "train", encoder, args) if args.fit else None
    test = open_chains(args.test, "test", encoder, args, args.limit) if args.test else None
    twin = None
    if train is not None and test is not None and RANDOM in args.arms:
        twin = open_model(args, args.random_seed)
    settings = {
        "model sha256": identity_of(encoder),
        "regression": args.regression and regression_digest(encoder),
        "random_seed": None if twin is None else args.random_seed,
        "train": train and train.identity(),
        "test": test and test.identity(),
        "seeds": train and args.seeds,
        "proteins": args.proteins,
        "device": encoder.device.type,
    }
    store, written = PartStore(f"{stem}.json", settings), []
    with store.open():
        if test is None:
            regressions, reports = stored_fits(store, encoder, train, args.seeds, args.proteins, 0, False)
            result = {"fits": {PRETRAINED: reports}}
        else:
            result, regressions = evaluate(
                encoder, test, store, train=train, twin=twin, seeds=args.seeds, number=args.proteins
            )
        if train is not None:
            for seed, regression in zip(args.seeds, regressions, strict=True):
                written.append(f"{stem}.safetensors" if seed == args.seeds[0] else f"{stem}.seed{seed}.safetensors")
                write_regression(written[-1], regression)
            if args.export:
                export_regression(args.words[0], regressions[0], args.export)
                written.append(args.export)
        own = {"model": args.words[0], **settings}
        store.finish({Path(f"{stem}.json"): lambda path: write_json(path, plain(own | result))})
    if test is not None:
        print(table_text(result["arms"]), table_text(result["differences"]), sep="\n\n")
        print(f"percent, means over {len(test):,} chains of {test.path.name}, 95% intervals over chains")
    for report in result["fits"].get(PRETRAINED, []):
        used = f"{report['maps_used']} of {report['maps']} maps used"
        print(f"seed {report['seed']}: {report['pairs']:,} pairs, {report['contacts']:,} in contact; {used}")
    print(f"wrote {', '.join([f'{stem}.json', *written])}")


def heads(args: argparse.Namespace, stem: str) -> None:
    """STEM.heads.json and the pictures."""
    encoder = open_model(args)
    chains = open_chains(args.heads, "test", encoder, args, args.limit)
    settings = {"model sha256": identity_of(encoder), "data": chains.identity(), "threshold": args.threshold}
    settings["random_seed"] = args.random_seed if RANDOM in args.arms else None
    store = PartStore(f"{stem}.heads.json", settings)
    with store.open():
        shares = attention_on_contacts(encoder, chains, store, args.threshold)
        arms = {PRETRAINED: shares.report()}
        if RANDOM in args.arms:  # its parts are numbered behind the encoder's, which are no more than there are chains
            twin = open_model(args, args.random_seed)
            arms[RANDOM] = attention_on_contacts(twin, chains, store, args.threshold, begin=len(chains)).report()
        pictures = draw_heads(stem, shares, Path(encoder.source).name, chains.path.name)
        report = {"model": args.words[0], "data": chains.path.name, "random_seed": settings["random_seed"]}
        store.finish({Path(f"{stem}.heads.json"): lambda path: write_json(path, report | {"arms": arms})})
    print(f"contacts are {100 * shares.background:.2f}% of the pairs of {len(chains):,} chains")
    order = sorted(range(shares.weighted.size), key=lambda number: -shares.weighted.flat[number])
    for number in order[:5]:
        layer, head = divmod(number, encoder.config.num_attention_heads)
        counted = shares.share.flat[number]
        above = "too few" if counted != counted else f"{100 * counted:.1f}%"
        own = f"{100 * shares.weighted.flat[number]:.1f}% of its attention"
        print(f"layer {layer + 1} head {head + 1}: {own}, {above} of its weights >= {args.threshold:g}")
    print(f"wrote {', '.join([f'{stem}.heads.json', *map(str, pictures)])}")


def find_protein(args: argparse.Namespace, encoder: Encoder) -> tuple[str, str, object]:
    """(name, sequence, contacts or None) of --view."""
    if Path(args.view).suffix in (".lmdb", ".json"):
        chains = open_chains(args.view, "test", encoder, args)
        chain = chains.named(args.id) if args.id else chains[0]
        return chain.name, chain.sequence, chain.labels
    if not is_fasta(args.view):
        raise InputError(f"{args.view}: should be a FASTA file, or chains of known structure (.lmdb, .json)")
    rules = Rules(encoder.residue_limit(args.max_length), args.too_long, "keep")
    proteins = read_proteins(scan_fasta(args.view, rules, choices=("crop",)))
    protein: Protein | None = next((p for p in proteins if args.id in (None, p.id)), None)
    if protein is None:
        raise InputError(f"{args.view}: no protein {args.id!r}")
    return protein.id, protein.residues, None


def view(args: argparse.Namespace, stem: str) -> None:
    """STEM.html."""
    check_writable(Path(f"{stem}.html"))
    encoder = open_model(args)
    name, sequence, labels = find_protein(args, encoder)
    caption = f"{name}, {len(sequence):,} residues, of {Path(args.view).name}; model {Path(encoder.source).name}"
    write_text(f"{stem}.html", head_view(encoder, name, sequence, labels, caption))
    print(f"wrote {stem}.html: {name}, {encoder.num_maps:,} heads")


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    args.view = args.view and reread(args.view, ".fasta")
    check_words(parser, args)
    stem = args.output or f"{Path(args.words[0]).resolve().name}_contacts"
    if len(args.words) == 3:
        maps(args)
    elif args.heads:
        heads(args, stem)
    elif args.view:
        view(args, stem)
    else:
        fit_and_score(args, stem)
    return 0


cli = partial(errors.run, main, resumes=True)


if __name__ == "__main__":
    sys.exit(cli())
