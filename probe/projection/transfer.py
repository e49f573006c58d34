"""Labels for new proteins from their nearest labelled ones, and how often such a neighbour was right.

    annotate("model", "deeploc.csv", "new.fasta", "new.csv", column="location")

The distance is calibrated on the reference itself: each reference protein asks for its own nearest neighbours, itself
left out, and an isotonic regression makes of (distance, same label?) the share that agrees at a distance, which never
rises with it; one regression for the first neighbour, one for the second, and so on. With relatives left out,
neighbours of the same cluster (tape.data.holdout: about 72% identity) do not count, which is what a protein without a
close relative in the reference meets. What must hold: no label of the query is looked at; what is beyond the farthest
reference is said to be so.
"""

import csv
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probe.arms import open_encoder
from probe.projection import vectors
from probe.projection.maps import need
from probe.projection.neighbors import RESAMPLES, nearest
from probe.projection.points import read_points
from proteinlm.errors import InputError
from proteinlm.files import atomic_path, check_writable, write_json
from proteinlm.tables import is_fasta
from tape.data.holdout import cluster_sequences
from tape.scoring.bootstrap import confidence_interval, mean_of

BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Of the reference's own neighbours [N, k], leave-one-out: distances (infinite where there is none), same label."""

    distances: np.ndarray  # float64
    same: np.ndarray  # bool

    @property
    def exists(self) -> np.ndarray:
        return np.isfinite(self.distances)

    def curve(self, rank: int = 0, rows: np.ndarray | None = None):
        """The isotonic regression of the neighbour of this rank, fitted on `rows` (bool [N])."""
        regression = need("sklearn.isotonic", "scikit-learn", "probe").IsotonicRegression
        use = self.exists[:, rank] if rows is None else self.exists[:, rank] & rows
        fitted = regression(increasing=False, y_min=0, y_max=1, out_of_bounds="clip")
        return fitted.fit(self.distances[use, rank], self.same[use, rank])

    def agreement(self, distances: np.ndarray) -> np.ndarray:
        """float64 [Q, k]: the share of reference proteins with the same label as their neighbour at that distance."""
        columns = [self.curve(rank).predict(distances[:, rank]) for rank in range(distances.shape[1])]
        return np.stack(columns, 1)

    def nearer(self, distances: np.ndarray) -> np.ndarray:
        """float64 [Q]: the share of reference proteins whose first neighbour is at that distance or nearer; 1 is
        farther than any."""
        own = np.sort(self.distances[self.exists[:, 0], 0])
        return np.searchsorted(own, distances, "right") / len(own)


def calibrate(vectors: np.ndarray, labels: np.ndarray, k: int, groups: np.ndarray | None = None) -> Calibration:
    """vectors float64 [N, h], labels int [N], groups int [N] whose members are no neighbours of one another."""
    distances, near = nearest(vectors, k=k, groups=groups)
    return Calibration(distances, labels[near] == labels[:, None])


def bins(calibration: Calibration) -> list[dict[str, float]]:
    """Reference proteins by the distance of their first neighbour, in BINS of equal size."""
    use = calibration.exists[:, 0]
    distances, same = calibration.distances[use, 0], calibration.same[use, 0]
    parts = np.array_split(np.argsort(distances, kind="stable"), min(BINS, len(distances)))
    return [
        {
            "from": float(distances[part].min()),
            "to": float(distances[part].max()),
            "proteins": len(part),
            "agreement": float(same[part].mean()),
        }
        for part in parts
    ]


