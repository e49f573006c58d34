"""Length buckets: every protein once an epoch, little padding, and step n the same whatever else changes."""

import numpy as np
import pytest

from tape.data.batching import epoch_batches, eval_batches, num_steps, training_steps

LENGTHS = np.random.default_rng(0).integers(20, 600, 1003)


@pytest.mark.parametrize(("count", "batch_size"), [(1003, 8), (5, 8), (64, 64), (1, 1)])
def test_every_protein_once_an_epoch(count, batch_size):
    batches = epoch_batches(LENGTHS[:count], batch_size, seed=1, epoch=3)
    assert sorted(np.concatenate(batches)) == list(range(count))
    assert len(batches) == num_steps(count, batch_size)
    assert sorted(len(batch) for batch in batches)[1:] == [batch_size] * (len(batches) - 1)


def padding(batches: list[np.ndarray]) -> float:
    """The fraction of slots that are padding."""
    slots = sum(len(batch) * LENGTHS[batch].max() for batch in batches)
    return 1 - LENGTHS[np.concatenate(batches)].sum() / slots


def test_buckets_save_padding():
    shuffled = np.random.default_rng(1).permutation(len(LENGTHS))
    at_random = [shuffled[begin : begin + 8] for begin in range(0, len(shuffled), 8)]
    assert padding(epoch_batches(LENGTHS, 8, seed=1, epoch=0)) < 0.05 < 0.3 < padding(at_random)


def test_neighbours_change_with_epoch_and_seed():
    first, again, later, other = (
        epoch_batches(LENGTHS, 8, seed=seed, epoch=epoch) for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for different in (later, other):
        shared = {frozenset(batch) for batch in first} & {frozenset(batch) for batch in different}
        assert len(shared) < len(first) / 10


def test_batches_are_not_in_order_of_length():
    means = [LENGTHS[batch].mean() for batch in epoch_batches(LENGTHS, 8, seed=1, epoch=0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


@pytest.mark.parametrize("accumulation", [1, 3, 8])
def test_a_step_does_not_depend_on_accumulation_or_restart(accumulation):
    whole = [np.concatenate(parts) for parts in training_steps(LENGTHS, 8, 1, 7, 0, 300)]
    split = list(training_steps(LENGTHS, 8, accumulation, 7, 0, 300))
    resumed = list(training_steps(LENGTHS, 8, accumulation, 7, 140, 300))
    assert len(whole) == 300 > 2 * num_steps(len(LENGTHS), 8)
    for step, parts in enumerate(split):
        assert len(parts) <= accumulation
        assert all(len(part) for part in parts)
        assert np.array_equal(np.concatenate(parts), whole[step])
    for parts, same in zip(resumed, split[140:], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(parts, same, strict=True))


def test_evaluation_reads_each_protein_once_longest_first():
    batches = eval_batches(LENGTHS, 10)
    order = np.concatenate(batches)
    assert sorted(order) == list(range(len(LENGTHS)))
    assert (np.diff(LENGTHS[order]) <= 0).all()
