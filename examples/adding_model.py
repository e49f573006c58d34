"""A model of one's own on a task of TAPE's: a few convolutions for secondary structure.

    tape-train dilated secondary_structure --plugin examples/adding_model.py --data_dir data --output_dir runs/dilated
    tape-eval dilated secondary_structure runs/dilated --plugin examples/adding_model.py --split cb513

or, as in songlab's package, `python examples/adding_model.py dilated secondary_structure --data_dir data ...`.

A model is a configuration, a trunk that returns (sequence_output, pooled_output), and a class for each task, which
holds the trunk under the name `base_model_prefix`. Loss and metrics of TAPE's own tasks are the task's; `forward` gives
them too, for use by hand and for tasks of one's own.
"""

import torch
from torch import nn

from tape import ProteinConfig, ProteinModel
from tape.models.modeling_utils import SequenceToSequenceClassificationHead
from tape.registry import registry


class DilatedConfig(ProteinConfig):
    """Every argument needs a default, for models that start from no file; num_labels is among **kwargs."""

    def __init__(self, vocab_size: int = 30, channels: int = 96, dilations: tuple = (1, 2, 4, 8), **kwargs):
        super().__init__(**kwargs)
        self.vocab_size, self.channels, self.dilations = vocab_size, channels, list(dilations)


class DilatedAbstractModel(ProteinModel):
    """What loading and saving need to know."""

    config_class = DilatedConfig
    base_model_prefix = "dilated"


class DilatedModel(DilatedAbstractModel):
    """The trunk: (input_ids [B, N], input_mask [B, N]) -> (sequence_output [B, N, h], pooled_output [B, h])."""

    def __init__(self, config: DilatedConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.channels)
        self.layers = nn.ModuleList(
            nn.Conv1d(config.channels, config.channels, 3, padding=step, dilation=step) for step in config.dilations
        )

    def forward(self, input_ids: torch.Tensor, input_mask: torch.Tensor | None = None) -> tuple:
        mask = torch.ones_like(input_ids) if input_mask is None else input_mask
        real = mask.unsqueeze(1).float()  # [B, 1, N]; zeroing what is padded keeps it out of its neighbours
        x = self.embedding(input_ids).transpose(1, 2) * real
        for layer in self.layers:
            x = (x + torch.relu(layer(x))) * real
        return x.transpose(1, 2), x.sum(2) / real.sum(2)


@registry.register_task_model("secondary_structure", "dilated")
class DilatedForSequenceToSequenceClassification(DilatedAbstractModel):
    """A class a residue. The third argument of forward is called targets."""

    def __init__(self, config: DilatedConfig):
        super().__init__(config)
        self.dilated = DilatedModel(config)  # the name is base_model_prefix
        self.classify = SequenceToSequenceClassificationHead(config.channels, config.num_labels, ignore_index=-1)

    def forward(self, input_ids, input_mask=None, targets=None) -> tuple:
        sequence_output = self.dilated(input_ids, input_mask)[0]
        return self.classify(sequence_output, targets, input_mask)  # (logits,) or ((loss, metrics), logits)


if __name__ == "__main__":
    from tape.main import run_train

    run_train()
