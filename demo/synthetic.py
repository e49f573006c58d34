"""The synthetic world: folds, superfamilies and families of proteins, each with its structure and its landscape.

    fold          a chain topology and its coordinates (demo.structure); a common ancestor
    superfamily   descends from its fold's ancestor by a long branch; some loops have another length
    family        descends from its superfamily's ancestor by a shorter branch; more sites are conserved
    protein       a leaf of its family's tree

What a site likes comes from the structure (secondary structure, burial), what pairs like from its contacts, and
conserved sites come in three layers: shared by the fold, the superfamily or the family only. Rates vary by site. A
function of the seed and the `WorldSize`; a few thousand proteins a second.
"""

from dataclasses import dataclass

import numpy as np

from demo import structure
from demo.evolution import Landscape, evolve, random_tree
from demo.substitution import COIL, RESIDUES, hydrophobicity, secondary_structure_preference, wag

MAX_CONTACTS = 10  # contacts a site that enter the fitness, strongest first


@dataclass(frozen=True)
class WorldSize:
    """How many of everything, and how strongly structure shapes sequence."""

    folds: int = 14
    superfamilies: int = 3  # per fold
    families: int = 2  # per superfamily
    structure_weight: float = 1.0  # nats per log propensity of the secondary structure
    burial_weight: float = 0.9  # nats per standard deviation of hydropathy, most buried against mean
    coupling: float = 2.0  # nats per unit of pair preference, for the one strongest partner of a site
    weak_coupling: float = 0.15  # the same for a site's other contacts
    # Conserved sites, each layer's share of the sites it could take: fold, superfamily, family. Never coupled sites.
    conserved: tuple[float, float, float] = (0.5, 0.25, 0.2)
    conserved_field: float = 4.0  # nats for the ancestor's residue at a conserved site
    rate_shape: float = 1.0  # of the gamma distribution of rates over sites (mean 1)
    times: tuple[float, float, float] = (1.5, 2.5, 2.5)  # fold to superfamily, to family, to an average leaf


@dataclass(frozen=True)
class ProteinWorld:
    """Everything true of the world. F families, at most L sites.

    landscape; length int [F]; root int8 [F, L] (family ancestors); fold, superfamily int [F];
    secondary int8 [F, L]; points float32 [F, L, 3] (Angstrom).
    """

    size: WorldSize
    landscape: Landscape
    length: np.ndarray
    root: np.ndarray
    fold: np.ndarray
    superfamily: np.ndarray
    secondary: np.ndarray
    points: np.ndarray

    @property
    def families(self) -> int:
        return len(self.length)

    def text(self, sequences: np.ndarray, family: np.ndarray) -> list[str]:
        """int8 [N, L] -> N strings of residues, each of its family's length."""
        letters = np.frombuffer(RESIDUES.encode(), np.uint8)[sequences]
        return [row[:n].tobytes().decode() for row, n in zip(letters, self.length[family], strict=True)]


def build_world(size: WorldSize, seed: int) -> ProteinWorld:
    """Draw folds, superfamilies and families (F = folds x superfamilies x families), with their ancestors."""
    rng = np.random.default_rng([seed, 1])
    superfamilies = []
    for fold_number in range(size.folds):
        fold = structure.random_fold(rng)
        superfamilies += [(fold_number, structure.vary_loops(fold, rng)) for _ in range(size.superfamilies)]
    longest = max(fold.length for _, fold in superfamilies)
    built = [_Sites.build(fold, size, longest, rng) for _, fold in superfamilies]
    superfamily = np.repeat(np.arange(len(built)), size.families)
    fold = np.repeat([number for number, _ in superfamilies], size.families)

    def stack(name: str) -> np.ndarray:  # of each family's superfamily
        return np.stack([getattr(sites, name) for sites in built])[superfamily]

    landscape = Landscape(stack("field"), stack("partner"), stack("weight"), stack("rate"))
    root = _ancestors(size, landscape, [sites.keys for sites in built], fold, superfamily, rng)
    length = np.array([sites.length for sites in built])[superfamily]
    return ProteinWorld(size, landscape, length, root, fold, superfamily, stack("secondary"), stack("points"))


@dataclass(frozen=True)
class _Sites:
    """One superfamily's structure and what follows from it, padded to L sites; keys int64 [L] name the columns."""

    length: int
    keys: np.ndarray
    secondary: np.ndarray
    points: np.ndarray
    field: np.ndarray
    partner: np.ndarray
    weight: np.ndarray
    rate: np.ndarray

    @staticmethod
    def build(fold: structure.Fold, size: WorldSize, longest: int, rng: np.random.Generator) -> "_Sites":
        points, secondary, n = structure.coordinates(fold), fold.secondary_structure(), fold.length
        buried = 2 * structure.burial(points) - 1
        field = size.structure_weight * secondary_structure_preference()[secondary]
        field += size.burial_weight * buried[:, None] * hydrophobicity()
        partner, weight = _contacts(points, size)
        # Gamma-distributed rates (Z. Yang, J. Mol. Evol. 39:306, 1994); loops and exposed sites change faster.
        rate = rng.gamma(size.rate_shape, 1 / size.rate_shape, n)
        rate *= np.where(secondary == COIL, 1.3, 0.9) * (1 - 0.4 * buried)
        return _Sites(
            length=n,
            keys=_pad(fold.columns(), longest, -1),
            secondary=_pad(secondary, longest, COIL),
            points=_pad(points.astype(np.float32), longest),
            field=_pad(field.astype(np.float32), longest),
            partner=_pad(partner, longest),
            weight=_pad(weight, longest),
            rate=_pad(rate.astype(np.float32), longest),
        )


