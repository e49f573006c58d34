"""What a head's predictions are worth: accuracy, balanced accuracy, Matthews' correlation and macro F1, with intervals.

    counted = count(target, places, predicted, lengths)        of one run: a row a protein
    intervals([counted, ...], classes)                         the mean over runs (seeds), 95% over proteins
    differences(runs, of_random, classes)                      the same proteins drawn for both

Matthews' correlation of more than two classes is Gorodkin's R_K. What must hold: the draws are of proteins, never of
residues, which are not independent of each other.

Legend: B proteins, C classes, K confusion counts [labels, predictions].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from probe.probes.data import Target
from tape.metrics import IGNORE
from tape.scoring.bootstrap import several_intervals
from tape.scoring.resampled import of_confusion

METRICS = ("accuracy", "balanced_accuracy", "mcc", "f1_macro")
RESAMPLES = 1000


@dataclass(frozen=True)
class Counted:
    """The proteins with a known label. places: of them; pairs int64 [M], label * C + prediction of each label known,
    owners int64 [M]: which of `places` it is of."""

    places: np.ndarray
    pairs: np.ndarray
    owners: np.ndarray

    def confusion(self, classes: int, counts: np.ndarray | None = None) -> np.ndarray:
        """K, each protein as often as `counts` [B] says (once)."""
        weights = None if counts is None else counts[self.owners]
        table = np.bincount(self.pairs, weights, classes * classes).reshape(classes, classes)
        return table.astype(np.float64)  # metrics multiply four of these counts


def count(target: Target, places: np.ndarray, predicted: Sequence, lengths: np.ndarray) -> Counted:
    """predicted: of each of `places` its class, or those of its residues; lengths: residues that were embedded."""
    size, kept, pairs = len(target.classes), [], []
    for i, own in zip(places, predicted, strict=True):
        own, labels = np.atleast_1d(own), np.atleast_1d(target.labels[i])
        labels = labels[: lengths[i]].astype(np.int64)
        known = labels != IGNORE
        if known.any():
            kept.append(i)
            pairs.append(labels[known] * size + own[known])
    owners = np.repeat(np.arange(len(kept)), [len(own) for own in pairs])
    return Counted(np.array(kept, np.int64), np.concatenate(pairs) if pairs else np.zeros(0, np.int64), owners)


def _statistics(runs: Sequence[Counted], classes: int) -> Callable[[np.ndarray], dict[str, float]]:
    """The mean of the runs' metrics as a function of how often each protein is drawn. Runs score the same proteins."""
    tables = [_tables(run, classes) for run in runs]

    def statistics(counts: np.ndarray) -> dict[str, float]:
        values = [of_confusion(table(counts)) for table in tables]
        return {name: float(np.mean([value[name] for value in values])) for name in METRICS}

    return statistics


def values_of(run: Counted, classes: int) -> dict[str, float]:
    """The metrics of one run."""
    values = of_confusion(run.confusion(classes))
    return {name: values[name] for name in METRICS}


def _tables(run: Counted, classes: int) -> Callable[[np.ndarray], np.ndarray]:
    """K as a function of how often each protein is drawn: a product where a protein's K is small beside its labels."""
    if len(run.pairs) < len(run.places) * classes**2:
        return lambda counts: run.confusion(classes, counts)
    cells = run.owners * classes**2 + run.pairs
    whole = np.bincount(cells, minlength=len(run.places) * classes**2).reshape(len(run.places), -1).astype(np.float64)
    return lambda counts: (counts @ whole).reshape(classes, classes)


def intervals(runs: Sequence[Counted], classes: int) -> dict[str, dict]:
    """{metric: {value, low, high ...}}: the mean of the runs, 95% over proteins."""
    return several_intervals(_statistics(runs, classes), len(runs[0].places), RESAMPLES)


def differences(runs: Sequence[Counted], others: Sequence[Counted], classes: int) -> dict[str, dict]:
    """`intervals` of runs minus others, on the same proteins."""
    first, second = _statistics(runs, classes), _statistics(others, classes)

    def statistics(counts: np.ndarray) -> dict[str, float]:
        a, b = first(counts), second(counts)
        return {name: a[name] - b[name] for name in METRICS}

    return several_intervals(statistics, len(runs[0].places), RESAMPLES)
