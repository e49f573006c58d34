"""How well labels agree with the space that vectors lie in: nearest neighbours and silhouettes, and what chance gives.

Both are measured in the full space, not in a map of two dimensions, and only among points that have a label:
  purity      the share of a point's k nearest neighbours that have its label; the mean over points
  silhouette  (b - a) / max(a, b), a: mean distance to its own class, b: to the nearest other one; the mean over points
Intervals draw points with replacement, their neighbours staying who they are; chance is the same number with the labels
shuffled among the points. scikit-learn has the distances and silhouettes.
"""

from collections.abc import Callable

import numpy as np

from probe.projection.maps import need
from proteinlm.errors import InputError
from tape.scoring.bootstrap import confidence_interval, mean_of

SHUFFLES = 1000
SILHOUETTE_POINTS, SILHOUETTE_SHUFFLES = 2000, 200  # distances between all of them; a shuffle costs 30 ms
MEMORY = 256  # MiB of distances at a time
RESAMPLES = 2000


def nearest(
    queries: np.ndarray, references: np.ndarray | None = None, k: int = 1, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(Euclidean distances float64 [Q, k], which reference int64 [Q, k]), nearest first.

    references None: the queries are, and no point is its own neighbour; groups int [Q]: nor one of its group, so that
    there may be fewer than k: the rest is at an infinite distance.
    """
    metrics = need("sklearn.metrics", "scikit-learn", "probe")
    own = references is None
    references = queries if own else references

    def reduce(block: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(start, start + len(block))
        if own:
            block[rows - start, rows] = np.inf
        if groups is not None:
            block[groups[rows, None] == groups] = np.inf
        near = np.argpartition(block, k - 1, axis=1)[:, :k]
        distances = np.take_along_axis(block, near, 1)
        order = np.lexsort((near, distances))  # of equally near ones the first in the file
        return np.take_along_axis(distances, order, 1), np.take_along_axis(near, order, 1)

    chunks = metrics.pairwise_distances_chunked(queries, references, reduce_func=reduce, working_memory=MEMORY)
    distances, near = zip(*chunks, strict=True)
    return np.concatenate(distances), np.concatenate(near)


def purity(labels: np.ndarray, distances: np.ndarray, near: np.ndarray) -> np.ndarray:
    """float64 [N]: the share of each point's neighbours [N, k] with its label; NaN for one without neighbours."""
    exists = np.isfinite(distances)
    same = (labels[near] == labels[:, None]) & exists
    with np.errstate(invalid="ignore"):
        return same.sum(1) / exists.sum(1)


def chance(statistic: Callable[[np.ndarray], float], labels: np.ndarray, shuffles: int, seed: int) -> dict[str, float]:
    """Mean and 95% range of statistic(labels) with the labels shuffled."""
    generator = np.random.default_rng(seed)
    values = np.array([statistic(generator.permutation(labels)) for _ in range(shuffles)])
    low, high = np.percentile(values, [2.5, 97.5])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high), "shuffles": shuffles}


def purity_of(vectors: np.ndarray, labels: np.ndarray, k: int, seed: int, groups: np.ndarray | None = None) -> dict:
    """Purity of labelled points (vectors float64 [N, h], labels int [N]) with its interval, chance, and by class."""
    if k >= len(labels):
        raise InputError(f"--neighbors {k}: {len(labels)} points have a label; should be fewer than they are")
    distances, near = nearest(vectors, k=k, groups=groups)
    each = purity(labels, distances, near)
    if np.isnan(each).all():
        raise InputError("--exclude_relatives: all proteins with a label are relatives, so none has a neighbour")
    by_class = {int(label): float(np.nanmean(each[labels == label])) for label in np.unique(labels[~np.isnan(each)])}
    interval = confidence_interval(mean_of(each), RESAMPLES, seed)
    result = {key: interval[key] for key in ("value", "low", "high")} | {"k": k, "points": int((~np.isnan(each)).sum())}
    by_chance = chance(lambda shuffled: np.nanmean(purity(shuffled, distances, near)), labels, SHUFFLES, seed)
    return result | {"chance": by_chance, "by_class": by_class, "each": each}


def silhouette_of(vectors: np.ndarray, labels: np.ndarray, seed: int, most: int = SILHOUETTE_POINTS) -> dict:
    """Silhouette of labelled points, or of `most` of them drawn once, with its interval and chance.

    Its value is None where the points drawn have one class, or as many as they are.
    """
    metrics = need("sklearn.metrics", "scikit-learn", "probe")
    if len(labels) > most:
        drawn = np.sort(np.random.default_rng(seed).choice(len(labels), most, replace=False))
        vectors, labels = vectors[drawn], labels[drawn]
    if not 2 <= len(np.unique(labels)) < len(labels):
        return {"value": None, "points": len(labels)}
    table = metrics.pairwise_distances(vectors)
    each = metrics.silhouette_samples(table, labels, metric="precomputed")
    interval = confidence_interval(mean_of(each), RESAMPLES, seed)

    def statistic(shuffled: np.ndarray) -> float:
        return float(metrics.silhouette_score(table, shuffled, metric="precomputed"))

    by_chance = chance(statistic, labels, SILHOUETTE_SHUFFLES, seed)
    return {key: interval[key] for key in ("value", "low", "high")} | {"points": len(labels), "chance": by_chance}
