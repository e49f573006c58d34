"""Protein chains with known structure: TAPE's proteinnet records as sequences and the contacts among their residues.

    chains = Chains("data/proteinnet/proteinnet_valid.lmdb", "valid")
    chains[0].sequence, chains[0].labels            # labels int8 [L, L]: 1 contact, 0 none, -1 not scored

Contacts are of C-alpha atoms within 8 Angstrom, as in TAPE (ESM's own are of C-beta); not scored are pairs closer than
6 along the chain and those with a residue that was not resolved (tape.datasets.contact_map).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from proteinlm.errors import InputError
from proteinlm.progress import Progress
from tape.datasets import ProteinnetDataset
from tape.inference.parts import PartStore
from tape.metrics import IGNORE

DEFINITION = "C-alpha atoms within 8 Angstrom, residues 6 or more apart along the chain"
PART_CHAINS = 8  # what a killed run may have to do again


@dataclass(frozen=True, eq=False)
class Chain:
    """One chain. labels int8 [L, L], symmetric."""

    name: str
    sequence: str
    labels: np.ndarray

    @cached_property
    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(i [P], j [P], bool [P]: in contact) of the scored pairs i < j."""
        first, second = np.nonzero(np.triu(self.labels != IGNORE, 1))
        return first, second, self.labels[first, second] == 1


class Chains:
    """The chains of a file, read when they are asked for. limit: of residues; a longer chain is an InputError, or with
    too_long "crop" its first `limit` residues."""

    def __init__(self, path: str | Path, split: str, limit: int | None = None, too_long: str = "error"):
        if Path(path).is_file() and Path(path).suffix != ".json":
            kinds = "TAPE's proteinnet .lmdb or .json, or a folder that holds them"
            raise InputError(f"{path}: should be chains of known structure, {kinds}")
        self.data = ProteinnetDataset(path, split, max_length=limit, too_long=too_long)
        if not len(self.data):
            raise InputError(f"{self.data.path}: no chains")
        self.path, self.places = self.data.path, np.arange(len(self.data))

    def __len__(self) -> int:
        return len(self.places)

    def draw(self, number: int) -> None:
        """Leave only `number` chains, at random (always the same ones), in their order."""
        self.places = np.sort(np.random.default_rng(0).permutation(len(self.data))[:number])

    def check(self) -> None:
        """InputError for a record without its structure, before the work comes to it."""
        for place in self.places.tolist():
            self.data.check(place)

    def __getitem__(self, index: int) -> Chain:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = int(self.places[index])
        example = self.data[place]
        labels, length = example[2].astype(np.int8), example[3]
        return Chain(example.id, self.data.record(place)["primary"][:length], labels)

    def sequence(self, index: int) -> str:
        """Of a chain, without its contacts."""
        place = int(self.places[index])
        return self.data.record(place)["primary"][: self.data.max_length]

    def named(self, name: str) -> Chain:
        """The chain of that id; InputError without one."""
        for index, place in enumerate(self.places):
            if self.data.record(int(place))["id"] == name:
                return self[index]
        raise InputError(f"{self.path}: no chain {name!r} among its {len(self)}")

    def identity(self) -> list:
        """What a manifest says of them."""
        lengths = np.asarray(self.data.lengths, np.int64)
        places = hashlib.sha256(lengths.tobytes() + self.places.tobytes()).hexdigest()[:16]
        return [self.path.name, len(self), self.data.max_length, places]


def in_parts(
    store: PartStore, chains: Chains, work: Callable[[Chain], dict[str, np.ndarray]], begin: int = 0, quiet=False
) -> dict[str, np.ndarray]:
    """work(chain) of every chain, stacked under each name; parts that `store` has (from `begin` on) are not made again.

    Chains are read one at a time.
    """
    parts = [range(start, min(start + PART_CHAINS, len(chains))) for start in range(0, len(chains), PART_CHAINS)]
    done = sum(len(part) for number, part in enumerate(parts, begin) if store.has(number))
    with Progress("chains", len(chains), done, quiet=quiet) as progress:
        for number, part in enumerate(parts, begin):
            if store.has(number):
                continue
            rows = []
            for index in part:
                chain = chains[index]
                rows.append(work(chain))
                progress.add(1, len(chain.sequence))
            store.save(number, {name: np.stack([row[name] for row in rows]) for name in rows[0]})
    loaded = [store.load(number) for number in range(begin, begin + len(parts))]
    return {name: np.concatenate([part[name] for part in loaded]) for name in loaded[0]}
