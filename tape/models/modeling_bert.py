"""songlab's tape.models.modeling_bert: the names of the transformer's classes (tape.model)."""

from tape.model import (
    ProteinBertAbstractModel,
    ProteinBertConfig,
    ProteinBertForContactPrediction,
    ProteinBertForMaskedLM,
    ProteinBertForSequenceClassification,
    ProteinBertForSequenceToSequenceClassification,
    ProteinBertForValuePrediction,
    ProteinBertModel,
)

__all__ = [
    "ProteinBertAbstractModel",
    "ProteinBertConfig",
    "ProteinBertForContactPrediction",
    "ProteinBertForMaskedLM",
    "ProteinBertForSequenceClassification",
    "ProteinBertForSequenceToSequenceClassification",
    "ProteinBertForValuePrediction",
    "ProteinBertModel",
]
