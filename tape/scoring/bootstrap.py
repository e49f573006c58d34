"""95% intervals over proteins: how far would the number move with other test proteins of the same kind? Pure numpy.

A split's score is kept as two columns per protein, by kind:
  ratio       (sum, count); sum of sums / sum of counts: accuracy over residues, P@L/5 as a mean over proteins
  perplexity  exp of such a ratio, of cross-entropies
  spearman    (predicted, measured); the rank correlation with average ranks for ties
Proteins are drawn with replacement, 10,000 times (2,000 for Spearman), with a fixed seed. A paired difference draws
the same proteins for both runs, so that what the two share (hard proteins) cancels. Several runs (seeds) of one kind
count as one measurement: in each draw, the mean of their scores on the drawn proteins.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from proteinlm.errors import InputError

RESAMPLES = {"ratio": 10_000, "perplexity": 10_000, "spearman": 2_000}
SEED = 20210816


@dataclass(frozen=True)
class Scores:
    """One run's per-protein columns on one split, as stored by `tape-eval --save_predictions`."""

    kind: str  # "ratio", "perplexity" or "spearman"
    columns: np.ndarray  # float64 [N, 2]

    def __post_init__(self):
        if self.kind not in RESAMPLES or self.columns.ndim != 2 or self.columns.shape[1] != 2:
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


def _statistic(runs: Sequence[Scores]) -> Callable[[np.ndarray], float]:
    """The mean of the runs' scores as a function of how often each protein was drawn."""
    if len({(run.kind, len(run.columns)) for run in runs}) != 1:
        kinds = ", ".join(f"{run.kind} over {len(run.columns)}" for run in runs) or "none"
        raise InputError(f"runs to average: {kinds} proteins; all should score the same proteins the same way")
    if len(runs) > 1:
        parts = [_statistic([run]) for run in runs]
        return lambda counts: float(np.mean([part(counts) for part in parts]))
    columns = runs[0].columns.astype(np.float64)
    if runs[0].kind == "spearman":
        return _spearman(columns)
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
    statistic, number = _statistic(runs), len(runs[0].columns)
    draws = _draws(number, resamples or RESAMPLES[runs[0].kind], seed)
    samples = np.array([statistic(counts) for counts in draws])
    return _summary(statistic(np.ones(number)), samples, seed)


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
    first, second = _statistic(runs_a), _statistic(runs_b)
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
