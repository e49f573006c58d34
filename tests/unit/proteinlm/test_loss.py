"""The masked-LM loss: a sum, over labelled positions only."""

import torch

from proteinlm.loss import masked_lm_loss


def test_hand_worked_sum():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]))
    labels = torch.tensor([0, -100, 1])
    expected = -(torch.log(torch.tensor(0.5)) + torch.log(torch.tensor(0.2)))
    torch.testing.assert_close(masked_lm_loss(logits, labels), expected)


def test_padding_rows_of_the_vocabulary_take_no_probability_and_no_gradient():
    logits = torch.tensor([[1.0, 2.0, -torch.inf]], requires_grad=True)
    loss = masked_lm_loss(logits, torch.tensor([0]))
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.log1p(torch.exp(torch.tensor(1.0))))
    assert logits.grad[0, 2] == 0 and torch.isfinite(logits.grad).all()


def test_sum_then_divide_is_not_the_mean_of_means():
    """The trap that this loss avoids: micro-batches with different numbers of masked residues."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(9, 5, generator=generator)
    labels = torch.arange(9) % 5
    parts = [(logits[:8], labels[:8]), (logits[8:], labels[8:])]
    sums = sum(masked_lm_loss(x, y) for x, y in parts)
    torch.testing.assert_close(sums / 9, torch.nn.functional.cross_entropy(logits, labels))
    mean_of_means = sum(masked_lm_loss(x, y) / len(y) for x, y in parts) / 2
    assert abs(mean_of_means - sums / 9) > 0.05


def test_half_precision_logits_are_summed_in_fp32():
    logits = torch.randn(4, 7).bfloat16()
    assert masked_lm_loss(logits, torch.tensor([0, 1, 2, 3])).dtype == torch.float32
    assert masked_lm_loss(logits.double(), torch.tensor([0, 1, 2, 3])).dtype == torch.float64
