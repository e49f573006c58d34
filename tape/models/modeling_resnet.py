"""songlab's ResNet baseline: residual blocks of convolutions of width 3, and the masked language model it is made by.

    model = ProteinResNetModel.from_pretrained("runs/resnet")
    sequence_output, pooled_output = model(input_ids, input_mask)[:2]       # [B, N, h], [B, h]

Names, shapes and defaults of the weights are songlab's. Any length.

What must hold: padding never changes a protein's numbers. Padded positions are 0 before every convolution and in every
output, and the sinusoidal positions, which in songlab's code count down to 0 at the end of the batch, count down to 0
at each protein's own last token; for a protein alone both are the same.

The pooler (config.pooling "first") is songlab's as it runs: its attention weights are a softmax over an axis of size 1,
so all are 1, and pooled_output is tanh(dense(the sum of the protein's states)). Repaired weights would give the models
that songlab's code has trained other numbers, so `attention_weights` is kept for the files and does nothing.
A sum grows with the length and saturates the tanh; "mean" gives the mean of the residues' states, without dense.
With output_hidden_states the states are [B, N, h], as every other model's (songlab's are [B, h, N]).

Legend: B proteins, N tokens of the longest, h hidden size, V vocabulary.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from proteinlm.errors import InputError
from proteinlm.network.layers import ACTIVATIONS
from tape.models import kinds, outputs
from tape.models.config import BaselineConfig, check


class ProteinResNetConfig(BaselineConfig):
    """hidden_size is the number of channels throughout."""

    model_type = "resnet"

    defaults: ClassVar = {
        "vocab_size": 30,
        "hidden_size": 512,
        "num_hidden_layers": 30,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "pooling": "first",  # songlab's pooler; or "mean"
    }


class ProteinResNetAbstractModel(kinds.BuiltInModel):
    config_class = ProteinResNetConfig
    sizes_first = True
    base_model_prefix = "resnet"

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class ProteinResNetLayerNorm(nn.Module):
    """Norm over the channels of [B, h, N]; its epsilon is 1e-12 whatever the configuration says, as in songlab's."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class ProteinResNetBlock(nn.Module):
    """conv, norm, activation, conv, norm, + input, activation. x [B, h, N], 0 at padding; mask [B, 1, N] of 0 and 1."""

    def __init__(self, config: ProteinResNetConfig):
        super().__init__()
        size = config.hidden_size
        self.conv1 = nn.Conv1d(size, size, 3, padding=1, bias=False)
        self.bn1 = ProteinResNetLayerNorm(size)
        self.conv2 = nn.Conv1d(size, size, 3, padding=1, bias=False)
        self.bn2 = ProteinResNetLayerNorm(size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        out = self.activation(self.bn1(self.conv1(x))) * mask.to(x.dtype)
        out = self.bn2(self.conv2(out))
        return self.activation(out + x) * mask.to(x.dtype)


class ProteinResNetEmbeddings(nn.Module):
    """Words plus sinusoidal positions, norm, dropout: [B, N] -> [B, N, h]."""

    def __init__(self, config: ProteinResNetConfig):
        super().__init__()
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=0)
        self.register_buffer("inverse_frequency", 10000.0 ** -(torch.arange(0.0, size, 2.0) / size))  # in the files
        self.layer_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        after = (mask.sum(1, keepdim=True) - mask.cumsum(1)).unsqueeze(2)  # real tokens that follow
        angles = after * self.inverse_frequency.float()
        positions = torch.cat((angles.sin(), angles.cos()), 2)
        words = self.word_embeddings(input_ids)
        return self.dropout(self.layer_norm(words + positions.to(words.dtype)))


class ResNetEncoder(nn.Module):
    """embedded [B, N, h], mask [B, N] -> (last states [B, N, h], the embedding and the states of each block).

    The second is empty without config.output_hidden_states.
    """

    def __init__(self, config: ProteinResNetConfig):
        super().__init__()
        self.config = config
        self.layer = nn.ModuleList(ProteinResNetBlock(config) for _ in range(config.num_hidden_layers))

    def forward(self, embedded: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, wide, hidden = outputs.no_padding(embedded, mask).transpose(1, 2), mask.unsqueeze(1), []
        for block in self.layer:
            hidden += [x.transpose(1, 2)] if self.config.output_hidden_states else []
            x = block(x, wide)
        last = x.transpose(1, 2).contiguous()
        return last, [*hidden, last] if self.config.output_hidden_states else []


class ProteinResNetPooler(nn.Module):
    """States [B, N, h], 0 at padding -> [B, h]. See the module's docstring about attention_weights."""

    def __init__(self, config: ProteinResNetConfig):
        super().__init__()
        self.attention_weights = nn.Linear(config.hidden_size, 1)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        return torch.tanh(self.dense(states.sum(1)))


class ProteinResNetModel(ProteinResNetAbstractModel):
    """The trunk: (input_ids [B, N], input_mask [B, N]) -> (sequence_output [B, N, h], pooled_output [B, h]).

    With config.output_hidden_states a third element: the embedding and each block's states, [B, N, h].
    """

    def __init__(self, config: ProteinResNetConfig):
        super().__init__(config)
        check(config, "vocab_size", "hidden_size", "num_hidden_layers", "hidden_act", "hidden_dropout_prob")
        check(config, "initializer_range", "layer_norm_eps", "pooling")
        if config.hidden_size % 2:
            raise InputError(f"ProteinResNetConfig: hidden_size {config.hidden_size} must be even (sines and cosines)")
        self.embeddings = ProteinResNetEmbeddings(config)
        self.encoder = ResNetEncoder(config)
        self.pooler = ProteinResNetPooler(config)
        self.init_weights()

    def forward(self, input_ids: Tensor, input_mask: Tensor | None = None) -> tuple:
        mask = outputs.real_tokens(input_ids, input_mask)
        sequence, hidden = self.encoder(self.embeddings(input_ids, mask), mask)
        pooled = self.pooler(sequence) if self.config.pooling == "first" else outputs.mean_of_residues(sequence, mask)
        return (sequence, pooled, *([tuple(hidden)] if hidden else []))


class ProteinResNetForMaskedLM(kinds.MaskedLanguageModel, ProteinResNetAbstractModel):
    trunk_class = ProteinResNetModel


class ProteinResNetForValuePrediction(kinds.Value, ProteinResNetAbstractModel):
    trunk_class = ProteinResNetModel


class ProteinResNetForSequenceClassification(kinds.Classification, ProteinResNetAbstractModel):
    trunk_class = ProteinResNetModel


class ProteinResNetForSequenceToSequenceClassification(kinds.TokenClassification, ProteinResNetAbstractModel):
    trunk_class = ProteinResNetModel


class ProteinResNetForContactPrediction(kinds.Contacts, ProteinResNetAbstractModel):
    trunk_class = ProteinResNetModel
