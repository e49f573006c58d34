"""95% intervals over proteins: how far would the number move with other test proteins of the same kind? Pure numpy.

A split's score is kept as two columns per protein, by kind:
  ratio       (sum, count); sum of sums / sum of counts: accuracy over residues, P@L/5 as a mean over proteins
  perplexity  exp of such a ratio, of cross-entropies
  spearman    (predicted, measured); the rank correlation with average ranks for ties
  mcc         (label, predicted class), or of classes a residue the C * C counts of (label, predicted) pairs
Proteins are drawn with replacement, 10,000 times (2,000 for Spearman), with a fixed seed. A paired difference draws
the same proteins for both runs, so that what the two share (hard proteins) cancels. Several runs (seeds) of one kind
count as one measurement: in each draw, the mean of their scores on the drawn proteins.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from proteinlm.errors import InputError

RESAMPLES = {"ratio": 10_000, "perplexity": 10_000, "spearman": 2_000, "mcc": 2_000}
SEED = 20210816


@dataclass(frozen=True)
class Scores:
    """One run's per-protein columns on one split, as stored by `tape-eval --save_predictions`."""

    kind: str  # a key of RESAMPLES
    columns: np.ndarray  # float64 [N, 2]; [N, C * C] of mcc a residue

    def __post_init__(self):
        width = self.columns.shape[1] if self.columns.ndim == 2 else 0
        if self.kind not in RESAMPLES or not (width == 2 or (self.kind == "mcc" and width == math.isqrt(width) ** 2)):
            raise InputError(
                f"per-protein scores: kind {self.kind!r} with shape {self.columns.shape}; "
                f"should be one of {', '.join(RESAMPLES)} with [N, 2]"
            )