def quality(calibration: Calibration, labels: np.ndarray, clusters: np.ndarray, seed: int) -> dict:
    """What leave-one-out says of the whole: how often the first neighbour is right, beside always the largest class,
    and the error of the calibration when it is fitted on one half of the clusters and read on the other.

    The error is the mean over BINS of |agreement predicted - agreement met|, weighted by proteins.
    """
    use = calibration.exists[:, 0]
    right = calibration.same[:, 0].astype(np.float64)
    right[~use] = np.nan
    interval = confidence_interval(mean_of(right), RESAMPLES, seed)
    first = np.random.default_rng(seed).random(int(clusters.max()) + 1)[clusters] < 0.5
    predicted = np.full(len(labels), np.nan)
    for half in (first, ~first):
        if (half & use).any() and (~half & use).any():
            predicted[~half & use] = calibration.curve(0, half).predict(calibration.distances[~half & use, 0])
    read = np.flatnonzero(~np.isnan(predicted))
    parts = np.array_split(read[np.argsort(predicted[read], kind="stable")], min(BINS, max(1, len(read))))
    error = sum(abs((predicted[part] - right[part]).sum()) for part in parts) / max(1, len(read))
    return {
        "right": {key: interval[key] for key in ("value", "low", "high")},
        "largest_class": float(np.bincount(labels).max() / len(labels)),
        "without_neighbour": int((~use).sum()),
        "calibration_error": float(error),
        "bins": bins(calibration),
    }


def annotate(
    model: str | Path,
    table: str | Path,
    query: str | Path,
    output: str | Path,
    *,
    column: str,
    ignore: Collection[str] = (),
    sequence: str | None = None,
    name: str | None = None,
    neighbors: int = 3,
    metric: str = "euclidean",
    exclude_relatives: bool = False,
    seed: int = 0,
    embeddings_dir: str | Path | None = None,
    device: str = "auto",
    dtype: str = "fp32",
    **pooled,
) -> dict:
    """Write OUTPUT (.csv): a row for each protein of `query` and each of its nearest labelled proteins of `table`, and
    OUTPUT's .json, which is returned: how good such neighbours are on the reference itself."""
    reference = read_points(table, [column], ignore, sequence=sequence, name=name)
    own_names = {} if is_fasta(query) else {"sequence": sequence, "name": name}
    new = read_points(query, [], **own_names)
    own = reference.columns[0]
    if not own.classes:
        raise InputError(f"{table}, column {column}: numbers; labels of neighbours should be classes")
    check_writable(output, table, query)
    known = np.flatnonzero(own.known)
    if neighbors >= len(known):
        raise InputError(f"{table}, column {column}: {len(known)} have a label, not more than --neighbors {neighbors}")
    encoder = open_encoder(str(model), device=device, dtype=dtype)
    directory = Path(embeddings_dir or Path(output).parent / "embeddings")
    new_space = vectors.with_metric(vectors.protein_vectors(encoder, new, directory, **pooled), metric)
    space = vectors.with_metric(vectors.protein_vectors(encoder, reference, directory, **pooled), metric)[known]
    labels, clusters = own.values[known], cluster_sequences([reference.sequences[i] for i in known])
    calibration = calibrate(space, labels, neighbors, clusters if exclude_relatives else None)
    if not calibration.exists.any(0).all():
        text = f"without relatives no protein has {neighbors} neighbours; --neighbors should be lower"
        raise InputError(f"{table}: {text}, or --exclude_relatives absent")
    distances, near = nearest(new_space, space, neighbors)
    agreement, nearer = calibration.agreement(distances), calibration.nearer(distances[:, 0])
    with atomic_path(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["query", "rank", "neighbor", column, "distance", "agreement", "reference_nearer"])
        for i, rank in np.ndindex(distances.shape):
            place = near[i, rank]
            row = [new.ids[i], rank + 1, reference.ids[known[place]], own.classes[labels[place]]]
            writer.writerow([*row, f"{distances[i, rank]:.5g}", f"{agreement[i, rank]:.4f}", f"{nearer[i]:.4f}"])
    results = {
        "data": Path(table).name, "query": Path(query).name, "model": str(model), "column": column, "metric": metric,
        "seed": seed, "labelled": len(known), "queries": len(new), "neighbors": neighbors,
        "relatives_excluded": exclude_relatives, "farther_than_any": int((nearer >= 1).sum()),
        "reference": quality(calibration, labels, clusters, seed),
    }  # fmt: skip
    write_json(Path(output).with_suffix(".json"), results)
    return results
