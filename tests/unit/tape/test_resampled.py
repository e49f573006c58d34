"""The metrics of one's own data against scikit-learn, also as functions of how often each protein is drawn."""

import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from tape.scoring import resampled
from tape.scoring.bootstrap import Scores, confidence_interval, matthews, several_intervals

RNG = np.random.default_rng(0)
N, C = 60, 4
LABELS = RNG.integers(0, C, N)
PROBABILITIES = RNG.dirichlet(np.ones(C), N) + 0.4 * np.eye(C)[LABELS]
PROBABILITIES /= PROBABILITIES.sum(1, keepdims=True)
WEIGHTS = [np.ones(N), RNG.integers(0, 4, N).astype(float)]


@pytest.mark.parametrize("weights", WEIGHTS, ids=["all", "drawn"])
def test_classification_is_scikit_learns(weights):
    predicted = PROBABILITIES.argmax(1)
    expected = {
        "mcc": sk.matthews_corrcoef(LABELS, predicted, sample_weight=weights),
        "accuracy": sk.accuracy_score(LABELS, predicted, sample_weight=weights),
        "balanced_accuracy": sk.balanced_accuracy_score(LABELS, predicted, sample_weight=weights),
        "auroc": np.mean([sk.roc_auc_score(k == LABELS, PROBABILITIES[:, k], sample_weight=weights) for k in range(C)]),
        "f1_macro": sk.f1_score(LABELS, predicted, average="macro", sample_weight=weights),
    }
    assert resampled.classification(PROBABILITIES, LABELS)(weights) == pytest.approx(expected, abs=1e-12)
    worse = resampled.classification(PROBABILITIES[::-1], LABELS)(weights)  # the negative control: others' scores
    assert all(abs(worse[name] - value) > 0.05 for name, value in expected.items())


def test_auroc_counts_equal_scores_half():
    scores, labels = np.round(RNG.random(N), 1), RNG.random(N) < 0.4
    for weights in WEIGHTS:
        area = resampled.auroc(scores[:, None], labels[:, None], np.ones((N, 1), bool))(weights)
        assert area == pytest.approx([sk.roc_auc_score(labels, scores, sample_weight=weights)], abs=1e-12)
    assert np.isnan(resampled.auroc(scores[:, None], np.zeros((N, 1), bool), np.ones((N, 1), bool))(WEIGHTS[0])).all()


@pytest.mark.parametrize("weights", WEIGHTS, ids=["all", "drawn"])
def test_multilabel_is_scikit_learns(weights):
    labels = (RNG.random((N, C)) < 0.4).astype(int)
    scores = RNG.normal(size=(N, C)) + labels
    expected = {
        "f1_micro": sk.f1_score(labels, scores > 0, average="micro", sample_weight=weights),
        "f1_macro": sk.f1_score(labels, scores > 0, average="macro", sample_weight=weights),
        "auroc": sk.roc_auc_score(labels, scores, average="macro", sample_weight=weights),
    }
    assert resampled.multilabel(scores, labels)(weights) == pytest.approx(expected, abs=1e-12)


def test_labels_that_are_not_known_count_nowhere():
    """One column, some labels unknown: the numbers of the rest alone."""
    labels, scores = (RNG.random((N, 1)) < 0.5).astype(int), RNG.normal(size=(N, 1))
    some = RNG.random(N) < 0.7
    hidden = np.where(some[:, None], labels, -1)
    everything = resampled.multilabel(scores, hidden)(np.ones(N))
    assert everything == pytest.approx(resampled.multilabel(scores[some], labels[some])(np.ones(some.sum())))
    assert everything != pytest.approx(resampled.multilabel(scores, labels)(np.ones(N)))


def test_regression_is_scipys_and_scikit_learns():
    labels = RNG.normal(size=N)
    scores = np.round(labels + RNG.normal(size=N), 1)
    expected = {
        "spearmanr": stats.spearmanr(scores, labels).statistic,
        "pearsonr": stats.pearsonr(scores, labels).statistic,
        "rmse": sk.root_mean_squared_error(labels, scores),
        "mae": sk.mean_absolute_error(labels, scores),
    }
    statistics = resampled.regression(scores, labels)
    assert statistics(np.ones(N)) == pytest.approx(expected, abs=1e-12)
    counts = WEIGHTS[1]
    drawn = np.repeat(np.arange(N), counts.astype(int))
    assert statistics(counts) == pytest.approx(
        resampled.regression(scores[drawn], labels[drawn])(np.ones(len(drawn))), abs=1e-12
    )


def test_residues_are_added_up_over_proteins():
    lengths = RNG.integers(5, 15, 8)
    labels = [RNG.integers(0, 3, n) for n in lengths]
    predicted = [np.where(RNG.random(n) < 0.6, y, RNG.integers(0, 3, n)) for n, y in zip(lengths, labels, strict=True)]
    rows = [sk.confusion_matrix(y, p, labels=range(3)).ravel() for y, p in zip(labels, predicted, strict=True)]
    values = resampled.per_residue(np.array(rows, float))(np.ones(8))
    y, p = np.concatenate(labels), np.concatenate(predicted)
    assert values["mcc"] == pytest.approx(sk.matthews_corrcoef(y, p), abs=1e-12)
    assert values["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, p), abs=1e-12)


def test_the_class_table_is_scikit_learns():
    predicted = PROBABILITIES.argmax(1)
    confusion = sk.confusion_matrix(LABELS, predicted)
    rows = resampled.class_table("ABCD", np.diag(confusion), confusion.sum(1), confusion.sum(0), None)
    expected = sk.precision_recall_fscore_support(LABELS, predicted)
    for name, column in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert [row[name] for row in rows] == pytest.approx(column.tolist(), abs=1e-12)
    never = resampled.class_table("AB", np.array([3, 0]), np.array([3, 2]), np.array([5, 0]), None)
    assert np.isnan(never[1]["precision"]) and never[1]["recall"] == 0


def test_matthews_of_one_class_is_scikit_learns_zero():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert matthews(np.array([[3.0, 0], [2, 0]])) == sk.matthews_corrcoef([0, 0, 0, 1, 1], [0] * 5) == 0


@pytest.mark.parametrize("per_residue", [False, True])
def test_the_interval_of_the_stored_columns_is_that_of_the_metric(per_residue):
    """The columns that --save_predictions keeps give the number and the interval of tape-eval."""
    pairs = np.stack([LABELS, PROBABILITIES.argmax(1)], 1).astype(float)
    columns = np.eye(C * C)[(pairs @ [C, 1]).astype(int)] if per_residue else pairs
    stored = confidence_interval(Scores("mcc", columns), resamples=200)
    own = several_intervals(resampled.classification(PROBABILITIES, LABELS), N, 200)["mcc"]
    assert stored == pytest.approx(own, abs=1e-12) and own["low"] < own["value"] < own["high"]


def test_scores_that_are_not_finite_have_no_metric():
    broken = PROBABILITIES.copy()
    broken[0, 0] = np.nan
    assert np.isnan(list(resampled.classification(broken, LABELS)(np.ones(N)).values())).all()
