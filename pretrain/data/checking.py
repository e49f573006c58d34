"""Every token of the shards looked at before the first step: ids that the vocabulary lacks, [CLS] and <eos> where none
belongs. Without it a run would stop at the row that has one, hours later.

What must hold: it costs less than a hundredth of the run. A token takes a quarter of a nanosecond (in memory); the
processes share the work; of shards that hold far more than the run is going to read only parts are looked at, spread
evenly.
"""

from collections.abc import Iterable

import numpy as np

from pretrain.data.dataset import RowReader
from pretrain.data.indexed import IndexedDataset
from proteinlm.tokenizer import Tokenizer

CHUNK = 1 << 20  # tokens at a time, which stay in a core's cache
TIMES = 4  # the tokens of the run: of more not all are looked at
LEAST = 1 << 27  # tokens that are looked at in any case: a thirtieth of a second


def first_problem(readers: Iterable[RowReader], tokens: float, rank: int = 0, size: int = 1) -> str | None:
    """What is wrong with the first wrong token of this process's share (rank of size) of the readers' shards.

    tokens: that the run is going to read.
    """
    by_prefix = {reader.indexed.prefix: reader for reader in readers}
    total = sum(reader.indexed.num_tokens for reader in by_prefix.values())
    share = min(1.0, max(LEAST, TIMES * tokens) / total)
    for reader in by_prefix.values():
        chunks = -(-reader.indexed.num_tokens // CHUNK)
        chosen = np.linspace(0, chunks - 1, max(1, round(share * chunks))).astype(int)
        for number in chosen[rank::size].tolist():
            begin = number * CHUNK
            problem = _problem(reader.indexed, reader.tokenizer, reader.has_cls, begin, begin + CHUNK)
            if problem:
                return problem
    return None


def _problem(shard: IndexedDataset, tokenizer: Tokenizer, has_cls: bool, begin: int, end: int) -> str | None:
    ids = shard.tokens(begin, end)
    unsigned = ids.view(f"<u{ids.itemsize}")  # what is below 0 is then beyond any vocabulary
    if unsigned.max() >= tokenizer.vocab_size:
        place = int((unsigned >= tokenizer.vocab_size).argmax())
        last = tokenizer.vocab_size - 1
        vocabulary = f"the vocabulary has {tokenizer.vocab_size} (0 ... {last})"
        what = f"token id {ids[place]}; {vocabulary}: preprocess with the tokenizer that training uses"
        return f"{_where(shard, begin + place)}: {what}"
    marks = np.flatnonzero(ids == tokenizer.cls_id) + begin
    expected = _starts(shard, begin, begin + len(ids)) if has_cls else marks[:0]
    if not np.array_equal(marks, expected):
        place = int(np.setxor1d(marks, expected)[0])
        return f"{_where(shard, place)}: every protein of a shard must begin with one [CLS], or none may hold any"
    if tokenizer.ends_proteins and (ids == tokenizer.sep_id).any():
        place = begin + int((ids == tokenizer.sep_id).argmax())
        return f"{_where(shard, place)}: holds an <eos>; a shard has residues only, and each protein gets its own here"
    return None


def _starts(shard: IndexedDataset, begin: int, end: int) -> np.ndarray:
    """Where proteins begin, among the tokens begin ... end - 1."""
    size = shard.dtype.itemsize
    first, last = np.searchsorted(shard.offsets, (begin * size, end * size))
    return shard.offsets[first:last][shard.lengths[first:last] > 0] // size


def _where(shard: IndexedDataset, token: int) -> str:
    number = int(np.searchsorted(shard.offsets, token * shard.dtype.itemsize, "right")) - 1
    return f"{shard.prefix}: protein {number}"
