"""Contact maps of the proteins of a FASTA file, in parts, so that a killed run goes on where it was.

    write_contacts(encoder, "in.fasta", "contacts.npz")

By OUT's suffix:
  .npz   np.load(OUT)[id] is float32 [L, L], the tensor that ESM's predict_contacts gives, and tape-predict's file
  .h5    a dataset a protein, float32 [L, L] under its id: read one at a time, for many proteins
  .csv   the likeliest pairs, a line each: id, i, j (from 1), residue_i, residue_j, probability; the first `top` of each
         protein (L by default: P@L is of these) that are 6 or more apart

What must hold: memory is one part, whatever the input; the file appears whole.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from proteinlm.encoder import Encoder, OutOfMemory
from proteinlm.errors import InputError
from proteinlm.files import check_writable, need_room
from proteinlm.progress import Progress
from tape.datasets import MIN_SEPARATION
from tape.inference.fasta import Protein, Rules, Scan, read_windows, scan_fasta
from tape.inference.files import HDF5_ROOM, id_key
from tape.inference.parts import PartStore, cut_parts
from tape.inference.predictors import draw_map, open_maps

PART_PAIRS = 1 << 22  # 16 MiB of maps: what a killed run may have to do again
PART_PROTEINS = 256
COLUMNS = ("id", "i", "j", "residue_i", "residue_j", "probability")
Maps = Iterable[tuple[Protein, np.ndarray]]


def write_npz(path: Path, maps: Maps, top: int | None) -> None:
    with open_maps(path, None) as write:
        for protein, contacts in maps:
            write(protein, contacts)


def write_h5(path: Path, maps: Maps, top: int | None) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for protein, contacts in maps:
            need_room(path, HDF5_ROOM + contacts.nbytes)
            data = file.create_dataset(id_key(protein.id), data=contacts, compression="gzip", shuffle=True)
            data.attrs["original_id"] = protein.id
            # a zero byte is an unknown residue either way, and HDF5's strings hold none
            data.attrs["sequence"] = protein.residues.replace("\0", "X")


def top_pairs(contacts: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """(i, j) of the `top` likeliest pairs 6 or more apart, counted from 0; equal ones in the order of (i, j)."""
    first, second = np.triu_indices(len(contacts), MIN_SEPARATION)
    best = np.argsort(-contacts[first, second], kind="stable")[:top]
    return first[best], second[best]


def write_csv(path: Path, maps: Maps, top: int | None) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for protein, contacts in maps:
            letters = protein.residues
            for i, j in zip(*top_pairs(contacts, len(letters) if top is None else top), strict=True):
                probability = f"{contacts[i, j]:.6f}"
                writer.writerow((protein.id, i + 1, j + 1, letters[i], letters[j], probability))


WRITERS: dict[str, Callable] = {".npz": write_npz, ".h5": write_h5, ".csv": write_csv}


def check_output(output: str | Path, source: str | Path) -> Path:
    """OUT as a path; InputError for a suffix that says no format, and for the input itself."""
    output = Path(output)
    if output.suffix not in WRITERS:
        raise InputError(f"{output}: should end in {', '.join(WRITERS)}")
    check_writable(output, source)
    return output


def write_contacts(
    encoder: Encoder,
    fasta: str | Path,
    output: str | Path,
    *,
    rules: Rules | None = None,
    identity: str = "",
    top: int | None = None,
    pictures: Path | None = None,
    batch_tokens: int | None = None,
    quiet: bool = False,
) -> Scan:
    """OUT of IN.fasta's proteins, by `encoder.contacts`. identity: of encoder and regression, which a resumed run must
    share; pictures: where a PNG of each map goes. Returns what the FASTA file held."""
    output = check_output(output, fasta)
    if top is not None and output.suffix != ".csv":
        raise InputError(f"{output}: top (--top) is of a .csv; the other forms have every pair")
    encoder.need_contacts()
    rules, key = rules or Rules(encoder.residue_limit()), id_key if output.suffix == ".h5" else str
    scan = scan_fasta(fasta, rules, key, choices=("crop",))
    bounds = cut_parts(scan.selected_lengths.astype(np.int64) ** 2, PART_PAIRS, PART_PROTEINS)
    settings = {"input sha256": scan.sha256, "model and regression": identity, "max_length": scan.rules.max_length}
    settings |= {"too_long": scan.rules.too_long, "duplicates": scan.rules.duplicates, "torch": str(torch.__version__)}
    store, parts = PartStore(output, settings), range(len(bounds) - 1)
    with store.open():
        missing = [part for part in parts if not store.has(part)]
        done = len(scan) - sum(int(bounds[part + 1] - bounds[part]) for part in missing)
        with Progress("proteins", len(scan), done, quiet=quiet) as progress:
            for part, proteins in read_windows(scan, bounds, missing):
                residues = [protein.residues for protein in proteins]
                try:
                    maps = encoder.contacts(residues, batch_tokens=batch_tokens, quiet=True)
                except OutOfMemory as error:
                    raise OutOfMemory(f"{fasta}: {error}") from error
                store.save(part, {"maps": np.concatenate([own.astype(np.float32).ravel() for own in maps])})
                progress.add(len(proteins), sum(map(len, residues)))
        store.finish({output: lambda path: WRITERS[output.suffix](path, _stored(scan, bounds, store, pictures), top)})
    return scan


def _stored(scan: Scan, bounds: np.ndarray, store: PartStore, pictures: Path | None) -> Iterator:
    """Every protein with its map, in input order, and drawn where pictures are wanted."""
    for part, proteins in read_windows(scan, bounds, range(len(bounds) - 1)):
        values, at = store.load(part)["maps"], 0
        for protein in proteins:
            length = len(protein.residues)
            contacts = values[at : at + length**2].reshape(length, length)
            at += length**2
            if pictures is not None:
                name = re.sub(r"[^A-Za-z0-9._-]", "_", protein.id)[:100]
                draw_map(pictures / f"{protein.number:06d}_{name}.png", protein, contacts)
            yield protein, contacts
