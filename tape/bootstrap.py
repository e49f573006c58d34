"""95% intervals over proteins: how far would the number move with other test proteins of the same kind? Pure numpy.

A split's score is kept as two columns per protein, by kind:
  ratio       (sum, count); sum of sums / sum of counts: accuracy over residues, P@L/5 as a mean over proteins
  perplexity  exp of such a ratio, of cross-entropies
  spearman    (predicted, measured); the rank correlation with average ranks for ties
Proteins are drawn with replacement, 10,000 times (2,000 for Spearman), with a fixed seed. A paired difference draws the
same proteins for both runs, so that what the two share (hard proteins) cancels.
"""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.errors import InputError
from pretrain.files import atomic_path

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


def _statistic(scores: Scores) -> Callable[[np.ndarray], float]:
    columns = scores.columns.astype(np.float64)
    if scores.kind == "spearman":
        return _spearman(columns)
    ratio = _ratio(columns)
    return ratio if scores.kind == "ratio" else lambda counts: float(np.exp(ratio(counts)))


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
    scores: Scores, resamples: int | None = None, seed: int = SEED
) -> dict[str, float | int | None]:
    """The score, its 95% percentile interval over proteins, and how it was drawn."""
    number, statistic = len(scores.columns), _statistic(scores)
    draws = _draws(number, resamples or RESAMPLES[scores.kind], seed)
    samples = np.array([statistic(counts) for counts in draws])
    return _summary(statistic(np.ones(number)), samples, seed)


def paired_difference(
    scores_a: Scores, scores_b: Scores, resamples: int | None = None, seed: int = SEED
) -> dict[str, float | int | None]:
    """Score of a minus score of b on the same proteins in the same order, with its 95% interval over proteins."""
    if scores_a.kind != scores_b.kind or len(scores_a.columns) != len(scores_b.columns):
        raise InputError(
            f"paired difference: {scores_a.kind} over {len(scores_a.columns)} proteins against {scores_b.kind} over "
            f"{len(scores_b.columns)}; both should score the same proteins the same way"
        )
    number = len(scores_a.columns)
    first, second = _statistic(scores_a), _statistic(scores_b)
    draws = _draws(number, resamples or RESAMPLES[scores_a.kind], seed)
    samples = np.array([first(counts) - second(counts) for counts in draws])
    everything = np.ones(number)
    return _summary(first(everything) - second(everything), samples, seed)


def save_scores(path: str | Path, scores: Scores, ids: Sequence[str]) -> None:
    """Write per-protein scores as npz: kind, columns [N, 2], ids [N]."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, kind=np.array(scores.kind), columns=scores.columns, ids=np.array(ids, dtype=np.str_))


def load_scores(path: str | Path) -> Scores:
    """What `save_scores` wrote."""
    try:
        with np.load(path) as stored:
            return Scores(str(stored["kind"]), stored["columns"])
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not the per-protein scores of tape-eval --save_predictions ({error})") from error
