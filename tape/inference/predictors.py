"""A finetuned model's prediction for one protein, and the file of them: one entry of REPORTS for each kind of task.

  token_classification      TSV, a line a residue: id, position (from 1), residue, state, probability of each state
  value                     TSV, a line a protein: id, length, value
  classification            TSV, top_k lines a protein: id, rank, class, probability
  masked_language_modeling  TSV, a line a residue: id, position, residue, log_probability (nats, of that residue), the
                            likeliest residue and its probability. One pass with every residue visible; `masked` hides
                            each residue in turn (a pass a residue): then the sum over a protein is its pseudo
                            log-likelihood, and exp(-mean) its pseudo-perplexity
  one's own data            tape.inference.own_reports, with the table's names
  contacts                  .npz of an L x L matrix a protein (probability of C-alpha atoms within 8 Angstrom; pairs
                            closer than six along the chain were not trained), and a picture each

What must hold: a result is a function of the protein and the model alone; files appear whole.
Legend: L residues, C classes.
"""

import contextlib
import csv
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proteinlm.files import atomic_path, made_directory
from proteinlm.tokenizer import TAPE_TOKENS
from tape.inference.encoding import TOKENIZER
from tape.inference.fasta import Protein
from tape.inference.files import ZIP_DATE

# Letters of the labels 0, 1, ...: NetSurfP-2.0's order, which is TAPE's (ss8 0-2 is ss3 0, 3-4 is 1, 5-7 is 2).
STATES = {3: "HEC", 8: "GHIBESTC"}


@dataclass(frozen=True)
class Report:
    """logits of one protein (padding removed where it is per residue) -> result; result -> lines of a TSV file, or of a
    CSV file where `rows` gives their cells."""

    result: Callable[[Tensor, Protein, int], Any]  # logits, protein, top_k
    lines: Callable[[Protein, Any], Iterator[str]] | None = None  # None: a matrix for the .npz
    header: str = ""  # {p_states}: a column for each label
    rows: Callable[[Protein, Any], Iterator[Sequence[object]]] | None = None  # instead of lines
    columns: Sequence[str] = ()  # their names


def _states(labels: int) -> list[str]:
    return list(STATES.get(labels, [str(i) for i in range(labels)]))


def _token_result(logits: Tensor, protein: Protein, top_k: int) -> np.ndarray:
    return logits[1 : len(protein.residues) + 1].softmax(-1).numpy()  # [L, C]; position 0 is <cls>


def _token_lines(protein: Protein, probabilities: np.ndarray) -> Iterator[str]:
    states = _states(probabilities.shape[1])
    best = probabilities.argmax(1)
    for i, (residue, row) in enumerate(zip(protein.residues, probabilities.tolist(), strict=True)):
        columns = "\t".join(f"{p:.5f}" for p in row)
        yield f"{protein.id}\t{i + 1}\t{residue}\t{states[best[i]]}\t{columns}"


def _class_result(logits: Tensor, protein: Protein, top_k: int) -> tuple[list[float], list[int]]:
    values, classes = logits.softmax(-1).topk(min(top_k, len(logits)))
    return values.tolist(), classes.tolist()


def _class_lines(protein: Protein, result: tuple[list[float], list[int]]) -> Iterator[str]:
    for rank, (probability, number) in enumerate(zip(*result, strict=True), 1):
        yield f"{protein.id}\t{rank}\t{number}\t{probability:.5f}"


