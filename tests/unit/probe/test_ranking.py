"""Metrics of ranked mutants against scipy, scikit-learn and ProteinGym's formulas; floors by hand."""

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq
from sklearn.metrics import ndcg_score

from probe.variants.floors import (
    BLOSUM62,
    PER_MILLE,
    blosum62,
    composition,
    fewer_mutations,
    read_profile,
    site_independent,
)
from probe.variants.mutations import Mutation, WildType
from probe.variants.ranking import intervals, ranking
from proteinlm.errors import InputError

RNG = np.random.default_rng(3)
N = 240
MEASURED = RNG.normal(size=N)
SCORES = {"different": MEASURED + RNG.normal(size=N), "equal": np.round(MEASURED + RNG.normal(size=N))}
COUNTS = {"all": np.ones(N), "drawn": np.bincount(RNG.integers(N, size=N), minlength=N).astype(float)}


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
def test_metrics_are_those_of_scipy_and_scikit_learn(scores, counts):
    x, y = np.repeat(scores, counts.astype(int)), np.repeat(MEASURED, counts.astype(int))
    above = y > np.percentile(y, 90)
    expected = {
        "spearman": stats.spearmanr(x, y).statistic,
        "ndcg": ndcg_score([(y - y.min()) / (y.max() - y.min())], [x], k=N // 10),
        "top_recall": np.mean(x[above] > np.percentile(x, 90)),
    }
    assert ranking(scores, MEASURED)(counts) == pytest.approx(expected, abs=1e-12)
    worse = ranking(-scores, MEASURED)(counts)
    assert all(abs(worse[name] - value) > 0.1 for name, value in expected.items())


def test_ndcg_is_proteingyms_where_no_scores_are_equal():
    scores, top = SCORES["different"], N // 10
    gains = (MEASURED - MEASURED.min()) / (MEASURED.max() - MEASURED.min())
    by_score, ideal = gains[np.argsort(-scores)][:top], np.sort(gains)[::-1][:top]
    discounts = 1 / np.log2(np.arange(1, top + 1) + 1)
    expected = (by_score * discounts).sum() / (ideal * discounts).sum()
    assert ranking(scores, MEASURED)(np.ones(N))["ndcg"] == pytest.approx(expected, abs=1e-12)


def test_intervals_hold_the_value_and_nan_is_not_measured():
    values = intervals(SCORES["different"][:60], MEASURED[:60])["spearman"]
    assert values["low"] < values["value"] < values["high"] and values["resamples"] == 1000
    assert np.isnan(intervals(np.full(60, np.nan), MEASURED[:60])["ndcg"]["value"])
    constant = ranking(SCORES["different"], np.ones(N))(np.ones(N))
    assert all(np.isnan(value) for value in constant.values())


def test_blosum62_and_composition():
    assert sum(BLOSUM62[a, a] for a in PER_MILLE) == 116  # 4 5 6 6 9 5 5 6 8 4 4 5 5 6 7 4 5 11 7 4
    letters = list(PER_MILLE)
    q = np.array([PER_MILLE[letter] for letter in letters]) / sum(PER_MILLE.values())
    matrix, pairs = np.array([[BLOSUM62[a, b] for b in letters] for a in letters]), np.outer(q, q)
    # BLAST's constants for this matrix and these frequencies, without gaps (blast_stat.c): lambda 0.3176, H 0.4012
    rate = brentq(lambda rate: (pairs * np.exp(rate * matrix)).sum() - 1, 0.1, 1)
    assert rate == pytest.approx(0.3176, abs=5e-5)
    assert (pairs * matrix * np.exp(rate * matrix)).sum() * rate == pytest.approx(0.4012, abs=5e-5)
    assert (BLOSUM62["W", "F"], BLOSUM62["I", "V"], BLOSUM62["C", "E"]) == (1, 3, -4)
    assert sum(PER_MILLE.values()) == pytest.approx(1000, abs=0.1)
    mutants = [(), (Mutation(0, "W", "F"),), (Mutation(0, "W", "F"), Mutation(4, "C", "E")), (Mutation(1, "X", "A"),)]
    assert blosum62(mutants).tolist() == [0, 1, -3, 0]
    assert fewer_mutations(mutants).tolist() == [0, -1, -2, -1]
    assert composition(mutants)[:2] == pytest.approx([0, np.log(38.56 / 13.30)])


def test_site_independent_counts_the_alignment(tmp_path):
    wild, path = WildType("P", "MKTAY", 1), tmp_path / "family.a3m"
    path.write_text(">P\nKT-A\n>1\nKSgg-A\n>2\nRS-.A\n>3\nKSW-\n")
    profile = read_profile(path, wild)
    q = {letter: value / sum(PER_MILLE.values()) for letter, value in PER_MILLE.items()}
    mutants = [(Mutation(1, "K", "R"),), (Mutation(2, "T", "S"), Mutation(3, "A", "G")), (Mutation(4, "Y", "A"),)]
    expected = [
        np.log((1 + q["R"]) / (3 + q["K"])),
        np.log((3 + q["S"]) / (1 + q["T"])) + np.log(q["G"] / (3 + q["A"])),
        np.log(q["A"] / q["Y"]),  # outside the alignment
    ]
    assert site_independent(mutants, profile) == pytest.approx(expected, abs=1e-12)
    for text, error in (
        (">P\nKTA\n>1\nKT\n", "line 3: 2 columns"),
        (">P\nKT\n", "1 sequences"),
        (">P\nG\n>1\nG\n", "piece"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=error):
            read_profile(path, wild)
