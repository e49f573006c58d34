"""A class for each kind of task around any trunk, with the heads of tape.models.heads.

    class ProteinLSTMForValuePrediction(kinds.Value, ProteinLSTMAbstractModel):
        trunk_class = ProteinLSTMModel

A trunk is a ProteinModel: (input_ids [B, N], input_mask [B, N]) -> (sequence_output [B, N, h],
pooled_output [B, p], ...), with `sequence_size(config)` = h and `pooled_size(config)` = p. What must hold: padding
never changes a protein's numbers, whatever songlab's models did with it.

Legend: B proteins, N tokens of the longest (residues + 2), h and p sizes, C classes, V vocabulary.
"""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proteinlm.errors import InputError
from proteinlm.huggingface.directory import model_type_in
from proteinlm.model_dir.config import SHAPE_KEYS
from proteinlm.model_dir.files import check_layers
from proteinlm.model_dir.find import CONFIG_NAME, model_type_of, other_model_type
from proteinlm.network.contacts import ContactRegression, contact_logits
from tape.models import heads, outputs
from tape.models.base import ProteinConfig, ProteinModel, WeightFile
from tape.models.config import CONFIG_DEFAULTS, check
from tape.models.modeling_utils import MLMHead
from tape.runs.names import HEADS

# Maps hold about 1 / L: at this scale the steps of Adam that suit the other parameters move these too.
ATTENTION_SCALE = 100.0


class BuiltInModel(ProteinModel):
    """What every model of this package shares: loading with its checks, and songlab's first weights."""

    of_others: ClassVar[tuple[str, ...]] = ()  # model types of transformers whose files the class reads

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

    @classmethod
    def from_pretrained(cls, pretrained_dir=None, config=None, require_head=False, **overrides) -> "BuiltInModel":
        """ProteinModel.from_pretrained; a key that no model of this package has is refused, as a misspelling."""
        unknown = sorted(set(overrides) - set(vars(cls.config_class())) - set(CONFIG_DEFAULTS))
        if unknown:
            raise InputError(f"from_pretrained: {unknown[0]} is not a key of {cls.config_class.__name__}")
        return super().from_pretrained(pretrained_dir, config, require_head, **overrides)

    @classmethod
    def _read(cls, directory: Path, values: dict, overrides: dict) -> WeightFile:
        file = super()._read(directory, values, overrides)
        is_run = "base_model" in file.config
        if not is_run and model_type_in(file.config) not in ("", *cls.of_others):
            model_type_of(file.config, directory)  # refuses a megatron-bert
            raise other_model_type(file.config, directory)
        sizes = getattr(cls.config_class, "defaults", {})
        for key in (*SHAPE_KEYS, "input_size"):
            if sizes.get(key) is not None and key not in file.config:
                raise InputError(f"{directory / CONFIG_NAME}: {key} is missing; a positive whole number is needed")
        if "num_hidden_layers" in vars(cls.config_class()):
            check_layers(file.config, file.tensors, file.path)
        return with_head_kind(file, overrides)


def with_head_kind(file: WeightFile, overrides: Mapping) -> WeightFile:
    """`head` in the config as the weights show it: songlab's runs have no such key. Another one asked for is refused.

    The hidden units, or the contact head's form, say which it is; where both families share the head the key stays.
    """
    kind = None
    for name, value in file.tensors.items():
        if name.endswith("main.0.weight_v") and value.dim() == 2:
            kind = next((head for head, width in heads.HEAD_WIDTH.items() if width == len(value)), None)
        elif name == "predict.predict.1.weight":
            kind = "tape" if value.dim() == 2 else "proteinlm"
        elif name == "predict.regression.weight":
            kind = "attention"
    if kind is None:
        return file
    if overrides.get("head", kind) != kind:
        raise InputError(f"{file.path}: its head is '{kind}', but '{overrides['head']}' was asked for")
    return file._replace(config=file.config | {"head": kind})


