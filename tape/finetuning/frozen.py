"""A frozen encoder runs once a protein: what the head needs of it is kept in a file, and the head is trained on that.

    attach_states(model, "pooled", sequences, [train, valid], Path("table.csv.embeddings"), ...)
    batch = train[0, indices]; batch["states"]              # [B, p] pooled, or [B, N, h] of every token

The file (<key>.npy; its parts while it is being made, so that a killed run goes on) belongs to one encoder, one set of
sequences and one precision, which make the key: another run, seed or trial over the same table finds it again. What
must hold: the head sees what the encoder would give it in the same evaluation mode (1e-5, as of any other batch).

Legend: B proteins, N tokens of the longest (residues + 2), h and p sizes, T tokens of all proteins.
"""

import argparse
import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from proteinlm.encoder import default_batch_tokens
from proteinlm.errors import InputError
from proteinlm.progress import Progress
from proteinlm.untrusted.array_files import MADE_AGAIN, read_npy
from tape.data.examples import pad_sequences
from tape.data.splits import SplitData
from tape.inference.encoding import TrunkEncoder, model_digest
from tape.inference.fasta import Protein
from tape.inference.parts import PartStore, check_room, plan_parts, split_rows, unpack_names
from tape.runs.processes import Processes

PART_PROTEINS = 256  # what a killed run may have to do again
BATCH_PROTEINS = 1024
ROWS = 4096  # looked through at once
OF_THE_TASK = ("finetuning_task", "num_labels", "head", "contact_dropout_prob")  # keys that say nothing of the encoder


class States:
    """The states of a data set's proteins: rows of a file, one a protein (pooled) or one a token (seq)."""

    def __init__(self, array: np.ndarray, rows: Sequence[slice], a_token: bool):
        self.array, self.rows, self.a_token = array, rows, a_token  # rows[i]: of protein i of the data set

    def of(self, proteins: Sequence[int]) -> torch.Tensor:
        """[B, p], or [B, N, h] with 0 at padding."""
        parts = [np.asarray(self.array[self.rows[i]]) for i in proteins]
        return torch.from_numpy(pad_sequences(parts) if self.a_token else np.concatenate(parts))


def attach_states(
    model: nn.Module,
    output: str,
    sequences: Sequence[str],
    splits: Sequence[SplitData],
    directory: Path,
    device: torch.device,
    precision: torch.dtype,
    processes: Processes,
) -> Path:
    """Give each split the `states` of its proteins; those that no file has are computed. Returns the file.

    output: what the head needs of the encoder, "pooled" or "seq" (tape.inference.encoding); sequences: of the whole
    table, so that another target or another division of it finds the same file.
    """
    longest = splits[0].dataset.max_length
    sequences = list(dict.fromkeys(sequence[:longest] for sequence in sequences))
    encoder = TrunkEncoder(model.base_model, -1, device, precision)
    manifest = {
        "encoder": model_digest(model.base_model, OF_THE_TASK),
        "sequences": hashlib.sha256("\n".join(sequences).encode()).hexdigest(),
        "output": output,
        "precision": str(precision).removeprefix("torch."),
    }
    key = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()[:16]
    store = PartStore(directory / f"{key}.npy", manifest)
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    count = int((lengths + 2).sum()) if output == "seq" else len(sequences)
    shape = (count, encoder.widths((output,))[output])
    if not store.output.is_file():
        _compute(encoder, output, sequences, shape, store, processes)
    elif processes.is_main:
        store.clear()
    array = read_npy(store.output, shape, "<f4", mapped=output == "seq")
    if not all(np.isfinite(array[begin : begin + ROWS]).all() for begin in range(0, count, ROWS)):
        raise InputError(f"{store.output}: holds numbers that are not finite; {MADE_AGAIN}")
    rows = list(split_rows(lengths)) if output == "seq" else [slice(i, i + 1) for i in range(len(sequences))]
    place = dict(zip(sequences, rows, strict=True))
    for split in splits:
        own = (split.dataset.record(i)["primary"][:longest] for i in range(len(split.dataset)))
        split.states = States(array, [place[sequence] for sequence in own], output == "seq")
    return store.output


def _compute(
    encoder: TrunkEncoder, output: str, sequences: list[str], shape: tuple, store: PartStore, processes: Processes
) -> None:
    """Embed what is missing, each process its share of the parts, then join the parts. Of several runs over one table
    the others wait, and find the file."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    rows, width = shape
    advice = "--embeddings_dir DIR names another place, --embeddings_dir none keeps nothing"
    check_room(store.output.parent, 8 * rows * width, advice)  # the parts and the whole
    bounds = plan_parts(lengths, PART_PROTEINS, 4 * width if output == "seq" else 0)
    with contextlib.ExitStack() as stack:
        processes.together(lambda: processes.is_main and stack.enter_context(store.open(wait=True)))
        if not processes.broadcast(store.output.is_file()):
            processes.together(lambda: _embed_parts(encoder, output, sequences, bounds, store, processes))
            if processes.is_main:
                store.finish({store.output: lambda path: _join(store, output, shape, len(bounds) - 1, path)})
        processes.barrier()


def _embed_parts(
    encoder: TrunkEncoder,
    output: str,
    sequences: list[str],
    bounds: np.ndarray,
    store: PartStore,
    processes: Processes,
) -> None:
    todo = [part for part in range(len(bounds) - 1) if not store.has(part)]
    if processes.is_main:
        made = len(bounds) - 1 - len(todo)
        done = f" ({made} of {len(bounds) - 1} parts are done)" if made else ""
        print(
            f"the encoder is frozen: {len(sequences):,} proteins are embedded once{done} -> {store.output}", flush=True
        )
    settings = argparse.Namespace(
        tokens_per_batch=default_batch_tokens(encoder.device), batch_size=BATCH_PROTEINS, save_fp16=False
    )
    own = [todo[place] for place in processes.share(len(todo))]
    with Progress(
        "proteins", sum(int(bounds[p + 1] - bounds[p]) for p in own), quiet=not processes.is_main
    ) as progress:
        for part in own:
            first, last = int(bounds[part]), int(bounds[part + 1])
            proteins = [Protein(i, str(i), sequences[i]) for i in range(first, last)]
            values = encoder.embed_part(proteins, (output,), settings, progress)
            if "failed_reasons" in values:
                length, reason = values["failed_length"][0], unpack_names(values["failed_reasons"])[0]
                raise InputError(f"{store.output}: a protein of {length} residues has no states: {reason}")
            store.save(part, {output: values[output]})


def _join(store: PartStore, output: str, shape: tuple[int, int], parts: int, path: Path) -> None:
    """All parts as one .npy, one part in memory at a time. Written, not mapped: a full disk ends a process that stores
    to a mapped file without a word."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for part in range(parts):
            file.write(memoryview(np.ascontiguousarray(store.load(part)[output], "<f4")).cast("B"))
