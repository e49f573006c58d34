"""The models, under songlab's module paths: tape.models.modeling_bert and so on."""

from proteinlm import late

_NAMES = ("bert", "huggingface", "lstm", "onehot", "resnet", "tape", "utils")
__getattr__, __dir__ = late(__name__, {f"modeling_{name}": f"tape.models.modeling_{name}" for name in _NAMES})
