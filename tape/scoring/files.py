"""The prediction files of `tape-eval`, npz or parquet: scores and labels of each protein, readable without our code.

    with np.load("RUN_DIR/stability-test.npz") as stored:           # no pickle in it
        stored["ids"], stored["lengths"], stored["scores"], stored["labels"], stored["per_protein_squared_error"]
    pandas.read_parquet("RUN_DIR/stability-test.parquet")           # a row a protein, the same names

scores and labels by task: a value a protein (fluorescence, stability); logits [C] and the class (remote_homology);
logits [L, C] and classes of the residues, -1 = not counted (secondary structure); log-odds and 0/1/-1 of the pairs
i < j in the order (0,1) (0,2) ... (1,2) ... (contact_prediction); cross-entropies and hidden ids of masked residues.
Where proteins differ in size, npz lays them end to end: protein i has rows offsets[i] to offsets[i + 1] (label_offsets
for labels); parquet has a list a protein, rows of C values one after the other.

`kind` and `columns` [N, 2] are what bootstrap intervals and paired comparisons use (tape.scoring.bootstrap). What must
hold: one protein, one entry, in the split's order; the file appears whole.
"""

import json
import math
import pickle
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from proteinlm.errors import InputError
from proteinlm.files import atomic_path
from proteinlm.untrusted.array_files import read_npz, read_parquet
from proteinlm.untrusted.json_files import decode_json
from tape import metrics
from tape.scoring.bootstrap import Scores, mean_of

if TYPE_CHECKING:
    from tape.tasks import Prediction, Task

FORMS = ("npz", "parquet")
PARQUET_COLUMN = "column_{}"  # npz has them as `columns`
WRITTEN_BY = "should be the per-protein scores of tape-eval --save_predictions"


def per_protein_scores(task: "Task", predictions: Sequence["Prediction"]) -> Scores:
    """The two columns per protein that the primary metric is made of."""
    if task.metric == "spearmanr":
        return Scores("spearman", np.array([[p.scores.item(), p.labels.item()] for p in predictions], np.float64))
    if task.metric == "mcc":
        return Scores("mcc", task.per_protein(predictions).astype(np.float64))
    if task.metric == "perplexity":
        sums = [[p.scores.sum(dtype=np.float64), p.scores.size] for p in predictions]
        return Scores("perplexity", np.array(sums, np.float64))
    values = task.per_protein(predictions)
    assert values is not None, f"{task.name}: {task.metric} has no per-protein values"
    return Scores("ratio", values.astype(np.float64)) if values.ndim == 2 else mean_of(values)


def per_protein_metrics(task: "Task", predictions: Sequence["Prediction"], scores: Scores) -> dict[str, np.ndarray]:
    """name -> float64 [N]: each protein's own share of the metric, NaN where it has none.

    Contacts: every precision. A rank correlation has none per protein: the squared error stands in for it.
    """
    if task.metric in metrics.PRECISIONS:
        return metrics.precision_table([(p.scores, p.labels) for p in predictions])
    if scores.kind == "mcc":
        return {"accuracy": _accuracy(scores.columns)}
    first, second = scores.columns.T
    if scores.kind == "spearman":
        return {"squared_error": (first - second) ** 2}
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = np.where(second > 0, first / second, np.nan)
        return {task.metric: np.exp(share) if scores.kind == "perplexity" else share}


def _accuracy(columns: np.ndarray) -> np.ndarray:
    """float64 [N]: each protein's share of right classes, of the columns of mcc; NaN where nothing is counted."""
    if columns.shape[1] == 2:
        return (columns[:, 0] == columns[:, 1]).astype(np.float64)
    size = math.isqrt(columns.shape[1])
    with np.errstate(invalid="ignore"):
        return columns[:, :: size + 1].sum(1) / columns.sum(1)


def save_predictions(path: str | Path, task: "Task", split: str, predictions: Sequence["Prediction"]) -> None:
    """Write one split's predictions; the suffix says the form (.npz or .parquet)."""
    columns = per_protein_scores(task, predictions)
    per_protein = {f"per_protein_{n}": v for n, v in per_protein_metrics(task, predictions, columns).items()}
    metadata = {"task": task.name, "split": split, "metric": task.metric, "kind": columns.kind}
    ids, lengths = [p.id for p in predictions], np.array([p.length for p in predictions], np.int64)
    rows = [_rows(task, p) for p in predictions]
    write = _write_parquet if Path(path).suffix == ".parquet" else _write_npz
    write(Path(path), metadata, ids, lengths, rows, columns.columns, per_protein)


