"""--tf32 and --deterministic reach PyTorch's switches, and nothing does without them."""

from collections.abc import Iterator

import pytest
import torch

from pretrain.config.options import Training
from pretrain.numerics import set_numerics

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def state() -> tuple:
    return (
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    precision, deterministic, fill = state()
    yield
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill


def test_switches_are_set_where_they_are_asked_for():
    assert state() == ("highest", False, True)
    set_numerics(Training(), GPU)
    set_numerics(Training(tf32=True), CPU)
    assert state() == ("highest", False, True)
    set_numerics(Training(tf32=True), GPU)
    assert state() == ("high", False, True)
    set_numerics(Training(deterministic=True), CPU)
    assert state() == ("high", True, False)
