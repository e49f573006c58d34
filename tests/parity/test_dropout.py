"""Dropout under tensor parallelism: one mask where ranks hold the same activations, several where they hold parts."""

import parity_jobs as jobs
import pytest
import torch
from parity_layouts import PP, SP, TP, TWO, ZERO_BUBBLE

pytestmark = pytest.mark.slow

DROPOUT = ["--hidden-dropout", "0.2", "--attention-dropout", "0.2"]


def masks(ranks, corpus, size: int, flags: list[str]) -> list[dict[str, torch.Tensor]]:
    return ranks.run(size, jobs.dropout_masks, [*corpus, *DROPOUT, *flags])


def test_replicated_activations_drop_the_same_units_and_heads_their_own(ranks, corpus):
    first, second = masks(ranks, corpus, 2, [*TP, *TWO])
    for region in ("embedding", "layers.0 after attention", "layers.3 after MLP"):
        assert torch.equal(first[region], second[region]), region
        assert 0.1 < float((first[region] == 0).double().mean()) < 0.3
    assert not torch.equal(first["layers.0 attention"], second["layers.0 attention"])
    assert not torch.equal(first["layers.0 attention"], first["layers.1 attention"])


def test_sharded_activations_drop_their_own_units(ranks, corpus):
    first, second = masks(ranks, corpus, 2, [*SP, *TWO])
    for region in ("embedding", "layers.0 after attention", "layers.3 after MLP", "layers.0 attention"):
        assert first[region].shape == second[region].shape
        assert not torch.equal(first[region], second[region]), region


def test_replicas_and_stages_drop_their_own_units(ranks, corpus):
    first, second = masks(ranks, corpus, 2, [])
    assert not torch.equal(first["layers.0 after attention"], second["layers.0 after attention"])
    first, second = masks(ranks, corpus, 2, PP)
    assert not torch.equal(first["layers.0 after attention"], second["layers.2 after attention"])


@pytest.mark.parametrize("flags", [[*TP, *TWO], [*SP, *TWO], PP, ZERO_BUBBLE, ["--use-torch-fsdp2"]])
def test_recomputation_repeats_the_masks(flags, ranks, corpus):
    """The same gradients with dropout, layers recomputed or not."""
    flags = [*corpus, *DROPOUT, *flags]
    arms = ([], ["--checkpoint-activations"])
    plain, again = (ranks.run(2, jobs.train, [*flags, *more], None, 1)[0] for more in arms)
    for name, value in plain.items():
        assert torch.allclose(again[name], value, rtol=0, atol=1e-12), name


def test_another_seed_drops_other_units(ranks, corpus):
    """The control: with other masks the first loss is another."""
    one, other = (ranks.run(2, jobs.train, [*corpus, *DROPOUT, *PP, "--seed", seed], None, 1)[0] for seed in "12")
    assert not torch.equal(one["loss"], other["loss"])
