"""Held-out proteins have no relatives in train; where that cannot be, the result reports it."""

import time

import numpy as np
import pytest

from proteinlm.errors import InputError
from tape.data import holdout

RESIDUES = np.array(list("ACDEFGHIKLMNPQRSTVWY"))


def protein(rng: np.random.Generator, length: int) -> str:
    return "".join(rng.choice(RESIDUES, length))


def relative(sequence: str, rng: np.random.Generator, identity: float) -> str:
    """The same protein with each residue kept with this probability."""
    letters = np.array(list(sequence))
    return "".join(np.where(rng.random(len(letters)) < identity, letters, rng.choice(RESIDUES, len(letters))))


def families(number: int, members: int, seed: int = 0, identity: float = 0.93) -> tuple[list[str], np.ndarray]:
    """Proteins of `number` families in a shuffled order, and each one's family."""
    rng = np.random.default_rng(seed)
    founders = [protein(rng, int(rng.integers(60, 300))) for _ in range(number)]
    family = rng.permutation(np.repeat(np.arange(number), members))
    return [relative(founders[f], rng, identity) for f in family], family


def test_kmers_by_hand():
    codes, owners = holdout.distinct_kmers(["AAAAAAA", "ACDEF", "acd", "ACDEFG"])
    # AAAAA; ACDEF; none (too short, whatever its case); ACDEF and CDEFG
    assert owners.tolist() == [0, 1, 3, 3]
    assert codes[1] in codes[2:]
    assert len(set(codes.tolist())) == 3


def test_clusters_are_the_families():
    sequences, family = families(60, 8)
    clusters = holdout.cluster_sequences(sequences)
    pairs = set(zip(clusters.tolist(), family.tolist(), strict=True))
    assert len(pairs) == len(set(clusters.tolist())) == 60


def test_random_proteins_stay_apart():
    """The negative control: nothing is joined that is not related."""
    rng = np.random.default_rng(3)
    sequences = [protein(rng, 200) for _ in range(2000)]
    assert len(set(holdout.cluster_sequences(sequences).tolist())) == 2000


def test_a_shared_tag_does_not_join_proteins():
    rng = np.random.default_rng(4)
    sequences = ["MGSSHHHHHHSSGLVPRGSH" + protein(rng, 250) for _ in range(200)]
    assert len(set(holdout.cluster_sequences(sequences).tolist())) == 200


def test_a_chain_of_relatives_is_one_cluster():
    rng = np.random.default_rng(5)
    long = protein(rng, 300)
    pieces = [long[start : start + 100] for start in range(0, 201, 50)]
    assert len(set(holdout.cluster_sequences([*pieces, protein(rng, 100)]).tolist())) == 2


def test_whole_clusters_are_held_out():
    sequences, family = families(100, 6)
    result = holdout.hold_out(sequences, 0.1, seed=1)
    assert result.method == "whole clusters"
    assert sorted([*result.train, *result.held_out]) == list(range(600))
    assert not set(family[result.train]) & set(family[result.held_out])
    assert 54 <= len(result.held_out) <= 66


def test_seed_decides():
    sequences, _ = families(100, 6)
    first, again, other = (holdout.hold_out(sequences, 0.1, seed=seed).held_out.tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_one_family_is_held_out_at_random_over_distinct_sequences():
    rng = np.random.default_rng(6)
    wild_type = protein(rng, 237)
    sequences = [relative(wild_type, rng, 0.97) for _ in range(300)]
    sequences += sequences[:50]  # measured twice
    result = holdout.hold_out(sequences, 0.1, seed=1)
    assert "at random" in result.method
    assert "one cluster exceeds half" in result.describe()
    assert result.summary()["largest_cluster"] == 350
    held = {sequences[i] for i in result.held_out}
    assert not held & {sequences[i] for i in result.train}
    assert 30 <= len(result.held_out) <= 40


def test_every_class_stays_in_train():
    sequences, family = families(100, 6)
    labels = family // 4  # four families a class
    labels[family == 7] = 99  # and one class with a single family
    result = holdout.hold_out(sequences, 0.3, seed=1, labels=labels)
    assert result.method == "whole clusters"
    assert set(labels[result.train]) == set(labels)
    assert not set(family[result.train]) & set(family[result.held_out])


def test_one_family_a_class_falls_back_to_sequences():
    sequences, family = families(20, 10)
    result = holdout.hold_out(sequences, 0.1, seed=1, labels=family)
    assert "only one of some class" in result.method
    assert set(family[result.train]) == set(family)


def test_few_large_families_hold_out_the_smallest():
    sequences, family = families(5, 20)
    keep = [i for i in range(100) if family[i] != 2 or i % 2]
    sequences, family = [sequences[i] for i in keep], family[keep]
    result = holdout.hold_out(sequences, 0.05, seed=1)
    assert set(family[result.held_out]) == {2}
    assert 2 not in family[result.train]


def test_short_and_empty_sequences():
    clusters = holdout.cluster_sequences(["", "A", "AC", "A", "ACDEFGHIKL"])
    assert clusters.tolist() == [0, 1, 2, 1, 3]


@pytest.mark.parametrize(("sequences", "fraction"), [(["ACD"] * 10, 0.0), (["ACD"] * 10, 0.6), (["ACD", "ACE"], 0.1)])
def test_impossible_requests(sequences, fraction):
    with pytest.raises(InputError, match="--holdout"):
        holdout.hold_out(sequences, fraction)


def test_one_sequence_is_refused_by_its_file():
    with pytest.raises(InputError, match=r"train of t\.csv has one distinct sequence"):
        holdout.check_holdout(0.1, ["ACD"] * 10, "t.csv")
    holdout.check_holdout(0.1, ["ACD"] * 9 + ["ACE"], "t.csv")


def test_thousands_of_proteins_in_seconds():
    sequences, _ = families(1000, 5)
    begin = time.perf_counter()
    holdout.hold_out(sequences, 0.1)
    assert time.perf_counter() - begin < 10
