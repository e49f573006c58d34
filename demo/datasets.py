"""From the world to files: the unlabelled corpus (FASTA) and the five tasks (LMDB directories with TAPE's names).

What is shared between the corpus and the tasks, and what is not: the corpus holds relatives from every family,
without labels, as Pfam does; no protein of a task is in it verbatim. Between train and test of a task, families
differ. The last family of every superfamily has no labelled protein in train: it is the test set of secondary
structure, contacts and stability. Homology's fold holdout is the last superfamily of every fold, none of whose families
are in its train. Fluorescence mutates one wild type: train has up to three mutations, test has more, as in TAPE.
"""

import itertools
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lmdb
import numpy as np

from demo.evolution import fitness
from demo.substitution import COIL, HELIX, STRAND, proposal_matrix
from demo.synthetic import ProteinWorld, sample_proteins
from proteinlm.files import atomic_path

SS8 = {HELIX: 1, STRAND: 4, COIL: 7}  # H, E, C in the order GHIBESTC; a coil shorter than five is a turn, T
TURN = 6
CORPUS = "corpus.fasta"


@dataclass(frozen=True)
class TaskSizes:
    """Proteins (or mutants) in each split of the tasks."""

    corpus_per_family: int = 340
    pool_per_family: int = 24  # leaves kept out of the corpus, for the tasks
    secondary_train: int = 1  # proteins per labelled family, here and below
    contact_train: int = 3
    homology_train: int = 1
    test: int = 3  # per held-out family
    fluorescence: tuple[int, int, int] = (400, 100, 400)
    stability_parents: tuple[int, int, int] = (2, 1, 1)  # train, valid, test: per family
    mutants_per_parent: int = 6


@dataclass(frozen=True)
class Proteins:
    """A set of proteins of the world: family int [N], sequences int8 [N, L]."""

    family: np.ndarray
    sequences: np.ndarray

    def __len__(self) -> int:
        return len(self.family)

    def __getitem__(self, rows) -> "Proteins":
        return Proteins(self.family[rows], self.sequences[rows])


def split_corpus(world: ProteinWorld, sizes: TaskSizes, seed: int) -> tuple[Proteins, Proteins]:
    """(corpus, labelled pool): leaves of the same trees, with no sequence in both."""
    extra = sizes.pool_per_family
    leaves = Proteins(*sample_proteins(world, sizes.corpus_per_family + extra, seed))
    rng = np.random.default_rng([seed, 3])
    place = np.argsort(rng.random((world.families, sizes.corpus_per_family + extra)), axis=1).ravel()
    pool, corpus = leaves[place < extra], leaves[place >= extra]
    labelled = {row.tobytes() for row in pool.sequences}
    fresh = np.array([row.tobytes() not in labelled for row in corpus.sequences])
    corpus = corpus[fresh]
    order, pool_order = rng.permutation(len(corpus)), rng.permutation(len(pool))
    return corpus[order], pool[pool_order]


def make_tasks(world: ProteinWorld, pool: Proteins, sizes: TaskSizes, seed: int) -> dict[str, list[dict]]:
    """{'folder/name_split': records} for the five tasks; a protein of the pool is in at most one split of a task."""
    rng = np.random.default_rng([seed, 4])
    held_out = np.arange(world.families) % world.size.families == world.size.families - 1
    far = world.superfamily % world.size.superfamilies == world.size.superfamilies - 1
    seen, unseen = pool[~held_out[pool.family]], pool[held_out[pool.family]]
    tasks = {}
    tasks |= _secondary_structure(world, seen, unseen, sizes)
    tasks |= _contacts(world, seen, unseen, sizes, rng)
    tasks |= _homology(world, pool, far, held_out, sizes)
    tasks |= _fluorescence(world, seen, sizes, rng)
    tasks |= _stability(world, seen, unseen, sizes, rng)
    return tasks


def _per_family(proteins: Proteins, count: int, skip: int = 0) -> Proteins:
    """The proteins numbered skip ... skip + count - 1 of each family."""
    order = np.argsort(proteins.family, kind="stable")
    family = proteins.family[order]
    number = np.arange(len(family)) - np.searchsorted(family, family)
    return proteins[np.sort(order[(number >= skip) & (number < skip + count)])]


