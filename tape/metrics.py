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
from collections.abc import Sequence

import numpy as np
from scipy import stats

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


def spearmanr(scores: np.ndarray, labels: np.ndarray) -> float:
    """Spearman's rank correlation of scores [N] and labels [N]. NaN for fewer than two values or a constant side."""
    scores, labels = np.asarray(scores, np.float64).ravel(), np.asarray(labels, np.float64).ravel()
    if scores.shape != labels.shape:
        raise ValueError(f"spearmanr needs as many scores as labels, got {len(scores)} and {len(labels)}")
    if len(scores) < 2 or not (np.isfinite(scores).all() and np.isfinite(labels).all()):
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)  # the NaN says it
        return float(stats.spearmanr(labels, scores).statistic)


def mean_squared_error(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean of (score - label)^2 over N values, in float64. NaN when there are none."""
    difference = np.asarray(scores, np.float64).ravel() - np.asarray(labels, np.float64).ravel()
    return float(np.mean(difference**2)) if difference.size else float("nan")


def perplexity(cross_entropies: np.ndarray) -> float:
    """exp of the mean cross-entropy (nats) over all masked residues [N] of the split."""
    if not cross_entropies.size:
        return float("nan")
    with np.errstate(over="ignore"):
        return float(np.exp(np.mean(cross_entropies, dtype=np.float64)))


def precision_name(divisor: str, band: str) -> str:
    """`precision_at_l5` (separation >= 6), `precision_at_l5_long` ..."""
    return f"precision_at_{divisor}" + (f"_{band}" if band else "")


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
