"""Asynchronous saving: the state as it was when the save began, in memory that the next save uses again."""

from pathlib import Path

import pytest
import torch

from pretrain.checkpoint.files import load_checkpoint, save_checkpoint
from pretrain.checkpoint.saving import Saver, Staging
from pretrain.config.options import Checkpoint
from proteinlm.errors import InputError


def test_saves_reuse_their_memory_and_hold_the_state_as_it_was(tmp_path: Path):
    saver, addresses = Saver(Checkpoint(save=str(tmp_path), async_save=True), None), set()
    for iteration in (1, 2):
        weight, step = torch.full((6, 4), float(iteration)), torch.tensor(float(iteration))
        saver.save(iteration, {"model": {"weight": weight}, "optimizer": {"step": {"weight": step}}}, {}, None)
        weight.zero_()  # training goes on
        step.zero_()
        addresses.add(tuple(memory.data_ptr() for memory in saver._staging._memory.values()))
        saver.wait()
        saved = load_checkpoint(tmp_path, iteration, {"model": {"weight": torch.zeros(6, 4)}})["model"]["weight"]
        assert torch.equal(saved, torch.full((6, 4), float(iteration)))
    assert len(addresses) == 1 and len(addresses.pop()) == 2


@pytest.mark.parametrize("place", ["model.weight", "optimizer.exp_avg.weight"])
def test_numbers_that_are_none_are_refused(tmp_path, place):
    """Of weights and of moments: every step would be thrown away."""
    state = {"model": {"weight": torch.ones(6, 4)}, "optimizer": {"exp_avg": {"weight": torch.ones(6, 4)}}}
    damaged = state["model"] if place.startswith("model") else state["optimizer"]["exp_avg"]
    damaged["weight"][0, :2] = torch.tensor([float("nan"), float("inf")])
    save_checkpoint(tmp_path, 1, state, {})
    message = rf"iter_0000001: {place} holds NaN or infinity \(2 numbers\): a diverged run"
    with pytest.raises(InputError, match=message):
        load_checkpoint(tmp_path, 1, {"model": {"weight": torch.zeros(6, 4)}, "optimizer": state["optimizer"]})


@pytest.mark.gpu
def test_a_state_on_a_gpu_is_staged_in_page_locked_memory():
    staging, values = Staging(), torch.randn(1000, 100, device="cuda")
    before = values.clone()
    staged = staging.copy({"a": {"b": values}})["a"]["b"]
    values.zero_()
    staging.wait()
    assert staged.is_pinned() and torch.equal(staged, before.cpu())
