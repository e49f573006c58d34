"""The synthetic world: published tables, the geometry of the folds, the evolutionary process, and the files it
writes.
"""

import itertools
import pickle

import lmdb
import numpy as np
import pytest

from demo import datasets, evolution, structure, substitution, synthetic

SMALL = synthetic.WorldSize(folds=3, superfamilies=3, families=2)
SIZES = datasets.TaskSizes(
    corpus_per_family=40,
    pool_per_family=12,
    fluorescence=(50, 20, 50),
    mutants_per_parent=20,
)


@pytest.fixture(scope="module")
def world():
    return synthetic.build_world(SMALL, seed=3)


# --- published tables
# ------------------------------------------------------------------------------------------------


def test_wag_is_reversible_stationary_and_scaled():
    exchange, frequencies = substitution.wag()
    rates = substitution.rate_matrix()
    flow = frequencies[:, None] * rates
    assert np.allclose(exchange, exchange.T) and len(set(exchange[np.tril_indices(20, -1)])) > 185
    assert frequencies.sum() == pytest.approx(1)
    assert np.allclose(rates.sum(axis=1), 0) and np.allclose(frequencies @ rates, 0)
    assert np.allclose(flow, flow.T)  # detailed balance
    assert -(frequencies @ np.diag(rates)) == pytest.approx(1)  # one substitution per unit of time


def test_wag_against_rates_published_elsewhere():
    """Likeliest: Ile to Val, Lys to Arg, Asp to Glu, Phe to Tyr or Leu; Trp and Cys change slowest."""
    rates = substitution.rate_matrix()
    assert np.allclose(np.diag(rates)[:4], [-1.117151, -0.974318, -1.452438, -0.989665], atol=2e-5)
    assert rates[1:5, 0] == pytest.approx([0.050147, 0.046354, 0.067188, 0.093376], abs=2e-5)


def test_wag_knows_chemistry():
    """Likeliest replacement: Ile by Val, Lys by Arg, Asp by Glu, Phe by Tyr or Leu, Trp rarest; Trp and Cys change
    slowest.
    """
    rates = substitution.rate_matrix()
    order = substitution.RESIDUES
    best = {a: order[int(np.argmax(np.where(np.eye(20)[i], -1, rates[i])))] for i, a in enumerate(order)}
    assert (best["I"], best["K"], best["D"]) == ("V", "R", "E")
    assert best["F"] in "YL"
    assert {order[i] for i in np.argsort(-np.diag(rates))[:2]} == {"W", "C"}


def test_uniformised_chain_equals_the_matrix_exponential():
    from scipy.linalg import expm

    jumps, rate = substitution.proposal_matrix()
    assert jumps.min() >= 0 and np.allclose(jumps.sum(axis=1), 1)
    power, term, total = np.eye(20), np.exp(-rate * 0.7), np.zeros((20, 20))
    for count in range(60):
        total += term * power
        power, term = power @ jumps, term * rate * 0.7 / (count + 1)
    assert np.allclose(total, expm(substitution.rate_matrix() * 0.7), atol=1e-12)


def test_preferences_follow_the_books():
    order = substitution.RESIDUES
    helix, strand, coil = substitution.secondary_structure_preference()
    assert (
        order[helix.argmax()] == "E"
        and order[strand.argmax()] == "V"
        and {order[i] for i in coil.argsort()[-2:]} == {"N", "G"}
    )
    assert helix[order.index("P")] == helix.min() and np.exp(helix[order.index("A")]) == pytest.approx(1.42)
    pair = substitution.pair_preference()
    k, d, e, g, w = (order.index(a) for a in "KDEGW")
    assert np.allclose(pair, pair.T) and np.allclose(pair.mean(axis=0), 0)
    assert pair[k, d] > 1 > -0.9 > pair[d, e] and pair[g, w] > pair[w, w]


