"""Forward passes over a protein and its mutants: which letters are hidden, what is read, and how far the work is.

A long protein is read through windows. ProteinGym's code (get_optimal_window of utils/scoring_utils.py) cuts `width`
tokens around the token that is read, <cls> and <eos> counted, so that a window within the protein has neither; at the
ends it is pushed inwards. An encoder that transformers runs is handed whole proteins: there a window is of width - 2
residues, with its own <cls> and <eos> around it.

Legend: L residues of the protein, T tokens of a pass, R rows of results, A letters (RESIDUES).
"""

import hashlib
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from probe.names import WINDOW
from proteinlm.encoder import Encoder, Stream, default_batch_tokens, make_stream
from proteinlm.errors import InputError
from proteinlm.progress import Progress
from proteinlm.tokenizer import RESIDUES
from proteinlm.untrusted.array_files import read_kept, write_kept

SAVE_SECONDS = 30.0


def window_around(place: int, size: int, width: int) -> tuple[int, int]:
    """(begin, end) of the `width` of `size` tokens around one; ProteinGym's convention."""
    half = width // 2
    if size <= width:
        return 0, size
    if place < half:
        return 0, width
    return (size - width, size) if place >= size - half else (place - half, place + half)


@dataclass(frozen=True)
class Pass:
    """One forward pass. hidden: sites under a mask; sites: those that are read; rows: where each one's result goes;
    letters: at each the one whose log-probability counts, "" for all of them."""

    protein: str
    span: tuple[int, int]
    hidden: Sequence[int]
    sites: Sequence[int]
    rows: Sequence[int]
    letters: str = ""


class Reader:
    """Makes tokens of passes. width: of a window, in tokens; None or 0: whole proteins."""

    def __init__(self, encoder: Encoder, width: int | None = WINDOW):
        limit = encoder.config.max_tokens
        if width is not None and width != 0 and width < 4:
            raise InputError(f"window {width}: should be 4 tokens or more, or 0 for whole proteins")
        self.width = min(width or limit or 0, limit or width or 0)
        self.tokenizer, self.wraps = encoder.tokenizer, encoder.padded
        self._protein, self._tokens = "", np.zeros(0, np.int64)

    def span(self, protein: str, site: int) -> tuple[int, int]:
        """The tokens [begin, end) of `<cls> protein <eos>` in which a site is read."""
        size = len(protein) + 2
        if not self.width or size <= self.width:
            return 0, size
        if not self.wraps:
            return window_around(site + 1, size, self.width)
        begin, end = window_around(site, len(protein), self.width - 2)
        return begin + 1, end + 1

    def spans(self, protein: str, sites: Iterable[int]) -> dict[tuple[int, int], list[int]]:
        """Sites by the window that they are read in."""
        groups: dict[tuple[int, int], list[int]] = {}
        for site in sites:
            groups.setdefault(self.span(protein, site), []).append(site)
        return groups

    def tokens(self, one: Pass) -> tuple[np.ndarray, np.ndarray]:
        """(int64 [T], the places in it of the sites that are read)."""
        if one.protein != self._protein:
            self._protein, self._tokens = one.protein, make_stream([one.protein], self.tokenizer).tokens
        begin, end = one.span
        tokens = self._tokens[begin:end].copy()
        tokens[np.asarray(one.hidden, np.int64) + 1 - begin] = self.tokenizer.mask_id
        places = np.asarray(one.sites, np.int64) + 1 - begin
        if self.wraps and (begin, end) != (0, len(self._tokens)):
            tokens = np.concatenate(([self.tokenizer.cls_id], tokens, [self.tokenizer.sep_id]))
            places += 1
        return tokens, places


class Saved:
    """What a long piece of work has done so far, in a file that is whole or absent; path None: nowhere."""

    def __init__(self, path: Path | None, identity: dict):
        self.path = path
        self.identity = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self._last = time.monotonic()

    def load(self, values: np.ndarray) -> int:
        """Fill `values`; returns how many passes are in them. A file of other work counts as none."""
        if self.path is None or not self.path.is_file():
            return 0
        try:
            stored = read_kept(self.path)
        except InputError:
            return 0
        same = str(stored.get("identity")) == self.identity and stored.keys() >= {"values", "done"}
        if not same or stored["values"].shape != values.shape:
            return 0
        values[...] = stored["values"]
        return int(stored["done"])

    def save(self, done: int, values: np.ndarray) -> None:
        """At most every SAVE_SECONDS."""
        if self.path is None or time.monotonic() - self._last < SAVE_SECONDS:
            return
        write_kept(self.path, {"identity": np.array(self.identity), "done": np.array(done), "values": values})
        self._last = time.monotonic()


def _batches(passes: Iterable[Pass], reader: Reader, budget: int) -> Iterator[list[tuple]]:
    """Lists of (pass, tokens, places) of at most `budget` tokens, or of one pass."""
    batch, used = [], 0
    for one in passes:
        tokens, places = reader.tokens(one)
        if batch and used + len(tokens) > budget:
            yield batch
            batch, used = [], 0
        batch.append((one, tokens, places))
        used += len(tokens)
    if batch:
        yield batch


def run(
    encoder: Encoder,
    passes: Iterable[Pass],
    total: int,
    values: np.ndarray,
    reader: Reader,
    saved: Saved,
    batch_tokens: int | None = None,
    quiet: bool = False,
) -> np.ndarray:
    """Add to `values` what the passes read: [R, A] log-probabilities of every letter, or [R] of one letter a site.

    A log-probability is of the softmax over the vocabulary, in fp64. Passes that `saved` has are not made again, and
    batches are those of a run without an interruption.
    """
    encoder.need_lm_head()
    columns = torch.from_numpy(encoder.tokenizer.encode(RESIDUES).astype(np.int64))
    done = saved.load(values)
    with Progress("passes", total, done, quiet=quiet) as progress:
        rest = itertools.islice(passes, done, None)
        for batch in _batches(rest, reader, batch_tokens or default_batch_tokens(encoder.device)):
            sizes = np.array([len(tokens) for _, tokens, _ in batch])
            starts = np.cumsum(sizes) - sizes
            stream = Stream(np.concatenate([tokens for _, tokens, _ in batch]), sizes)
            places = np.concatenate([own + start for (_, _, own), start in zip(batch, starts, strict=True)])
            logits = encoder.logits_at(stream, places).double()
            read = torch.log_softmax(logits, -1)[:, columns].numpy()
            rows = np.concatenate([np.asarray(one.rows) for one, _, _ in batch])
            if values.ndim == 1:
                letters = "".join(one.letters for one, _, _ in batch)
                read = read[np.arange(len(read)), [RESIDUES.index(letter) for letter in letters]]
            np.add.at(values, rows, read)
            progress.add(len(batch), int(sizes.sum()))
            saved.save(progress.done, values)
    return values
