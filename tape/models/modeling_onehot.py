"""songlab's one-hot baseline: no encoder, the letters themselves. What a head learns without any pretrained model.

sequence_output [B, N, V] is the one-hot of each token, pooled_output [B, V] its mean over the tokens, <cls> and <sep>
included: the composition of the protein. config.pooling is accepted for the commands' sake and changes nothing.
No weights but the head's. Any length.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tape.models import kinds, outputs
from tape.models.config import BaselineConfig, check


class ProteinOneHotConfig(BaselineConfig):
    """vocab_size is the width of everything."""

    model_type = "onehot"

    defaults: ClassVar = {
        "vocab_size": 30,
        "initializer_range": 0.02,
        "use_evolutionary": False,  # a key of songlab's files that nothing there reads either
        "pooling": "first",
    }


class ProteinOneHotAbstractModel(kinds.BuiltInModel):
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
        mask = outputs.real_tokens(input_ids, input_mask)
        states = outputs.no_padding(F.one_hot(input_ids, self.config.vocab_size).to(self._buffer.dtype), mask)
        return states, outputs.masked_mean(states, mask)


class ProteinOneHotForValuePrediction(kinds.Value, ProteinOneHotAbstractModel):
    trunk_class = ProteinOneHotModel


class ProteinOneHotForSequenceClassification(kinds.Classification, ProteinOneHotAbstractModel):
    trunk_class = ProteinOneHotModel


class ProteinOneHotForSequenceToSequenceClassification(kinds.TokenClassification, ProteinOneHotAbstractModel):
    trunk_class = ProteinOneHotModel


class ProteinOneHotForContactPrediction(kinds.Contacts, ProteinOneHotAbstractModel):
    trunk_class = ProteinOneHotModel
