"""Metrics against hand-worked cases and a brute-force reference that loops over pairs."""

import math

import numpy as np
import pytest

from tape import metrics


def symmetric(length, pairs, fill):
    matrix = np.full((length, length), fill, float)
    for (i, j), value in pairs.items():
        matrix[i, j] = matrix[j, i] = value
    return matrix


def brute_force(scores, labels, low, high, divisor):
    """P@L/divisor the slow way: a sorted Python list of (-score, i, j)."""
    length = len(scores)
    pairs = sorted(
        (-scores[i, j], i, j)
        for i in range(length)
        for j in range(i + 1, length)
        if labels[i, j] != -1 and j - i >= low and (high is None or j - i <= high)
    )[: length // divisor]
    return sum(labels[i, j] == 1 for _, i, j in pairs) / len(pairs) if pairs else math.nan


def test_precision_by_hand():
    # L = 10, L // 5 = 2. Pairs at least 6 apart, best first: (0, 9) contact, (0, 6) none, (1, 8) contact.
    scores = symmetric(10, {(0, 9): 3.0, (0, 6): 2.0, (1, 8): 1.0, (0, 1): 99.0}, -5.0)
    labels = symmetric(10, {(0, 9): 1, (1, 8): 1}, 0).astype(int)
    labels[np.abs(np.subtract.outer(range(10), range(10))) < 6] = -1
    result = metrics.contact_precisions(scores, labels)
    assert result["precision_at_l5"] == 0.5
    assert result["precision_at_l2"] == 2 / 5
    assert result["precision_at_l"] == 2 / 10  # ten valid pairs in all
    assert result["precision_at_l5_short"] == 0.5
    assert math.isnan(result["precision_at_l5_medium"])
    # Negative control: another order of the same scores gives another number.
    scores[0, 6] = scores[6, 0] = -9.0
    assert metrics.contact_precisions(scores, labels)["precision_at_l5"] == 1.0


def test_only_the_upper_triangle_is_read():
    scores = symmetric(10, {(0, 9): 3.0}, 0.0)
    labels = symmetric(10, {(0, 9): 1}, 0).astype(int)
    expected = metrics.contact_precisions(scores, labels)
    scores[np.tril_indices(10)] = 1e9
    labels[np.tril_indices(10)] = 1
    assert metrics.contact_precisions(scores, labels) == pytest.approx(expected, nan_ok=True)


def test_ties_go_in_the_order_of_the_pairs():
    labels = symmetric(10, {(0, 6): 1, (0, 7): 1}, 0).astype(int)
    assert metrics.contact_precisions(np.zeros((10, 10)), labels)["precision_at_l5"] == 1.0
    labels = symmetric(10, {(3, 9): 1, (2, 9): 1}, 0).astype(int)
    assert metrics.contact_precisions(np.zeros((10, 10)), labels)["precision_at_l5"] == 0.0


def test_fewer_valid_pairs_than_asked_for():
    labels = np.full((20, 20), -1)
    labels[0, 10] = labels[0, 11] = 0
    labels[0, 12] = 1  # L // 5 = 4, three valid pairs
    assert metrics.contact_precisions(np.zeros((20, 20)), labels)["precision_at_l5"] == 1 / 3


@pytest.mark.parametrize("length", [1, 4, 5, 7, 30, 61])
def test_every_band_against_brute_force(length):
    rng = np.random.default_rng(length)
    scores = rng.integers(0, 20, (length, length)).astype(float)  # many ties
    scores = np.triu(scores) + np.triu(scores, 1).T
    valid = rng.random(length) < 0.8
    labels = (rng.random((length, length)) < 0.3).astype(int)
    labels[~(valid[:, None] & valid)] = -1
    labels[np.abs(np.subtract.outer(range(length), range(length))) < 6] = -1
    got = metrics.contact_precisions(scores, labels)
    assert set(got) == set(metrics.PRECISIONS) and len(got) == 15
    for band, (low, high) in metrics.BANDS.items():
        for name, divisor in metrics.DIVISORS.items():
            expected = brute_force(scores, labels, low, high, divisor)
            assert got[metrics.precision_name(name, band)] == pytest.approx(expected, nan_ok=True)


def test_mean_is_over_proteins_and_counts_those_that_leave():
    long = (symmetric(10, {(0, 9): 1.0}, 0.0), symmetric(10, {(0, 9): 1, (0, 6): 1}, 0).astype(int))
    none = (np.zeros((10, 10)), np.zeros((10, 10), int))
    short = (np.zeros((4, 4)), np.full((4, 4), -1))
    table = metrics.precision_table([long, none, short])
    assert metrics.mean_over_proteins(table["precision_at_l5"]) == (0.5, 1)
    assert metrics.mean_over_proteins(table["precision_at_l5_long"])[1] == 3
    assert math.isnan(metrics.mean_over_proteins(table["precision_at_l5_long"])[0])


def test_a_diverged_model_has_no_score():
    scores = np.zeros((10, 10))
    scores[0, 9] = np.nan
    table = metrics.precision_table([(scores, np.zeros((10, 10), int)), (np.zeros((10, 10)), np.ones((10, 10), int))])
    assert math.isnan(metrics.mean_over_proteins(table["precision_at_l5"])[0])
    assert math.isnan(metrics.accuracy(np.array([[np.nan, 1.0]]), np.array([0])))
    assert math.isnan(metrics.spearmanr(np.array([1.0, np.nan, 2.0]), np.arange(3.0)))


def test_accuracy_by_hand():
    scores = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 5.0], [9.0, 0.0, 0.0]])
    assert metrics.accuracy(scores, np.array([0, 2, 2, -1])) == 2 / 3
    assert math.isnan(metrics.accuracy(scores, np.full(4, -1)))


def test_spearman_by_hand():
    # Ranks of x: 1 2 3 4 5; of y: 1 2 3.5 5 3.5 (ties share). Pearson of the ranks: 8 / sqrt(10 * 9.5).
    assert metrics.spearmanr(np.array([1, 2, 3, 4, 5.0]), np.array([5, 6, 7, 8, 7.0])) == pytest.approx(
        8 / math.sqrt(10 * 9.5)
    )
    assert metrics.spearmanr(np.array([3.0, 2.0, 1.0]), np.array([10.0, 20.0, 400.0])) == pytest.approx(-1.0)
    assert math.isnan(metrics.spearmanr(np.ones(5), np.arange(5.0)))
    assert math.isnan(metrics.spearmanr(np.ones(1), np.ones(1)))
    with pytest.raises(ValueError, match="3 and 2"):
        metrics.spearmanr(np.zeros(3), np.zeros(2))


def test_perplexity_is_of_all_residues_not_a_mean_of_batches():
    nats = np.log([2.0, 2.0, 2.0, 16.0])
    assert metrics.perplexity(nats) == pytest.approx(2 ** ((1 + 1 + 1 + 4) / 4))
    assert metrics.perplexity(nats) != pytest.approx((metrics.perplexity(nats[:3]) + metrics.perplexity(nats[3:])) / 2)
    assert metrics.perplexity(np.full(2, 1e5)) == math.inf
    assert math.isnan(metrics.perplexity(np.zeros(0)))


def test_mean_squared_error():
    assert metrics.mean_squared_error(np.array([[1.0], [3.0]]), np.array([[0.0], [1.0]])) == 2.5
