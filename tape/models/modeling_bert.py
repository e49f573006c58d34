"""TAPE's models around the one encoder: ProteinBertModel and a class per kind of task, with songlab's interface.

    model = ProteinBertModel.from_pretrained("runs/tape_model")
    sequence_output, pooled_output = model(input_ids, input_mask)[:2]

What must hold: padding is dropped before the encoder (proteinlm.model.ProteinBert on the flat stream of real tokens)
and put back as zeros, so no result depends on padding; loading checks every name and shape, and `load_report` says
what was left out. `load_state_dict` takes our names and TAPE's.

Legend: B proteins, N tokens of the longest (residues + 2), h hidden size, C classes, T real tokens of the batch.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proteinlm.errors import InputError
from proteinlm.model import LMHead, ProteinBert, initialize
from proteinlm.model_dir.files import PostLayerNormFile, TapeFiles, load_tape_dir, write_tape_dir
from proteinlm.model_dir.find import find_model
from proteinlm.model_dir.names import infer_head, rename_encoder_in_place, rename_mlm_in_place
from tape import metrics
from tape.models.base import ProteinConfig, ProteinModel
from tape.models.config import CONFIG_DEFAULTS, ProteinBertConfig
from tape.models.heads import (
    ContactHead,
    SequenceClassificationHead,
    SequenceToSequenceClassificationHead,
    ValuePredictionHead,
)

logger = logging.getLogger(__name__)

PAD_ID = 0  # <pad> of TAPE's vocabulary


def squared_error_sum(logits: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """(sum of squared errors, number of values) of logits and targets [B, 1]."""
    return F.mse_loss(logits.float(), targets.float(), reduction="sum"), targets.numel()


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of cross-entropies in nats, how many targets are not -1) of logits [..., C] and targets [...]."""
    flat = logits.reshape(-1, logits.shape[-1]).float()
    total = F.cross_entropy(flat, targets.reshape(-1), ignore_index=metrics.IGNORE, reduction="sum")
    return total, (targets != metrics.IGNORE).sum()


def _mean(total: Tensor, count: Tensor | int) -> Tensor:
    return total / torch.as_tensor(count, device=total.device).clamp(min=1)


def _accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    counted = targets != metrics.IGNORE
    return _mean(((logits.argmax(-1) == targets) & counted).sum().float(), counted.sum())