class TaskModel(BuiltInModel):
    """A trunk and a head. Subclasses make the head and give

    _logits(hidden [B, N, h], pooled [B, p], mask [B, N]) -> logits
    _loss(logits, targets, mask) -> (the batch's mean loss, metrics to watch)
    """

    kind: ClassVar[str]  # of task, as tape.models.zoo calls it
    trunk_class: ClassVar[type]

    def __init__(self, config: ProteinConfig):
        super().__init__(config)
        if getattr(config, "head", None) == "attention" and self.kind != "contacts":
            others = " or ".join(name for name in HEADS if name != "attention")
            raise InputError(f"head attention: is for contacts; should be {others} here")
        trunk = self.trunk_class(config)
        trunk.init_weights()  # for the second time, so that a seed gives the weights that it always gave
        setattr(self, self.base_model_prefix, trunk)

    def forward(
        self,
        input_ids: Tensor,
        input_mask: Tensor | None = None,
        targets: Tensor | None = None,
        protein_length: Tensor | None = None,
    ) -> tuple:
        """TAPE's return value: (logits, ...), or with targets ((loss, metrics), logits, ...).

        protein_length (an argument of TAPE's contact prediction) is accepted and not needed: the mask says it.
        """
        mask = outputs.real_tokens(input_ids, input_mask)
        hidden, pooled, *rest = self.base_model(input_ids, mask)
        logits = self._logits(hidden, pooled, mask)
        return (logits, *rest) if targets is None else (self._loss(logits, targets, mask), logits, *rest)

    def head_logits(self, states: Tensor, mask: Tensor) -> Tensor:
        """The logits from a trunk's output: pooled [B, p], or sequence [B, N, h] for a kind that needs every token."""
        return self._logits(states, states, mask)


class Value(TaskModel):
    """One number a protein. logits [B, 1]; targets [B, 1]; mean squared error."""

    kind = "value"

    def __init__(self, config: ProteinConfig):
        super().__init__(config)
        self.predict = heads.ValuePredictionHead(self.trunk_class.pooled_size(config), config.head)

    def _logits(self, hidden: Tensor, pooled: Tensor, mask: Tensor) -> Tensor:
        return self.predict(pooled)

    def _loss(self, logits: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, dict]:
        return outputs.mean(*outputs.squared_error_sum(logits, targets)), {}


class Classification(TaskModel):
    """One class a protein. logits [B, C]; targets [B]; cross-entropy."""

    kind = "classification"

    def __init__(self, config: ProteinConfig):
        super().__init__(config)
        check(config, "num_labels")
        size = self.trunk_class.pooled_size(config)
        self.classify = heads.SequenceClassificationHead(size, config.num_labels, config.head)

    def _logits(self, hidden: Tensor, pooled: Tensor, mask: Tensor) -> Tensor:
        return self.classify(pooled)

    def _loss(self, logits: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, dict]:
        measured = {"accuracy": outputs.accuracy(logits, targets)}
        return outputs.mean(*outputs.cross_entropy_sum(logits, targets)), measured


class TokenClassification(TaskModel):
    """One class a token. logits [B, N, C]; targets [B, N], -1 ignored."""

    kind = "token_classification"

    def __init__(self, config: ProteinConfig):
        super().__init__(config)
        check(config, "num_labels")
        size = self.trunk_class.sequence_size(config)
        self.classify = heads.SequenceToSequenceClassificationHead(size, config.num_labels)

    def _logits(self, hidden: Tensor, pooled: Tensor, mask: Tensor) -> Tensor:
        return self.classify(hidden, mask)

    _loss = Classification._loss


def attention_head_tensors(regression: ContactRegression) -> dict[str, Tensor]:
    """A regression as a model's head has it."""
    parts = {"weight": regression.weight, "bias": regression.bias}
    return {f"predict.regression.{name}": value.float() / ATTENTION_SCALE for name, value in parts.items()}


