"""A class for each kind of task around any trunk, with the heads of tape.models.heads.

    class ProteinLSTMForValuePrediction(ValuePrediction, ProteinLSTMAbstractModel):
        trunk_class = ProteinLSTMModel

A trunk is a ProteinModel: (input_ids [B, N], input_mask [B, N]) -> (sequence_output [B, N, h],
pooled_output [B, p], ...), with `sequence_size(config)` = h and `pooled_size(config)` = p. What must hold: padding
never changes a protein's numbers, whatever songlab's models did with it.

Legend: B proteins, N tokens of the longest (residues + 2), h and p sizes, C classes, V vocabulary.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from proteinlm.errors import InputError
from proteinlm.model import ACTIVATIONS
from proteinlm.model_dir.files import check_layers
from tape.models.base import ProteinConfig, ProteinModel, WeightFile
from tape.models.config import CONFIG_DEFAULTS, check
from tape.models.heads import (
    HEAD_WIDTH,
    ContactHead,
    SequenceClassificationHead,
    SequenceToSequenceClassificationHead,
    ValuePredictionHead,
)
from tape.models.modeling_utils import MLMHead
from tape.models.outputs import (
    outputs_of_classes,
    outputs_of_contacts,
    outputs_of_language_model,
    outputs_of_values,
    real_tokens,
)


class BuiltInModel(ProteinModel):
    """What every model of this package shares: its place in tape.models.zoo, its trunk, songlab's first weights."""

    kind: ClassVar[str] = "embed"  # of task; "embed": the trunk itself
    trunk_class: ClassVar[type]

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @classmethod
    def sequence_size(cls, config: ProteinConfig) -> int:
        """h of a trunk's sequence_output."""
        return config.hidden_size

    @classmethod
    def pooled_size(cls, config: ProteinConfig) -> int:
        """p of a trunk's pooled_output."""
        return cls.sequence_size(config)

    def _add_trunk(self) -> nn.Module:
        """The trunk under its name, with its first weights (drawn twice, so that a seed gives what it always gave)."""
        trunk = self.trunk_class(self.config)
        trunk.init_weights()
        setattr(self, self.base_model_prefix, trunk)
        return trunk

    @classmethod
    def from_pretrained(
        cls,
        pretrained_dir: str | Path | None = None,
        config: ProteinConfig | None = None,
        require_head: bool = False,
        **overrides,
    ) -> "BuiltInModel":
        """ProteinModel.from_pretrained; a key that no model of this package has is refused, as a slip of the pen."""
        unknown = sorted(set(overrides) - set(vars(cls.config_class())) - set(CONFIG_DEFAULTS))
        if unknown:
            raise InputError(f"from_pretrained: {unknown[0]} is not a key of {cls.config_class.__name__}")
        return super().from_pretrained(pretrained_dir, config, require_head, **overrides)

    @classmethod
    def _read(cls, directory: Path, values: dict, overrides: dict) -> WeightFile:
        file = super()._read(directory, values, overrides)
        if "num_hidden_layers" in vars(cls.config_class()):
            check_layers(file.config, file.tensors, file.path)
        return with_head_kind(file, overrides)


def with_head_kind(file: WeightFile, overrides: Mapping) -> WeightFile:
    """`head` in the config as the weights show it: songlab's runs have no such key. Another one asked for is refused.

    1024 or 512 hidden units, or the contact head's form, say which it is; where both share the head the key stays.
    """
    kind = None
    for name, value in file.tensors.items():
        if name.endswith("main.0.weight_v") and value.dim() == 2:
            kind = next((head for head, width in HEAD_WIDTH.items() if width == len(value)), None)
        elif name == "predict.predict.1.weight":
            kind = "tape" if value.dim() == 2 else "proteinlm"
    if kind is None:
        return file
    if overrides.get("head", kind) != kind:
        raise InputError(f"{file.path}: its head is '{kind}', but '{overrides['head']}' was asked for")
    return file._replace(config=file.config | {"head": kind})