def _records(world: ProteinWorld, proteins: Proteins, fields: Callable[[int, int], dict] | None = None) -> list[dict]:
    """One record a protein; `fields`: (family, length) -> what a task adds to it."""
    records = []
    for n, text in enumerate(world.text(proteins.sequences, proteins.family)):
        family, length = proteins.family[n], len(text)
        record = {"primary": text, "protein_length": length, "id": f"f{family}_{n}".encode()}
        records.append(record | (fields(family, length) if fields else {}))
    return records


def _secondary_structure(world, seen, unseen, sizes):
    def labels(family: int, length: int) -> dict:
        ss3 = world.secondary[family, :length].astype(np.int64)
        return {"ss3": ss3, "ss8": _eight_states(ss3), "valid_mask": np.ones(length, bool)}

    name, records = "secondary_structure/secondary_structure_", partial(_records, world, fields=labels)
    return {
        name + "train": records(_per_family(seen, sizes.secondary_train)),
        name + "valid": records(_per_family(seen, 1, skip=sizes.secondary_train)),
        name + "casp12": records(_per_family(seen, 1, skip=sizes.secondary_train + 1)),
        name + "ts115": records(_per_family(unseen, 1, skip=sizes.test)),
        name + "cb513": records(_per_family(unseen, sizes.test)),
    }


def _eight_states(ss3: np.ndarray) -> np.ndarray:
    ss8 = np.array([SS8[HELIX], SS8[STRAND], SS8[COIL]])[ss3]
    start = 0
    for end in [*(np.flatnonzero(np.diff(ss3)) + 1), len(ss3)]:
        if ss3[start] == COIL and start > 0 and end < len(ss3) and end - start < 5:
            ss8[start:end] = TURN
        start = end
    return ss8


def _contacts(world, seen, unseen, sizes, rng):
    def coordinates(family: int, length: int) -> dict:
        points, valid = world.points[family, :length], np.ones(length, bool)
        valid[: rng.integers(0, 3)] = False  # disordered ends without coordinates, as in ProteinNet
        tertiary = (points + rng.normal(0, 0.2, points.shape)).astype(np.float32)
        return {"tertiary": np.where(valid[:, None], tertiary, 0), "valid_mask": valid}

    name, records = "proteinnet/proteinnet_", partial(_records, world, fields=coordinates)
    train = records(_per_family(seen, sizes.contact_train))
    return {
        name + "train": train,
        name + "train_unfiltered": train,
        name + "valid": records(_per_family(seen, 1, skip=sizes.contact_train)),
        name + "test": records(_per_family(unseen, sizes.test)),
    }


def _homology(world, pool, far, held_out, sizes):
    def labels(family: int, length: int) -> dict:
        return {
            "fold_label": int(world.fold[family]),
            "class_": int(np.bincount(world.secondary[family, :length], minlength=3)[:2].argmax()),
            "superfamily_label": int(world.superfamily[family]),
            "family_label": int(family),
        }

    name, records = "remote_homology/remote_homology_", partial(_records, world, fields=labels)
    near, sister, distant = (pool[rows[pool.family]] for rows in (~far & ~held_out, ~far & held_out, far))
    count = sizes.homology_train
    return {
        name + "train": records(_per_family(near, count)),
        name + "valid": records(_per_family(near, 1, skip=count)),
        name + "test_fold_holdout": records(_per_family(distant, sizes.test)),
        name + "test_superfamily_holdout": records(_per_family(sister, sizes.test)),
        name + "test_family_holdout": records(_per_family(near, 2, skip=count + 1)),
    }


def mutate(world: ProteinWorld, parents: Proteins, counts: np.ndarray, rng: np.random.Generator) -> Proteins:
    """One mutant per parent row: counts[n] different sites, each residue replaced as WAG would."""
    jumps, _ = proposal_matrix()
    np.fill_diagonal(jumps, 0)
    cumulative = (jumps / jumps.sum(axis=1, keepdims=True)).cumsum(axis=1)[:, :-1]
    draw = rng.random(parents.sequences.shape)
    draw[np.arange(draw.shape[1]) >= world.length[parents.family][:, None]] = 2.0
    chosen = draw.argsort(axis=1).argsort(axis=1) < counts[:, None]
    replacement = (rng.random((*draw.shape, 1)) > cumulative[parents.sequences]).sum(axis=-1)
    return Proteins(parents.family, np.where(chosen, replacement, parents.sequences).astype(np.int8))


