"""What tape-predict writes for a run on one's own table: the table's names and units, a line a protein.

  regression      id, length, <target>: the value in the table's units
  classification  id, length, <target>: the likeliest class, probability: of it, then p_<class> of every class
  multilabel      id, length, <target>: the classes above one half (A;B), then p_<class> of every class
  per_residue     a line a residue: id, position (from 1), residue, <target>, then p_<class> of every class

What must hold: as tape.inference.predictors.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from tape.inference.fasta import Protein
from tape.inference.predictors import Report
from tape.own_data.data import OwnData


def own_report(data: OwnData) -> Report:
    """The report of a run's kind."""
    target = data.columns.target[0] if len(data.columns.target) == 1 else "predicted"
    probabilities = [f"p_{name}" for name in data.classes]

    def name_of(values: np.ndarray) -> str:
        return data.classes[int(values.argmax())]

    def cells(values: np.ndarray) -> list[str]:
        return [f"{value:.5f}" for value in values.tolist()]

    def value_row(protein: Protein, value: float) -> Iterator[Sequence]:
        yield protein.id, len(protein.residues), f"{value:.6g}"

    def class_row(protein: Protein, p: np.ndarray) -> Iterator[Sequence]:
        yield protein.id, len(protein.residues), name_of(p), f"{p.max():.5f}", *cells(p)

    def labels_row(protein: Protein, p: np.ndarray) -> Iterator[Sequence]:
        names = ";".join(name for name, value in zip(data.classes, p, strict=True) if value > 0.5)
        yield protein.id, len(protein.residues), names, *cells(p)

    def residue_rows(protein: Protein, p: np.ndarray) -> Iterator[Sequence]:
        for i, (residue, row) in enumerate(zip(protein.residues, p, strict=True), 1):
            yield protein.id, i, residue, name_of(row), *cells(row)

    def value(logits: Tensor, protein: Protein, top_k: int) -> float:
        return float(logits[0]) * data.std + data.mean

    def softmax(logits: Tensor, protein: Protein, top_k: int) -> np.ndarray:
        return logits.softmax(-1).numpy()

    def sigmoid(logits: Tensor, protein: Protein, top_k: int) -> np.ndarray:
        return logits.sigmoid().numpy()

    def residues(logits: Tensor, protein: Protein, top_k: int) -> np.ndarray:
        return logits[1 : len(protein.residues) + 1].softmax(-1).numpy()  # position 0 is <cls>

    result, rows, columns = {
        "regression": (value, value_row, ("id", "length", target)),
        "classification": (softmax, class_row, ("id", "length", target, "probability", *probabilities)),
        "multilabel": (sigmoid, labels_row, ("id", "length", target, *probabilities)),
        "per_residue": (residues, residue_rows, ("id", "position", "residue", target, *probabilities)),
    }[data.kind]
    return Report(result, rows=rows, columns=columns)