def _pad(array: np.ndarray, length: int, value: float = 0) -> np.ndarray:
    """[n, ...] -> [length, ...], filled up with `value`."""
    return np.concatenate([array, np.full((length - len(array), *array.shape[1:]), value, array.dtype)])


def _contacts(points: np.ndarray, size: WorldSize) -> tuple[np.ndarray, np.ndarray]:
    """partner int16 [n, K], weight float32 [n, K] of the contacts at least 4 apart; at most one strong contact a site.

    Strong pairs are a greedy matching that begins with the closest pairs at least 6 apart.
    """
    n = len(points)
    distance = structure.distances(points)
    left, right = np.triu_indices(n, 4)
    near = distance[left, right] < structure.CONTACT
    left, right = left[near], right[near]
    weight = np.full((n, n), 0.0, np.float32)
    weight[left, right] = size.weak_coupling
    free = np.ones(n, bool)
    for pair in np.argsort(distance[left, right], kind="stable"):
        i, j = left[pair], right[pair]
        if j - i >= 6 and free[i] and free[j]:
            weight[i, j], free[i], free[j] = size.coupling, False, False
    weight += weight.T
    partner = np.argsort(-weight, axis=1, kind="stable")[:, :MAX_CONTACTS]
    strength = np.take_along_axis(weight, partner, axis=1)
    # A contact beyond one site's K would act on one side only; drop it from both: the fitness stays symmetric.
    listed = np.zeros((n, n), bool)
    np.put_along_axis(listed, partner, strength > 0, axis=1)
    mutual = np.take_along_axis(listed & listed.T, partner, axis=1)
    partner = np.where(mutual, partner, np.arange(n)[:, None])
    return partner.astype(np.int16), np.where(mutual, strength, 0).astype(np.float32)


def _ancestors(size, landscape, keys, fold, superfamily, rng) -> np.ndarray:
    """Family ancestors int8 [F, L]; adds the three layers of conserved sites to `landscape.field` on the way.

    keys: for each superfamily, the names of its columns int64 [L] (-1 past its length).
    """
    first = np.unique(superfamily, return_index=True)[1]  # one family per superfamily
    real = np.stack(keys) >= 0
    # Sites that co-mutate stay free to do so: conserved sites are drawn from the others.
    taken = landscape.weight[first].max(axis=2) >= np.float32(size.coupling)

    def conserve(families, site: int, residue: int) -> None:
        landscape.field[families, site, residue] += size.conserved_field

    inherited = _superfamily_roots(landscape, keys, fold[first], first, rng)
    nucleus = {}  # (fold, column) -> the fold's residue there, None where the column is not conserved
    for row, member in enumerate(first):
        for site in np.flatnonzero(real[row] & ~taken[row]):
            column = (fold[member], keys[row][site])
            if column not in nucleus:
                nucleus[column] = inherited[row, site] if rng.random() < size.conserved[0] else None
            if nucleus[column] is not None:
                conserve(superfamily == superfamily[member], site, nucleus[column])
                taken[row, site] = True
    inherited = evolve(landscape, first, inherited, np.full(len(first), size.times[0]), rng, sweeps=6)

    for row, member in enumerate(first):
        for site in np.flatnonzero(real[row] & ~taken[row] & (rng.random(real.shape[1]) < size.conserved[1])):
            conserve(superfamily == superfamily[member], site, inherited[row, site])
            taken[row, site] = True
    row_of = np.searchsorted(superfamily[first], superfamily)
    root = evolve(landscape, np.arange(len(fold)), inherited[row_of], np.full(len(fold), size.times[1]), rng, sweeps=6)
    for family, row in enumerate(row_of):
        own = real[row] & ~taken[row] & (rng.random(real.shape[1]) < size.conserved[2])
        for site in np.flatnonzero(own):
            conserve(family, site, root[family, site])
    return root


def _superfamily_roots(landscape, keys, fold, first, rng) -> np.ndarray:
    """int8 [S, L]: each superfamily's copy of its fold's ancestor, column by column; its own columns are drawn anew."""
    sites = landscape.rate.shape[1]
    free = Landscape(landscape.field, landscape.partner, landscape.weight, np.sign(landscape.rate))
    start = rng.choice(20, p=wag()[1], size=(len(first), sites)).astype(np.int8)
    settled = evolve(free, first, start, np.full(len(first), 8.0), rng, sweeps=16)
    residue = {}
    for row in range(len(first)):
        for site in np.flatnonzero(keys[row] >= 0):
            settled[row, site] = residue.setdefault((fold[row], keys[row][site]), settled[row, site])
    return settled


def sample_proteins(world: ProteinWorld, per_family: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The leaves of a random tree per family: family int64 [N] and sequences int8 [N, L], N = families x per_family."""
    rng = np.random.default_rng([seed, 2])
    family, sequences = np.arange(world.families), world.root
    trees = [random_tree(per_family, rng) for _ in range(world.families)]
    for depth in range(len(trees[0])):
        above = len(sequences) // world.families
        parent = np.concatenate([tree[depth][0] + above * f for f, tree in enumerate(trees)])
        length = np.concatenate([tree[depth][1] for tree in trees]) * world.size.times[2] / len(trees[0])
        family = family[parent]
        sequences = evolve(world.landscape, family, sequences[parent], length, rng)
    return family, sequences
