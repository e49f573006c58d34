"""Replaced-token detection: its loss by hand, its step against the same sums written out, and what is kept of it."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import lines, losses, trainer, weights

from converter.sources import read
from pretrain.data.loader import Batch
from pretrain.replaced_tokens import detection_loss, fill, generator_config
from proteinlm.errors import InputError
from proteinlm.network.config import ModelConfig

RTD = ("--objective", "rtd", "--train-iters", "4", "--hidden-dropout", "0", "--attention-dropout", "0")


def batch(tokens: list, places: list, labels: list) -> Batch:
    tokens = torch.tensor([tokens])
    position_ids, bounds = torch.arange(tokens.shape[1])[None], torch.tensor([0, tokens.shape[1]], dtype=torch.int32)
    return Batch(tokens, position_ids, bounds, torch.tensor(places), torch.tensor(labels), 2, 6, 1, 36)


def certain(*ids: int) -> torch.Tensor:
    """Logits of a generator that is sure."""
    return torch.full((len(ids), 10), -torch.inf).index_put_(
        (torch.arange(len(ids)), torch.tensor(ids)), torch.tensor(0.0)
    )


def test_a_draw_that_is_the_residue_itself_replaces_nothing():
    # 9 is the mask token; the third place is unused and points at the row's first token
    one = batch([2, 5, 9, 6, 9, 7], [2, 4, 0], [5, 6, -100])
    tokens, replaced = fill(one, certain(5, 7, 8))
    assert tokens.tolist() == [[2, 5, 5, 6, 7, 7]] and replaced.tolist() == [False] * 4 + [True, False]


def test_the_loss_by_hand():
    log_odds = torch.tensor([0.0, 2.0, -1.0, 5.0])
    loss, right = detection_loss(log_odds, torch.tensor([False, True, True, True]), torch.tensor([1, 1, 1, 0]).bool())
    by_hand = math.log(2) + math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))
    assert loss.item() == pytest.approx(by_hand, rel=1e-6) and right == 2  # even odds: not replaced


def test_the_generators_shape():
    config = generator_config(
        ModelConfig(hidden_size=96, num_layers=4, num_attention_heads=6, max_position_embeddings=9), 0.34
    )
    assert (config.num_attention_heads, config.hidden_size, config.head_size, config.ffn_hidden_size) == (
        2,
        32,
        16,
        128,
    )
    assert config.num_layers == 4


def written_out(run, batches: list, rtd_weight: float) -> tuple[float, float, dict]:
    """(mean masked-LM loss, mean detection loss, gradients by name) of a copy of the model on one global batch."""
    model = copy.deepcopy(run.model)
    network, masked_lm, detection, masked, real = model[0], 0.0, 0.0, 0, 0
    for one in batches:
        places = one.position_ids, one.cu_seqlens
        logits = network.generator(one.tokens, *places, one.masked_positions)
        used = one.labels != -100
        drawn = torch.multinomial(logits.detach().float().softmax(-1), 1)[:, 0]
        tokens, own = one.tokens.flatten().clone(), one.tokens.flatten().clone()
        tokens[one.masked_positions[used]], own[one.masked_positions[used]] = drawn[used], one.labels[used]
        hidden = network(tokens.view_as(one.tokens), *places).flatten(0, 1)
        odds = network.replaced_head.out(F.gelu(network.replaced_head.dense(hidden)))[:, 0]
        is_real = one.tokens.flatten() != run.tokenizer.pad_id
        masked_lm = masked_lm + F.cross_entropy(logits[used], one.labels[used], reduction="sum")
        truth = (tokens != own).to(odds.dtype)
        detection = detection + F.binary_cross_entropy_with_logits(odds[is_real], truth[is_real], reduction="sum")
        masked, real = masked + int(used.sum()), real + int(is_real.sum())
    total = (masked_lm + rtd_weight * 0.15 * detection) / masked
    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return (masked_lm / masked).item(), (detection / real).item(), gradients


@pytest.mark.parametrize(("rtd_weight", "agrees"), [(50.0, True), (40.0, False)])
def test_a_step_is_the_sums_written_out(prefix, tmp_path, rtd_weight, agrees):
    torch.set_default_dtype(torch.float64)
    try:
        run = trainer(prefix, tmp_path, *RTD, "--clip-grad", "0")
    finally:
        torch.set_default_dtype(torch.float32)
    (batches,) = [micro_batches for _, micro_batches in zip(range(1), run._loader(), strict=False)]
    state = torch.get_rng_state()
    masked_lm, detection, gradients = written_out(run, batches, rtd_weight)
    torch.set_rng_state(state)
    run.train_step(batches)
    values = run.advance().values
    assert values["lm_loss"] == pytest.approx(masked_lm, rel=1e-10)
    assert values["rtd_loss"] == pytest.approx(detection, rel=1e-10)
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values() if g is not None))
    assert (values["grad_norm"] == pytest.approx(norm, rel=1e-10)) == agrees


@pytest.fixture(scope="module")
def whole(prefix, tmp_path_factory):
    save = tmp_path_factory.mktemp("rtd")
    run = trainer(prefix, save, *RTD, "--eval-interval", "2", "--optimizer", "muon", "--share-layers")
    run.run()
    return run, save


def test_a_resumed_run_draws_what_a_whole_one_does(prefix, whole, tmp_path):
    run, save = whole
    flags = (*RTD, "--optimizer", "muon", "--share-layers")  # and evaluates at other times
    trainer(prefix, tmp_path, *flags, "--exit-interval", "3").run()
    again = trainer(prefix, tmp_path, *flags, "--load", str(tmp_path))
    again.run()
    assert losses(tmp_path) == losses(save) and torch.equal(weights(again), weights(run))
    assert all("rtd_loss" in line or "valid_rtd_loss" in line for line in lines(save))


def test_it_learns_to_tell_replaced_tokens(prefix, tmp_path):
    trainer(prefix, tmp_path, *RTD[:2], "--train-iters", "80", "--lr", "5e-3", "--eval-iters", "2", "--seed", "1").run()
    measured = [line["rtd_loss"] for line in lines(tmp_path) if "rtd_loss" in line]
    assert sum(measured[-5:]) / 5 < 0.9 * sum(measured[5:10]) / 5


def test_the_encoder_alone_is_converted(whole):
    run, save = whole
    model = read(save)
    assert not model.has_lm_head and not model.config.share_layers
    assert not [name for name in model.tensors if "generator" in name or "replaced" in name]
    own = run.model[0].layers["1"].mlp.dense_h_to_4h.weight
    assert torch.equal(model.tensors["layers.1.mlp.dense_h_to_4h.weight"], own.detach())


def test_another_objective_does_not_go_on_from_it(prefix, whole, tmp_path):
    with pytest.raises(InputError, match="objective rtd, this run asks for mlm"):
        trainer(prefix, tmp_path, "--share-layers", "--train-iters", "9", "--load", str(whole[1]))
