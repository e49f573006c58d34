"""What `proteinlm contacts` does once its flags are read: maps of a FASTA, a regression fitted, heads, a page.

What must hold: files are whole or absent; a killed run, started again with the same command, goes on where it was.
"""

import argparse
import hashlib
from pathlib import Path

import torch

from probe.arms import identity_of, open_encoder
from probe.contacts.chains import DEFINITION, Chains
from probe.contacts.coevolution.evaluation import evaluate_families, unfitted
from probe.contacts.coevolution.pictures import chosen, draw_maps, families_page
from probe.contacts.heads import attention_on_contacts
from probe.contacts.output import write_contacts
from probe.contacts.pictures import draw_heads
from probe.contacts.scoring import evaluate, stored_fits, table_text
from probe.contacts.view import head_view
from probe.names import PRETRAINED, RANDOM
from proteinlm.encoder import Encoder
from proteinlm.errors import InputError
from proteinlm.files import check_writable, write_json, write_text
from proteinlm.model_dir.regression import check_export, export_regression, read_regression, write_regression
from proteinlm.tables import is_fasta
from tape.inference.fasta import Protein, Rules, read_proteins, scan_fasta
from tape.inference.parts import PartStore
from tape.runs.flags import precision_name


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


def open_arms(args: argparse.Namespace) -> tuple[Encoder, Chains | None, Chains | None, Encoder | None, dict]:
    """(the encoder, chains of --fit and --test, its twin where both are there, what decides the numbers)."""
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
    return encoder, train, test, twin, settings


def fit_and_score(args: argparse.Namespace, stem: str) -> None:
    """STEM.json and its table; of --fit also STEM.safetensors, a file a seed."""
    if args.export:
        check_export(args.words[0], args.export)
    encoder, train, test, twin, settings = open_arms(args)
    seeds = () if train is None else args.seeds
    written = [f"{stem}.safetensors" if seed == seeds[0] else f"{stem}.seed{seed}.safetensors" for seed in seeds]
    store = PartStore(f"{stem}.json", settings, map(Path, written))
    with store.open():
        if test is None:
            regressions, reports = stored_fits(store, encoder, train, args.seeds, args.proteins, 0, False)
            result = {"fits": {PRETRAINED: reports}}
        else:
            result, regressions = evaluate(
                encoder, test, store, train=train, twin=twin, seeds=args.seeds, number=args.proteins
            )
        for path, regression in zip(written, regressions if written else (), strict=True):
            write_regression(path, regression)
        own = {"model": args.words[0], **settings}
        store.finish({Path(f"{stem}.json"): lambda path: write_json(path, own | result)})
    if args.export:  # last: where it is, the same command is refused
        export_regression(args.words[0], regressions[0], args.export)
        written.append(args.export)
    if test is not None:
        print(table_text(result["arms"]), table_text(result["differences"]), sep="\n\n")
        print(f"percent, means over {len(test):,} chains of {test.path.name}, 95% intervals over chains")
    for report in result["fits"].get(PRETRAINED, []):
        used = f"{report['maps_used']} of {report['maps']} maps used"
        print(f"seed {report['seed']}: {report['pairs']:,} pairs, {report['contacts']:,} in contact; {used}")
    print(f"wrote {', '.join([f'{stem}.json', *written])}")


def families(args: argparse.Namespace, stem: str) -> None:
    """STEM.families.json, the page and the pictures."""
    for ending in ("json", "html", "png"):
        check_writable(Path(f"{stem}.families.{ending}"))
    encoder, train, test, twin, settings = open_arms(args)
    if train is not None:
        train.check()
    corpus = Path(args.families)
    settings |= {"corpus": [corpus.name, corpus.stat().st_size], "members": args.members}
    store = PartStore(f"{stem}.families.json", settings)
    with store.open():
        chains = unfitted(train, test, args.seeds, args.proteins)
        result, rows = evaluate_families(
            encoder, chains, args.families, store, train=train, twin=twin, seeds=args.seeds, number=args.proteins,
            least=args.members,
        )  # fmt: skip
        model = Path(encoder.source).name
        seeds = [f"regression of seed {seed}" for seed in args.seeds] if train else ["its own regression"]
        pictures = draw_maps(f"{stem}.families", chosen(rows), f"{model}, {seeds[0]}", corpus.name)
        written = [*pictures, Path(f"{stem}.families.html")]
        many = f"{len(rows):,} chains of {result['families']:,} families of {corpus.name}"
        caption = f"{many}; model {model}, {', '.join(seeds)}; contact: {DEFINITION}"
        write_text(written[-1], families_page(rows, pictures, caption))
        report = {"model": args.words[0], **settings, **result, "chains": [row.report() for row in rows]}
        store.finish({Path(f"{stem}.families.json"): lambda path: write_json(path, report)})
    print(table_text(result["arms"]), table_text(result["differences"]), sep="\n\n")
    print(f"percent, means over {many}, 95% intervals over families")
    print(f"wrote {', '.join([f'{stem}.families.json', *map(str, written)])}")


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