def average_ranks(groups: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Average ranks [N] of values that occur counts[i] times each; groups: int[N], the dense rank of value i."""
    occurrences = np.bincount(groups, weights=counts)
    ranks = np.cumsum(occurrences) - (occurrences - 1) / 2
    return ranks[groups]


def _spearman(columns: np.ndarray) -> Callable[[np.ndarray], float]:
    """The rank correlation as a function of how often each protein was drawn."""
    groups = [np.unique(column, return_inverse=True)[1] for column in columns.T]

    def score(counts: np.ndarray) -> float:
        total = counts.sum()
        x, y = (average_ranks(group, counts) for group in groups)
        x, y = x - counts @ x / total, y - counts @ y / total
        spread = np.sqrt((counts @ (x * x)) * (counts @ (y * y)))
        return float(counts @ (x * y) / spread) if spread > 0 else np.nan

    return score


def _ratio(columns: np.ndarray) -> Callable[[np.ndarray], float]:
    """sum / count as a function of how often each protein was drawn."""

    def score(counts: np.ndarray) -> float:
        total, count = counts @ columns
        return float(total / count) if count > 0 else np.nan

    return score


def matthews(confusion: np.ndarray) -> float:
    """Matthews' correlation of a confusion matrix [C, C] (labels down, predictions across), Gorodkin's (2004) for more
    than two classes; 0, as in scikit-learn, where labels or predictions are all of one class."""
    total, labels, predicted = confusion.sum(), confusion.sum(1), confusion.sum(0)
    spread = np.sqrt((total**2 - labels @ labels) * (total**2 - predicted @ predicted))
    return float((total * np.trace(confusion) - labels @ predicted) / spread) if spread > 0 else 0.0


def _mcc(columns: np.ndarray) -> Callable[[np.ndarray], float]:
    """Matthews' correlation as a function of how often each protein was drawn."""
    if columns.shape[1] != 2:
        size = math.isqrt(columns.shape[1])
        return lambda counts: matthews((counts @ columns).reshape(size, size))
    size = int(columns.max()) + 1
    pairs = (columns @ [size, 1]).astype(np.int64)
    return lambda counts: matthews(np.bincount(pairs, counts, size * size).reshape(size, size))


def statistic_of(runs: Sequence[Scores]) -> Callable[[np.ndarray], float]:
    """The mean of the runs' scores as a function of how often each protein was drawn."""
    if len({(run.kind, len(run.columns)) for run in runs}) != 1:
        kinds = ", ".join(f"{run.kind} over {len(run.columns)}" for run in runs) or "none"
        raise InputError(f"runs to average: {kinds} proteins; all should score the same proteins the same way")
    if len(runs) > 1:
        parts = [statistic_of([run]) for run in runs]
        return lambda counts: float(np.mean([part(counts) for part in parts]))
    columns = runs[0].columns.astype(np.float64)
    if runs[0].kind in ("spearman", "mcc"):
        return {"spearman": _spearman, "mcc": _mcc}[runs[0].kind](columns)
    ratio = _ratio(columns)
    return ratio if runs[0].kind == "ratio" else lambda counts: float(np.exp(ratio(counts)))


def _several(scores: Scores | Sequence[Scores]) -> Sequence[Scores]:
    return [scores] if isinstance(scores, Scores) else scores


def _draws(number: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Float64 [N] per resample: how often each protein was drawn."""
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(rng.integers(number, size=number), minlength=number).astype(np.float64)


def _summary(value: float, samples: np.ndarray, seed: int) -> dict[str, float | int | None]:
    defined = samples[np.isfinite(samples)]
    low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) else (np.nan, np.nan)
    return {
        "value": value,
        "low": float(low),
        "high": float(high),
        "resamples": len(samples),
        "undefined": len(samples) - len(defined),
        "seed": seed,
    }


def confidence_interval(
    scores: Scores | Sequence[Scores], resamples: int | None = None, seed: int = SEED
) -> dict[str, float | int | None]:
    """The score (of several runs: their mean), its 95% percentile interval over proteins, and how it was drawn."""
    runs = _several(scores)
    statistic, number = statistic_of(runs), len(runs[0].columns)
    draws = _draws(number, resamples or RESAMPLES[runs[0].kind], seed)
    samples = np.array([statistic(counts) for counts in draws])
    return _summary(statistic(np.ones(number)), samples, seed)


def several_intervals(
    statistics: Callable[[np.ndarray], Mapping[str, float]], number: int, resamples: int, seed: int = SEED
) -> dict[str, dict[str, float | int | None]]:
    """`confidence_interval` of several metrics at once, each a function of how often each of `number` proteins was
    drawn."""
    samples = [statistics(counts) for counts in _draws(number, resamples, seed)]
    everything = statistics(np.ones(number))
    return {name: _summary(v, np.array([s[name] for s in samples]), seed) for name, v in everything.items()}


def paired_difference(
    scores_a: Scores | Sequence[Scores],
    scores_b: Scores | Sequence[Scores],
    resamples: int | None = None,
    seed: int = SEED,
) -> dict[str, float | int | None]:
    """Score of a minus score of b on the same proteins in the same order, with its 95% interval over proteins.

    a and b may each be several runs (seeds, as many as each has): then it is the difference of their means.
    """
    runs_a, runs_b = _several(scores_a), _several(scores_b)
    first, second = statistic_of(runs_a), statistic_of(runs_b)
    a, b = runs_a[0], runs_b[0]
    if a.kind != b.kind or len(a.columns) != len(b.columns):
        raise InputError(
            f"paired difference: {a.kind} over {len(a.columns)} proteins against {b.kind} over "
            f"{len(b.columns)}; both should score the same proteins the same way"
        )
    draws = _draws(len(a.columns), resamples or RESAMPLES[a.kind], seed)
    samples = np.array([first(counts) - second(counts) for counts in draws])
    everything = np.ones(len(a.columns))
    return _summary(first(everything) - second(everything), samples, seed)


def mean_of(values: np.ndarray) -> Scores:
    """The columns of a metric that is the mean of values [N]; a NaN leaves the mean."""
    known = ~np.isnan(values)
    return Scores("ratio", np.stack([np.where(known, values, 0.0), known], axis=1).astype(np.float64))
