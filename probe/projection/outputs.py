"""From a model and a table to pictures, a page and numbers.

    project("model", "scope35.csv", "scope", columns=["class", "domain"])         scope.html, scope.json, scope.csv ...

What must hold: what can be seen to be wrong is refused before a model is opened; the JSON is written last.
"""

import csv
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from probe.names import COMPOSITION, PRETRAINED, RANDOM
from probe.projection import maps as mapping
from probe.projection import picture, vectors
from probe.projection.explorer import explorer
from probe.projection.maps import (
    ARMS,
    ITERATIONS,
    METHODS,
    PERPLEXITY,
    PERPLEXITY_OF_AMINO_ACIDS,
    Map,
    make_map,
)
from probe.projection.neighbors import RESAMPLES, purity_of, silhouette_of
from probe.projection.points import FEWEST, Column, Points, amino_acids, read_points
from proteinlm.errors import InputError
from proteinlm.files import atomic_path, check_writable, write_json, write_text
from tape.data.holdout import cluster_sequences
from tape.scoring.bootstrap import mean_of, paired_difference

NEIGHBORS, NEIGHBORS_OF_AMINO_ACIDS = 10, 3


def project(
    model: str | Path,
    table: str | Path | None,
    output: str | Path,
    *,
    columns: Sequence[str] | None = None,
    ignore: Collection[str] = (),
    sequence: str | None = None,
    name: str | None = None,
    arms: Sequence[str] = (PRETRAINED, RANDOM),
    methods: Sequence[str] = ("tsne", "pca"),
    perplexity: float | None = None,
    iterations: int = ITERATIONS,
    neighbors: int | None = None,
    metric: str = "euclidean",
    exclude_relatives: bool = False,
    limit: int | None = None,
    random_seed: int = 0,
    seed: int = 0,
    embeddings_dir: str | Path | None = None,
    device: str = "auto",
    dtype: str = "fp32",
    **pooled,
) -> dict:
    """Write OUTPUT.html, .json, .csv and OUTPUT_COLUMN.png, .svg, .dark.png, .dark.svg; return what the JSON has.

    table: CSV, TSV or FASTA; None: the 20 amino acids' input embeddings. arms: of ARMS; limit: so many of its proteins;
    random_seed: of random weights; seed: of maps and intervals; pooled: pooling, layer, max_length, too_long
    (probe.projection.vectors.protein_vectors). InputError for what cannot be drawn.
    """
    few = table is None
    points = (
        amino_acids(columns) if few else read_points(table, columns, ignore, sequence=sequence, name=name, limit=limit)
    )
    perplexity = perplexity or (PERPLEXITY_OF_AMINO_ACIDS if few else PERPLEXITY)
    neighbors = neighbors or (NEIGHBORS_OF_AMINO_ACIDS if few else NEIGHBORS)
    _check(points, methods, perplexity, neighbors)
    for ending in (".html", ".csv", ".json"):
        check_writable(f"{output}{ending}", *([] if few else [table]))
    directory = None if few else Path(embeddings_dir or Path(output).parent / "embeddings")
    spaces = {}
    for arm in arms:
        own = _vectors(model, arm, points, directory, random_seed, device, dtype, pooled)
        spaces[arm] = vectors.with_metric(own, metric)
    groups = cluster_sequences(points.sequences) if exclude_relatives else None
    numbers = {column.name: measure(column, spaces, neighbors, seed, groups) for column in points.columns}
    drawn = {arm: _maps(arm, own, methods, seed, perplexity, iterations, directory) for arm, own in spaces.items()}
    results = {
        "data": Path(points.source).name, "model": str(model), "points": len(points),
        "random_seed": random_seed if RANDOM in arms else None, "seed": seed, "metric": metric,
        "vectors": "input embeddings" if few else {"pooling": "mean", "layer": -1} | pooled, "neighbors": neighbors,
        "relatives_excluded": exclude_relatives, "perplexity": perplexity, "iterations": iterations,
        "columns": numbers,
    }  # fmt: skip
    write_outputs(Path(output), points, drawn, results)
    return results


def _check(points: Points, methods: Sequence[str], perplexity: float, neighbors: int) -> None:
    """What can be seen to be wrong before any work."""
    if len(points) < FEWEST:
        raise InputError(f"{points.source}: {len(points)} proteins; a map needs {FEWEST} or more")
    for method in methods:
        if method not in METHODS:
            raise InputError(f"method {method!r}: should be one of {', '.join(METHODS)}")
    if "tsne" in methods:
        mapping.check_perplexity(len(points), perplexity, points.source)
    mapping.need("sklearn", "scikit-learn", "probe")
    if "umap" in methods:
        mapping.need("umap", "umap-learn", "umap")
    for column in points.columns:
        if column.classes and neighbors >= column.known.sum():
            text = f"{column.known.sum()} points have a label, not more than --neighbors {neighbors}"
            raise InputError(f"{points.source}, column {column.name}: {text}")


def _vectors(
    model: str, arm: str, points: Points, directory: Path | None, random_seed: int, device: str, dtype: str,
    pooled: Mapping,
) -> np.ndarray:  # fmt: skip
    if arm not in ARMS:
        raise InputError(f"arm {arm!r}: should be one of {', '.join(ARMS)}")
    if arm == COMPOSITION:
        return vectors.compositions(points)
    encoder = vectors.open_arm(model, arm, random_seed, device, dtype)
    if directory is None:
        return vectors.check_finite(vectors.input_embeddings(encoder), points, encoder.source)
    return vectors.protein_vectors(encoder, points, directory, **pooled)


