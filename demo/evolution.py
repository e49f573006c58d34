"""Sequences change along branches: WAG proposes a substitution, the protein's structure accepts or rejects it.

A mutation-selection process. Fitness of a sequence a in nats: F(a) = sum_i h_i(a_i) + sum_(i,j) w_ij J(a_i, a_j):
what each site likes, plus what each pair in contact likes. A substitution a -> b proposed by WAG is accepted with
probability min(1, exp(F(b) - F(a))) (Metropolis), so the process is reversible and its stationary distribution is
prod_i pi(a_i) exp(F(a)), the pairs included: residues in contact co-mutate because a change of one shifts what the
other accepts. Sites are visited one after another, so that no two partners ever change at once.
"""

from dataclasses import dataclass

import numpy as np

from demo.substitution import pair_preference, proposal_matrix


@dataclass(frozen=True)
class Landscape:
    """Fitness of F families over at most L sites with at most K contacts a site; past a family's length the rate is 0.

    field float32 [F, L, 20]; partner int16 [F, L, K] (own index where unused); weight float32 [F, L, K] (0 where
    unused); rate float32 [F, L] (substitutions proposed per unit of time, relative to WAG's).
    """

    field: np.ndarray
    partner: np.ndarray
    weight: np.ndarray
    rate: np.ndarray


PAIR = pair_preference().astype(np.float32)


def site_fitness(landscape: Landscape, family: np.ndarray, sequences: np.ndarray, site: int) -> np.ndarray:
    """float32 [N, 20]: what each residue at `site` would contribute, the rest of each sequence as it is.

    family int [N], sequences int8 [N, L].
    """
    partners = np.take_along_axis(sequences, landscape.partner[family, site].astype(np.int64), axis=1)  # [N, K]
    pairs = np.einsum("nk,nkb->nb", landscape.weight[family, site], PAIR[partners])
    return landscape.field[family, site] + pairs


def fitness(landscape: Landscape, family: np.ndarray, sequences: np.ndarray) -> np.ndarray:
    """float64 [N]: F of each sequence, in nats (every pair counted once)."""
    total = np.zeros(len(sequences))
    rows = np.arange(len(sequences))
    for site in range(sequences.shape[1]):
        residue = sequences[:, site]
        alone = landscape.field[family, site, residue]
        total += (alone + site_fitness(landscape, family, sequences, site)[rows, residue]) / 2
    return total


def evolve(
    landscape: Landscape,
    family: np.ndarray,
    sequences: np.ndarray,
    time: np.ndarray,
    rng: np.random.Generator,
    sweeps: int = 2,
) -> np.ndarray:
    """Descendants int8 [N, L] of `sequences` after `time` [N] (WAG's units), each in its own family's landscape."""
    jumps, jump_rate = proposal_matrix()
    cumulative = jumps.cumsum(axis=1).astype(np.float32)[:, :-1]
    sequences = sequences.copy()
    step = time * jump_rate / sweeps
    for _ in range(sweeps):
        for site in rng.permutation(sequences.shape[1]):
            events = rng.poisson(landscape.rate[family, site] * step)
            for round_ in range(events.max(initial=0)):
                rows = np.flatnonzero(events > round_)
                _substitute(landscape, family[rows], sequences, rows, site, cumulative, rng)
    return sequences


def _substitute(landscape, family, sequences, rows, site, cumulative, rng) -> None:
    old = sequences[rows, site]
    new = (rng.random(len(rows), dtype=np.float32)[:, None] > cumulative[old]).sum(axis=1)
    changed = np.flatnonzero(new != old)
    rows, family, old, new = rows[changed], family[changed], old[changed], new[changed]
    partners = sequences[rows[:, None], landscape.partner[family, site]]  # [n, K]
    gain = (landscape.weight[family, site] * (PAIR[new[:, None], partners] - PAIR[old[:, None], partners])).sum(axis=1)
    gain += landscape.field[family, site, new] - landscape.field[family, site, old]
    accepted = np.log1p(-rng.random(len(rows), dtype=np.float32)) < gain  # log of a number in (0, 1]
    sequences[rows[accepted], site] = new[accepted]


def random_tree(leaves: int, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """A random tree, root first: per generation (parent in the one before int64 [n], branch length float64 [n]).

    Each generation is about four times the one before; parents are drawn at random, so clades differ in size.
    """
    sizes = [leaves]
    while sizes[-1] > 4:
        sizes.append(max(2, sizes[-1] // 4))
    generations, above = [], 1
    for size in reversed(sizes):
        generations.append((rng.integers(above, size=size), rng.exponential(1.0, size)))
        above = size
    return generations
