"""TAPE: a pretrained protein model to numbers on the five tasks of Rao et al. 2019. A drop-in for songlab's package.

    from tape import ProteinBertModel, TAPETokenizer
    model = ProteinBertModel.from_pretrained("bert-base")
    sequence_output, pooled_output = model(torch.tensor([TAPETokenizer().encode("MKV")]))[:2]

tape.datasets, tape.registry, tape.tokenizers, tape.metrics, tape.models and tape.main are songlab's modules of those
names. UniRep and trRosetta are left out.
"""

from tape.models.base import ProteinConfig, ProteinModel
from tape.models.modeling_bert import (
    ProteinBertConfig,
    ProteinBertForContactPrediction,
    ProteinBertForMaskedLM,
    ProteinBertForSequenceClassification,
    ProteinBertForSequenceToSequenceClassification,
    ProteinBertForValuePrediction,
    ProteinBertModel,
)
from tape.models.modeling_lstm import (
    ProteinLSTMConfig,
    ProteinLSTMForContactPrediction,
    ProteinLSTMForLM,
    ProteinLSTMForSequenceClassification,
    ProteinLSTMForSequenceToSequenceClassification,
    ProteinLSTMForValuePrediction,
    ProteinLSTMModel,
)
from tape.models.modeling_onehot import (
    ProteinOneHotConfig,
    ProteinOneHotForContactPrediction,
    ProteinOneHotForSequenceClassification,
    ProteinOneHotForSequenceToSequenceClassification,
    ProteinOneHotForValuePrediction,
    ProteinOneHotModel,
)
from tape.models.modeling_resnet import (
    ProteinResNetConfig,
    ProteinResNetForContactPrediction,
    ProteinResNetForMaskedLM,
    ProteinResNetForSequenceClassification,
    ProteinResNetForSequenceToSequenceClassification,
    ProteinResNetForValuePrediction,
    ProteinResNetModel,
)
from tape.tokenizers import TAPETokenizer

__all__ = ["TAPETokenizer", *(name for name in dir() if name.startswith("Protein"))]
