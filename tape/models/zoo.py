"""TAPE's own baselines, so that its column of the table can be made again: model type -> kind of task -> class.

Weights have songlab's names and shapes. UniRep and trRosetta are left out.
"""

from tape.models import modeling_lstm, modeling_onehot, modeling_resnet, modeling_tape

MODELS: dict[str, dict[str, type]] = {
    "tape_transformer": modeling_tape.MODELS,
    "lstm": modeling_lstm.MODELS,
    "resnet": modeling_resnet.MODELS,
    "onehot": modeling_onehot.MODELS,
}
