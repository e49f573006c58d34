"""Heads against torch's own layers and the naive formulas, and their independence from padding."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tape.models import heads


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
    layer = heads.NormedLinear(6, 4)
    torch_layer = torch.nn.utils.weight_norm(nn.Linear(6, 4), dim=None)
    torch_layer.load_state_dict(layer.state_dict())
    with torch.no_grad():
        layer.weight_g.mul_(1.7)
        torch_layer.weight_g.mul_(1.7)
    x = torch.randn(3, 6)
    torch.testing.assert_close(layer(x), torch_layer(x))
    assert layer.weight_g.shape == ()
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
    layer, reference = heads.MaskedBatchNorm(4), nn.BatchNorm1d(4)
    for _ in range(3):
        got = layer(batch.transpose(1, 2), mask.unsqueeze(1))
        expected = reference(torch.cat([s[0] for s in single]))
    torch.testing.assert_close(got.transpose(1, 2)[mask], expected)
    assert not got.transpose(1, 2)[~mask].any()
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], value)
    layer.eval(), reference.eval()
    got = layer(batch.transpose(1, 2), mask.unsqueeze(1)).transpose(1, 2)
    torch.testing.assert_close(got[mask], reference(torch.cat([s[0] for s in single])))


def test_batch_norm_without_padding_is_the_ordinary_layer():
    x = torch.randn(2, 4, 6)
    norm, masked, reference = heads.MaskedBatchNorm(4), heads.MaskedBatchNorm(4), nn.BatchNorm1d(4)
    torch.testing.assert_close(norm(x, None), reference(x))
    torch.testing.assert_close(masked(x, torch.ones(2, 1, 6, dtype=torch.bool)), reference(x))
    assert all(torch.equal(norm.state_dict()[n], v) or n != "num_batches_tracked" for n, v in norm.state_dict().items())


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
    actual = torch.autograd.grad((fast * probe).sum(), (x, weight, bias))
    expected = torch.autograd.grad((naive * probe).sum(), (x, weight, bias))
    torch.testing.assert_close(actual, expected)


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
    keep = torch.cat(masks, 2)  # [2, B, N, N, h]
    naive = F.linear(pair_features(x) * torch.cat((keep[0], keep[1]), -1) / 0.75, weight, bias).permute(0, 3, 1, 2)
    torch.testing.assert_close(fast, naive)
    probe = torch.randn_like(naive)
    gradients = torch.autograd.grad((fast * probe).sum(), (x, weight))  # the backward pass draws the same masks again
    torch.testing.assert_close(gradients, torch.autograd.grad((naive * probe).sum(), (x, weight)))


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


def contact_step(head, states, mask, precision=torch.float32):
    """(logits, gradients by name with the input's, buffers) of one training step."""
    states = states.clone().requires_grad_()
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        logits = head(states, mask)
    real = (mask.unsqueeze(2) & mask.unsqueeze(1))[:, 2:, 2:]
    (logits.float() * torch.sin(torch.arange(logits.numel()).view(logits.shape)) * real.unsqueeze(3)).sum().backward()
    gradients = {name: p.grad for name, p in head.named_parameters()} | {"input": states.grad}
    return logits.detach(), gradients, dict(head.named_buffers())


@pytest.mark.parametrize(
    ("lengths", "dropout", "precision", "training"),
    [
        ([11], 0.0, torch.float32, True),
        ([11, 8], 0.5, torch.float32, True),
        ([11], 0.5, torch.bfloat16, True),
        ([11, 8], 0.0, torch.bfloat16, True),
        ([11, 8], 0.5, torch.float32, False),
    ],
)
@pytest.mark.slow
def test_recomputed_blocks_change_no_number(lengths, dropout, precision, training):
    _, states, mask = padded(lengths, 6)
    results = []
    for recompute in (False, True):
        torch.manual_seed(1)
        head = heads.ContactHead(6, "proteinlm", dropout).train(training)
        head.recompute = recompute
        results.append(contact_step(head, states, mask, precision))
    (plain_logits, plain, plain_buffers), (logits, gradients, buffers) = results
    assert torch.equal(logits, plain_logits)
    for name, value in plain_buffers.items():
        torch.testing.assert_close(buffers[name], value, rtol=1e-6, atol=1e-6)
    for name, value in plain.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-6, atol=1e-6 * float(value.abs().max()))
    assert buffers["predict.ResidualBlock3.bn1.num_batches_tracked"] == int(training)


def test_statistics_would_move_twice_if_the_second_run_tracked_them(monkeypatch):
    monkeypatch.setattr(heads.Segment, "_untracked", lambda self: contextlib.nullcontext())
    head = heads.ContactHead(6, "proteinlm", 0.0).train()
    head.recompute = True
    buffers = contact_step(head, *padded([12, 9], 6)[1:])[2]
    assert buffers["predict.ResidualBlock3.bn1.num_batches_tracked"] == 2