class ValuePrediction(BuiltInModel):
    """One number a protein. logits [B, 1]; targets [B, 1]; mean squared error."""

    kind = "value"

    def __init__(self, config: ProteinConfig):
        super().__init__(config)
        self.predict = ValuePredictionHead(self._add_trunk().pooled_size(config), config.head)

    def forward(self, input_ids: Tensor, input_mask: Tensor | None = None, targets: Tensor | None = None) -> tuple:
        _, pooled, *rest = self.base_model(input_ids, input_mask)
        return outputs_of_values(self.predict(pooled), targets, rest)


class SequenceClassification(BuiltInModel):
    """One class a protein. logits [B, C]; targets [B]; cross-entropy."""

    kind = "classification"

    def __init__(self, config: ProteinConfig):
        super().__init__(config)
        size = self._add_trunk().pooled_size(config)
        check(config, "num_labels")
        self.classify = SequenceClassificationHead(size, config.num_labels, config.head)

    def forward(self, input_ids: Tensor, input_mask: Tensor | None = None, targets: Tensor | None = None) -> tuple:
        _, pooled, *rest = self.base_model(input_ids, input_mask)
        return outputs_of_classes(self.classify(pooled), targets, rest)


class SequenceToSequenceClassification(BuiltInModel):
    """One class a token. logits [B, N, C]; targets [B, N], -1 ignored."""

    kind = "token_classification"

    def __init__(self, config: ProteinConfig):
        super().__init__(config)
        size = self._add_trunk().sequence_size(config)
        check(config, "num_labels")
        self.classify = SequenceToSequenceClassificationHead(size, config.num_labels)

    def forward(self, input_ids: Tensor, input_mask: Tensor | None = None, targets: Tensor | None = None) -> tuple:
        mask = real_tokens(input_ids, input_mask)
        hidden, _, *rest = self.base_model(input_ids, mask)
        return outputs_of_classes(self.classify(hidden, mask), targets, rest)


class ContactPrediction(BuiltInModel):
    """Contacts. logits [B, N-2, N-2, 2], symmetric; targets [B, N-2, N-2]: 1 contact, 0 none, -1 ignored."""

    kind = "contacts"

    def __init__(self, config: ProteinConfig):
        super().__init__(config)
        size = self._add_trunk().sequence_size(config)
        self.predict = ContactHead(size, config.head, config.contact_dropout_prob)

    def forward(
        self,
        input_ids: Tensor,
        input_mask: Tensor | None = None,
        targets: Tensor | None = None,
        protein_length: Tensor | None = None,
    ) -> tuple:
        """protein_length (TAPE's argument) is accepted and not needed: the mask says it."""
        mask = real_tokens(input_ids, input_mask)
        hidden, _, *rest = self.base_model(input_ids, mask)
        return outputs_of_contacts(self.predict(hidden, mask), targets, mask, rest)


class MaskedLanguageModeling(BuiltInModel):
    """songlab's masked language model, decoder tied to the embedding. logits [B, N, V]; targets [B, N], -1 ignored."""

    kind = "masked_language_modeling"
    missing_head = "no usable masked-LM head (mlm.*) in the file"

    def __init__(self, config: ProteinConfig):
        super().__init__(config)
        words = self._add_trunk().embeddings.word_embeddings
        self.mlm = MLMHead(config.hidden_size, config.vocab_size, ACTIVATIONS[config.hidden_act], config.layer_norm_eps)
        self.mlm.apply(self._init_weights)
        self.mlm.decoder.weight = words.weight

    def forward(self, input_ids: Tensor, input_mask: Tensor | None = None, targets: Tensor | None = None) -> tuple:
        hidden, _, *rest = self.base_model(input_ids, input_mask)
        return outputs_of_language_model(self.mlm(hidden), targets, rest)


def by_kind(*models: type[BuiltInModel]) -> dict[str, type[BuiltInModel]]:
    """Kind of task -> class, of one trunk's models."""
    return {model.kind: model for model in models}
