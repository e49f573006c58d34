"""Processes killed with SIGKILL at random moments, also during saving: `make test-kill KILLS=50` does more of it."""

import sys

import kill_harness
import pytest
import torch

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "kills"), [("dp2", 3), ("fsdp2-async-keep3", 2)])
def test_a_killed_run_ends_as_the_undisturbed_one(layout, kills, tmp_path):
    moments = kill_harness.kill_and_compare(layout, kills, tmp_path, seed=1)
    assert moments.total() == kills


def test_a_difference_of_one_bit_is_seen():
    weights = {"a": torch.ones(3), "b": torch.ones(3)}
    other = {**weights, "a": torch.nextafter(weights["a"], torch.tensor(2.0))}
    assert kill_harness.differences(weights, weights) == []
    assert kill_harness.differences(weights, other) == ["a"]
    assert kill_harness.differences(weights, {"a": weights["a"]}) == ["b"]