class TorchContactHead(nn.Module):
    """The head of torch's own layers on the features of every pair, without dropout or padding."""

    def __init__(self, hidden):
        super().__init__()
        self.first, self.last = nn.Conv2d(2 * hidden, 64, 1), nn.Linear(64, 2)
        self.blocks = nn.ModuleList()
        for _ in range(30):
            convs = [nn.Conv2d(64, 64, 3, padding=1, bias=False) for _ in range(2)]
            norms = [nn.BatchNorm2d(64) for _ in range(2)]
            self.blocks.append(nn.Sequential(convs[0], norms[0], nn.ReLU(), convs[1], norms[1]))

    def forward(self, states, mask):
        x = self.first(pair_features(states).permute(0, 3, 1, 2))
        for block in self.blocks:
            x = F.relu(block(x) + x)
        logits = self.last(x.permute(0, 2, 3, 1))
        return ((logits + logits.transpose(1, 2)) / 2)[:, 1:-1, 1:-1]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("recompute", [False, True])
def test_contact_head_is_torch_layers_one_after_the_other(training, recompute):
    reference, head = TorchContactHead(5).double(), away_from_fresh(heads.ContactHead(5, "proteinlm", 0.0)).double()
    reference.load_state_dict(dict(zip(reference.state_dict(), ordered(head.state_dict()), strict=True)))
    head.recompute = recompute
    states, mask = torch.randn(1, 9, 5).double(), torch.ones(1, 9, dtype=torch.bool)
    expected, torch_grads, _ = contact_step(reference.train(training), states, mask)
    logits, gradients, _ = contact_step(head.train(training), states, mask)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(gradients["input"], torch_grads["input"])
    for actual, gradient in zip(ordered(gradients), [v for n, v in torch_grads.items() if n != "input"], strict=True):
        torch.testing.assert_close(actual, gradient)


def ordered(state):
    """Our tensors in TorchContactHead's order: the 1x1 convolution, the linear layer, then the blocks."""
    groups = ("predict.1.", "linear.", *(f"predict.ResidualBlock{i}." for i in range(30)))
    inside = ("conv1", "bn1", "conv2", "bn2")

    def place(name):
        group = next(i for i, prefix in enumerate(groups) if name.startswith(prefix))
        return group, next((i for i, part in enumerate(inside) if f".{part}." in name), 0)

    return [state[name] for name in sorted((n for n in state if n != "input"), key=place)]


@pytest.mark.parametrize("lengths", [[17], [17, 11]])
@pytest.mark.parametrize("rows", [2, 5, 16])
@pytest.mark.slow
def test_strips_and_one_map_at_a_time_change_no_number(lengths, rows):
    """In float64: in fp32 the order of a processor's sums shows at 1e-6."""
    _, states, mask = padded(lengths, 6, junk=3.0)
    states, head = states.double(), away_from_fresh(heads.ContactHead(6, "proteinlm")).double()
    head.strip_pairs = 1 << 30
    with torch.no_grad():
        whole = head(states, mask)
        head.strip_pairs = rows * 17
        strips = head(states, mask)
    for row, n in enumerate(lengths):
        torch.testing.assert_close(strips[row, : n - 2, : n - 2], whole[row, : n - 2, : n - 2], rtol=1e-12, atol=1e-12)


def test_a_strip_without_its_neighbours_would_be_caught():
    block, x = away_from_fresh(heads.ResidualBlock(4)), torch.randn(1, 4, 11, 11)
    with torch.no_grad():
        whole, strips = block(x, None), x.clone()
        block.forward_in_place(strips, None, 4)
        torch.testing.assert_close(strips, whole, rtol=1e-6, atol=1e-6)
        apart = torch.cat([block(part, None) for part in x.split(4, 2)], 2)
    assert (apart - whole).abs().max() > 1e-2


def test_the_number_of_pairs_decides_what_is_kept(monkeypatch):
    recomputed, in_place = [], []
    monkeypatch.setattr(heads, "RECOMPUTE_PAIRS", {False: 100})
    monkeypatch.setattr(heads, "STRIP_PAIRS", {False: 90})
    first, second = heads.Segment.recomputed, heads.ResidualBlock.forward_in_place
    monkeypatch.setattr(heads.Segment, "recomputed", lambda *a: recomputed.append(len(a[0].blocks)) or first(*a))
    monkeypatch.setattr(heads.ResidualBlock, "forward_in_place", lambda *a: in_place.append(a[3]) or second(*a))
    head = heads.ContactHead(6, "proteinlm")
    for length, training in ((9, True), (11, True), (11, False)):  # 81 and 121 pairs
        states, mask = torch.randn(1, length, 6), torch.ones(1, length, dtype=torch.bool)
        with torch.set_grad_enabled(training):
            head.train(training)(states, mask)
        assert recomputed == ([3] * 10 if length == 11 else [])
    assert in_place == [8] * 30  # of 11 rows
