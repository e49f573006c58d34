"""songlab's tape.models.modeling_utils: ProteinModel, ProteinConfig and the task heads in songlab's calling convention.

    head = SequenceToSequenceClassificationHead(hidden_size, num_labels, ignore_index=-1)
    (loss, metrics), logits = head(hidden_states, targets)
    logits, = head(hidden_states, None)
    logits = head(hidden_states)                    # as in songlab's example of adding a model

For users' models (plugins); this package's use tape.models.heads. Shapes, widths (512), parameter names are songlab's.
What must hold: where a head convolves or normalises, `input_mask` [B, N] keeps padding out of its numbers; without it
(songlab has none) every position counts.

Legend: B proteins, N tokens, h hidden size, C classes.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proteinlm.network.layers import ACTIVATIONS
from tape import metrics
from tape.models import heads
from tape.models.base import ProteinConfig, ProteinModel
from tape.models.outputs import precision_at_l5

__all__ = [
    "MLMHead",
    "PairwiseContactPredictionHead",
    "ProteinConfig",
    "ProteinModel",
    "SequenceClassificationHead",
    "SequenceToSequenceClassificationHead",
    "ValuePredictionHead",
    "accuracy",
]

ABSENT = object()  # no targets argument at all, which is not targets=None


def accuracy(logits: Tensor, labels: Tensor, ignore_index: int = -100) -> Tensor:
    """Share of the labels other than `ignore_index` at which logits [..., C] are highest."""
    counted = labels != ignore_index
    right = (logits.detach().float().argmax(-1) == labels) & counted
    return right.sum().float() / counted.sum().float()


def _outputs(logits: Tensor, targets: Tensor | object | None, loss: Callable[[], object]) -> Tensor | tuple:
    """songlab's return value; `loss()` gives what precedes the logits."""
    if targets is ABSENT:
        return logits
    return (logits,) if targets is None else (loss(), logits)


def _outputs_of_classes(logits: Tensor, targets: Tensor | object | None, ignore_index: int) -> Tensor | tuple:
    def loss() -> tuple[Tensor, dict]:
        return _cross_entropy(logits, targets, ignore_index), {"accuracy": accuracy(logits, targets, ignore_index)}

    return _outputs(logits, targets, loss)


def _cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1), ignore_index=ignore_index)


class ValuePredictionHead(nn.Module):
    """pooled [B, h] -> value [B, 1]; mean squared error. The loss comes bare, without metrics, as songlab's does."""

    def __init__(self, hidden_size: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.value_prediction = heads.SimpleMLP(hidden_size, heads.HEAD_WIDTH["tape"], 1)

    def forward(self, pooled_output: Tensor, targets: Tensor | None = ABSENT) -> Tensor | tuple:
        main = self.value_prediction.main
        values = main[3](self.dropout(main[1](main[0](pooled_output))))
        return _outputs(values, targets, lambda: F.mse_loss(values.float(), targets.float()))


class SequenceClassificationHead(nn.Module):
    """pooled [B, h] -> logits [B, C]; cross-entropy and accuracy."""

    def __init__(self, hidden_size: int, num_labels: int):
        super().__init__()
        self.classify = heads.SimpleMLP(hidden_size, heads.HEAD_WIDTH["tape"], num_labels)

    def forward(self, pooled_output: Tensor, targets: Tensor | None = ABSENT) -> Tensor | tuple:
        return _outputs_of_classes(self.classify(pooled_output), targets, -100)


class SequenceToSequenceClassificationHead(nn.Module):
    """hidden states [B, N, h] -> logits [B, N, C]; cross-entropy and accuracy over targets other than ignore_index."""

    def __init__(self, hidden_size: int, num_labels: int, ignore_index: int = -100):
        super().__init__()
        self.classify = heads.SimpleConv(hidden_size, heads.CONV_WIDTH, num_labels)
        self.ignore_index = ignore_index

    def forward(
        self, sequence_output: Tensor, targets: Tensor | None = ABSENT, input_mask: Tensor | None = None
    ) -> Tensor | tuple:
        mask = sequence_output.new_ones(sequence_output.shape[:2]) if input_mask is None else input_mask
        logits = self.classify(sequence_output, mask.bool()).contiguous()  # users take views of it
        return _outputs_of_classes(logits, targets, self.ignore_index)


class PairwiseContactPredictionHead(nn.Module):
    """hidden states [B, N, h] -> logits [B, N-2, N-2, 2], symmetric; cross-entropy and P@L/5 of the batch."""

    def __init__(self, hidden_size: int, ignore_index: int = -100):
        super().__init__()
        self.predict = nn.ModuleDict({"1": heads.PairLinear(2 * hidden_size, 2)})
        self.ignore_index = ignore_index

    def forward(
        self, inputs: Tensor, sequence_lengths: Tensor | None = None, targets: Tensor | None = ABSENT
    ) -> Tensor | tuple:
        pairs = self.predict["1"](inputs, 0.5 if self.training else 0.0)
        logits = ((pairs + pairs.transpose(2, 3)) / 2)[:, :, 1:-1, 1:-1].permute(0, 2, 3, 1).contiguous()

        def loss() -> tuple[Tensor, dict]:
            value = _cross_entropy(logits, targets, self.ignore_index)
            if sequence_lengths is None:
                return value, {}
            return value, {"precision_at_l5": self.compute_precision_at_l5(sequence_lengths, logits, targets)}

        return _outputs(logits, targets, loss)

    def compute_precision_at_l5(self, sequence_lengths: Tensor, prediction: Tensor, labels: Tensor) -> Tensor:
        """P@L/5 of each protein, then the mean over the batch's proteins (tape.metrics; songlab pools the pairs)."""
        labels = torch.where(labels == self.ignore_index, metrics.IGNORE, labels)
        return precision_at_l5(prediction, labels, sequence_lengths)


class _Transform(nn.Module):
    """dense, GELU, norm: the part of the masked-LM head before its decoder."""

    def __init__(self, hidden_size: int, activation, layer_norm_eps: float):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.activation = activation
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.LayerNorm(self.activation(self.dense(hidden)))


class MLMHead(nn.Module):
    """hidden states [B, N, h] -> logits [B, N, vocabulary]; cross-entropy and perplexity.

    To tie the decoder: head.decoder.weight = embedding.weight.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        hidden_act="gelu",
        layer_norm_eps: float = 1e-12,
        ignore_index: int = -100,
    ):
        super().__init__()
        activation = ACTIVATIONS.get(hidden_act, hidden_act)
        if not callable(activation):
            raise ValueError(f"hidden_act {hidden_act!r} is not one of {', '.join(ACTIVATIONS)}")
        self.transform = _Transform(hidden_size, activation, layer_norm_eps)
        self.decoder = nn.Linear(hidden_size, vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.vocab_size, self.ignore_index = vocab_size, ignore_index

    def forward(self, hidden_states: Tensor, targets: Tensor | None = ABSENT) -> Tensor | tuple:
        logits = self.decoder(self.transform(hidden_states)) + self.bias

        def loss() -> tuple[Tensor, dict]:
            value = _cross_entropy(logits, targets, self.ignore_index)
            return value, {"perplexity": value.detach().exp()}

        return _outputs(logits, targets, loss)
