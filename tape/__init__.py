"""TAPE: a pretrained protein model to numbers on the five tasks of Rao et al. 2019. A drop-in for songlab's package.

    from tape import ProteinBertModel, TAPETokenizer
    model = ProteinBertModel.from_pretrained("bert-base")
    sequence_output, pooled_output = model(torch.tensor([TAPETokenizer().encode("MKV")]))[:2]

tape.datasets, tape.registry, tape.tokenizers, tape.metrics, tape.models and tape.main are songlab's modules of those
names. UniRep and trRosetta are left out. A name below is imported when it is first used, so that what needs no torch
does not wait for it.
"""

from proteinlm import late

_TASKS = ("ContactPrediction", "SequenceClassification", "SequenceToSequenceClassification", "ValuePrediction")
_CLASSES = ("Config", "Model", *(f"For{task}" for task in _TASKS))
_MODELS = {
    "Bert": (*_CLASSES, "ForMaskedLM"),
    "LSTM": (*_CLASSES, "ForLM"),
    "OneHot": _CLASSES,
    "ResNet": (*_CLASSES, "ForMaskedLM"),
}
_MODULES = {
    "ProteinConfig": "tape.models.base",
    "ProteinModel": "tape.models.base",
    "TAPETokenizer": "tape.tokenizers",
    **{f"Protein{m}{c}": f"tape.models.modeling_{m.lower()}" for m, classes in _MODELS.items() for c in classes},
}
__all__ = sorted(_MODULES)
_MODULES |= {"models": "tape.models", "tokenizers": "tape.tokenizers"}
__getattr__, __dir__ = late(__name__, _MODULES)
