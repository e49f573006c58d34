"""songlab's one-hot baseline: no encoder, the letters themselves. What a head learns without any pretrained model.

sequence_output [B, N, V] is the one-hot of each token, pooled_output [B, V] its mean over the tokens, <cls> and <sep>
included: the composition of the protein. config.pooling is accepted for the commands' sake and changes nothing.
No weights but the head's. Any length.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tape.models.config import BaselineConfig, check
from tape.models.kinds import (
    BuiltInModel,
    ContactPrediction,
    SequenceClassification,
    SequenceToSequenceClassification,
    ValuePrediction,
    by_kind,
)
from tape.models.outputs import masked_mean, no_padding, real_tokens


class ProteinOneHotConfig(BaselineConfig):
    """vocab_size is the width of everything."""

    model_type = "onehot"

    def __init__(self, vocab_size: int = 30, initializer_range: float = 0.02, use_evolutionary: bool = False, **values):
        super().__init__(**({"pooling": "first"} | values))
        self.vocab_size, self.initializer_range = vocab_size, initializer_range
        self.use_evolutionary = use_evolutionary  # a key of songlab's files that nothing there reads either


class ProteinOneHotAbstractModel(BuiltInModel):
    config_class = ProteinOneHotConfig
    base_model_prefix = "onehot"


class ProteinOneHotModel(ProteinOneHotAbstractModel):
    """(input_ids [B, N], input_mask [B, N]) -> (one-hot [B, N, V], composition [B, V])."""

    def __init__(self, config: ProteinOneHotConfig):
        super().__init__(config)
        check(config, "vocab_size", "pooling")
        self.register_buffer("_buffer", torch.zeros(1))  # songlab's name; it says which dtype the model is in

    @staticmethod
    def sequence_size(config: ProteinOneHotConfig) -> int:
        return config.vocab_size

    def forward(self, input_ids: Tensor, input_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mask = real_tokens(input_ids, input_mask)
        states = no_padding(F.one_hot(input_ids, self.config.vocab_size).to(self._buffer.dtype), mask)
        return states, masked_mean(states, mask)


class ProteinOneHotForValuePrediction(ValuePrediction, ProteinOneHotAbstractModel):
    trunk_class = ProteinOneHotModel


class ProteinOneHotForSequenceClassification(SequenceClassification, ProteinOneHotAbstractModel):
    trunk_class = ProteinOneHotModel


class ProteinOneHotForSequenceToSequenceClassification(SequenceToSequenceClassification, ProteinOneHotAbstractModel):
    trunk_class = ProteinOneHotModel


class ProteinOneHotForContactPrediction(ContactPrediction, ProteinOneHotAbstractModel):
    trunk_class = ProteinOneHotModel


MODELS = by_kind(
    ProteinOneHotModel,
    ProteinOneHotForValuePrediction,
    ProteinOneHotForSequenceClassification,
    ProteinOneHotForSequenceToSequenceClassification,
    ProteinOneHotForContactPrediction,
)
