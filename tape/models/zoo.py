"""Every model of this package: model type -> kind of task -> class.

"transformer" is this project's encoder; the others are TAPE's own baselines, so that its column of the table can be
made again, with songlab's names and shapes of the weights, and "huggingface" any encoder of `transformers`. UniRep
and trRosetta are left out.
"""

from tape.models import (
    modeling_bert,
    modeling_huggingface,
    modeling_lstm,
    modeling_onehot,
    modeling_resnet,
    modeling_tape,
)
from tape.models.kinds import models_in

MODELS: dict[str, dict[str, type]] = {
    "transformer": models_in(modeling_bert),
    "tape_transformer": models_in(modeling_tape),
    "lstm": models_in(modeling_lstm),
    "resnet": models_in(modeling_resnet),
    "onehot": models_in(modeling_onehot),
    "huggingface": models_in(modeling_huggingface),
}
