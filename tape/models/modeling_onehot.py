"""songlab's tape.models.modeling_onehot: the names of the one-hot model's classes (tape.baselines.onehot)."""

from tape.baselines.onehot import (
    ProteinOneHotAbstractModel,
    ProteinOneHotConfig,
    ProteinOneHotForContactPrediction,
    ProteinOneHotForSequenceClassification,
    ProteinOneHotForSequenceToSequenceClassification,
    ProteinOneHotForValuePrediction,
    ProteinOneHotModel,
)

__all__ = [
    "ProteinOneHotAbstractModel",
    "ProteinOneHotConfig",
    "ProteinOneHotForContactPrediction",
    "ProteinOneHotForSequenceClassification",
    "ProteinOneHotForSequenceToSequenceClassification",
    "ProteinOneHotForValuePrediction",
    "ProteinOneHotModel",
]
