"""Folds: C-alpha chains of helices and strands packed side by side, joined by loops.

Helices and strands stand upright in a plane of slots, each running opposite to the one before it in the chain, as in
W. R. Taylor's ideal forms (Nature 416:657-660, 2002): strands 4.8 A apart in a sheet, layers 10 A apart. Helix:
1.5 A rise, 100 degrees and 2.3 A radius; strand: 3.3 A rise, 0.9 A pleat; both give 3.8 A between consecutive
C-alphas. Loops are arcs of the right length, relaxed so that bonds stay at 3.8 A and nothing comes closer than
about 4 A. Contacts, burial and secondary structure are read off these coordinates: one geometry serves every task.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np

from demo.substitution import COIL, HELIX, STRAND

BOND = 3.8  # Angstrom between consecutive C-alphas
CONTACT = 8.0  # Angstrom: TAPE's definition of a contact
SHEET, LAYER = 4.8, 10.0  # Angstrom between strands of a sheet, between layers


@dataclass(frozen=True)
class Segment:
    """One helix or strand: kind, length in residues, slot (x, y) in Angstrom and shift along z in Angstrom."""

    kind: int
    length: int
    slot: tuple[float, float]
    shift: float = 0.0


@dataclass(frozen=True)
class Fold:
    """A chain topology: segments in chain order and the loops around them (len(segments) + 1: with both tails)."""

    segments: tuple[Segment, ...]
    loops: tuple[int, ...]

    @property
    def length(self) -> int:
        return sum(s.length for s in self.segments) + sum(self.loops)

    def secondary_structure(self) -> np.ndarray:
        """int8 [L]: HELIX, STRAND or COIL."""
        parts = [np.full(self.loops[0], COIL, np.int8)]
        for segment, loop in zip(self.segments, self.loops[1:], strict=True):
            parts += [np.full(segment.length, segment.kind, np.int8), np.full(loop, COIL, np.int8)]
        return np.concatenate(parts)

    def columns(self) -> np.ndarray:
        """int64 [L]: a key per residue for its place (segment or loop, and how far along), shared by relatives."""
        parts = [np.arange(self.loops[0])]
        for number, (segment, loop) in enumerate(zip(self.segments, self.loops[1:], strict=True)):
            base = 200 * (number + 1)
            parts += [base + np.arange(segment.length), base + 100 + np.arange(loop)]
        return np.concatenate(parts)


def random_fold(rng: np.random.Generator) -> Fold:
    """Draw a topology of 45 to about 100 residues: alpha bundle, beta sandwich, alternating alpha/beta, alpha+beta."""
    slots = (_bundle, _sandwich, _alternating, _split)[rng.integers(4)](rng)
    segments = tuple(
        Segment(
            kind, int(rng.integers(9, 15) if kind == HELIX else rng.integers(5, 8)), slot, float(rng.normal(0, 0.8))
        )
        for kind, slot in slots
    )
    inner = [_shortest_loop(a, b) + int(rng.integers(0, 3)) for a, b in itertools.pairwise(segments)]
    return Fold(segments, (int(rng.integers(2, 5)), *inner, int(rng.integers(2, 5))))


def vary_loops(fold: Fold, rng: np.random.Generator, share: float = 0.1) -> Fold:
    """A relative: the same segments; each loop is one residue longer or shorter with probability `share`."""
    shortest = (1, *(_shortest_loop(a, b) for a, b in itertools.pairwise(fold.segments)), 1)
    change = rng.choice([-1, 0, 1], size=len(fold.loops), p=[share / 2, 1 - share, share / 2])
    loops = tuple(max(low, loop + int(d)) for low, loop, d in zip(shortest, fold.loops, change, strict=True))
    return replace(fold, loops=loops)


def _bundle(rng):
    corners = [(0.0, 0.0), (LAYER, 0.0), (LAYER, LAYER), (0.0, LAYER), (0.0, 2 * LAYER), (LAYER, 2 * LAYER)]
    start, count = int(rng.integers(2)), int(rng.integers(3, 6))
    path = corners[start : start + count]
    return [(HELIX, slot) for slot in (path if rng.random() < 0.5 else path[::-1])]


def _sandwich(rng):
    strands = [(SHEET * x, LAYER * y) for y in range(2) for x in range(int(rng.integers(3, 5)))]
    return [(STRAND, slot) for slot in _walk(strands, rng, reach=2.5 * SHEET)]


def _alternating(rng):
    count = int(rng.integers(3, 5))
    order = _walk([(SHEET * x, 0.0) for x in range(count)], rng, reach=2.5 * SHEET)
    slots = [(STRAND, order[0])]
    for before, after in itertools.pairwise(order):
        side = LAYER if rng.random() < 0.6 else -LAYER
        slots += [(HELIX, ((before[0] + after[0]) / 2, side)), (STRAND, after)]
    return _spread_helices(slots)


def _split(rng):
    sheet = _walk([(SHEET * x, 0.0) for x in range(int(rng.integers(3, 5)))], rng, reach=2.5 * SHEET)
    slots = [(STRAND, slot) for slot in sheet]
    for place in sorted(rng.choice(len(slots) + 1, size=2, replace=False), reverse=True):
        slots.insert(int(place), (HELIX, (SHEET * (1 + rng.normal(0, 0.3)), LAYER)))
    return _spread_helices(slots)


def _spread_helices(slots):
    """Move helices of one layer apart until they are at least 9.5 A from each other."""
    for side in (LAYER, -LAYER):
        members = [i for i, (kind, slot) in enumerate(slots) if kind == HELIX and slot[1] == side]
        order = sorted(members, key=lambda i: slots[i][1][0])
        centre = np.mean([slots[i][1][0] for i in members]) if members else 0.0
        for rank, i in enumerate(order):
            slots[i] = (HELIX, (float(centre + 9.5 * (rank - (len(order) - 1) / 2)), side))
    return slots


def _walk(places, rng, reach):
    """Visit every place once in a random order whose steps are no longer than `reach` (drawn until they are)."""
    while True:
        order = [places[i] for i in rng.permutation(len(places))]
        if all(np.hypot(a[0] - b[0], a[1] - b[1]) <= reach for a, b in itertools.pairwise(order)):
            return order


def _shortest_loop(a: Segment, b: Segment) -> int:
    gap = np.hypot(a.slot[0] - b.slot[0], a.slot[1] - b.slot[1])
    return max(2, int(np.ceil(gap / 3.0)) - 1)


def coordinates(fold: Fold) -> np.ndarray:
    """float64 [L, 3]: relaxed C-alpha coordinates in Angstrom."""
    placed = [_segment(segment, number % 2 == 0) for number, segment in enumerate(fold.segments)]
    pieces = [_tail(placed[0][0], placed[0][0] - placed[0][-1], fold.loops[0])[::-1]]
    for number, points in enumerate(placed):
        pieces.append(points)
        if number + 1 < len(placed):
            up = 1.0 if number % 2 == 0 else -1.0
            pieces.append(_arc(points[-1], placed[number + 1][0], up, fold.loops[number + 1]))
    pieces.append(_tail(placed[-1][-1], placed[-1][-1] - placed[-1][0], fold.loops[-1]))
    return _relax(np.concatenate(pieces), fold.secondary_structure() != COIL)


def _segment(segment: Segment, upward: bool) -> np.ndarray:
    k = np.arange(segment.length)
    sign = 1.0 if upward else -1.0
    x, y = segment.slot
    if segment.kind == HELIX:
        angle = np.deg2rad(100.0) * k * sign  # right-handed whichever way it runs
        plane, rise = 2.3 * np.stack([np.cos(angle), np.sin(angle)], axis=1), 1.5
    else:
        plane, rise = np.stack([np.zeros(len(k)), 0.9 * (-1.0) ** k], axis=1), 3.3
    z = sign * rise * (k - (segment.length - 1) / 2) + segment.shift
    return np.concatenate([plane + np.array([x, y]), z[:, None]], axis=1)


def _tail(start: np.ndarray, direction: np.ndarray, count: int) -> np.ndarray:
    return start + BOND * direction / np.linalg.norm(direction) * np.arange(1, count + 1)[:, None]


def _arc(start: np.ndarray, end: np.ndarray, up: float, count: int) -> np.ndarray:
    """`count` points along a curve from start to end that bulges along z until its length is (count + 1) bonds."""
    t = np.linspace(0, 1, 200)[:, None]
    low, high = 0.0, 60.0
    for _ in range(40):
        bulge = (low + high) / 2
        curve = start + t * (end - start) + bulge * up * 4 * t * (1 - t) * np.array([0.0, 0.0, 1.0])
        travelled = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
        low, high = (bulge, high) if travelled[-1] < BOND * (count + 1) else (low, bulge)
    at = np.linspace(0, travelled[-1], count + 2)[1:-1]
    return np.stack([np.interp(at, travelled, curve[:, axis]) for axis in range(3)], axis=1)


def _relax(points: np.ndarray, rigid: np.ndarray, rounds: int = 400) -> np.ndarray:
    """Move loop residues (and, a little, the others) until bonds are 3.8 A and no two residues overlap."""
    points = points.copy()
    mobility = np.where(rigid, 0.15, 1.0)
    separation = np.abs(np.subtract.outer(np.arange(len(points)), np.arange(len(points))))
    nearest = np.where(separation >= 3, 4.3, np.where(separation == 2, 5.0, 0.0))
    for _ in range(rounds):
        delta = points[:, None] - points[None]
        distance = np.linalg.norm(delta, axis=-1) + np.eye(len(points))
        target = np.where(separation == 1, BOND, np.maximum(distance, nearest))
        pull = (target - distance) / distance * np.where(separation == 1, 0.4, 0.2)
        points += mobility[:, None] * np.einsum("ij,ijk->ik", pull, delta)
    return points


def distances(points: np.ndarray) -> np.ndarray:
    """[L, 3] -> [L, L] in Angstrom."""
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def burial(points: np.ndarray) -> np.ndarray:
    """[L]: neighbours within 10 A, as a rank from 0 (most exposed) to 1 (most buried)."""
    neighbours = (distances(points) < 10.0).sum(axis=1)
    return neighbours.argsort(kind="stable").argsort(kind="stable") / max(1, len(points) - 1)
