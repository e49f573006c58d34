"""Labels from neighbours: the calibration worked by hand, leave-one-out, and that it means what it says."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from probe.projection.neighbors import nearest
from probe.projection.transfer import Calibration, bins, calibrate, quality


def test_calibration_by_hand():
    """Neighbours at 1, 2, 3, 4 of which the 1st, 3rd agree: a share that never rises is 1, 1/2, 1/2, 0."""
    calibration = Calibration(np.array([[1.0], [2], [3], [4], [np.inf]]), np.array([[1], [0], [1], [0], [1]], bool))
    asked = np.array([[0.5], [1], [2], [2.5], [3], [4], [9]])
    assert calibration.agreement(asked)[:, 0].tolist() == [1, 1, 0.5, 0.5, 0.5, 0, 0]
    assert calibration.nearer(asked[:, 0]).tolist() == [0, 0.25, 0.5, 0.5, 0.75, 1, 1]
    assert [(part["to"], part["agreement"]) for part in bins(calibration)] == [(1, 1), (2, 0), (3, 1), (4, 0)]


def clouds(count=400, classes=4, apart=2.0, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=count)
    centers = generator.normal(size=(classes, 6)) * apart
    return centers[labels] + generator.normal(size=(count, 6)) * generator.uniform(0.2, 3, size=(count, 1)), labels


def test_the_first_neighbour_is_right_as_often_as_a_classifier_left_one_out():
    vectors, labels = clouds(120)
    right = 0
    for i in range(len(labels)):
        rest = np.arange(len(labels)) != i
        right += KNeighborsClassifier(1).fit(vectors[rest], labels[rest]).predict(vectors[i : i + 1])[0] == labels[i]
    calibration = calibrate(vectors, labels, 2)
    result = quality(calibration, labels, np.arange(len(labels)), seed=0)
    assert result["right"]["value"] == pytest.approx(right / len(labels))
    assert result["largest_class"] == np.bincount(labels).max() / len(labels) < result["right"]["low"]
    assert sum(part["proteins"] for part in result["bins"]) == len(labels) and result["without_neighbour"] == 0


def test_what_is_calibrated_holds_for_new_proteins_and_not_for_other_labels():
    vectors, labels = clouds(1200, apart=1.2)
    old, new = slice(0, 600), slice(600, None)
    calibration = calibrate(vectors[old], labels[old], 1)
    distances, near = (values[:, 0] for values in nearest(vectors[new], vectors[old]))
    right = labels[old][near] == labels[new]
    agreement = calibration.agreement(distances[:, None])[:, 0]
    for part in np.array_split(np.argsort(agreement), 4):
        assert agreement[part].mean() == pytest.approx(right[part].mean(), abs=0.12)
    assert agreement.max() - agreement.min() > 0.4
    assert quality(calibration, labels[old], np.arange(600), seed=0)["calibration_error"] < 0.1
    shuffled = np.random.default_rng(1).permutation(labels[old])
    chance = calibrate(vectors[old], shuffled, 1).agreement(distances[:, None]).mean()
    assert chance == pytest.approx(0.25, abs=0.1) and abs(chance - right.mean()) > 0.2


def test_with_relatives_left_out_copies_do_not_count():
    vectors, labels = clouds(60, apart=0.0)  # labels that the place says nothing of
    twice, families = np.concatenate([vectors, vectors]), np.tile(np.arange(60), 2)
    labels = np.tile(labels, 2)
    assert quality(calibrate(twice, labels, 1), labels, families, 0)["right"]["value"] == 1
    apart = quality(calibrate(twice, labels, 1, families), labels, families, 0)
    assert apart["right"]["value"] < 0.6
