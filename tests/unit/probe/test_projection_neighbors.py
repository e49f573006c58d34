"""Purity, silhouettes and their chance level: worked by hand, beside scikit-learn, over all orders of the labels."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

from probe.projection import neighbors
from probe.projection.neighbors import chance, nearest, purity, purity_of, silhouette_of
from proteinlm.errors import InputError

LINE = np.array([[0.0], [1.0], [3.0], [7.0], [12.0]])
LABELS = np.array([0, 0, 1, 0, 1])


def cloud(count=60, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, 5)), generator.integers(3, size=count)


def test_purity_by_hand():
    """Neighbours of 0, 1, 3, 7, 12 among two: (1 3), (0 3), (1 0), (3 1 or 12: 4 and 5 away: 3 12), (7 3)."""
    distances, near = nearest(LINE, k=2)
    assert near.tolist() == [[1, 2], [0, 2], [1, 0], [2, 4], [3, 2]]
    assert distances.tolist() == [[1, 3], [1, 2], [2, 3], [4, 5], [5, 9]]
    assert purity(LABELS, distances, near).tolist() == [0.5, 0.5, 0, 0, 0.5]
    result = purity_of(LINE, LABELS, 2, seed=0)
    assert result["value"] == pytest.approx(0.3) and result["k"] == 2 and result["points"] == 5
    assert result["by_class"] == {0: pytest.approx(1 / 3), 1: 0.25}


def test_relatives_are_no_neighbours():
    groups = np.array([0, 0, 0, 1, 2])  # the first three are one family
    distances, near = nearest(LINE, k=2, groups=groups)
    assert near[:3].tolist() == [[3, 4]] * 3 and near[3:].tolist() == [[2, 4], [3, 2]]
    distances, near = nearest(LINE, k=2, groups=np.array([0, 0, 0, 0, 1]))
    assert np.isinf(distances[:4, 1]).all() and near[:4, 0].tolist() == [4] * 4
    each = purity(LABELS, distances, near)
    assert each.tolist() == [0, 0, 1, 0, 0.5]  # shares of one neighbour, but for the last point
    distances, near = nearest(LINE, k=2, groups=np.zeros(5, int))
    assert np.isnan(purity(LABELS, distances, near)).all()


def test_neighbours_are_those_of_scikit_learn():
    vectors, _ = cloud()
    expected = NearestNeighbors(n_neighbors=7).fit(vectors).kneighbors()
    for mine, theirs in zip(nearest(vectors, k=7), expected, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-12)
    others, _ = cloud(20, seed=1)
    expected = NearestNeighbors(n_neighbors=4).fit(vectors).kneighbors(others)
    for mine, theirs in zip(nearest(others, vectors, 4), expected, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-12)
    moved = vectors + np.eye(1, 5)[0] * np.arange(60)[:, None]
    assert not np.array_equal(nearest(moved, k=7)[1], nearest(vectors, k=7)[1])


def test_silhouette_by_hand_and_beside_scikit_learn(monkeypatch):
    """Of 0, 1 | 4: a = 1, b = 4 -> 3/4; a = 1, b = 3 -> 2/3; alone -> 0."""
    monkeypatch.setattr(neighbors, "SILHOUETTE_SHUFFLES", 20)
    result = silhouette_of(np.array([[0.0], [1.0], [4.0]]), np.array([0, 0, 1]), seed=0)
    assert result["value"] == pytest.approx((3 / 4 + 2 / 3) / 3) and result["points"] == 3
    vectors, labels = cloud()
    vectors[:, 0] += labels
    result = silhouette_of(vectors, labels, seed=3)
    assert result["value"] == pytest.approx(silhouette_score(vectors, labels))
    assert result["low"] < result["value"] < result["high"] and result["chance"]["high"] < result["value"]
    part = silhouette_of(vectors, labels, seed=3, most=40)
    assert part["points"] == 40 and part["value"] != result["value"]
    assert part == silhouette_of(vectors, labels, seed=3, most=40)
    assert silhouette_of(vectors, np.zeros(60, int), seed=0) == {"value": None, "points": 60}
    assert silhouette_of(vectors, np.arange(60), seed=0)["value"] is None


def test_chance_is_the_mean_over_all_orders_of_the_labels():
    """Of purity it is known: another point has one's label with probability sum n (n - 1) / (N (N - 1))."""
    distances, near = nearest(LINE, k=2)

    def statistic(labels):
        return purity(labels, distances, near).mean()

    everything = np.array([statistic(np.array(order)) for order in itertools.permutations(LABELS)])
    assert everything.mean() == pytest.approx((3 * 2 + 2 * 1) / (5 * 4))
    shuffled = chance(statistic, LABELS, 1000, seed=0)
    assert shuffled["mean"] == pytest.approx(everything.mean(), abs=4 * everything.std() / np.sqrt(1000))
    assert [shuffled["low"], shuffled["high"]] == np.percentile(everything, [2.5, 97.5]).tolist()

    vectors, labels = cloud()
    result = purity_of(vectors, labels, 10, seed=0)
    sizes = np.bincount(labels)
    assert result["chance"]["mean"] == pytest.approx((sizes * (sizes - 1)).sum() / (60 * 59), abs=0.004)
    assert result["chance"]["low"] < result["value"] < result["chance"]["high"]  # these labels know nothing
    vectors[:, 0] += 5 * labels  # and these do
    assert purity_of(vectors, labels, 10, seed=0)["low"] > result["chance"]["high"]


def test_too_many_neighbours_are_one_line():
    with pytest.raises(InputError, match=r"--neighbors 5: 5 points have a label; should be fewer"):
        purity_of(LINE, LABELS, 5, seed=0)
