"""songlab's LSTM baseline: two stacks of LSTM layers, one read from each end, and the language model it is made by.

    model = ProteinLSTMModel.from_pretrained("runs/lstm")
    sequence_output, pooled_output = model(input_ids, input_mask)[:2]       # [B, N, 2h], [B, h]

sequence_output is the last forward layer's states beside the last reverse layer's. pooled_output mixes the final states
of all 2L layers by learned weights, then dense and tanh; with config.pooling "mean" it is the mean of the residues'
sequence_output instead, [B, 2h]. Names, shapes and defaults of the weights are songlab's. Any length.

What must hold: padding never changes a protein's numbers. Every layer reads real tokens first, so the states of the
real tokens do not depend on what follows; the final state is the one at the protein's own end (songlab's forward
layers run on through the padding and end there); padding comes out as 0. Differences from songlab's, besides that: its
contact head has h inputs for states of 2h and cannot run, this one has 2h; with output_hidden_states the reverse
layers' states are in the protein's order, so that row i is always of token i.

Legend: B proteins, N tokens of the longest, h hidden size of one direction, L layers of one direction, V vocabulary.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tape.models import kinds, outputs
from tape.models.config import BaselineConfig, check


class ProteinLSTMConfig(BaselineConfig):
    """hidden_size is that of one direction; input_size that of the embedding."""

    model_type = "lstm"

    defaults: ClassVar = {
        "vocab_size": 30,
        "input_size": 128,
        "hidden_size": 1024,
        "num_hidden_layers": 3,
        "hidden_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "pooling": "first",  # songlab's pooler; or "mean"
    }


class ProteinLSTMAbstractModel(kinds.BuiltInModel):
    config_class = ProteinLSTMConfig
    sizes_first = True
    base_model_prefix = "lstm"


class ProteinLSTMLayer(nn.Module):
    """Dropout, then one LSTM layer in one direction: [B, N, e] -> [B, N, h]."""

    def __init__(self, input_size: int, hidden_size: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(input_size, hidden_size, batch_first=True)

    def forward(self, states: Tensor) -> Tensor:
        states = self.dropout(states)
        if states.is_cuda:
            return self.lstm(states)[0]
        with torch.autocast(states.device.type, enabled=False):  # some CPUs have no half-precision LSTM
            return self.lstm(states.to(self.lstm.weight_ih_l0.dtype))[0]


class ProteinLSTMEncoder(nn.Module):
    """embedded [B, N, e], mask [B, N] -> (last states [B, N, 2h], final states [B, h, 2L], what each layer gave).

    The third is empty without config.output_hidden_states.
    """

    def __init__(self, config: ProteinLSTMConfig):
        super().__init__()
        self.config = config
        self.forward_lstm, self.reverse_lstm = self._stack(config), self._stack(config)

    @staticmethod
    def _stack(config: ProteinLSTMConfig) -> nn.ModuleList:
        """No dropout on the embedding."""
        above = [(config.hidden_size, config.hidden_dropout_prob)] * (config.num_hidden_layers - 1)
        inputs = [(config.input_size, 0.0), *above]
        return nn.ModuleList(ProteinLSTMLayer(size, config.hidden_size, dropout) for size, dropout in inputs)

    def forward(self, embedded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        every_layer = self.config.output_hidden_states
        hidden, ends, sequence = [outputs.no_padding(embedded, mask)] if every_layer else [], [], []
        for stack, places in zip((self.forward_lstm, self.reverse_lstm), reading_places(mask), strict=True):
            states, final = self._run(stack, embedded, places, mask, every_layer)
            ends += final
            hidden += states if every_layer else []
            sequence.append(states[-1])
        return torch.cat(sequence, 2), torch.stack(ends, 2), hidden

    @staticmethod
    def _run(
        stack: nn.ModuleList, embedded: Tensor, places: Tensor, mask: Tensor, every_layer: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """One direction: (states [B, N, h] of every layer, or of the last, 0 at padding; final states [B, h])."""
        rows, last = torch.arange(len(mask), device=mask.device), (mask.sum(1) - 1).clamp(min=0)
        hidden, final, states = [], [], take(embedded, places.argsort(1))
        for number, layer in enumerate(stack, 1):
            states = layer(states)
            final.append(states[rows, last])
            if every_layer or number == len(stack):
                hidden.append(outputs.no_padding(take(states, places), mask))
        return hidden, final


def reading_places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """When each token is read, from the front and from the back: two [B, N], permutations with padding at their end."""
    length = mask.sum(1, keepdim=True)
    forward, padding = mask.cumsum(1) - 1, length + (~mask).cumsum(1) - 1
    return torch.where(mask, forward, padding), torch.where(mask, length - 1 - forward, padding)


def take(states: Tensor, places: Tensor) -> Tensor:
    """states [B, N, h] at places [B, N] of dim 1."""
    return states.gather(1, places.unsqueeze(2).expand(-1, -1, states.shape[2]))


class ProteinLSTMPooler(nn.Module):
    """The layers' final states [B, h, 2L] -> [B, h]: one weight a layer, dense, tanh."""

    def __init__(self, config: ProteinLSTMConfig):
        super().__init__()
        self.scalar_reweighting = nn.Linear(2 * config.num_hidden_layers, 1)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, ends: Tensor) -> Tensor:
        return torch.tanh(self.dense(self.scalar_reweighting(ends).squeeze(2)))


