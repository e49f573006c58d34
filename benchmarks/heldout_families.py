"""Perplexity on whole Pfam families that training never saw.

    python benchmarks/heldout_families.py split train.fasta OUT_DIR    (writes {train,heldout}.fasta, families.txt)
    python benchmarks/heldout_families.py evaluate CHECKPOINT OUT_DIR/heldout.fasta [--result F.json] [--device cuda]

`split` reads the Pfam accession from the second word of each header, draws 20 families (fixed seed) of a middling size
and takes them out whole. A protein without an accession that shares two or more 8-mers with them is dropped from
training too (it is probably a member that nobody annotated); how many is printed. `evaluate` masks 15% of every protein
once (fixed seed), and gives the perplexity with a 95% bootstrap interval that resamples families, not residues, beside
that of the best unigram model (amino-acid frequencies of the held-out masked residues themselves). A protein of no
family counts as one of its own, so that proteins without accessions can be judged as well.
"""

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np

NUM_FAMILIES, SMALLEST, LARGEST = 20, 60, 300
WORD = 8


def accession(header: str) -> str:
    """The Pfam accession of a header, '' without one."""
    words = header.split()
    return words[1] if len(words) > 1 and words[1].startswith("PF") else ""


def words(residues: str) -> set[str]:
    return {residues[i : i + WORD] for i in range(len(residues) - WORD + 1)}


def split(train_fasta: str, out: Path, number: int = NUM_FAMILIES, seed: int = 0) -> None:
    from proteinlm.sequences import read_fasta

    records = list(read_fasta(train_fasta))
    sizes: dict[str, int] = defaultdict(int)
    for header, _ in records:
        sizes[accession(header)] += 1
    eligible = sorted(name for name, size in sizes.items() if name and SMALLEST <= size <= LARGEST)
    chosen = set(np.random.default_rng(seed).choice(eligible, number, replace=False).tolist())
    seen = set().union(*(words(residues) for header, residues in records if accession(header) in chosen))
    out.mkdir(parents=True, exist_ok=True)
    counts = {"train": 0, "heldout": 0, "dropped": 0}
    with (out / "train.fasta").open("w") as train, (out / "heldout.fasta").open("w") as heldout:
        for header, residues in records:
            name = accession(header)
            if name in chosen:
                target, kind = heldout, "heldout"
            elif not name and len(words(residues) & seen) >= 2:
                counts["dropped"] += 1
                continue
            else:
                target, kind = train, "train"
            counts[kind] += 1
            target.write(f">{header}\n{residues}\n")
    (out / "families.txt").write_text("".join(f"{name}\t{sizes[name]}\n" for name in sorted(chosen)))
    print(f"{len(chosen)} of {len(eligible)} families of {SMALLEST}-{LARGEST} proteins held out; {counts}")


def family_losses(checkpoint: str, fasta: str, mask_prob: float, seed: int, device: str = "cpu"):
    """Per family [sum of masked cross-entropies in nats, masked residues], and the masked residues by letter.

    A protein without a family is its number in the file.
    """
    import torch

    from converter.sources import read
    from proteinlm.masking import mask_tokens, sample_rng
    from proteinlm.model_dir.find import find_model
    from proteinlm.sequences import read_fasta

    source = read(find_model(checkpoint))
    tokenizer, model = source.tokenizer, source.build().to(device)
    longest = source.config.max_position_embeddings  # rope's, too: what was cropped in training
    end = [tokenizer.sep_id] if tokenizer.ends_proteins else []
    totals: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
    letters = np.zeros(tokenizer.vocab_size)
    batch: list[tuple] = []

    @torch.no_grad()
    def flush() -> None:
        lengths = [len(tokens) for _, tokens, _, _ in batch]
        bounds = torch.tensor([0, *lengths]).cumsum(0)
        stream = torch.from_numpy(np.concatenate([tokens for _, tokens, _, _ in batch])).long()
        starts = bounds[:-1].tolist()
        places = torch.from_numpy(np.concatenate([p + b for (_, _, p, _), b in zip(batch, starts, strict=True)]))
        labels = torch.from_numpy(np.concatenate([answer for *_, answer in batch])).long()
        positions = torch.cat([torch.arange(n) for n in lengths])
        inputs = (tensor.to(device) for tensor in (stream, positions, bounds.to(torch.int32), places))
        logits = model(*inputs).cpu()
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none").double().numpy()
        done = 0
        for name, _, answer_places, _ in batch:
            part = losses[done : done + len(answer_places)]
            totals[name] += (part.sum(), len(part))
            done += len(part)
        np.add.at(letters, labels.numpy(), 1)
        batch.clear()

    for number, (header, residues) in enumerate(read_fasta(fasta)):
        residue_ids = tokenizer.encode(residues)[: longest - 1 - len(end)]
        tokens = np.concatenate([[tokenizer.cls_id], residue_ids, end]).astype(np.int64)
        rng = sample_rng(seed, number)
        masked, places, answer = mask_tokens(tokens, np.isin(tokens, tokenizer.residue_ids), tokenizer, rng, mask_prob)
        batch.append((accession(header) or str(number), masked, places, answer))
        if len(batch) == 64:
            flush()
    if batch:
        flush()
    return dict(totals), letters


def evaluate(
    checkpoint: str, fasta: str, result: str | None, device: str = "cpu", mask_prob: float = 0.15, seed: int = 0
) -> dict:
    totals, letters = family_losses(checkpoint, fasta, mask_prob, seed, device)
    table = np.array([totals[name] for name in sorted(totals)])
    families = {name: own for name, own in totals.items() if not name.isdigit()}
    draws = np.random.default_rng(seed).integers(0, len(table), (10_000, len(table)))
    sums = table[draws].sum(1)
    low, high = np.percentile(np.exp(sums[:, 0] / sums[:, 1]), [2.5, 97.5])
    frequencies = letters[letters > 0] / letters.sum()
    answer = {
        "checkpoint": Path(checkpoint).name,
        "families": len(families),
        "proteins_of_none": len(totals) - len(families),
        "masked_residues": int(table[:, 1].sum()),
        "perplexity": math.exp(table[:, 0].sum() / table[:, 1].sum()),
        "interval_95": [float(low), float(high)],
        "unigram_of_these_residues": math.exp(-(frequencies * np.log(frequencies)).sum()),
        "per_family": {name: math.exp(total / count) for name, (total, count) in sorted(families.items())},
    }
    print(json.dumps(answer, indent=1))
    if result:
        Path(result).write_text(json.dumps(answer, indent=1) + "\n")
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    splitting = commands.add_parser("split")
    splitting.add_argument("train_fasta")
    splitting.add_argument("out", type=Path)
    splitting.add_argument("--families", type=int, default=NUM_FAMILIES, help="held out (20)")
    splitting.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    evaluating = commands.add_parser("evaluate")
    evaluating.add_argument("checkpoint")
    evaluating.add_argument("fasta")
    evaluating.add_argument("--result")
    evaluating.add_argument("--device", default="cpu", help="where the model runs (cpu)")
    args = parser.parse_args()
    if args.command == "split":
        split(args.train_fasta, args.out, args.families, args.seed)
    else:
        evaluate(args.checkpoint, args.fasta, args.result, args.device)


if __name__ == "__main__":
    main()
