"""Metrics of one's own data, each a function of how often each protein is drawn. Pure numpy.

    statistics = classification(scores, labels)
    statistics(np.ones(N))                           {"mcc": ..., "accuracy": ..., ...}: the split's own numbers
    several_intervals(statistics, N, 1000)           and their 95% intervals (tape.scoring.bootstrap)

The numbers are scikit-learn's (with counts as sample_weight). A class that the drawn proteins lack is in no mean over
classes; where a metric is undefined it is NaN, and all are where a score is not finite.

Legend: N proteins, C classes, K confusion counts [labels, predictions].
"""

from collections.abc import Callable, Sequence

import numpy as np

from tape.metrics import IGNORE
from tape.scoring.bootstrap import Scores, matthews, statistic_of

Statistics = Callable[[np.ndarray], dict[str, float]]
MANY = 1 << 20  # scores (N * C) from which fewer resamples have to do
REGRESSION = ("spearmanr", "pearsonr", "rmse", "mae")
CLASSIFICATION = ("mcc", "accuracy", "balanced_accuracy", "auroc", "f1_macro")
MULTILABEL = ("f1_micro", "f1_macro", "auroc")
PER_RESIDUE = ("mcc", "accuracy", "balanced_accuracy", "f1_macro")


def resamples(scores: int) -> int:
    """How many resamples N * C scores allow in seconds."""
    return 1000 if scores < MANY else 200


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where below is 0."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=np.asarray(below) > 0)


def _mean(values: np.ndarray) -> float:
    """The mean of what is no NaN; NaN where nothing is left."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def undefined(names: Sequence[str]) -> Statistics:
    return lambda counts: dict.fromkeys(names, float("nan"))


def regression(scores: np.ndarray, labels: np.ndarray) -> Statistics:
    """scores, labels [N]: Spearman's rho, Pearson's r, root mean square and mean absolute error."""
    if not np.isfinite(scores).all():
        return undefined(REGRESSION)
    x, y = scores.astype(np.float64), labels.astype(np.float64)
    spearman, error = statistic_of([Scores("spearman", np.stack([x, y], 1))]), x - y

    def statistics(counts: np.ndarray) -> dict[str, float]:
        total = counts.sum()
        a, b = x - counts @ x / total, y - counts @ y / total
        spread = np.sqrt((counts @ (a * a)) * (counts @ (b * b)))
        pearson = float(counts @ (a * b) / spread) if spread > 0 else float("nan")
        rmse, mae = float(np.sqrt(counts @ error**2 / total)), float(counts @ abs(error) / total)
        return dict(zip(REGRESSION, (spearman(counts), pearson, rmse, mae), strict=True))

    return statistics


def of_confusion(confusion: np.ndarray) -> dict[str, float]:
    """MCC, accuracy, balanced accuracy and macro F1 of K [C, C]; the last two over the classes that have labels."""
    right, labels, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    present, total = labels > 0, confusion.sum()
    return {
        "mcc": matthews(confusion) if total > 0 else float("nan"),
        "accuracy": float(right.sum() / total) if total > 0 else float("nan"),
        "balanced_accuracy": _mean(_ratio(right, labels)),
        "f1_macro": _mean(_ratio(2 * right, labels + predicted)[present]),
    }


def auroc(scores: np.ndarray, positive: np.ndarray, known: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Areas under the ROC curve of C columns as a function of counts: [C], NaN where one side is empty.

    scores [N, C]; positive bool [N, C]; known bool [N, C], False: of no column's proteins. Equal scores count half.
    """
    size = scores.shape[1]
    columns = [np.unique(column, return_inverse=True) for column in scores.T]
    starts = np.cumsum([0, *(len(values) for values, _ in columns)])
    group = np.stack([inverse + start for (_, inverse), start in zip(columns, starts, strict=False)], 1).ravel()
    column_of = np.repeat(np.arange(size), np.diff(starts))
    is_positive, is_negative = (positive & known).astype(np.float64), (~positive & known).astype(np.float64)

    def areas(counts: np.ndarray) -> np.ndarray:
        up, down = (
            np.bincount(group, (counts[:, None] * side).ravel(), starts[-1]) for side in (is_positive, is_negative)
        )
        ends = np.cumsum(down)
        below = ends - down - np.concatenate([[0.0], ends])[starts[:-1]][column_of]
        pairs = np.bincount(column_of, up * (below + down / 2), size)
        return _ratio(pairs, np.bincount(column_of, up, size) * np.bincount(column_of, down, size))

    return areas


def classification(scores: np.ndarray, labels: np.ndarray) -> Statistics:
    """scores [N, C] probabilities, labels [N]; AUROC is the mean over classes, each against the rest."""
    if not np.isfinite(scores).all():
        return undefined(CLASSIFICATION)
    size = scores.shape[1]
    pairs = labels * size + scores.argmax(1)
    areas = auroc(scores, labels[:, None] == np.arange(size), np.ones(scores.shape, bool))

    def statistics(counts: np.ndarray) -> dict[str, float]:
        values = of_confusion(np.bincount(pairs, counts, size * size).reshape(size, size))
        return {name: (values | {"auroc": _mean(areas(counts))})[name] for name in CLASSIFICATION}

    return statistics


def per_residue(confusions: np.ndarray) -> Statistics:
    """confusions [N, C * C]: each protein's K."""
    size = round(confusions.shape[1] ** 0.5)
    if not np.isfinite(confusions).all():
        return undefined(PER_RESIDUE)
    return lambda counts: {name: of_confusion((counts @ confusions).reshape(size, size))[name] for name in PER_RESIDUE}


def multilabel(scores: np.ndarray, labels: np.ndarray) -> Statistics:
    """scores [N, C] logits (0 decides), labels [N, C] of 1, 0, -1 (not known). Macro F1 is over the classes that have a
    positive, AUROC the mean over the classes that have both."""
    if not np.isfinite(scores).all():
        return undefined(MULTILABEL)
    table, areas = hits(scores, labels), auroc(scores, labels == 1, labels != IGNORE)

    def statistics(counts: np.ndarray) -> dict[str, float]:
        right, positive, predicted = np.einsum("n,nkc->kc", counts, table)
        micro = _ratio(2 * right.sum(), (positive + predicted).sum())
        macro = _mean(_ratio(2 * right, positive + predicted)[positive > 0])
        return {"f1_micro": float(micro), "f1_macro": macro, "auroc": _mean(areas(counts))}

    return statistics


def hits(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 [N, 3, C]: whether each label is right and positive, positive, predicted; 0 where it is not known."""
    known, predicted = labels != IGNORE, scores > 0
    return np.stack([(labels == 1) & predicted, labels == 1, predicted & known], 1).astype(np.float64)


def class_table(
    classes: Sequence[str], right: np.ndarray, labels: np.ndarray, predicted: np.ndarray, areas: np.ndarray | None
) -> list[dict[str, object]]:
    """A row a class, of counts [C]: precision (NaN where it was never predicted), recall, F1, support (and AUROC)."""
    values = {
        "precision": _ratio(right, predicted),
        "recall": _ratio(right, labels),
        "f1": _ratio(2 * right, labels + predicted),
        "support": labels.astype(np.int64),
    }
    values |= {} if areas is None else {"auroc": areas}
    return [{"class": name} | {key: value[i].item() for key, value in values.items()} for i, name in enumerate(classes)]
