"""Batch ramp-up, run length and learning rates from a configuration."""

import pytest

from pretrain.config.options import Config, Optim, Training
from pretrain.config.schedules import Schedule
from proteinlm.errors import InputError


def schedule(train_iters=100, train_samples=None, rampup_batch_size=None, **optim) -> Schedule:
    training = Training(
        train_iters=train_iters, train_samples=train_samples, global_batch_size=16, rampup_batch_size=rampup_batch_size
    )
    return Schedule(Config(training=training, optim=Optim(lr=1.0, **{"lr_decay_iters": train_iters, **optim})))


def test_plain_run_counts_iterations():
    plain = schedule(lr_warmup_fraction=0.1)
    assert plain.total_samples == 1600
    assert plain.batch_size(0) == plain.batch_size(10**9) == 16
    assert plain.learning_rate(5, 80) == pytest.approx(0.5)
    assert plain.learning_rate(55, 880) == pytest.approx(0.5)


def test_ramp_up_grows_in_equal_steps():
    ramp = schedule(rampup_batch_size=(4, 4, 48))
    assert [ramp.batch_size(n) for n in (0, 15, 16, 31, 32, 47, 48, 1000)] == [4, 4, 8, 8, 12, 12, 16, 16]
    # 4 steps of 4, 2 of 8, then 12, 12 (32 -> 44 -> 56), and the rest of the 100 iterations at 16
    assert ramp.total_samples == 4 * 4 + 2 * 8 + 2 * 12 + 92 * 16


def test_ramp_up_that_cannot_arrive_is_refused():
    with pytest.raises(InputError, match="4 in steps of 5 does not reach global-batch-size 16"):
        schedule(rampup_batch_size=(4, 5, 48))


def test_samples_drive_length_and_learning_rate():
    by_samples = schedule(train_iters=None, train_samples=1000, lr_warmup_samples=100, lr_decay_samples=600)
    assert by_samples.total_samples == 1000
    assert by_samples.learning_rate(1, 50) == pytest.approx(0.5)
    assert by_samples.learning_rate(1, 350) == pytest.approx(0.5)
    assert by_samples.learning_rate(1, 800) == 0.0