def _maps(
    arm: str, own: np.ndarray, methods: Sequence[str], seed: int, perplexity: float, iterations: int,
    directory: Path | None,
) -> dict[str, Map]:  # fmt: skip
    made = {}
    for method in methods:
        print(f"{arm}: {mapping.NAMES[method]} of {len(own):,} points", file=sys.stderr, flush=True)
        made[method] = make_map(own, method, seed, perplexity, iterations, directory)
    return made


def measure(
    column: Column, spaces: Mapping[str, np.ndarray], k: int, seed: int, groups: np.ndarray | None = None
) -> dict:
    """Purity and silhouette of a column of classes in each space, and the paired difference of pretrained and random.

    spaces: arm -> float64 [N, h]. A column of numbers has none.
    """
    known = column.known
    result = {"points": int(known.sum()), "missing": int((~known).sum())}
    if not column.classes:
        return result
    result["classes"] = dict(zip(column.classes, column.counts, strict=True))
    labels, each = column.values[known], {}
    for arm, own in spaces.items():
        purity = purity_of(own[known], labels, k, seed, None if groups is None else groups[known])
        each[arm] = mean_of(purity.pop("each"))
        purity["by_class"] = {column.classes[place]: value for place, value in purity["by_class"].items()}
        result[arm] = {"purity": purity, "silhouette": silhouette_of(own[known], labels, seed)}
    if PRETRAINED in each and RANDOM in each:
        difference = paired_difference(each[PRETRAINED], each[RANDOM], RESAMPLES, seed)
        result["purity_minus_random"] = {key: difference[key] for key in ("value", "low", "high")}
    return result


def _interval(numbers: Mapping) -> str:
    if numbers["value"] is None:
        return "none"
    return f"{numbers['value']:.3f} [{numbers['low']:.3f}, {numbers['high']:.3f}]"


def _by_chance(numbers: Mapping) -> str:
    if "chance" not in numbers:
        return "none"
    return f"{numbers['chance']['mean']:.3f} [{numbers['chance']['low']:.3f}, {numbers['chance']['high']:.3f}]"


def lines_of(numbers: Mapping) -> list[str]:
    """The numbers of one column in words, a line an arm."""
    lines = []
    for arm in (arm for arm in ARMS if arm in numbers):
        purity, silhouette = numbers[arm]["purity"], numbers[arm]["silhouette"]
        lines.append(
            f"{arm}: {purity['k']}-NN purity {_interval(purity)}, chance {_by_chance(purity)}; silhouette "
            f"{_interval(silhouette)}, chance {_by_chance(silhouette)} ({silhouette['points']:,} points)"
        )
    return lines


def table_of(columns: Mapping[str, Mapping]) -> dict[str, list[str]]:
    """The numbers of all columns as one table: heading -> cells."""
    rows = [(name, arm, numbers) for name, numbers in columns.items() for arm in ARMS if arm in numbers]
    if not rows:
        return {}
    k = rows[0][2][rows[0][1]]["purity"]["k"]
    table = {
        "column": [name for name, _, _ in rows],
        "arm": [arm for _, arm, _ in rows],
        "labelled": [f"{numbers['points']:,}" for _, _, numbers in rows],
        "classes": [str(len(numbers["classes"])) for _, _, numbers in rows],
    }
    for key, title in (("purity", f"{k}-NN purity"), ("silhouette", "silhouette")):
        table[title] = [_interval(numbers[arm][key]) for _, arm, numbers in rows]
        table[f"{title}, chance"] = [_by_chance(numbers[arm][key]) for _, arm, numbers in rows]
    return table


def caption_of(results: Mapping) -> str:
    """Data, model, seed, and what the map is of."""
    space = results["vectors"]
    if isinstance(space, Mapping):
        layer = "last layer" if space["layer"] == -1 else f"layer {space['layer']}"
        space = f"{space['pooling']}-pooled {layer}"
    tail = f"perplexity {results['perplexity']:g}, {results['iterations']:,} iterations, seed {results['seed']}"
    tail += "" if results["random_seed"] is None else f", random weights of seed {results['random_seed']}"
    tail += ", relatives are no neighbours" if results["relatives_excluded"] else ""
    return f"{results['data']}: {results['points']:,} points; {Path(results['model']).name}, {space}; {tail}"


def write_outputs(output: Path, points: Points, maps: Mapping[str, Mapping[str, Map]], results: dict) -> None:
    """Everything but the JSON, then the JSON, which says that the run is complete."""
    caption, written = caption_of(results), [output.with_name(f"{output.name}{end}") for end in (".html", ".csv")]
    for column in points.columns:
        text = lines_of(results["columns"][column.name])
        written += picture.draw_column(output, points, column, maps, caption, text)
    title = f"What {Path(results['model']).name} makes of {results['data']}"
    write_text(written[0], explorer(title, caption, points, maps, table_of(results["columns"])))
    with atomic_path(written[1]) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        _write_coordinates(file, points, maps)
    write_json(output.with_name(f"{output.name}.json"), results)
    print(f"wrote {output}.json, {', '.join(map(str, written))}")


def _write_coordinates(file, points: Points, maps: Mapping[str, Mapping[str, Map]]) -> None:
    names = [f"{arm}_{method}_{axis}" for arm in maps for method in maps[arm] for axis in (1, 2)]
    values = np.concatenate([own.xy for arm in maps.values() for own in arm.values()], axis=1)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["id", *(column.name for column in points.columns), *names])
    texts = [column.texts() for column in points.columns]
    for i, own in enumerate(points.ids):
        writer.writerow([own, *(text[i] for text in texts), *(f"{value:.5g}" for value in values[i])])