# --- geometry
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_folds_are_chains_that_could_exist(seed):
    rng = np.random.default_rng(seed)
    fold = structure.random_fold(rng)
    points, secondary = structure.coordinates(fold), fold.secondary_structure()
    distance = structure.distances(points)
    apart = np.abs(np.subtract.outer(np.arange(len(points)), np.arange(len(points))))
    assert len(points) == len(secondary) == fold.length == len(set(fold.columns().tolist()))
    assert np.allclose(np.linalg.norm(np.diff(points, axis=0), axis=1), 3.8, atol=0.05)
    assert distance[apart >= 3].min() > 4.0
    for i in range(fold.length - 4):
        if (secondary[i : i + 5] == substitution.HELIX).all():
            assert distance[i, i + 4] == pytest.approx(6.2, abs=0.5)
        if (secondary[i : i + 5] == substitution.STRAND).all():
            assert distance[i, i + 4] == pytest.approx(13.2, abs=0.7)
    contacts = ((distance < 8) & (apart >= 6)).sum() / 2
    radius = np.sqrt(((points - points.mean(axis=0)) ** 2).sum(axis=1).mean())
    assert 0.2 < contacts / fold.length < 3.5  # real domains: about 0.5 (bundles) to 3
    assert radius < 1.45 * 2.2 * fold.length**0.38  # globular proteins; an extended chain would be 5 times larger


def test_strands_pair_in_ladders():
    """Neighbouring strands of a sheet are 4.8 A apart: antiparallel ones show contacts along an antidiagonal."""
    strand = lambda x: structure.Segment(substitution.STRAND, 6, (x, 0.0))  # noqa: E731
    points = structure.coordinates(structure.Fold((strand(0.0), strand(4.8)), (2, 3, 2)))
    first, second = np.arange(2, 8), np.arange(11, 17)[::-1]
    assert np.allclose(structure.distances(points)[first, second], 4.8, atol=0.7)


def test_relatives_share_columns_but_not_loops():
    rng = np.random.default_rng(1)
    fold = structure.random_fold(rng)
    relative = structure.vary_loops(fold, rng, share=0.8)
    assert relative.segments == fold.segments and relative.loops != fold.loops
    shared = set(fold.columns().tolist()) & set(relative.columns().tolist())
    assert len(shared) > 0.85 * fold.length


# --- evolution
# -------------------------------------------------------------------------------------------------------


def _two_sites(weight: float) -> evolution.Landscape:
    rng = np.random.default_rng(0)
    return evolution.Landscape(
        field=rng.normal(0, 0.5, (1, 2, 20)).astype(np.float32),
        partner=np.array([[[1], [0]]], np.int16),
        weight=np.full((1, 2, 1), weight, np.float32),
        rate=np.ones((1, 2), np.float32),
    )


def _long_run(landscape, count=40_000):
    rng = np.random.default_rng(5)
    start = np.zeros((count, 2), np.int8)
    return evolution.evolve(landscape, np.zeros(count, int), start, np.full(count, 12.0), rng, sweeps=24)


def test_evolution_is_stationary_at_the_boltzmann_distribution():
    """After a long time both sites together follow pi(a) pi(b) exp(h1(a) + h2(b) + w J(a, b)): 400 states counted."""
    landscape = _two_sites(0.8)
    sequences = _long_run(landscape)
    observed = np.zeros((20, 20))
    np.add.at(observed, (sequences[:, 0], sequences[:, 1]), 1 / len(sequences))
    _, pi = substitution.wag()
    h = landscape.field[0]
    expected = np.outer(pi, pi) * np.exp(h[0][:, None] + h[1] + 0.8 * substitution.pair_preference())
    expected /= expected.sum()
    uncoupled = np.outer(expected.sum(axis=1), expected.sum(axis=0))
    assert np.abs(observed - expected).sum() < 0.09  # sampling noise of 40,000 draws over 400 states is about 0.07
    assert np.abs(observed - uncoupled).sum() > 0.25  # the control: without co-mutation it would not fit
    assert np.abs(observed.sum(axis=1) - expected.sum(axis=1)).max() < 0.01


def test_no_time_no_change_and_rate_zero_is_conserved():
    landscape = _two_sites(0.0)
    frozen = evolution.Landscape(landscape.field, landscape.partner, landscape.weight, np.array([[1, 0]], np.float32))
    rng = np.random.default_rng(0)
    start = rng.integers(0, 20, (500, 2)).astype(np.int8)
    zeros = np.zeros(500, int)
    assert (evolution.evolve(landscape, zeros, start, np.zeros(500), rng) == start).all()
    moved = evolution.evolve(frozen, zeros, start, np.full(500, 5.0), rng)
    assert (moved[:, 1] == start[:, 1]).all() and (moved[:, 0] != start[:, 0]).mean() > 0.5


