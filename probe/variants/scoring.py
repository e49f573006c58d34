"""The score of a mutant, by the names of those who published it; higher is likelier to work.

    score(encoder, "HPETLV", ["H1C", "H1C:P2A"])                      float64 [2]
    scan(encoder, "HPETLV")                                           float64 [6, 20], columns AMINO_ACIDS

wt, mt: the wild type's and the mutant's letters, p the model's probability of a letter at site i, S mutated sites
  wt-marginals               sum over S of log p(mt) - log p(wt), the wild type as input (Meier et al. 2021, ESM-1v)
  masked-marginals           the same, each site masked alone (ProteinGym's code, and fair-esm's example)
  masked-marginals-together  the same, all of S masked at once (the ESM-1v paper's formula)
  mutant-marginals           the same, the mutant as input (ESM-1v paper)
  pppl                       -exp(-PLL / L), PLL: sum over all L sites of log p(mt), each site masked alone
  pppl-esm                   what fair-esm's and ProteinGym's compute_pppl return: a PLL, but at site i (from 0) the
                             log-probability of the letter at i + 1, and without the last two sites
  pll-difference             PLL of the mutant - PLL of the wild type

What must hold: the score of a mutant does not depend on the others of the call (1e-5 in fp32); no mutation scores 0 in
marginals and differences.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from probe.arms import identity_of
from probe.variants.mutations import AMINO_ACIDS, Mutant, WildType, check_protein, every_mutant, mutated, parse_mutant
from probe.variants.passes import WINDOW, Pass, Reader, Saved, run
from proteinlm.encoder import Encoder
from proteinlm.errors import InputError, did_you_mean
from proteinlm.tokenizer import RESIDUES

Key = tuple  # names a row of log-probabilities
Plan = Callable[[Reader, str, Sequence[Mutant], dict[Key, int]], Iterator[Pass]]
Compute = Callable[[Callable[[], Iterator[Pass]], np.ndarray], np.ndarray]


def _sites(mutants: Sequence[Mutant]) -> list[int]:
    return sorted({mutation.site for mutant in mutants for mutation in mutant})


def _site_key(mutant: Mutant, site: int) -> Key:
    return (site,)


def _set_key(mutant: Mutant, site: int) -> Key:
    return (tuple(mutation.site for mutation in mutant), site)


def _mutant_key(mutant: Mutant, site: int) -> Key:
    return (mutant, site)


def _wild_type_passes(reader: Reader, wild_type: str, mutants: Sequence[Mutant], rows: dict) -> Iterator[Pass]:
    for span, sites in reader.spans(wild_type, _sites(mutants)).items():
        yield Pass(wild_type, span, (), sites, [rows[site,] for site in sites])


def _masked_passes(reader: Reader, wild_type: str, mutants: Sequence[Mutant], rows: dict) -> Iterator[Pass]:
    for site in _sites(mutants):
        yield Pass(wild_type, reader.span(wild_type, site), (site,), (site,), (rows[site,],))


def _together_passes(reader: Reader, wild_type: str, mutants: Sequence[Mutant], rows: dict) -> Iterator[Pass]:
    for every in dict.fromkeys(tuple(mutation.site for mutation in mutant) for mutant in mutants):
        for span, sites in reader.spans(wild_type, every).items():
            hidden = [site for site in every if span[0] <= site + 1 < span[1]]
            yield Pass(wild_type, span, hidden, sites, [rows[every, site] for site in sites])


def _mutant_passes(reader: Reader, wild_type: str, mutants: Sequence[Mutant], rows: dict) -> Iterator[Pass]:
    for mutant in mutants:
        protein = mutated(wild_type, mutant)
        for span, sites in reader.spans(protein, [mutation.site for mutation in mutant]).items():
            yield Pass(protein, span, (), sites, [rows[mutant, site] for site in sites])


MARGINALS: dict[str, tuple[Plan, Callable[[Mutant, int], Key]]] = {
    "wt-marginals": (_wild_type_passes, _site_key),
    "masked-marginals": (_masked_passes, _site_key),
    "masked-marginals-together": (_together_passes, _set_key),
    "mutant-marginals": (_mutant_passes, _mutant_key),
}
LIKELIHOODS = ("pppl", "pppl-esm", "pll-difference")
METHODS = ("masked-marginals", *(name for name in MARGINALS if name != "masked-marginals"), *LIKELIHOODS)


def _likelihood_passes(reader: Reader, proteins: Sequence[str], method: str) -> Iterator[Pass]:
    """A pass a residue; those of `pppl-esm` ask for the next letter, and two at the end are missing."""
    shift, left_out = (1, 2) if method == "pppl-esm" else (0, 0)
    for row, protein in enumerate(proteins):
        for site in range(len(protein) - left_out):
            yield Pass(protein, reader.span(protein, site), (site,), (site,), (row,), protein[site + shift])


def score(
    encoder: Encoder | Sequence[Encoder],
    wild_type: str,
    mutations: Sequence[str | Mutant],
    method: str = METHODS[0],
    *,
    offset: int = 1,
    window: int | None = WINDOW,
    batch_tokens: int | None = None,
    quiet: bool = False,
    saved: Path | None = None,
) -> np.ndarray:
    """float64 [N], a score a mutant; of several encoders the mean of theirs (ESM-1v's ensemble).

    mutations: "A1B:C2D" or what parse_mutant makes of it. offset: number of the wild type's first residue in them.
    window: tokens of a long protein that are read at a time, 0: all. saved: a file in which long work is kept and gone
    on with; the caller removes it. InputError for a mutation that is not of this wild type, and for an encoder without
    a masked-LM head.
    """
    if method not in METHODS:
        hint = did_you_mean(method, METHODS) or f"; should be one of {', '.join(METHODS)}"
        raise InputError(f"score {method!r}: unknown{hint}")
    if not isinstance(encoder, Encoder):
        names = [None if saved is None else Path(f"{saved}-{i}") for i in range(len(encoder))]
        parts = [
            score(one, wild_type, mutations, method, offset=offset, window=window, batch_tokens=batch_tokens,
                  quiet=quiet, saved=name)
            for one, name in zip(encoder, names, strict=True)
        ]  # fmt: skip
        return np.mean(parts, axis=0)
    wild_type = check_protein(wild_type, "wild type")
    wild = WildType("the wild type", wild_type, offset)
    named = enumerate(mutations)
    mutants = [parse_mutant(one, wild, f"mutation {i}") if isinstance(one, str) else tuple(one) for i, one in named]
    reader = Reader(encoder, window)
    work = {"method": method, "wild_type": wild_type, "mutants": mutants, "width": reader.width}
    if saved:  # numbers of another device or release differ in their last digits
        machine = f"{encoder.device.type}, torch {torch.__version__}"
        work |= {"model": identity_of(encoder), "batch": batch_tokens, "machine": machine}
    kept = Saved(saved, work if saved else {})

    def compute(passes: Callable[[], Iterator[Pass]], values: np.ndarray) -> np.ndarray:
        total = sum(1 for _ in passes())
        return run(encoder, passes(), total, values, reader, kept, batch_tokens, quiet)

    if method in MARGINALS:
        return _marginals(compute, reader, wild_type, mutants, method)
    return _likelihoods(compute, reader, wild_type, mutants, method)


def _marginals(compute: Compute, reader: Reader, wild_type: str, mutants: Sequence[Mutant], method: str) -> np.ndarray:
    plan, key = MARGINALS[method]
    keys = dict.fromkeys(key(mutant, mutation.site) for mutant in mutants for mutation in mutant)
    rows = {name: row for row, name in enumerate(keys)}
    table = compute(lambda: plan(reader, wild_type, mutants, rows), np.zeros((len(rows), len(RESIDUES))))
    scores = np.zeros(len(mutants))
    for i, mutant in enumerate(mutants):
        for mutation in mutant:
            row = table[rows[key(mutant, mutation.site)]]
            scores[i] += row[RESIDUES.index(mutation.letter)] - row[RESIDUES.index(mutation.wild)]
    return scores


def _likelihoods(
    compute: Compute, reader: Reader, wild_type: str, mutants: Sequence[Mutant], method: str
) -> np.ndarray:
    texts = [mutated(wild_type, mutant) for mutant in mutants]
    proteins = list(dict.fromkeys([wild_type, *texts] if method == "pll-difference" else texts))
    sums = compute(lambda: _likelihood_passes(reader, proteins, method), np.zeros(len(proteins)))
    if method == "pppl":
        sums = -np.exp(-sums / len(wild_type))
    elif method == "pll-difference":
        sums = sums - sums[0]
    place = {protein: i for i, protein in enumerate(proteins)}
    return sums[[place[text] for text in texts]]


def scan(encoder: Encoder | Sequence[Encoder], wild_type: str, method: str = METHODS[0], **options) -> np.ndarray:
    """float64 [L, 20]: every site with every amino acid (AMINO_ACIDS), the wild type's own among them. options: those
    of `score`."""
    wild_type = check_protein(wild_type, "wild type")
    return score(encoder, wild_type, every_mutant(wild_type), method, **options).reshape(-1, len(AMINO_ACIDS))
