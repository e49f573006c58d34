"""What needs no language model: the scores that one has to beat. All are sums over a mutant's mutations.

blosum62            the substitution matrix of Henikoff and Henikoff (PNAS 89, 10915, 1992)
composition         log q(mt) - log q(wt), q: how common an amino acid is (Robinson and Robinson, PNAS 88, 8880, 1991)
fewer_mutations     -1 a mutation: what a mutant's distance from the wild type says, whatever its letters
site_independent    log f(mt) - log f(wt), f: how common it is at this site in an alignment of the family

An alignment is a3m (lower case letters and dots are insertions) or aligned FASTA, the wild type or a piece of it first.
Its sequences count alike, and one more (PSEUDOCOUNT) has the composition q; of a site outside it q alone is known.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from probe.variants.mutations import AMINO_ACIDS, Mutant, WildType
from proteinlm.errors import InputError
from proteinlm.tables import fasta_records

ORDER = "ARNDCQEGHILKMFPSTWYV"
LOWER_TRIANGLE = """
4
-1 5
-2 0 6
-2 -2 1 6
0 -3 -3 -3 9
-1 1 0 0 -3 5
-1 0 0 2 -4 2 5
0 -2 0 -1 -3 -2 -2 6
-2 0 1 -1 -3 0 0 -2 8
-1 -3 -3 -3 -1 -3 -3 -4 -3 4
-1 -2 -3 -4 -1 -2 -3 -4 -3 2 4
-1 2 0 -1 -3 1 1 -2 -1 -3 -2 5
-1 -1 -2 -3 -1 0 -2 -3 -2 1 2 -1 5
-2 -3 -3 -3 -2 -3 -3 -3 -1 0 0 -3 0 6
-1 -2 -2 -1 -3 -1 -1 -2 -2 -3 -3 -1 -2 -4 7
1 -1 1 0 -1 0 0 0 -1 -2 -2 0 -1 -2 -1 4
0 -1 0 -1 -1 -1 -1 -2 -2 -1 -1 -1 -1 -2 -1 1 5
-3 -3 -4 -4 -2 -2 -3 -2 -2 -3 -2 -3 -1 1 -4 -3 -2 11
-2 -2 -2 -3 -2 -1 -2 -3 2 -1 -1 -2 -1 3 -3 -2 -2 2 7
0 -3 -3 -3 -1 -2 -2 -3 -3 3 1 -2 1 -1 -2 -2 0 -3 -1 4
"""
PER_MILLE = {  # of residues of proteins in sequence databases
    **{"A": 78.05, "C": 19.25, "D": 53.64, "E": 62.95, "F": 38.56, "G": 73.77, "H": 21.99, "I": 51.42, "K": 57.44},
    **{"L": 90.19, "M": 22.43, "N": 44.87, "P": 52.03, "Q": 42.64, "R": 51.29, "S": 71.20, "T": 58.41, "V": 64.41},
    **{"W": 13.30, "Y": 32.16},
}
PSEUDOCOUNT = 1.0


def _blosum62() -> dict[tuple[str, str], int]:
    matrix = {}
    for a, line in zip(ORDER, LOWER_TRIANGLE.split("\n")[1:], strict=False):
        for b, value in zip(ORDER, line.split(), strict=False):
            matrix[a, b] = matrix[b, a] = int(value)
    return matrix


BLOSUM62: Mapping[tuple[str, str], int] = _blosum62()
BACKGROUND = np.array([PER_MILLE[letter] for letter in AMINO_ACIDS]) / sum(PER_MILLE.values())


def blosum62(mutants: Sequence[Mutant]) -> np.ndarray:
    """[N]. A letter that is none of the 20 amino acids counts as no change."""
    return np.array([sum(BLOSUM62.get((wild, letter), 0) for _, wild, letter in m) for m in mutants], np.float64)


def fewer_mutations(mutants: Sequence[Mutant]) -> np.ndarray:
    """[N]."""
    return -np.array([len(mutant) for mutant in mutants], np.float64)


def composition(mutants: Sequence[Mutant]) -> np.ndarray:
    """[N]."""
    return site_independent(mutants, {})


def site_independent(mutants: Sequence[Mutant], profile: Mapping[int, np.ndarray]) -> np.ndarray:
    """[N]. profile: frequencies [20] by site; BACKGROUND where there are none."""

    def change(site: int, wild: str, letter: str) -> float:
        logs = np.log(profile.get(site, BACKGROUND))
        return logs[AMINO_ACIDS.index(letter)] - (logs[AMINO_ACIDS.index(wild)] if wild in AMINO_ACIDS else 0.0)

    return np.array([sum(change(*mutation) for mutation in mutant) for mutant in mutants], np.float64)


def read_profile(path: str | Path, wild: WildType) -> dict[int, np.ndarray]:
    """Frequencies [20] of the amino acids at each site of the wild type that the alignment's first sequence covers."""
    drop = str.maketrans("", "", "abcdefghijklmnopqrstuvwxyz.")
    records = [(line, letters.translate(drop)) for line, _, _, letters in fasta_records(str(path))]
    if len(records) < 2:
        raise InputError(f"{path}: {len(records)} sequences; an alignment has the wild type and others")
    query = records[0][1]
    for line, row in records:
        if len(row) != len(query):
            raise InputError(f"{path}, line {line}: {len(row)} columns, the first sequence has {len(query)}")
    begin = wild.sequence.find(query.replace("-", ""))
    if begin < 0 or not query.strip("-"):
        raise InputError(f"{path}: its first sequence is no piece of {wild.name}; should be the wild type")
    columns = [i for i, letter in enumerate(query) if letter != "-"]
    codes = np.array([np.frombuffer(row.encode("latin-1", "replace"), np.uint8)[columns] for _, row in records])
    counts = np.stack([(codes == ord(letter)).sum(0) for letter in AMINO_ACIDS], 1) + PSEUDOCOUNT * BACKGROUND
    return dict(enumerate(counts / counts.sum(1, keepdims=True), begin))