class ProteinBertAbstractModel(ProteinModel):
    """Loading, saving and initial weights, the same for every class."""

    config_class = ProteinBertConfig
    base_model_prefix = "bert"
    kind: ClassVar[str]  # which of a baseline's classes is this one's counterpart (tape.models.zoo.MODELS)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_dir: str | Path | None = None,
        config: ProteinBertConfig | None = None,
        require_head: bool = False,
        **overrides,
    ) -> "ProteinBertAbstractModel":
        """A model in evaluation mode with a directory's weights, or random ones (torch's global seed) if None.

        pretrained_dir: a path or a name such as "bert-base" (proteinlm.model_dir.find). A file of songlab's post-LN
        transformer gives the counterpart of tape.models.modeling_tape instead of this class, and a logged notice.
        overrides: keys of config.json, e.g. hidden_dropout_prob, head, num_labels. A finetuned directory's head is
        loaded too, and refused where it is another task's or another kind than asked for. require_head: refuse a
        directory without the weights of this class's head, for evaluation. `load_report` says what was left out.
        """
        unknown = sorted(set(overrides) - set(CONFIG_DEFAULTS))
        if unknown:
            raise InputError(f"from_pretrained: {unknown[0]} is not a key of a model's configuration")
        if pretrained_dir is None:
            if require_head:
                raise InputError("from_pretrained: a trained head was asked for, but no directory was given")
            return cls(ProteinBertConfig(**((config.to_dict() if config else {}) | overrides))).eval()
        directory = find_model(pretrained_dir)
        try:
            files = load_tape_dir(directory, (config.to_dict() if config else {}) | overrides)
        except PostLayerNormFile as found:
            from tape.models.zoo import MODELS

            logger.warning("%s: loaded as that model", found)
            return MODELS["tape_transformer"][cls.kind].from_pretrained(directory, config, require_head, **overrides)
        model = cls(ProteinBertConfig(**(files.config | cls._head_kind(files, overrides))))
        model.load_report = (*files.notes, *model._load(files, require_head))
        for note in model.load_report:
            logger.warning("%s", note)
        return model.eval()

    @classmethod
    def _head_kind(cls, files: TapeFiles, overrides: Mapping) -> dict[str, str]:
        """{'head': kind} as the file's head weights show it, after comparing with the kind asked for."""
        kind = infer_head(files.head)
        if kind is None:
            return {}
        if overrides.get("head", kind) != kind:
            raise InputError(f"{files.source}: its head is '{kind}', but '{overrides['head']}' was asked for")
        return {"head": kind}

    def _load(self, files: TapeFiles, require_head: bool) -> list[str]:
        """Copy the weights in; returns notes. The base class takes the encoder and its own head."""
        own = self.state_dict()
        state = {self._encoder_prefix + name: v for name, v in files.state.items() if not name.startswith("lm_head.")}
        notes, head = self._head_state(files, [name for name in own if name not in state], require_head)
        for name, value in head.items():
            if name not in own:
                raise InputError(f"{files.source}: {name} is of another head than {type(self).__name__}'s")
            if value.shape != own[name].shape:
                found, wanted = list(value.shape), list(own[name].shape)
                raise InputError(f"{files.source}: {name} has shape {found}, but {type(self).__name__} needs {wanted}")
        self.load_state_dict(own | state | head)
        return notes

    _encoder_prefix = "bert.encoder."

    def _head_state(self, files: TapeFiles, names: list[str], require_head: bool) -> tuple[list[str], dict]:
        """(notes, tensors of this model's head). `names`: what the encoder did not give."""
        notes = [f"{files.source}: mlm.* left out"] if any(n.startswith("lm_head.") for n in files.state) else []
        if not files.head:
            if require_head:
                raise InputError(f"{files.source}: no weights of a task head; finetune this model first")
            return [*notes, f"{files.source}: no task head in the file, the head starts from random weights"], {}
        missing = [name for name in names if name not in files.head]
        if missing:
            other = next(iter(files.head))
            raise InputError(f"{files.source}: {missing[0]} of {type(self).__name__} is missing; the file has {other}")
        return notes, files.head

    def save_pretrained(self, directory: str | Path, torch_file: bool = False) -> None:
        """Write a TAPE directory with the head's weights. torch_file: also pytorch_model.bin."""
        state = self.state_dict()
        cut = len(self._encoder_prefix)
        encoder = {name[cut:]: value for name, value in state.items() if name.startswith(self._encoder_prefix)}
        rest = {name: value for name, value in state.items() if not name.startswith(self._encoder_prefix)}
        mlm = {name.removeprefix("mlm."): value for name, value in rest.items() if name.startswith("mlm.")}
        head = {name: value for name, value in rest.items() if not name.startswith("mlm.")}
        write_tape_dir(directory, self.config.to_dict(), encoder, mlm, head, torch_file)


class ProteinBertModel(ProteinBertAbstractModel):
    """The encoder: (input_ids [B, N], input_mask [B, N]) -> (sequence_output [B, N, h], pooled_output [B, h])."""

    kind = "embed"
    _encoder_prefix = "encoder."

    def __init__(self, config: ProteinBertConfig):
        super().__init__(config)
        self.encoder = ProteinBert(config.model_config(), lm_head=False)
        initialize(self.encoder, seed=int(torch.randint(0, 2**31, ())))  # so that torch.manual_seed decides
        self.register_load_state_dict_pre_hook(rename_encoder_in_place)

    def forward(self, input_ids: Tensor, input_mask: Tensor | None = None) -> tuple:
        """sequence_output is 0 at padding; pooled_output is each protein's first token's state (no dense, no tanh), or
        with config.pooling "mean" the mean of its residues' states.

        Without input_mask, <pad> tokens are taken as padding. With config.output_hidden_states a third element: the
        L + 1 hidden states, each [B, N, h]. A protein longer than max_position_embeddings is an InputError.
        """
        mask = real_tokens(input_ids, input_mask)
        lengths = mask.sum(1)
        check_positions(mask, self.config.max_position_embeddings)
        where = mask.flatten().nonzero().squeeze(1)  # [T]
        positions = (mask.cumsum(1) - 1).flatten()[where]
        bounds = F.pad(lengths[lengths > 0].cumsum(0), (1, 0)).to(torch.int32)
        tokens = input_ids.flatten()[where]
        if self.config.output_hidden_states:
            states = [scatter(s, where, mask) for s in self.encoder.hidden_states(tokens, positions, bounds)]
        else:
            states = [scatter(self.encoder(tokens, positions, bounds), where, mask)]
        pooled = self._pool(states[-1], mask)
        return (states[-1], pooled, *([tuple(states)] if self.config.output_hidden_states else []))

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """[B, N, h] -> [B, h]."""
        if self.config.pooling == "mean":
            return masked_mean(states, residues_only(mask))
        first = mask.int().argmax(1)
        return states[torch.arange(len(first), device=first.device), first]

    def _head_state(self, files: TapeFiles, names: list[str], require_head: bool) -> tuple[list[str], dict]:
        left = [name for name in (*files.head, *files.state) if name.startswith(("predict.", "classify.", "lm_head."))]
        return ([f"{files.source}: heads left out ({len(left)} tensors, {left[0]} ...)"] if left else []), {}


