"""songlab's tape.models.modeling_lstm: the names of the LSTM's classes (tape.baselines.lstm)."""

from tape.baselines.lstm import (
    ProteinLSTMAbstractModel,
    ProteinLSTMConfig,
    ProteinLSTMForContactPrediction,
    ProteinLSTMForLM,
    ProteinLSTMForSequenceClassification,
    ProteinLSTMForSequenceToSequenceClassification,
    ProteinLSTMForValuePrediction,
    ProteinLSTMModel,
)

__all__ = [
    "ProteinLSTMAbstractModel",
    "ProteinLSTMConfig",
    "ProteinLSTMForContactPrediction",
    "ProteinLSTMForLM",
    "ProteinLSTMForSequenceClassification",
    "ProteinLSTMForSequenceToSequenceClassification",
    "ProteinLSTMForValuePrediction",
    "ProteinLSTMModel",
]
