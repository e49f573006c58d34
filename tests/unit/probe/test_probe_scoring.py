"""Metrics of probes against scikit-learn and Gorodkin's formula, and what their intervals draw."""

import numpy as np
import pytest
from sklearn import metrics as sklearn

from probe.probes import scoring
from probe.probes.data import Target
from probe.probes.scoring import count, differences, intervals

RNG = np.random.default_rng(3)
LABELS = [RNG.integers(-1, 4, RNG.integers(3, 9)).astype(np.int16) for _ in range(40)]
PREDICTED = [np.where(RNG.random(len(own)) < 0.6, own, RNG.integers(0, 4, len(own))) for own in LABELS]
PREDICTED = [np.where(own < 0, 0, own) for own in PREDICTED]
LENGTHS = np.array([len(own) for own in LABELS])
TARGET = Target("ss", tuple("abcd"), LABELS)


def gorodkin(labels, predicted, classes):
    """R_K as a correlation of indicator matrices: cov(X, Y) / sqrt(cov(X, X) cov(Y, Y)), Gorodkin 2004."""
    x, y = (np.eye(classes)[values] for values in (labels, predicted))

    def covariance(a, b):
        return ((a - a.mean(0)) * (b - b.mean(0))).sum()

    return covariance(x, y) / np.sqrt(covariance(x, x) * covariance(y, y))


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(scoring, "RESAMPLES", 200)


def of_proteins(seed):
    """(target, predictions) of a class a protein, some unknown."""
    rng = np.random.default_rng(seed)
    labels = np.random.default_rng(0).integers(-1, 4, 60).astype(np.int16)
    return Target("location", tuple("abcd"), labels), np.where(
        rng.random(60) < 0.5, abs(labels), rng.integers(0, 4, 60)
    )


@pytest.mark.parametrize("many", [True, False])
def test_metrics_are_scikit_learns(many):
    """A class a residue, and a class a protein."""
    if many:
        target, predicted, lengths = TARGET, PREDICTED, LENGTHS
    else:
        (target, predicted), lengths = of_proteins(1), np.ones(60, np.int64)
    places = np.arange(len(predicted))
    y, p = (np.concatenate([np.atleast_1d(own) for own in values]) for values in (target.labels, predicted))
    y, p = y[y >= 0], p[y >= 0]
    values = {name: v["value"] for name, v in intervals([count(target, places, predicted, lengths)], 4).items()}
    assert values["accuracy"] == pytest.approx(sklearn.accuracy_score(y, p))
    assert values["balanced_accuracy"] == pytest.approx(sklearn.balanced_accuracy_score(y, p))
    assert values["mcc"] == pytest.approx(sklearn.matthews_corrcoef(y, p)) == pytest.approx(gorodkin(y, p, 4))
    assert values["f1_macro"] == pytest.approx(sklearn.f1_score(y, p, average="macro"))
    assert values["accuracy"] != pytest.approx(values["balanced_accuracy"], abs=1e-4)


def test_unknown_labels_and_cropped_residues_are_not_scored():
    places = np.array([0, 5, 7])
    counted = count(TARGET, places, [PREDICTED[i][:2] for i in places], np.minimum(LENGTHS, 2))
    known = [(LABELS[i][:2] >= 0).sum() for i in places]
    assert len(counted.pairs) == sum(known) and counted.places.tolist() == [
        i for i, n in zip(places, known, strict=True) if n
    ]
    target, predicted = of_proteins(1)
    counted = count(target, np.arange(60), predicted, np.ones(60, np.int64))
    assert counted.places.tolist() == np.flatnonzero(target.labels >= 0).tolist()


def test_seeds_are_averaged_and_differences_are_paired():
    target, first = of_proteins(1)
    places, lengths = np.arange(60), np.ones(60, np.int64)
    runs = [count(target, places, of_proteins(seed)[1], lengths) for seed in (1, 2)]
    alone = [intervals([run], 4)["accuracy"]["value"] for run in runs]
    assert intervals(runs, 4)["accuracy"]["value"] == pytest.approx(np.mean(alone))
    same = differences(runs, runs, 4)["mcc"]
    assert (same["value"], same["low"], same["high"]) == (0, 0, 0)
    better = np.where(target.labels >= 0, target.labels, 0)
    difference = differences([count(target, places, better, lengths)], runs[:1], 4)["accuracy"]
    assert difference["value"] == pytest.approx(1 - alone[0]) and 0 < difference["low"] < difference["high"]
    assert len(set(first)) > 1


def test_proteins_are_drawn_and_not_residues():
    """Proteins of 50 residues that are right or wrong together: the interval is that of 16 draws, not of 800."""
    labels = [np.zeros(50, np.int16) for _ in range(16)]
    predicted = [np.full(50, i % 2) for i in range(16)]
    counted = count(Target("t", ("a", "b"), labels), np.arange(16), predicted, np.full(16, 50))
    accuracy = intervals([counted], 2)["accuracy"]
    assert accuracy["high"] - accuracy["low"] > 0.35  # of residues it would be 0.07


def test_many_labels_do_not_overflow():
    size = 200_000
    labels = [np.arange(size).astype(np.int16) % 2]
    counted = count(Target("t", ("a", "b"), labels), np.array([0]), [np.arange(size) % 2], np.array([size]))
    assert scoring.values_of(counted, 2)["mcc"] == pytest.approx(1)


def test_few_labels_of_many_classes_take_no_table_a_protein():
    target = Target("fold", tuple(map(str, range(300))), np.arange(60).astype(np.int16) * 5)
    counted = count(target, np.arange(60), np.arange(60) * 5, np.ones(60, np.int64))
    assert scoring._tables(counted, 300)(np.ones(60)).trace() == 60
