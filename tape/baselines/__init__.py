"""TAPE's own baselines, so that its column of the table can be made again: model type -> kind of task -> class.

Weights have songlab's names and shapes. UniRep and trRosetta are left out.
"""

from tape.baselines import lstm, onehot, resnet, tape_transformer

MODELS: dict[str, dict[str, type]] = {
    "tape_transformer": tape_transformer.MODELS,
    "lstm": lstm.MODELS,
    "resnet": resnet.MODELS,
    "onehot": onehot.MODELS,
}
