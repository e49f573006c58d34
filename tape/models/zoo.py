"""Every model of this package: model type -> kind of task -> class.

"transformer" is this project's encoder; the others are TAPE's own baselines, so that its column of the table can be
made again, with songlab's names and shapes of the weights. UniRep and trRosetta are left out.
"""

from tape.models import modeling_bert, modeling_lstm, modeling_onehot, modeling_resnet, modeling_tape

MODELS: dict[str, dict[str, type]] = {
    "transformer": modeling_bert.MODELS,
    "tape_transformer": modeling_tape.MODELS,
    "lstm": modeling_lstm.MODELS,
    "resnet": modeling_resnet.MODELS,
    "onehot": modeling_onehot.MODELS,
}
