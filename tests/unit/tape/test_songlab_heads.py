"""Heads in songlab's calling convention, against the layers they are described by, built here of torch.nn alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tape.models import modeling_utils as heads

B, N, H, C = 3, 12, 8, 4


def normed(layer):
    return nn.utils.weight_norm(layer, dim=None)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def mlp(out):
    return nn.Sequential(normed(nn.Linear(H, 512)), nn.ReLU(), nn.Dropout(0.0), normed(nn.Linear(512, out)))


def load(head, prefix, main):
    """The reference's tensors under songlab's names into our head; strict, so the names agree."""
    head.load_state_dict({f"{prefix}.main.{name}": value for name, value in main.state_dict().items()})
    return head.eval(), main.eval()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_sequence_heads():
    x, labels, values = torch.randn(B, H), torch.tensor([0, 3, 1]), torch.randn(B, 1)
    head, main = load(heads.ValuePredictionHead(H), "value_prediction", mlp(1))
    loss, prediction = head(x, values)
    torch.testing.assert_close((loss, prediction), (F.mse_loss(main(x), values), main(x)))
    head, main = load(heads.SequenceClassificationHead(H, C), "classify", mlp(C))
    (loss, measured), logits = head(x, labels)
    torch.testing.assert_close((loss, logits), (F.cross_entropy(main(x), labels), main(x)))
    assert measured["accuracy"] == (main(x).argmax(-1) == labels).float().mean()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_residue_head():
    layers = [nn.BatchNorm1d(H), normed(nn.Conv1d(H, 512, 5, padding=2)), nn.ReLU(), nn.Dropout(0.0)]
    main = nn.Sequential(*layers, normed(nn.Conv1d(512, C, 3, padding=1)))
    main[0].running_mean.normal_()
    head, main = load(heads.SequenceToSequenceClassificationHead(H, C, ignore_index=-1), "classify", main)
    x, labels = torch.randn(B, N, H), torch.randint(0, C, (B, N))
    labels[:, 0] = -1
    expected = main(x.transpose(1, 2)).transpose(1, 2)
    (loss, measured), logits = head(x, labels)
    torch.testing.assert_close(logits.view(-1, C), expected.reshape(-1, C))  # songlab's logits can be viewed
    torch.testing.assert_close(loss, F.cross_entropy(expected.flatten(0, 1), labels.flatten(), ignore_index=-1))
    assert measured["accuracy"] == (expected.argmax(-1) == labels)[:, 1:].float().mean()
    torch.testing.assert_close(head.train()(x), main.train()(x.transpose(1, 2)).transpose(1, 2))
    mask = torch.ones(B, N)
    mask[0, 7:] = 0
    alone = head.eval()(x[:1, :7])
    torch.testing.assert_close(head(x, input_mask=mask)[:1, :7], alone)
    assert not torch.allclose(head(x)[:1, :7], alone)  # without the mask padding is seen, as in songlab's


def test_contact_head():
    head, linear = heads.PairwiseContactPredictionHead(H, ignore_index=-1).eval(), nn.Linear(2 * H, 2)
    head.load_state_dict({"predict.1.weight": linear.weight, "predict.1.bias": linear.bias})
    x, labels = torch.randn(B, N, H), torch.randint(-1, 2, (B, N - 2, N - 2))
    one, other = x.unsqueeze(2), x.unsqueeze(1)
    pairs = linear(torch.cat((one * other, one - other), -1))
    expected = ((pairs + pairs.transpose(1, 2)) / 2)[:, 1:-1, 1:-1]
    (loss, measured), logits = head(x, torch.tensor([N - 2] * B), labels)
    torch.testing.assert_close(logits.view(-1, 2), expected.reshape(-1, 2), rtol=1e-4, atol=1e-5)
    reference = F.cross_entropy(expected.reshape(-1, 2), labels.flatten(), ignore_index=-1)
    torch.testing.assert_close(loss, reference, rtol=1e-4, atol=1e-5)
    assert 0 <= measured["precision_at_l5"] <= 1


def test_masked_lm_head():
    head, x, labels = heads.MLMHead(H, 30, ignore_index=-1), torch.randn(B, N, H), torch.randint(-1, 30, (B, N))
    assert set(head.state_dict()) == {
        *(f"transform.{layer}.{kind}" for layer in ("dense", "LayerNorm") for kind in ("weight", "bias")),
        "decoder.weight",
        "bias",
    }
    hidden = F.layer_norm(F.gelu(head.transform.dense(x)), (H,), eps=1e-12)
    expected = hidden @ head.decoder.weight.t() + head.bias
    (loss, measured), logits = head(x, labels)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(loss, F.cross_entropy(expected.flatten(0, 1), labels.flatten(), ignore_index=-1))
    assert measured["perplexity"] == pytest.approx(loss.exp().item())
    with pytest.raises(ValueError, match="hidden_act 'tanh' is not one of gelu, gelu_new, relu, swish"):
        heads.MLMHead(H, 30, "tanh")


@pytest.mark.parametrize(
    "head",
    [heads.ValuePredictionHead(H), heads.SequenceClassificationHead(H, C), heads.MLMHead(H, 30)],
    ids=lambda head: type(head).__name__,
)
def test_three_ways_to_call(head):
    x = torch.randn(B, H)
    bare, (alone,) = head(x), head(x, None)  # as in songlab's example, as in songlab's models at inference
    torch.testing.assert_close(bare, alone)