def test_fitness_counts_every_pair_once():
    landscape = _two_sites(0.7)
    sequence = np.array([[3, 11]], np.int8)  # D, K
    by_hand = landscape.field[0, 0, 3] + landscape.field[0, 1, 11] + 0.7 * substitution.pair_preference()[3, 11]
    assert evolution.fitness(landscape, np.zeros(1, int), sequence)[0] == pytest.approx(by_hand, abs=1e-5)


def test_trees_have_the_leaves_asked_for():
    generations = evolution.random_tree(100, np.random.default_rng(0))
    assert len(generations[-1][0]) == 100
    for (above, _), (parents, lengths) in itertools.pairwise(generations):
        assert parents.max() < len(above) and (lengths >= 0).all()


# --- the world
# -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_world_is_a_function_of_its_seed(world):
    again, other = synthetic.build_world(SMALL, seed=3), synthetic.build_world(SMALL, seed=4)
    assert (again.root == world.root).all() and np.array_equal(again.points, world.points)
    assert other.root.shape != world.root.shape or not np.array_equal(other.root, world.root)
    first, second = synthetic.sample_proteins(world, 10, 0), synthetic.sample_proteins(world, 10, 0)
    assert np.array_equal(first[1], second[1])


def test_relatives_look_alike_and_fitness_is_symmetric(world):
    family, sequences = synthetic.sample_proteins(world, 30, 1)

    def identity(rows, others):
        return np.mean(
            [
                (sequences[i] == sequences[j])[: world.length[family[i]]].mean()
                for i, j in zip(rows, others, strict=True)
            ]
        )

    rng = np.random.default_rng(0)
    rows = rng.permutation(len(family))[:200]
    same = [rng.choice(np.flatnonzero(family == family[i])) for i in rows]
    other = [rng.choice(np.flatnonzero(world.fold[family] != world.fold[family[i]])) for i in rows]
    assert identity(rows, same) > 0.4 > 0.12 > identity(rows, other)
    partner, weight = world.landscape.partner, world.landscape.weight
    for f in range(world.families):
        table = np.zeros((partner.shape[1],) * 2)
        np.add.at(table, (np.arange(len(table))[:, None], partner[f]), weight[f])
        assert np.allclose(table, table.T)


def test_contacting_pairs_co_mutate(world):
    """Mutual information of strongly coupled pairs above that of random pairs of the same alignments."""
    family, sequences = synthetic.sample_proteins(world, 400, 2)
    coupled, random_pairs = [], []
    rng = np.random.default_rng(0)
    for f in range(4):
        alignment = sequences[family == f]
        for site in range(world.length[f]):
            strongest = world.landscape.partner[f, site, 0]
            if world.landscape.weight[f, site, 0] == np.float32(SMALL.coupling) and site < strongest:
                coupled.append(_information(alignment[:, site], alignment[:, strongest]))
                i, j = rng.choice(world.length[f], 2, replace=False)
                random_pairs.append(_information(alignment[:, i], alignment[:, j]))
    assert np.mean(coupled) > 1.5 * np.mean(random_pairs)


def _information(a: np.ndarray, b: np.ndarray) -> float:
    joint = np.zeros((20, 20))
    np.add.at(joint, (a, b), 1 / len(a))
    independent = np.outer(joint.sum(axis=1), joint.sum(axis=0))
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / independent[seen])).sum())


# --- files
# -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(world, tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    return directory, datasets.write_world(directory, world, SIZES, seed=3)


def _read(path):
    with lmdb.open(str(path), readonly=True, lock=False) as database, database.begin() as transaction:
        count = pickle.loads(transaction.get(b"num_examples"))
        return [pickle.loads(transaction.get(str(i).encode())) for i in range(count)]


TARGETS = {
    "secondary_structure": ("ss3", "ss8", "valid_mask"),
    "proteinnet": ("tertiary", "valid_mask"),
    "remote_homology": ("fold_label", "class_", "superfamily_label", "family_label"),
    "fluorescence": ("log_fluorescence", "num_mutations"),
    "stability": ("stability_score", "parent", "topology"),
}
SPLITS = {
    "secondary_structure": "train valid casp12 ts115 cb513",
    "proteinnet": "train train_unfiltered valid test",
    "remote_homology": "train valid test_fold_holdout test_superfamily_holdout test_family_holdout",
    "fluorescence": "train valid test",
    "stability": "train valid test",
}


