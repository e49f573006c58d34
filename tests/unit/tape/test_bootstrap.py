"""Intervals over proteins, against scipy's bootstrap and textbook errors."""

import numpy as np
import pytest
from scipy import stats

from proteinlm.errors import InputError
from tape.scoring.bootstrap import (
    RESAMPLES,
    Scores,
    average_ranks,
    confidence_interval,
    paired_difference,
)
from tape.scoring.files import load_scores


def ratio(values: np.ndarray, counts: np.ndarray | None = None) -> Scores:
    counts = np.ones(len(values)) if counts is None else counts
    return Scores("ratio", np.stack([values, counts], axis=1))


def test_ranks_are_scipys():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 6, 40).astype(float)
    draws = rng.integers(0, 40, 40)
    counts = np.bincount(draws, minlength=40).astype(float)
    ranks = average_ranks(np.unique(values, return_inverse=True)[1], counts)
    assert np.allclose(ranks[draws], stats.rankdata(values[draws]))


def test_interval_of_a_mean_matches_the_normal_one():
    values = np.random.default_rng(1).normal(0.5, 0.2, 400)
    interval = confidence_interval(ratio(values))
    error = 1.96 * values.std() / np.sqrt(400)
    assert interval["resamples"] == RESAMPLES["ratio"] == 10_000
    assert interval["value"] == pytest.approx(values.mean())
    assert interval["low"] == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert interval["high"] == pytest.approx(values.mean() + error, abs=0.1 * error)


def test_residues_weigh_not_proteins():
    """Two proteins, 1 of 10 and 90 of 90 residues right: 0.91, not the mean of 0.1 and 1."""
    assert confidence_interval(ratio(np.array([1.0, 90.0]), np.array([10.0, 90.0])), 10)["value"] == 0.91


def test_proteins_without_a_value_leave_the_mean():
    interval = confidence_interval(ratio(np.array([0.5, 0.0, 1.0]), np.array([1.0, 0.0, 1.0])), 200)
    assert interval["value"] == 0.75
    assert 0 < interval["undefined"] < 200  # the draws of the second protein alone


def test_spearman_and_its_interval_match_scipy():
    rng = np.random.default_rng(2)
    x = rng.normal(size=150)
    y = (x + rng.normal(size=150)).round(1)  # with ties
    interval = confidence_interval(Scores("spearman", np.stack([x, y], axis=1)))
    assert interval["resamples"] == RESAMPLES["spearman"] == 2_000
    assert interval["value"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    reference = stats.bootstrap(
        (x, y), lambda a, b: stats.spearmanr(a, b).statistic, paired=True, vectorized=False, n_resamples=999,
        method="percentile", rng=np.random.default_rng(3),
    ).confidence_interval  # fmt: skip
    assert interval["low"] == pytest.approx(reference.low, abs=0.03)
    assert interval["high"] == pytest.approx(reference.high, abs=0.03)


def test_perplexity_is_exp_of_the_ratio():
    nats, counts = np.array([30.0, 50.0, 12.0]), np.array([12.0, 18.0, 5.0])
    interval = confidence_interval(Scores("perplexity", np.stack([nats, counts], axis=1)), 500)
    assert interval["value"] == pytest.approx(np.exp(92 / 35))
    assert interval["low"] <= interval["value"] <= interval["high"]


def test_the_seed_fixes_the_interval():
    values = ratio(np.random.default_rng(4).random(50))
    first, again, other = (confidence_interval(values, 300, seed) for seed in (1, 1, 2))
    assert first == again
    assert first["low"] != other["low"]


def test_pairing_cancels_what_two_runs_share():
    """Hard and easy proteins spread both scores; the difference of 0.05 is far clearer in pairs."""
    rng = np.random.default_rng(5)
    difficulty = rng.random(200)
    better, worse = difficulty + 0.05 + rng.normal(0, 0.05, 200), difficulty + rng.normal(0, 0.05, 200)
    interval = paired_difference(ratio(better), ratio(worse))
    assert 0 < interval["low"] < interval["value"] == pytest.approx((better - worse).mean())
    alone = confidence_interval(ratio(better))
    assert interval["high"] - interval["low"] < (alone["high"] - alone["low"]) / 3


def test_no_difference_is_not_significant():
    rng = np.random.default_rng(6)
    truth = rng.normal(size=300)
    runs = [Scores("spearman", np.stack([truth + rng.normal(size=300), truth], axis=1)) for _ in range(2)]
    interval = paired_difference(*runs, resamples=500)
    assert interval["low"] < 0 < interval["high"]
    assert paired_difference(runs[0], runs[0], resamples=50)["high"] == 0


def test_constant_predictions_have_no_interval():
    interval = confidence_interval(Scores("spearman", np.stack([np.zeros(20), np.arange(20.0)], axis=1)), 50)
    assert interval["undefined"] == 50
    assert np.isnan(interval["value"]) and np.isnan(interval["low"])


def test_only_like_is_compared_with_like():
    with pytest.raises(InputError, match="over 5 proteins against ratio over 6"):
        paired_difference(ratio(np.ones(5)), ratio(np.ones(6)))
    with pytest.raises(InputError, match="should be one of"):
        Scores("median", np.ones((3, 2)))


def test_scores_survive_the_disk(tmp_path):
    scores = Scores("spearman", np.random.default_rng(7).normal(size=(12, 2)))
    np.savez(tmp_path / "a.npz", kind=np.array(scores.kind), columns=scores.columns)
    loaded = load_scores(tmp_path / "a.npz")
    assert loaded.kind == "spearman" and np.array_equal(loaded.columns, scores.columns)
    for content in (b"", b"not a zip", (tmp_path / "a.npz").read_bytes()[:60]):
        (tmp_path / "b.npz").write_bytes(content)
        with pytest.raises(InputError, match=r"b\.npz"):
            load_scores(tmp_path / "b.npz")
