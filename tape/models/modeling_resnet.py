"""songlab's tape.models.modeling_resnet: the names of the ResNet's classes (tape.baselines.resnet)."""

from tape.baselines.resnet import (
    ProteinResNetAbstractModel,
    ProteinResNetConfig,
    ProteinResNetForContactPrediction,
    ProteinResNetForMaskedLM,
    ProteinResNetForSequenceClassification,
    ProteinResNetForSequenceToSequenceClassification,
    ProteinResNetForValuePrediction,
    ProteinResNetModel,
)

__all__ = [
    "ProteinResNetAbstractModel",
    "ProteinResNetConfig",
    "ProteinResNetForContactPrediction",
    "ProteinResNetForMaskedLM",
    "ProteinResNetForSequenceClassification",
    "ProteinResNetForSequenceToSequenceClassification",
    "ProteinResNetForValuePrediction",
    "ProteinResNetModel",
]