class AttentionContactHead(nn.Module):
    """Log-odds of contact, linear in the M = layers * heads attention maps of an encoder (Rao et al. 2021, as ESM's).

    regression: weight [1, M] and bias [1], both divided by ATTENTION_SCALE. The encoder's maps are never all in memory,
    in training neither.
    """

    def __init__(self, trunk: nn.Module):
        super().__init__()
        network = getattr(trunk, "encoder", None)
        if not hasattr(network, "attention_sums"):
            kind = getattr(trunk.config, "base_model", type(trunk).__name__)
            raise InputError(f"head attention: {kind} gives no attention maps; transformer and huggingface do")
        maps = network.config.num_layers * network.config.num_attention_heads
        if not maps:
            raise InputError("head attention: this encoder's attention has no heads, so no maps")
        self.regression = nn.Linear(maps, 1)
        nn.init.normal_(self.regression.weight, std=0.02)
        nn.init.zeros_(self.regression.bias)

    def forward(self, trunk: nn.Module, input_ids: Tensor, mask: Tensor) -> Tensor:
        """[B, N-2, N-2, 2]: 0 and the log-odds of contact, so that their softmax is the regression's probability."""
        outputs.check_positions(mask, trunk.encoder.config.max_tokens)
        *stream, _ = outputs.flatten_tokens(input_ids, mask)
        weight, bias = self.regression.weight * ATTENTION_SCALE, self.regression.bias * ATTENTION_SCALE
        longest = mask.shape[1] - 2
        maps = [own[0] for own in contact_logits(trunk.encoder, weight, bias, *stream)]
        logits = torch.stack([F.pad(own, (0, longest - len(own)) * 2) for own in maps])
        return torch.stack((torch.zeros_like(logits), logits), -1)


class Contacts(TaskModel):
    """Contacts. logits [B, N-2, N-2, 2], symmetric; targets [B, N-2, N-2]: 1 contact, 0 none, -1 ignored."""

    kind = "contacts"

    def __init__(self, config: ProteinConfig):
        super().__init__(config)
        if config.head == "attention":
            self.predict = AttentionContactHead(self.base_model)
            return
        size = self.trunk_class.sequence_size(config)
        self.predict = heads.ContactHead(size, config.head, config.contact_dropout_prob)

    def forward(self, input_ids: Tensor, input_mask: Tensor | None = None, targets=None, protein_length=None) -> tuple:
        """As TaskModel's; head attention reads the encoder's maps instead of its states."""
        if not isinstance(self.predict, AttentionContactHead):
            return super().forward(input_ids, input_mask, targets)
        mask = outputs.real_tokens(input_ids, input_mask)
        logits = self.predict(self.base_model, input_ids, mask)
        return (logits,) if targets is None else (self._loss(logits, targets, mask), logits)

    def _logits(self, hidden: Tensor, pooled: Tensor, mask: Tensor) -> Tensor:
        return self.predict(hidden, mask)

    def _loss(self, logits: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, dict]:
        precision = outputs.precision_at_l5(logits, targets, mask.sum(1) - 2)
        return outputs.mean(*outputs.cross_entropy_sum(logits, targets)), {"precision_at_l5": precision}


class LanguageModel(TaskModel):
    """Tokens guessed from the others. logits [B, N, V]; targets [B, N], -1 ignored."""

    missing_head = "no usable masked-LM head (mlm.*) in the file"

    def _loss(self, logits: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, dict]:
        loss = outputs.mean(*outputs.cross_entropy_sum(logits, targets))
        return loss, {"perplexity": loss.detach().exp()}


class MaskedLanguageModel(LanguageModel):
    """songlab's, with the decoder tied to the embedding."""

    kind = "masked_language_modeling"

    def __init__(self, config: ProteinConfig):
        super().__init__(config)
        self.mlm = MLMHead(config.hidden_size, config.vocab_size, config.hidden_act, config.layer_norm_eps)
        self.mlm.apply(self._init_weights)
        self.mlm.decoder.weight = self.base_model.embeddings.word_embeddings.weight

    def _logits(self, hidden: Tensor, pooled: Tensor, mask: Tensor) -> Tensor:
        return self.mlm(hidden)


def models_in(module: ModuleType) -> dict[str, type[BuiltInModel]]:
    """Kind of task -> class, of a module's models; "embed" is the trunk."""
    classes = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
    models = {model.kind: model for model in classes if hasattr(model, "trunk_class")}
    return {"embed": models["value"].trunk_class} | models