class ProteinLSTMModel(ProteinLSTMAbstractModel):
    """The trunk: (input_ids [B, N], input_mask [B, N]) -> (sequence_output [B, N, 2h], pooled_output [B, h]).

    With config.output_hidden_states a third element, in songlab's order: the embedding [B, N, e], the L forward layers
    from the first up and the L reverse layers, each [B, N, h].
    """

    def __init__(self, config: ProteinLSTMConfig):
        super().__init__(config)
        check(config, "vocab_size", "input_size", "hidden_size", "num_hidden_layers")
        check(config, "hidden_dropout_prob", "initializer_range", "pooling")
        self.embed_matrix = nn.Embedding(config.vocab_size, config.input_size)
        self.encoder = ProteinLSTMEncoder(config)
        self.pooler = ProteinLSTMPooler(config)
        self.init_weights()

    @staticmethod
    def sequence_size(config: ProteinLSTMConfig) -> int:
        return 2 * config.hidden_size

    @staticmethod
    def pooled_size(config: ProteinLSTMConfig) -> int:
        return config.hidden_size if config.pooling == "first" else 2 * config.hidden_size

    def forward(self, input_ids: Tensor, input_mask: Tensor | None = None) -> tuple:
        mask = outputs.real_tokens(input_ids, input_mask)
        sequence, ends, hidden = self.encoder(self.embed_matrix(input_ids), mask)
        pooled = self.pooler(ends) if self.config.pooling == "first" else outputs.mean_of_residues(sequence, mask)
        return (sequence, pooled, *([tuple(hidden)] if hidden else []))


class ProteinLSTMForLM(kinds.LanguageModel, ProteinLSTMAbstractModel):
    """Language model. logits [B, N, V]; targets [B, N], the tokens themselves, -1 ignored.

    Token i is guessed from the forward state of i - 1, which has read what comes before it, and from the reverse state
    of i + 1; both go through `feedforward` (whose bias so counts twice), and their logits are added.
    """

    kind = "language_modeling"
    trunk_class = ProteinLSTMModel
    missing_head = "no usable language-model head (feedforward.*) in the file"

    def __init__(self, config: ProteinLSTMConfig):
        super().__init__(config)
        self.feedforward = nn.Linear(config.hidden_size, config.vocab_size)
        self._init_weights(self.feedforward)

    def _logits(self, hidden: Tensor, pooled: Tensor, mask: Tensor) -> Tensor:
        before, after = hidden.chunk(2, 2)  # 0 at padding, as before the first token and after the last
        before, after = F.pad(before[:, :-1], (0, 0, 1, 0)), F.pad(after[:, 1:], (0, 0, 0, 1))
        return self.feedforward(before) + self.feedforward(after)


class ProteinLSTMForValuePrediction(kinds.Value, ProteinLSTMAbstractModel):
    trunk_class = ProteinLSTMModel


class ProteinLSTMForSequenceClassification(kinds.Classification, ProteinLSTMAbstractModel):
    trunk_class = ProteinLSTMModel


class ProteinLSTMForSequenceToSequenceClassification(kinds.TokenClassification, ProteinLSTMAbstractModel):
    trunk_class = ProteinLSTMModel


class ProteinLSTMForContactPrediction(kinds.Contacts, ProteinLSTMAbstractModel):
    trunk_class = ProteinLSTMModel