def real_tokens(input_ids: Tensor, input_mask: Tensor | None) -> Tensor:
    """bool [B, N]: which positions hold a token."""
    mask = input_ids != PAD_ID if input_mask is None else input_mask.bool()
    if mask.shape != input_ids.shape or mask.dim() != 2:
        raise ValueError(f"input_ids {list(input_ids.shape)} and input_mask {list(mask.shape)} must be equal, [B, N]")
    return mask


def check_positions(mask: Tensor, limit: int) -> None:
    """InputError if a protein of mask [B, N] has more tokens than the model has positions."""
    if mask.shape[1] > limit and (longest := int(mask.sum(1).max())) > limit:
        raise InputError(
            f"a protein of {longest} tokens (residues + 2) is longer than the model's max_position_embeddings {limit}; "
            "crop or leave out long proteins (--max_length)"
        )


def residues_only(mask: Tensor) -> Tensor:
    """bool [B, N]: real tokens without the first (<cls>) and the last (<sep>) of each protein."""
    places = mask.cumsum(1)
    return mask & (places > 1) & (places < places[:, -1:])


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """[B, h]: the mean of states [B, N, h] where mask [B, N] is true; 0 where it nowhere is.

    Added up in fp32 at least: fp16 overflows on a long protein, and bf16 cannot count beyond 256.
    """
    weights = mask.unsqueeze(2).to(torch.promote_types(states.dtype, torch.float32))
    return ((states * weights).sum(1) / weights.sum(1).clamp(min=1)).to(states.dtype)


def number_of_classes(config: ProteinConfig) -> int:
    """num_labels of a model that needs it; songlab's bert-base has -1 there."""
    if isinstance(config.num_labels, bool) or not isinstance(config.num_labels, int) or config.num_labels < 1:
        raise InputError(
            f"{type(config).__name__}: num_labels is {config.num_labels!r}; a classification needs a positive number"
        )
    return config.num_labels


def scatter(stream: Tensor, where: Tensor, mask: Tensor) -> Tensor:
    """[T, h] -> [B, N, h], zeros at padding."""
    padded = stream.new_zeros(mask.numel(), stream.shape[-1])
    return padded.index_copy(0, where, stream).view(*mask.shape, -1)


def outputs_with_loss(logits: Tensor, total_and_count: tuple | None, measured: dict, rest: tuple) -> tuple:
    """TAPE's return value: (logits, ...), or ((loss, metrics), logits, ...)."""
    if total_and_count is None:
        return (logits, *rest)
    return ((_mean(*total_and_count), measured), logits, *rest)


class ProteinBertForMaskedLM(ProteinBertAbstractModel):
    """Masked language model, decoder tied to the embedding. logits [B, N, vocabulary]; targets [B, N], -1 ignored."""

    kind = "masked_language_modeling"

    def __init__(self, config: ProteinBertConfig):
        super().__init__(config)
        self.bert = ProteinBertModel(config)
        self.mlm = LMHead(config.model_config())
        nn.init.normal_(self.mlm.dense.weight, std=config.initializer_range)
        nn.init.zeros_(self.mlm.dense.bias)
        self.register_load_state_dict_pre_hook(rename_mlm_in_place)

    def forward(self, input_ids: Tensor, input_mask: Tensor | None = None, targets: Tensor | None = None) -> tuple:
        hidden, _, *rest = self.bert(input_ids, input_mask)
        logits = self.mlm(hidden, self.bert.encoder.word_embeddings.weight)
        if targets is None:
            return outputs_with_loss(logits, None, {}, rest)
        loss = cross_entropy_sum(logits, targets)
        return outputs_with_loss(logits, loss, {"perplexity": _mean(*loss).detach().exp()}, rest)

    def _head_state(self, files: TapeFiles, names: list[str], require_head: bool) -> tuple[list[str], dict]:
        if files.head:
            raise InputError(f"{files.source}: {next(iter(files.head))} is a task's head; a masked-LM model has mlm.*")
        head = {n.replace("lm_head.", "mlm.", 1): v for n, v in files.state.items() if n.startswith("lm_head.")}
        if head or require_head:
            if not head:
                raise InputError(f"{files.source}: no usable masked-LM head (mlm.*) in the file")
            return [], head
        return [f"{files.source}: no usable mlm.* in the file, the masked-LM head starts from random weights"], {}


