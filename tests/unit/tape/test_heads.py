"""Heads against torch's own layers and the naive formulas, and their independence from padding."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tape import heads


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def padded(lengths, hidden, junk=0.0):
    """Hidden states of proteins one by one, and the same as one padded batch with its mask."""
    single = [torch.randn(1, n, hidden) for n in lengths]
    batch = torch.full((len(lengths), max(lengths), hidden), junk)
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.bool)
    for row, (states, n) in enumerate(zip(single, lengths, strict=True)):
        batch[row, :n], mask[row, :n] = states[0], True
    return single, batch, mask


def away_from_fresh(head):
    """A fresh BatchNorm (mean 0, bias 0) maps zeros to zeros and hides leaks of padding; give it a past."""
    for module in head.modules():
        if isinstance(module, heads.MaskedBatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.bias)
    return head.eval()


def test_weight_norm_is_torch_weight_norm_over_the_whole_matrix():
    ours = heads.NormedLinear(6, 4)
    theirs = torch.nn.utils.weight_norm(nn.Linear(6, 4), dim=None)
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        ours.weight_g.mul_(1.7)
        theirs.weight_g.mul_(1.7)
    x = torch.randn(3, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    assert ours.weight_g.shape == ()
    conv, reference = heads.NormedConv1d(6, 4, 5), torch.nn.utils.weight_norm(nn.Conv1d(6, 4, 5, padding=2), dim=None)
    reference.load_state_dict(conv.state_dict())
    x = torch.randn(2, 6, 9)
    torch.testing.assert_close(conv(x), reference(x))


def test_parameter_names_are_those_of_finetuned_files():
    value = set(heads.ValuePredictionHead(8, "tape").state_dict())
    assert value == {f"value_prediction.main.{i}.{n}" for i in (0, 3) for n in ("bias", "weight_g", "weight_v")}
    structure = set(heads.SequenceToSequenceClassificationHead(8, 3).state_dict())
    norm = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    expected = {f"classify.main.{i}.{n}" for i in (1, 4) for n in ("bias", "weight_g", "weight_v")}
    assert structure == expected | {f"classify.main.0.{n}" for n in norm}
    contact = set(heads.ContactHead(8, "proteinlm").state_dict())
    expected = {"predict.1.weight", "predict.1.bias", "linear.0.weight", "linear.0.bias"}
    for i in range(30):
        expected |= {f"predict.ResidualBlock{i}.conv{c}.weight" for c in (1, 2)}
        expected |= {f"predict.ResidualBlock{i}.bn{c}.{n}" for c in (1, 2) for n in norm}
    assert contact == expected
    assert set(heads.ContactHead(8, "tape").state_dict()) == {"predict.1.weight", "predict.1.bias"}


@pytest.mark.parametrize(("head", "width"), [("tape", 512), ("proteinlm", 1024)])
def test_widths_of_the_two_families(head, width):
    assert heads.ValuePredictionHead(8, head).state_dict()["value_prediction.main.0.weight_v"].shape == (width, 8)
    classify = heads.SequenceClassificationHead(8, 5, head)
    assert classify.state_dict()["classify.main.3.weight_v"].shape == (5, width)
    assert classify(torch.randn(2, 8)).shape == (2, 5)


def test_masked_batch_norm_is_batch_norm_of_the_real_positions():
    single, batch, mask = padded([3, 7, 5], 4, junk=50.0)
    ours, theirs = heads.MaskedBatchNorm(4), nn.BatchNorm1d(4)
    for _ in range(3):
        got = ours(batch.transpose(1, 2), mask.unsqueeze(1))
        expected = theirs(torch.cat([s[0] for s in single]))
    torch.testing.assert_close(got.transpose(1, 2)[mask], expected)
    assert not got.transpose(1, 2)[~mask].any()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    ours.eval(), theirs.eval()
    got = ours(batch.transpose(1, 2), mask.unsqueeze(1)).transpose(1, 2)
    torch.testing.assert_close(got[mask], theirs(torch.cat([s[0] for s in single])))


def test_batch_norm_without_padding_is_the_ordinary_layer():
    x = torch.randn(2, 4, 6)
    ours, masked, theirs = heads.MaskedBatchNorm(4), heads.MaskedBatchNorm(4), nn.BatchNorm1d(4)
    torch.testing.assert_close(ours(x, None), theirs(x))
    torch.testing.assert_close(masked(x, torch.ones(2, 1, 6, dtype=torch.bool)), theirs(x))
    assert all(torch.equal(ours.state_dict()[n], v) or n != "num_batches_tracked" for n, v in ours.state_dict().items())


def test_secondary_structure_does_not_see_padding():
    head = away_from_fresh(heads.SequenceToSequenceClassificationHead(16, 3))
    single, batch, mask = padded([4, 11, 8], 16)
    together = head(batch, mask)
    for row, states in enumerate(single):
        alone = head(states, torch.ones(1, states.shape[1], dtype=torch.bool))[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=0)
    # Negative control: the original, which takes padding for residues, moves the logits.
    original = head(batch, torch.ones_like(mask))
    assert (original[0, :4] - together[0, :4]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["tape", "proteinlm"])
def test_contacts_do_not_see_padding(kind):
    head = away_from_fresh(heads.ContactHead(8, kind))
    single, batch, mask = padded([9, 14], 8)
    together = head(batch, mask)
    assert together.shape == (2, 12, 12, 2)
    for row, states in enumerate(single):
        alone = head(states, torch.ones(1, states.shape[1], dtype=torch.bool))[0]
        torch.testing.assert_close(together[row, : len(alone), : len(alone)], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together, together.transpose(1, 2))
    if kind == "proteinlm":
        original = head(batch, torch.ones_like(mask))
        assert (original[0, :7, :7] - together[0, :7, :7]).abs().max() > 1e-3


def pair_features(x):
    left, right = x.unsqueeze(2), x.unsqueeze(1)
    return torch.cat((left * right, left - right), -1)  # [B, N, N, 2h]


def test_pair_linear_is_a_linear_layer_on_the_pair_features():
    x = torch.randn(2, 7, 5, dtype=torch.double, requires_grad=True)
    weight = torch.randn(3, 10, dtype=torch.double, requires_grad=True)
    bias = torch.randn(3, dtype=torch.double, requires_grad=True)
    fast = heads.pair_linear(x, weight, bias, 0.0)
    naive = F.linear(pair_features(x), weight, bias).permute(0, 3, 1, 2)
    torch.testing.assert_close(fast, naive)
    probe = torch.randn_like(naive)
    ours = torch.autograd.grad((fast * probe).sum(), (x, weight, bias))
    theirs = torch.autograd.grad((naive * probe).sum(), (x, weight, bias))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("chunk", [1, 10**9])
def test_dropout_of_pairs_is_dropout_of_the_features(monkeypatch, chunk):
    monkeypatch.setattr(heads, "CHUNK_ELEMENTS", {False: chunk})
    masks = []

    def remember(*args):
        mask = original(*args)
        masks.append(mask)
        return mask

    original = heads.keep_mask
    monkeypatch.setattr(heads, "keep_mask", remember)
    x = torch.randn(2, 7, 5, dtype=torch.double, requires_grad=True)
    weight = torch.randn(3, 10, dtype=torch.double, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.double)
    fast = heads.pair_linear(x, weight, bias, 0.25)
    assert len(masks) == (7 if chunk == 1 else 1)
    kept = torch.cat(masks, 2)  # [2, B, N, N, h]
    naive = F.linear(pair_features(x) * torch.cat((kept[0], kept[1]), -1) / 0.75, weight, bias).permute(0, 3, 1, 2)
    torch.testing.assert_close(fast, naive)
    probe = torch.randn_like(naive)
    ours = torch.autograd.grad((fast * probe).sum(), (x, weight))  # the backward pass draws the same masks again
    torch.testing.assert_close(ours, torch.autograd.grad((naive * probe).sum(), (x, weight)))


@pytest.mark.parametrize("dropout", [0.5, 0.25, 0.1])
def test_keep_mask_keeps_the_right_share_independently(dropout):
    mask = heads.keep_mask((200, 301), dropout, torch.device("cpu")).double()
    assert mask.mean().item() == pytest.approx(1 - dropout, abs=0.01)
    neighbours = torch.corrcoef(torch.stack((mask[:, :-1].flatten(), mask[:, 1:].flatten())))[0, 1]
    assert abs(neighbours.item()) < 0.02


def test_contact_dropout_only_while_training():
    head = heads.ContactHead(8, "tape", dropout=0.5)
    states, mask = torch.randn(1, 9, 8), torch.ones(1, 9, dtype=torch.bool)
    head.eval()
    assert torch.equal(head(states, mask), head(states, mask))
    head.train()
    assert not torch.equal(head(states, mask), head(states, mask))


def test_recomputed_blocks_give_the_same_gradients_and_statistics():
    states, mask = torch.randn(2, 8, 6), torch.ones(2, 8, dtype=torch.bool)
    mask[1, 6:] = False
    results = []
    for recompute in (False, True):
        torch.manual_seed(1)
        head = heads.ContactHead(6, "proteinlm", dropout=0.0).train()
        head.recompute = recompute
        head(states, mask).square().sum().backward()
        results.append(({n: p.grad for n, p in head.named_parameters()}, dict(head.named_buffers())))
    for name, value in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], value)
    assert results[0][1]["predict.ResidualBlock3.bn1.num_batches_tracked"] == 1
    for name, gradient in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], gradient)
