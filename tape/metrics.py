"""Metrics of the TAPE tasks: pure numpy functions of a whole split, never of a batch.

accuracy    right / counted, a label of -1 is not counted
spearmanr   scipy's, ties by mean rank
perplexity  exp(sum of masked cross-entropy / number of masked residues)
precision   P@L, P@L/2 and P@L/5 of contacts by separation band: per protein, then the mean over proteins

What must hold: no value depends on batch size, padding or the order of a batch. A score that is not finite makes the
metric NaN rather than a number that looks measured.

Legend: L residues of one protein, N proteins (or residues), C classes.
"""

import warnings
from collections.abc import Callable, Sequence

import numpy as np

IGNORE = -1  # label of what is not scored

# Separation |i - j| of a pair, both ends included (None = no upper end). "" is the band of TAPE's own number.
BANDS: dict[str, tuple[int, int | None]] = {
    "": (6, None),
    "short": (6, 11),
    "medium": (12, 23),
    "long": (24, None),
    "medium_long": (12, None),
}
DIVISORS: dict[str, int] = {"l": 1, "l2": 2, "l5": 5}  # P@L, P@L/2, P@L/5


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of the labels [N] other than -1 at which `scores` [N, C] is highest. NaN when none is counted."""
    right, counted = count_right(scores, labels)
    return right / counted if counted else float("nan")


def count_right(scores: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
    """(right, counted) of scores [N, C] against labels [N]; right is NaN where a counted score is not finite."""
    counted = labels != IGNORE
    scores, labels = scores[counted], labels[counted]
    if not np.isfinite(scores).all():
        return float("nan"), len(labels)
    return float((scores.argmax(-1) == labels).sum()), len(labels)


def _pairs(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 [N]; ValueError unless there is a score for each label."""
    scores, labels = np.asarray(scores, np.float64).ravel(), np.asarray(labels, np.float64).ravel()
    if scores.shape != labels.shape:
        raise ValueError(f"a score for each label is needed, got {len(scores)} and {len(labels)}")
    return scores, labels


def spearmanr(scores: np.ndarray, labels: np.ndarray) -> float:
    """Spearman's rank correlation of scores [N] and labels [N]. NaN for fewer than two values or a constant side."""
    from scipy import stats  # takes half a second, which what only reads results need not wait for

    scores, labels = _pairs(scores, labels)
    if len(scores) < 2 or not (np.isfinite(scores).all() and np.isfinite(labels).all()):
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)  # the NaN says it
        return float(stats.spearmanr(labels, scores).statistic)


