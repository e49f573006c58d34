"""What the baselines share: a class per kind of task around any trunk, with the heads of tape.models.heads.

    class ProteinLSTMForValuePrediction(ValuePrediction, ProteinLSTMAbstractModel): ...

A trunk is a ProteinModel: (input_ids [B, N], input_mask [B, N]) -> (sequence_output [B, N, h],
pooled_output [B, p], ...), with `sequence_size(config)` = h and `pooled_size(config)` = p. What must hold: padding
never changes a protein's numbers, whatever songlab's models did with it.

Legend: B proteins, N tokens of the longest (residues + 2), h and p sizes, C classes.
"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from proteinlm.errors import InputError
from proteinlm.model_dir.names import infer_head
from tape.models.base import ProteinConfig, ProteinModel
from tape.models.config import CONFIG_DEFAULTS
from tape.models.heads import (
    HEADS,
    ContactHead,
    SequenceClassificationHead,
    SequenceToSequenceClassificationHead,
    ValuePredictionHead,
)
from tape.models.modeling_bert import (
    masked_mean,
    number_of_classes,
    outputs_of_classes,
    outputs_of_contacts,
    outputs_with_loss,
    real_tokens,
    residues_only,
    squared_error_sum,
)


class BaselineConfig(ProteinConfig):
    """ProteinConfig with this package's keys: `head`, `contact_dropout_prob`, `base_model` (the model type)."""

    model_type: ClassVar[str] = ""

    def __init__(self, **values):
        super().__init__(**({"head": "proteinlm", "contact_dropout_prob": 0.5} | values))
        self.base_model = self.model_type  # songlab's files say "transformer", or nothing
        if self.head not in HEADS:
            raise InputError(f"{type(self).__name__}: head {self.head!r} is not one of {', '.join(HEADS)}")
        check_probability(self, "contact_dropout_prob")

    @classmethod
    def from_dict(cls, values: Mapping) -> "BaselineConfig":
        return cls(**values)  # so that a file's values pass the checks


def check_probability(config: ProteinConfig, key: str) -> None:
    """InputError unless the value of `key` is a number in [0, 1)."""
    value = getattr(config, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise InputError(f"{type(config).__name__}: {key} {value!r} must be at least 0 and below 1")


class BaselineModel(ProteinModel):
    """A baseline's abstract model: songlab's first weights of embeddings and linear layers."""

    trunk: ClassVar[type]  # set below each trunk class
    linear_std: ClassVar[float] = 0.02

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=getattr(self.config, "initializer_range", self.linear_std))
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, pretrained_dir=None, config=None, require_head=False, **overrides) -> "BaselineModel":
        """ProteinModel.from_pretrained; a key that no model of this package has is refused, as a slip of the pen."""
        unknown = sorted(set(overrides) - set(vars(cls.config_class())) - set(CONFIG_DEFAULTS))
        if unknown:
            raise InputError(f"from_pretrained: {unknown[0]} is not a key of {cls.config_class.__name__}")
        return super().from_pretrained(pretrained_dir, config, require_head, **overrides)

    @classmethod
    def sequence_size(cls, config: BaselineConfig) -> int:
        """h of a trunk's sequence_output."""
        return config.hidden_size

    @classmethod
    def pooled_size(cls, config: BaselineConfig) -> int:
        """p of a trunk's pooled_output."""
        return cls.sequence_size(config)

    def _add_trunk(self) -> nn.Module:
        """The trunk under its name, with its first weights."""
        trunk = self.trunk(self.config)
        trunk.init_weights()
        setattr(self, self.base_model_prefix, trunk)
        return trunk

    @classmethod
    def _config_of(cls, values, tensors, path, overrides):
        """The head's kind is the file's: songlab's runs have no key `head`. Another one asked for is refused.

        More layers than the file can hold are refused too, before anything is made for each of them.
        """
        layers = values.get("num_hidden_layers")
        if isinstance(layers, int) and layers > len(tensors) and hasattr(cls.config_class(), "num_hidden_layers"):
            raise InputError(f"{path}: its {len(tensors)} tensors cannot be the {layers} layers of config.json")
        kind = infer_head(tensors)
        if kind is None:
            return values
        if overrides.get("head", kind) != kind:
            raise InputError(f"{path}: its head is '{kind}', but '{overrides['head']}' was asked for")
        return values | {"head": kind}


class ValuePrediction(BaselineModel):
    """One number a protein. logits [B, 1]; targets [B, 1]; mean squared error."""

    def __init__(self, config: BaselineConfig):
        super().__init__(config)
        self.predict = ValuePredictionHead(self._add_trunk().pooled_size(config), config.head)

    def forward(self, input_ids: Tensor, input_mask: Tensor | None = None, targets: Tensor | None = None) -> tuple:
        _, pooled, *rest = self.base_model(input_ids, input_mask)
        logits = self.predict(pooled)
        return outputs_with_loss(logits, None if targets is None else squared_error_sum(logits, targets), {}, rest)


class SequenceClassification(BaselineModel):
    """One class a protein. logits [B, C]; targets [B]; cross-entropy."""

    def __init__(self, config: BaselineConfig):
        super().__init__(config)
        size = self._add_trunk().pooled_size(config)
        self.classify = SequenceClassificationHead(size, number_of_classes(config), config.head)

    def forward(self, input_ids: Tensor, input_mask: Tensor | None = None, targets: Tensor | None = None) -> tuple:
        _, pooled, *rest = self.base_model(input_ids, input_mask)
        return outputs_of_classes(self.classify(pooled), targets, rest)


class SequenceToSequenceClassification(BaselineModel):
    """One class a token. logits [B, N, C]; targets [B, N], -1 ignored."""

    def __init__(self, config: BaselineConfig):
        super().__init__(config)
        size = self._add_trunk().sequence_size(config)
        self.classify = SequenceToSequenceClassificationHead(size, number_of_classes(config))

    def forward(self, input_ids: Tensor, input_mask: Tensor | None = None, targets: Tensor | None = None) -> tuple:
        mask = real_tokens(input_ids, input_mask)
        hidden, _, *rest = self.base_model(input_ids, mask)
        return outputs_of_classes(self.classify(hidden, mask), targets, rest)


class ContactPrediction(BaselineModel):
    """Contacts. logits [B, N-2, N-2, 2], symmetric; targets [B, N-2, N-2]: 1 contact, 0 none, -1 ignored."""

    def __init__(self, config: BaselineConfig):
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


def no_padding(states: Tensor, mask: Tensor) -> Tensor:
    """states [B, N, h] with zeros at padding."""
    return states * mask.unsqueeze(2).to(states.dtype)


__all__ = [
    "BaselineConfig",
    "BaselineModel",
    "ContactPrediction",
    "SequenceClassification",
    "SequenceToSequenceClassification",
    "ValuePrediction",
    "check_probability",
    "masked_mean",
    "no_padding",
    "residues_only",
]