def _likelihood_result(logits: Tensor, protein: Protein, top_k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """logits [L, vocabulary] of the residues alone."""
    ids = torch.from_numpy(TOKENIZER.encode(protein.residues).astype(np.int64))
    logs = logits.log_softmax(-1)
    best, likeliest = logs.max(-1)
    return logs.gather(1, ids[:, None])[:, 0].numpy(), likeliest.numpy(), best.exp().numpy()


def _likelihood_lines(protein: Protein, result: tuple) -> Iterator[str]:
    for i, (residue, log, token, best) in enumerate(zip(protein.residues, *result, strict=True), 1):
        yield f"{protein.id}\t{i}\t{residue}\t{log:.5f}\t{TAPE_TOKENS[token]}\t{best:.5f}"


def _contact_result(logits: Tensor, protein: Protein, top_k: int) -> np.ndarray:
    length = len(protein.residues)
    return logits[:length, :length].softmax(-1)[..., 1].numpy()


REPORTS = {
    "token_classification": Report(_token_result, _token_lines, "id\tposition\tresidue\tstate{p_states}"),
    "value": Report(
        lambda logits, protein, top_k: float(logits[0]),
        lambda protein, value: iter([f"{protein.id}\t{len(protein.residues)}\t{value:.6g}"]),
        "id\tlength\tvalue",
    ),
    "classification": Report(_class_result, _class_lines, "id\trank\tclass\tprobability"),
    "masked_language_modeling": Report(
        _likelihood_result, _likelihood_lines, "id\tposition\tresidue\tlog_probability\tlikeliest\tp_likeliest"
    ),
    "contacts": Report(_contact_result),
}


def kind_of_logits(logits: Tensor) -> str | None:
    """The kind of a plugin's task, by the shape of a batch's logits: [B, 1], [B, C], [B, N, C] or [B, N, N, 2]."""
    if logits.dim() == 2:
        return "value" if logits.shape[1] == 1 else "classification"
    return {3: "token_classification", 4: "contacts"}.get(logits.dim())


@contextlib.contextmanager
def open_table(path: Path, report: Report, labels: int) -> Iterator[Callable[[Protein, Any], None]]:
    """Yield write(protein, result) into a TSV (or CSV) file that appears when all is written."""
    columns, delimiter = report.columns, "," if path.suffix == ".csv" else "\t"
    if not report.rows:
        columns = report.header.format(p_states="".join(f"\tp_{state}" for state in _states(labels))).split("\t")

    def rows(protein: Protein, result: Any) -> Iterator[Sequence[object]]:
        if report.rows:
            return report.rows(protein, result)
        return (line.split("\t") for line in report.lines(protein, result))

    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        form = {"delimiter": delimiter, "lineterminator": "\n"}
        if not report.rows and delimiter == "\t":  # no cell has a tab, and a quote in a name stands as it is
            form |= {"quoting": csv.QUOTE_NONE, "quotechar": None}
        writer = csv.writer(file, **form)
        writer.writerow(columns)
        yield lambda protein, result: writer.writerows(rows(protein, result))


@contextlib.contextmanager
def open_maps(path: Path, pictures: Path | None) -> Iterator[Callable[[Protein, np.ndarray], None]]:
    """Yield write(protein, map [L, L]) into an .npz (np.load(path)[id]), and a PNG each into a directory."""
    drawn: list[Path] = []
    with (
        made_directory(pictures or path.parent),
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):

        def write(protein: Protein, contacts: np.ndarray) -> None:
            entry = zipfile.ZipInfo(f"{protein.id}.npy", ZIP_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(contacts), allow_pickle=False)
            if pictures is not None:
                name = re.sub(r"[^A-Za-z0-9._-]", "_", protein.id)[:100]
                drawn.append(pictures / f"{protein.number:06d}_{name}.png")  # the number is unique
                draw_map(drawn[-1], protein, contacts)

        try:
            yield write
        except BaseException:
            for picture in drawn:
                picture.unlink(missing_ok=True)
            raise


def draw_map(path: Path, protein: Protein, contacts: np.ndarray) -> None:
    """A contact map as PNG: probability 0 is white, 1 black."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    side = (0.5, len(contacts) + 0.5)
    image = axes.imshow(contacts, cmap="Greys", vmin=0, vmax=1, origin="lower", extent=(*side, *side))
    axes.set_title(protein.id[:60], fontsize=9)
    axes.set(xlabel="residue", ylabel="residue")
    figure.colorbar(image, label="probability of contact")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