def mean_squared_error(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean of (score - label)^2 over N values, in float64. NaN when there are none."""
    difference = np.subtract(*_pairs(scores, labels))
    return float(np.mean(difference**2)) if difference.size else float("nan")


def mean_absolute_error(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean of |score - label| over N values, in float64. NaN when there are none."""
    difference = np.subtract(*_pairs(scores, labels))
    return float(np.mean(np.abs(difference))) if difference.size else float("nan")


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """(mean, sample standard deviation) over seeds; NaN where a value is, and no spread (NaN) of one value."""
    array = np.asarray(values, np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else float("nan")


def perplexity(cross_entropies: np.ndarray) -> float:
    """exp of the mean cross-entropy (nats) over all masked residues [N] of the split."""
    if not cross_entropies.size:
        return float("nan")
    with np.errstate(over="ignore"):
        return float(np.exp(np.mean(cross_entropies, dtype=np.float64)))


def precision_name(divisor: str, band: str) -> str:
    """`precision_at_l5` (separation >= 6), `precision_at_l5_long` ..."""
    return f"precision_at_{divisor}" + (f"_{band}" if band else "")


# TAPE's command-line names for metrics that have another name here.
ALIASES: dict[str, str] = {"L5": "precision_at_l5"}


def canonical_metric(name: str) -> str:
    """The name under which a result file has the metric: `L5` is `precision_at_l5`."""
    return ALIASES.get(name, name)


PRECISIONS: tuple[str, ...] = tuple(precision_name(divisor, band) for band in BANDS for divisor in DIVISORS)


def contact_precisions(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every precision of one protein, by name; NaN where the protein leaves that mean (no valid pair, or L//d = 0).

    scores [L, L]: higher = more likely in contact. labels [L, L]: 1 contact, 0 none, -1 invalid. Only pairs i < j are
    read. The L//d best pairs of a band count; a band with fewer valid pairs takes them all and divides by their number.
    Equal scores go in the order of (i, j).
    """
    length = len(scores)
    if scores.shape != (length, length) or labels.shape != scores.shape:
        raise ValueError(f"contact scores and labels must be square and equal, got {scores.shape} and {labels.shape}")
    first, second = np.triu_indices(length, k=min(low for low, _ in BANDS.values()))  # in the order of (i, j)
    counted = labels[first, second] != IGNORE
    first, second = first[counted], second[counted]
    pair_scores = scores[first, second]
    if not np.isfinite(pair_scores).all():
        raise ValueError("contact scores must be finite")
    best_first = np.argsort(-pair_scores, kind="stable")  # stable: ties stay in the order of (i, j)
    separation = (second - first)[best_first]
    contact = labels[first, second][best_first] == 1
    result = {}
    for band, (low, high) in BANDS.items():
        hits = contact[(separation >= low) & (separation <= (length if high is None else high))]
        for divisor, number in DIVISORS.items():
            top = hits[: length // number]
            result[precision_name(divisor, band)] = float(top.mean()) if len(top) else float("nan")
    return result


def precision_table(proteins: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Precisions of N proteins (scores, labels): name -> float64 [N], NaN where a protein leaves that mean.

    Scores that are not finite give inf, so that the mean is not a number either (a diverged model has no precision).
    """
    rows = []
    for scores, labels in proteins:
        finite = np.isfinite(scores[labels != IGNORE]).all()
        rows.append(contact_precisions(scores, labels) if finite else dict.fromkeys(PRECISIONS, float("inf")))
    return {name: np.array([row[name] for row in rows], np.float64) for name in PRECISIONS}


def mean_over_proteins(values: np.ndarray) -> tuple[float, int]:
    """(mean over the proteins that have a value, number of proteins that left the mean) of values [N]."""
    left = int(np.isnan(values).sum())
    if left == len(values) or np.isinf(values).any():
        return float("nan"), left
    return float(np.nanmean(values)), left


# ---- the same in TAPE's calling convention, for its registry: metric(target, prediction), an entry a protein in each


def _tape_accuracy(target: Sequence, prediction: Sequence) -> float:
    """Share of the labels other than -1 at which the scores [..., C] are highest: labels of proteins or of residues."""
    scores, labels = list(map(np.atleast_2d, prediction)), list(map(np.atleast_1d, target))
    return accuracy(np.concatenate(scores), np.concatenate(labels)) if labels else float("nan")


def _tape_precision_at_l5(target: Sequence, prediction: Sequence) -> float:
    """P@L/5 (separation >= 6), mean over proteins; maps [L, L] of scores or [L, L, 2] of logits, and of labels."""
    maps = [np.asarray(scores, np.float64) for scores in prediction]
    maps = [scores[..., 1] - scores[..., 0] if scores.ndim == 3 else scores for scores in maps]
    table = precision_table([(s, np.asarray(t)) for s, t in zip(maps, target, strict=True)])
    return mean_over_proteins(table["precision_at_l5"])[0]


TAPE_METRICS: dict[str, Callable[[Sequence, Sequence], float]] = {
    "mse": lambda target, prediction: mean_squared_error(np.asarray(prediction), np.asarray(target)),
    "mae": lambda target, prediction: mean_absolute_error(np.asarray(prediction), np.asarray(target)),
    "spearmanr": lambda target, prediction: spearmanr(np.asarray(prediction), np.asarray(target)),
    "accuracy": _tape_accuracy,
    "precision_at_l5": _tape_precision_at_l5,
    "L5": _tape_precision_at_l5,
}
