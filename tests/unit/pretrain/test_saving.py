"""Asynchronous saving: the state as it was when the save began, in memory that the next save uses again."""

from pathlib import Path

import pytest
import torch

from pretrain.checkpoint.files import load_checkpoint
from pretrain.checkpoint.saving import Saver, Staging
from pretrain.config.options import Checkpoint


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


@pytest.mark.gpu
def test_a_state_on_a_gpu_is_staged_in_page_locked_memory():
    staging, values = Staging(), torch.randn(1000, 100, device="cuda")
    before = values.clone()
    staged = staging.copy({"a": {"b": values}})["a"]["b"]
    values.zero_()
    staging.wait()
    assert staged.is_pinned() and torch.equal(staged, before.cpu())
