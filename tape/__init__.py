"""TAPE: a pretrained protein model to numbers on the five tasks of Rao et al. 2019. A drop-in for songlab's package.

from tape import ProteinBertModel, TAPETokenizer
"""

from tape.model import (
    ProteinBertConfig,
    ProteinBertForContactPrediction,
    ProteinBertForMaskedLM,
    ProteinBertForSequenceClassification,
    ProteinBertForSequenceToSequenceClassification,
    ProteinBertForValuePrediction,
    ProteinBertModel,
)
from tape.tokenizer import TAPETokenizer

__all__ = [
    "ProteinBertConfig",
    "ProteinBertForContactPrediction",
    "ProteinBertForMaskedLM",
    "ProteinBertForSequenceClassification",
    "ProteinBertForSequenceToSequenceClassification",
    "ProteinBertForValuePrediction",
    "ProteinBertModel",
    "TAPETokenizer",
]