def _rows(task: "Task", prediction: "Prediction") -> tuple[np.ndarray, np.ndarray]:
    """(scores, labels) of one protein; of contact maps, the pairs i < j."""
    scores, labels = np.asarray(prediction.scores), np.asarray(prediction.labels)
    if task.metric in metrics.PRECISIONS:
        pairs = np.triu_indices(len(scores), k=1)
        return scores[pairs], labels[pairs]
    return scores, labels


def _write_npz(path, metadata, ids, lengths, rows, columns, per_protein) -> None:
    arrays = {name: np.array(text) for name, text in metadata.items()}
    arrays |= {"ids": np.array(ids, dtype=np.str_), "lengths": lengths, "columns": columns} | per_protein
    for place, (name, offsets) in enumerate((("scores", "offsets"), ("labels", "label_offsets"))):
        parts = [row[place] for row in rows]
        if len({part.shape for part in parts}) == 1:
            arrays[name] = np.stack(parts)
        else:
            arrays[name] = np.concatenate(parts)
            arrays[offsets] = np.cumsum([0, *(len(part) for part in parts)])
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _write_parquet(path, metadata, ids, lengths, rows, columns, per_protein) -> None:
    import pyarrow.parquet

    table = {"id": ids, "length": lengths}
    for place, name in enumerate(("scores", "labels")):
        parts = [row[place] for row in rows]
        scalar = all(part.ndim == 0 for part in parts)
        table[name] = np.array(parts) if scalar else pyarrow.array([part.ravel() for part in parts])
    table |= per_protein | {PARQUET_COLUMN.format(i): column for i, column in enumerate(columns.T)}
    classes = sorted({row[0].shape[-1] for row in rows if row[0].ndim > row[1].ndim})
    metadata = metadata | {"classes": classes[0] if len(classes) == 1 else None}
    content = pyarrow.table(table).replace_schema_metadata({"tape": json.dumps(metadata)})
    with atomic_path(path) as temporary:
        pyarrow.parquet.write_table(content, temporary, compression="zstd")


def check_form(form: str | None) -> None:
    """Refuse parquet without pyarrow before any work is done."""
    if form == "parquet" and find_spec("pyarrow") is None:
        raise InputError("parquet needs pyarrow: pip install pyarrow; or --save_predictions npz")


def load_ids(path: str | Path) -> list[str]:
    """The proteins of a file of `save_predictions`, in order."""
    return _read_arrays(Path(path), "id" if Path(path).suffix == ".parquet" else "ids")[0].tolist()


def save_results_pkl(path: str | Path, values: dict[str, float], predictions: Sequence["Prediction"]) -> None:
    """TAPE's results.pkl: ({metric: value}, [{"prediction": array, "target": array} a protein]), for old scripts."""
    outputs = [{"prediction": np.asarray(p.scores), "target": np.asarray(p.labels)} for p in predictions]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        pickle.dump((values, outputs), file)


def load_scores(path: str | Path, metric: str | None = None) -> Scores:
    """The columns of a file of `tape-eval --save_predictions` (npz or parquet); `metric`: of one of its per_protein
    means, such as precision_at_l5_long, instead of the primary metric's."""
    path = Path(path)
    if metric is not None:
        return mean_of(*_read_arrays(path, f"per_protein_{metric}"))
    if path.suffix != ".parquet":
        kind, columns = _read_arrays(path, "kind", "columns")
        return Scores(str(kind), columns)
    columns, metadata = read_parquet(path, lambda name: re.fullmatch(r"column_\d+", name), WRITTEN_BY)
    try:
        kind = decode_json(metadata[b"tape"])["kind"]
        return Scores(kind, np.stack([columns[PARQUET_COLUMN.format(i)] for i in range(len(columns))], axis=1))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {str(error)[:100]}; {WRITTEN_BY}") from None


def _read_arrays(path: Path, *names: str) -> list[np.ndarray]:
    """Arrays of a file of `save_predictions`, by name: of numbers, but for ids and kind."""
    if path.suffix == ".parquet":
        arrays, _ = read_parquet(path, names.__contains__, WRITTEN_BY)
    else:
        arrays = read_npz(path, names.__contains__, WRITTEN_BY)
    for name in names:
        if name not in arrays or (arrays[name].dtype.kind not in "fiub") != (name in ("id", "ids", "kind")):
            fault = "no numbers" if name in arrays else "missing"
            raise InputError(f"{path}: {name} is {fault}; {WRITTEN_BY}")
    return [arrays[name] for name in names]
