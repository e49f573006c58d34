"""How well scores rank measured mutants: Spearman, NDCG and top-decile recall, each with a 95% interval.

    intervals(scores, measured)["spearman"]          {"value": ..., "low": ..., "high": ..., ...}
    differences(scores, others, measured)            the same mutants drawn for both

NDCG and recall are ProteinGym's (proteingym/performance_DMS_benchmarks.py at a6fc27f): gains are the measured values
scaled to 0 ... 1, of the best tenth by score; recalled is the share of the mutants measured above the 90th percentile
that score above theirs. Equal scores, which ProteinGym ranks in any order, share their gain, as in scikit-learn.
Mutants are drawn with replacement (tape.scoring.bootstrap).

Legend: N mutants.
"""

import numpy as np

from tape.scoring.bootstrap import Scores, several_intervals, statistic_of
from tape.scoring.resampled import Statistics, resamples, undefined

METRICS = ("spearman", "ndcg", "top_recall")
TOP = 0.1


def _discounted_gain(groups: np.ndarray, gains: np.ndarray, counts: np.ndarray, top: int) -> float:
    """Of N gains in the order of `groups` (0 first), each drawn counts[i] times; the gains of a group are shared."""
    sizes = np.bincount(groups, counts)
    totals = np.bincount(groups, counts * gains)
    discounts = np.zeros(int(counts.sum()) + 1)  # [r]: of the first r ranks together
    discounts[1 : top + 1] = 1 / np.log2(np.arange(2, top + 2))
    discounts = np.cumsum(discounts)
    ends = np.cumsum(sizes).astype(np.int64)
    share = discounts[ends] - discounts[ends - sizes.astype(np.int64)]
    return float(np.sum(np.divide(totals, sizes, out=np.zeros_like(totals), where=sizes > 0) * share))


def _percentile(values: np.ndarray, order: np.ndarray, counts: np.ndarray, share: float) -> float:
    """numpy's, of values [N] that occur counts[i] times each; order: of values, ascending."""
    ends = np.cumsum(counts[order])
    place = share * (ends[-1] - 1)
    low, high = values[order[np.searchsorted(ends, [np.floor(place), np.ceil(place)], side="right")]]
    return float(low + (high - low) * (place - np.floor(place)))


def ranking(scores: np.ndarray, measured: np.ndarray) -> Statistics:
    """METRICS of scores and measured values [N] as a function of how often each mutant was drawn."""
    x, y = np.asarray(scores, np.float64), np.asarray(measured, np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return undefined(METRICS)
    spearman = statistic_of([Scores("spearman", np.stack([x, y], 1))])
    by_score, by_measured = (np.unique(-values, return_inverse=True)[1] for values in (x, y))
    orders = np.argsort(x, kind="stable"), np.argsort(y, kind="stable")

    def statistics(counts: np.ndarray) -> dict[str, float]:
        drawn = y[counts > 0]
        spread, top = drawn.max() - drawn.min(), int(counts.sum() * TOP)
        gains = (y - drawn.min()) / spread if spread > 0 else np.zeros_like(y)
        ideal = _discounted_gain(by_measured, gains, counts, top)
        limits = [_percentile(*pair, counts, 1 - TOP) for pair in zip((x, y), orders, strict=True)]
        best = counts * (y > limits[1])
        return {
            "spearman": spearman(counts),
            "ndcg": _discounted_gain(by_score, gains, counts, top) / ideal if ideal > 0 else np.nan,
            "top_recall": float(best[x > limits[0]].sum() / best.sum()) if best.sum() > 0 else np.nan,
        }

    return statistics


def intervals(scores: np.ndarray, measured: np.ndarray) -> dict[str, dict[str, float | int | None]]:
    """Each of METRICS with its 95% interval over mutants."""
    return several_intervals(ranking(scores, measured), len(scores), resamples(len(scores)))


def differences(scores: np.ndarray, others: np.ndarray, measured: np.ndarray) -> dict[str, dict]:
    """`intervals` of scores minus others, on the same mutants."""
    first, second = ranking(scores, measured), ranking(others, measured)

    def statistics(counts: np.ndarray) -> dict[str, float]:
        a, b = first(counts), second(counts)
        return {name: a[name] - b[name] for name in METRICS}

    return several_intervals(statistics, len(scores), resamples(len(scores)))
