"""Which proteins form which batch: of like length, shuffled, and a function of (seed, epoch) alone. Pure numpy.

An epoch's proteins are permuted, cut into pools of `POOL` batches, sorted by length inside a pool and cut into batches,
which are then permuted. Padding stays small and no protein has a fixed neighbour. Every protein appears once an epoch;
only the last batch formed may be smaller. What must hold: step n is the same batch whatever the accumulation, the
worker count, the number of processes and the restart point.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

POOL = 32


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch, in order: int64 index arrays of `batch_size` proteins (one of them may be smaller)."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    batches = []
    for begin in range(0, len(order), POOL * batch_size):
        pool = order[begin : begin + POOL * batch_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[first : first + batch_size] for first in range(0, len(pool), batch_size)]
    return [batches[place] for place in rng.permutation(len(batches))]


def num_steps(num_proteins: int, batch_size: int) -> int:
    """Optimizer steps of one epoch."""
    return -(-num_proteins // batch_size)


def training_steps(
    lengths: np.ndarray, batch_size: int, accumulation: int, seed: int, first_step: int, last_step: int
) -> Iterator[list[np.ndarray]]:
    """Steps first_step ... last_step - 1 (from 0), each a list of at most `accumulation` micro-batches of indices."""
    per_epoch = num_steps(len(lengths), batch_size)
    epoch, batches = -1, []
    for step in range(first_step, last_step):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            batches = epoch_batches(lengths, batch_size, seed, epoch)
        batch = batches[step % per_epoch]
        yield np.array_split(batch, min(accumulation, len(batch)))


@dataclass(frozen=True)
class Share:
    """What one of several processes computes of a step's parts (micro-batches)."""

    parts: list[np.ndarray]  # never empty: every process takes part in every step
    idle: list[bool]  # per part: it only keeps step with the others and counts for nothing
    split: bool  # each part is spread over all processes; else each process has whole parts
    total: int  # parts of the step
    after: int  # of these, how many come after this process's (0 if split)


def share_step(parts: Sequence[np.ndarray], rank: int, size: int) -> Share:
    """Deal a step's parts to `size` processes: whole ones, in blocks of neighbours, where there are enough of them.

    Else every part is cut into `size` pieces; where a part has fewer proteins than that, the processes left over take
    its first protein, idle.
    """
    if len(parts) >= size:
        ends = np.linspace(0, len(parts), size + 1).astype(int)
        own = list(parts[ends[rank] : ends[rank + 1]])
        return Share(own, [False] * len(own), False, len(parts), len(parts) - int(ends[rank + 1]))
    pieces = [np.array_split(part, size)[rank] for part in parts]
    idle = [not len(piece) for piece in pieces]
    own = [part[:1] if nothing else piece for part, piece, nothing in zip(parts, pieces, idle, strict=True)]
    return Share(own, idle, True, len(parts), 0)


def eval_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Every protein once, longest first, so that running out of memory shows at once. The last batch may be smaller."""
    order = np.argsort(-lengths, kind="stable")
    return [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]