def _fluorescence(world, seen, sizes, rng):
    """log fluorescence = 1.3 + 2.5 sigmoid(fitness lost): flat near the wild type, a floor for the dead (as measured by
    Sarkisyan et al. 2016).
    """
    strands = (world.secondary == STRAND).sum(axis=1)
    family = seen.family[np.argmax(strands[seen.family])]
    wild = seen[np.flatnonzero(seen.family == family)[:1]]
    zero = fitness(world.landscape, wild.family, wild.sequences)

    def records(count, fewest, most):
        counts = rng.integers(fewest, most + 1, count)
        mutants = mutate(world, wild[np.zeros(count, int)], counts, rng)
        lost = fitness(world.landscape, mutants.family, mutants.sequences) - zero
        value = 1.3 + 2.5 / (1 + np.exp(-(lost + 8.0) / 2.0)) + rng.normal(0, 0.05, count)
        rows = _records(world, mutants)
        for row, y, n in zip(rows, value, counts, strict=True):
            row |= {"log_fluorescence": np.array([y], np.float32), "num_mutations": int(n)}
        return rows

    name, (train, valid, test) = "fluorescence/fluorescence_", sizes.fluorescence
    return {
        name + "train": records(train, 1, 3),
        name + "valid": records(valid, 1, 3),
        name + "test": records(test, 4, 10),
    }


def _stability(world, seen, unseen, sizes, rng):
    """Score = fitness per residue, standardised over the training parents, with noise.

    As in TAPE's data, a score holds both how stable the wild type is and what its mutations (0 to 8) cost.
    """
    name, (train, valid, test) = "stability/stability_", sizes.stability_parents
    parents = {
        "train": _per_family(seen, train),
        "valid": _per_family(seen, valid, skip=train),
        "test": _per_family(unseen, test),
    }
    reference = _fitness_per_residue(world, parents["train"])
    return {
        name + split: _mutant_records(world, wild, sizes.mutants_per_parent, reference, rng)
        for split, wild in parents.items()
    }


def _fitness_per_residue(world: ProteinWorld, proteins: Proteins) -> np.ndarray:
    return fitness(world.landscape, proteins.family, proteins.sequences) / world.length[proteins.family]


def _mutant_records(world, parents, count, reference, rng) -> list[dict]:
    wild = parents[np.repeat(np.arange(len(parents)), count)]
    mutants = mutate(world, wild, rng.integers(0, 9, len(wild)), rng)
    value = (_fitness_per_residue(world, mutants) - reference.mean()) / reference.std()
    value += rng.normal(0, 0.05, len(value))
    rows = _records(world, mutants)
    names = world.text(wild.sequences, wild.family)
    for row, y, parent, family in zip(rows, value, names, wild.family, strict=True):
        elements = [kind for kind, _ in itertools.groupby(world.secondary[family]) if kind != COIL]
        topology = "".join("HE"[kind] for kind in elements)
        row |= {"stability_score": np.array([y], np.float32), "parent": parent, "topology": topology}
    return rows


def write_fasta(path: Path, names: Iterable[str], texts: Iterable[str]) -> None:
    """One record a protein, one line of residues each; the file appears whole."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f">{n}\n{t}\n" for n, t in zip(names, texts, strict=True)))


def write_lmdb(path: Path, records: list[dict]) -> None:
    """A TAPE LMDB directory: keys b'num_examples', b'0', b'1', ...; values pickled."""
    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=1 << 30) as database, database.begin(write=True) as transaction:
        for number, record in enumerate(records):
            transaction.put(str(number).encode(), pickle.dumps(record))
        transaction.put(b"num_examples", pickle.dumps(len(records)))


def write_world(directory: Path, world: ProteinWorld, sizes: TaskSizes, seed: int) -> dict[str, int]:
    """Write corpus.fasta and the five tasks under `directory`; returns how many proteins each file holds."""
    corpus, pool = split_corpus(world, sizes, seed)
    names = (f"p{n} family={f} fold={world.fold[f]}" for n, f in enumerate(corpus.family))
    write_fasta(directory / CORPUS, names, world.text(corpus.sequences, corpus.family))
    counts = {CORPUS: len(corpus)}
    for name, records in make_tasks(world, pool, sizes, seed).items():
        write_lmdb(directory / f"{name}.lmdb", records)
        counts[name] = len(records)
    return counts