@pytest.mark.parametrize("task", TARGETS)
def test_lmdbs_are_tapes(written, world, task):
    directory, counts = written
    for split in SPLITS[task].split():
        records = _read(directory / task / f"{task}_{split}.lmdb")
        assert len(records) == counts[f"{task}/{task}_{split}"] > 0
        for record in records:
            assert set(record) == {"primary", "protein_length", "id", *TARGETS[task]}
            assert record["protein_length"] == len(record["primary"]) and set(record["primary"]) <= set(
                substitution.RESIDUES
            )
            for name in ("ss3", "ss8", "tertiary", "valid_mask"):
                assert name not in record or len(record[name]) == len(record["primary"])


def test_nothing_leaks(written, world):
    """No protein of a task is in the corpus, none is in two splits of a task, and test folds' families are
    unlabelled.
    """
    directory, counts = written
    corpus = (directory / datasets.CORPUS).read_text().split("\n")[1::2]
    assert len(corpus) == counts[datasets.CORPUS]
    corpus = set(corpus)
    for task, splits in SPLITS.items():
        seen = {}
        for split in splits.replace("train_unfiltered", "").split():
            for record in _read(directory / task / f"{task}_{split}.lmdb"):
                assert record["primary"] not in corpus
                assert seen.setdefault(record["primary"], split) == split
    labels = {
        split: _read(directory / f"remote_homology/remote_homology_{split}.lmdb")
        for split in SPLITS["remote_homology"].split()
    }
    kinds = lambda split, key: {record[key] for record in labels[split]}  # noqa: E731
    assert not kinds("train", "superfamily_label") & kinds("test_fold_holdout", "superfamily_label")
    assert not kinds("train", "family_label") & kinds("test_superfamily_holdout", "family_label")
    assert kinds("train", "family_label") == kinds("test_family_holdout", "family_label")
    for split in labels:
        assert kinds(split, "fold_label") == set(range(SMALL.folds))


@pytest.mark.parametrize("name", ["secondary_structure cb513", "proteinnet test", "stability test"])
def test_test_families_have_no_labels_in_train(written, name):
    directory, _ = written
    task, split = name.split()
    families = {
        part: {record["id"].split(b"_")[0] for record in _read(directory / task / f"{task}_{part}.lmdb")}
        for part in ("train", split)
    }
    assert not families["train"] & families[split]


def test_labels_come_from_the_world(written, world):
    directory, _ = written
    for record in _read(directory / "proteinnet/proteinnet_test.lmdb"):
        steps = np.linalg.norm(np.diff(record["tertiary"][record["valid_mask"]], axis=0), axis=1)
        assert record["tertiary"].dtype == np.float32 and steps.mean() == pytest.approx(3.8, abs=0.15)
    for record in _read(directory / "secondary_structure/secondary_structure_cb513.lmdb"):
        helix, strand = record["ss3"] == 0, record["ss3"] == 1
        assert (record["ss8"][helix] == 1).all() and (record["ss8"][strand] == 4).all()
        assert set(record["ss8"][~helix & ~strand].tolist()) <= {6, 7}
    few, many = (_read(directory / f"fluorescence/fluorescence_{s}.lmdb") for s in ("train", "test"))
    assert max(r["num_mutations"] for r in few) <= 3 < 4 <= min(r["num_mutations"] for r in many)
    assert np.mean([r["log_fluorescence"][0] for r in few]) > np.mean([r["log_fluorescence"][0] for r in many]) + 0.3
    rows = _read(directory / "stability/stability_train.lmdb")
    for parent in {r["parent"] for r in rows}:
        variants = [r for r in rows if r["parent"] == parent]
        changed = np.array([sum(a != b for a, b in zip(r["primary"], parent, strict=True)) for r in variants])
        score = np.array([r["stability_score"][0] for r in variants])
        assert np.corrcoef(changed, score)[0, 1] < -0.3
        assert set(variants[0]["topology"]) <= set("HE")


def test_thousands_of_proteins_a_second(world):
    import time

    begin = time.process_time()
    family, _ = synthetic.sample_proteins(world, 500, 0)
    assert len(family) / (time.process_time() - begin) > 2000