class ProteinBertForValuePrediction(ProteinBertAbstractModel):
    """One number a protein. logits [B, 1]; targets [B, 1]; mean squared error."""

    kind = "value"

    def __init__(self, config: ProteinBertConfig):
        super().__init__(config)
        self.bert = ProteinBertModel(config)
        self.predict = ValuePredictionHead(config.hidden_size, config.head)

    def forward(self, input_ids: Tensor, input_mask: Tensor | None = None, targets: Tensor | None = None) -> tuple:
        _, pooled, *rest = self.bert(input_ids, input_mask)
        logits = self.predict(pooled)
        return outputs_with_loss(logits, None if targets is None else squared_error_sum(logits, targets), {}, rest)


class ProteinBertForSequenceClassification(ProteinBertAbstractModel):
    """One class a protein. logits [B, C]; targets [B]; cross-entropy."""

    kind = "classification"

    def __init__(self, config: ProteinBertConfig):
        super().__init__(config)
        self.bert = ProteinBertModel(config)
        self.classify = SequenceClassificationHead(config.hidden_size, number_of_classes(config), config.head)

    def forward(self, input_ids: Tensor, input_mask: Tensor | None = None, targets: Tensor | None = None) -> tuple:
        _, pooled, *rest = self.bert(input_ids, input_mask)
        return outputs_of_classes(self.classify(pooled), targets, rest)


class ProteinBertForSequenceToSequenceClassification(ProteinBertAbstractModel):
    """One class a token. logits [B, N, C]; targets [B, N], -1 ignored."""

    kind = "token_classification"

    def __init__(self, config: ProteinBertConfig):
        super().__init__(config)
        self.bert = ProteinBertModel(config)
        self.classify = SequenceToSequenceClassificationHead(config.hidden_size, number_of_classes(config))

    def forward(self, input_ids: Tensor, input_mask: Tensor | None = None, targets: Tensor | None = None) -> tuple:
        mask = real_tokens(input_ids, input_mask)
        hidden, _, *rest = self.bert(input_ids, mask)
        return outputs_of_classes(self.classify(hidden, mask), targets, rest)


def outputs_of_classes(logits: Tensor, targets: Tensor | None, rest: tuple) -> tuple:
    if targets is None:
        return outputs_with_loss(logits, None, {}, rest)
    return outputs_with_loss(logits, cross_entropy_sum(logits, targets), {"accuracy": _accuracy(logits, targets)}, rest)


class ProteinBertForContactPrediction(ProteinBertAbstractModel):
    """Contacts. logits [B, N-2, N-2, 2], symmetric; targets [B, N-2, N-2]: 1 contact, 0 none, -1 ignored."""

    kind = "contacts"

    def __init__(self, config: ProteinBertConfig):
        super().__init__(config)
        self.bert = ProteinBertModel(config)
        self.predict = ContactHead(config.hidden_size, config.head, config.contact_dropout_prob)

    def forward(
        self,
        input_ids: Tensor,
        input_mask: Tensor | None = None,
        targets: Tensor | None = None,
        protein_length: Tensor | None = None,
    ) -> tuple:
        """protein_length (TAPE's argument) is accepted and not needed: the mask says it."""
        mask = real_tokens(input_ids, input_mask)
        hidden, _, *rest = self.bert(input_ids, mask)
        return outputs_of_contacts(self.predict(hidden, mask), targets, mask, rest)


def outputs_of_contacts(logits: Tensor, targets: Tensor | None, mask: Tensor, rest: tuple) -> tuple:
    if targets is None:
        return outputs_with_loss(logits, None, {}, rest)
    measured = {"precision_at_l5": precision_at_l5(logits, targets, mask.sum(1) - 2)}
    return outputs_with_loss(logits, cross_entropy_sum(logits, targets), measured, rest)


def precision_at_l5(logits: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """Mean P@L/5 of a batch's proteins, as a number to watch; tape.tasks scores whole splits."""
    scores = (logits[..., 1] - logits[..., 0]).detach().float().cpu().numpy()
    labels = targets.cpu().numpy()
    proteins = [(scores[b, :n, :n], labels[b, :n, :n]) for b, n in enumerate(lengths.tolist())]
    return torch.tensor(metrics.mean_over_proteins(metrics.precision_table(proteins)["precision_at_l5"])[0])
