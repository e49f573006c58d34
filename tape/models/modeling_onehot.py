"""songlab's one-hot baseline: no encoder, the letters themselves. What a head learns without any pretrained model.

sequence_output [B, N, V] is the one-hot of each token, pooled_output [B, V] its mean over the tokens, <cls> and <sep>
included: the composition of the protein. config.pooling is accepted for the commands' sake and changes nothing.
No weights but the head's. Any length.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tape.models.kinds import (
    BaselineConfig,
    BaselineModel,
    ContactPrediction,
    SequenceClassification,
    SequenceToSequenceClassification,
    ValuePrediction,
    masked_mean,
    no_padding,
)
from tape.models.modeling_bert import real_tokens
from tape.models.parts import check_pooling, check_sizes


class ProteinOneHotConfig(BaselineConfig):
    """vocab_size is the width of everything."""

    model_type = "onehot"

    def __init__(self, vocab_size: int = 30, initializer_range: float = 0.02, use_evolutionary: bool = False, **values):
        super().__init__(**({"pooling": "first"} | values))
        self.vocab_size, self.initializer_range = vocab_size, initializer_range
        self.use_evolutionary = use_evolutionary  # a key of songlab's files that nothing there reads either


class ProteinOneHotAbstractModel(BaselineModel):
    config_class = ProteinOneHotConfig
    base_model_prefix = "onehot"


class ProteinOneHotModel(ProteinOneHotAbstractModel):
    """(input_ids [B, N], input_mask [B, N]) -> (one-hot [B, N, V], composition [B, V])."""

    def __init__(self, config: ProteinOneHotConfig):
        super().__init__(config)
        check_sizes(config, ("vocab_size",))
        check_pooling(config)
        self.register_buffer("_buffer", torch.zeros(1))  # songlab's name; it says which dtype the model is in

    @staticmethod
    def sequence_size(config: ProteinOneHotConfig) -> int:
        return config.vocab_size

    def forward(self, input_ids: Tensor, input_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mask = real_tokens(input_ids, input_mask)
        states = no_padding(F.one_hot(input_ids, self.config.vocab_size).to(self._buffer.dtype), mask)
        return states, masked_mean(states, mask)


ProteinOneHotAbstractModel.trunk = ProteinOneHotModel


class ProteinOneHotForValuePrediction(ValuePrediction, ProteinOneHotAbstractModel):
    pass


class ProteinOneHotForSequenceClassification(SequenceClassification, ProteinOneHotAbstractModel):
    pass


class ProteinOneHotForSequenceToSequenceClassification(
    SequenceToSequenceClassification, ProteinOneHotAbstractModel
): ...


class ProteinOneHotForContactPrediction(ContactPrediction, ProteinOneHotAbstractModel):
    pass


MODELS = {
    "embed": ProteinOneHotModel,
    "value": ProteinOneHotForValuePrediction,
    "classification": ProteinOneHotForSequenceClassification,
    "token_classification": ProteinOneHotForSequenceToSequenceClassification,
    "contacts": ProteinOneHotForContactPrediction,
}
