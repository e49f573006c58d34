"""TAPE's models around the one encoder: ProteinBertModel and a class per kind of task, with songlab's interface.

    model = ProteinBertModel.from_pretrained("runs/tape_model")
    sequence_output, pooled_output = model(input_ids, input_mask)[:2]
    model = ProteinBertModel.from_pretrained("esm2_t6_8M")      # ESM-2, as Hugging Face or fair-esm wrote it

What must hold: padding is dropped before the encoder (the one ProteinBert, on the flat stream of real tokens)
and put back as zeros, so no result depends on padding; loading checks every name and shape, and `load_report` lists
what was left out. `load_state_dict` takes ProteinBert's names and TAPE's.

Legend: B proteins, N tokens of the longest (residues + 2), h hidden size.
"""

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from proteinlm.model_dir.files import PostLayerNormFile, check_finite, load_tape_dir, same, write_tape_dir
from proteinlm.model_dir.load import READERS, recognise
from proteinlm.model_dir.names import from_tape
from proteinlm.model_dir.vocabulary import to_tokenizer
from proteinlm.network.layers import LMHead
from proteinlm.network.model import ProteinBert, initialize
from tape.models import kinds, modeling_tape, outputs
from tape.models.base import WeightFile
from tape.models.config import ProteinBertConfig, tape_keys

logger = logging.getLogger(__name__)


class ProteinBertAbstractModel(kinds.BuiltInModel):
    """Loading and saving, the same for every class."""

    config_class = ProteinBertConfig
    base_model_prefix = "bert"

    def _init_weights(self, module: nn.Module) -> None:
        """The encoder has Megatron's first weights (ProteinBertModel), the heads their own."""

    @classmethod
    def from_pretrained(cls, pretrained_dir=None, config=None, require_head=False, **overrides) -> kinds.BuiltInModel:
        """ProteinModel.from_pretrained; a file of songlab's post-LN transformer gives the counterpart of
        tape.models.modeling_tape instead of this class, and a logged notice."""
        try:
            return super().from_pretrained(pretrained_dir, config, require_head, **overrides)
        except PostLayerNormFile as error:
            logger.warning("%s: loaded as that model", error)
        counterpart = kinds.models_in(modeling_tape)[getattr(cls, "kind", "embed")]
        return counterpart.from_pretrained(pretrained_dir, config, require_head, **overrides)

    @classmethod
    def _read(cls, directory: Path, values: dict, overrides: dict) -> WeightFile:
        if (kind := recognise(directory)) in ("tape", "huggingface"):  # the second is refused in one line
            files = load_tape_dir(directory, values)
            config, source, head, notes = files.config, files.source, files.head, files.notes
        else:  # the vocabulary's rows go to those of TAPE's tokens
            files = to_tokenizer(READERS[kind](directory), "tape", origin=str(directory))
            config, source, head, notes = tape_keys(files.config) | values, directory, {}, files.notes
        check_finite(files.not_finite, files.source)
        is_contacts = getattr(cls, "kind", None) == "contacts"
        if files.contact_head is not None and is_contacts and values.get("head") == "attention":
            head = head | kinds.attention_head_tensors(files.contact_head)  # where finetuning begins
        elif files.contact_head is not None:  # it is of this encoder's attention maps, which finetuning changes
            notes += (f"{directory}: the regression of contacts from attention maps left out",)
        notes = tuple(note if note.startswith(str(directory)) else f"{directory}: {note}" for note in notes)
        return kinds.with_head_kind(WeightFile(config, source, _own_names(files.state) | head, notes), overrides)

    def save_pretrained(self, directory: str | Path, torch_file: bool = False) -> None:
        """Write a TAPE directory with the head's weights. torch_file: also pytorch_model.bin."""
        state, head = {}, {}
        for name, value in self.state_dict().items():
            own_name = name.removeprefix("bert.")
            if own_name.startswith("encoder."):
                state[own_name.removeprefix("encoder.")] = value
            elif name.startswith("mlm."):
                state[f"lm_head.{name.removeprefix('mlm.')}"] = value
            else:
                head[name] = value
        write_tape_dir(directory, self.config.to_dict(), state, head, torch_file)


def _own_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """ProteinBert's tensors as the parts of a task's model call them."""
    return {
        f"mlm.{name.removeprefix('lm_head.')}" if name.startswith("lm_head.") else f"bert.encoder.{name}": value
        for name, value in state.items()
    }


class ProteinBertModel(ProteinBertAbstractModel):
    """The encoder: (input_ids [B, N], input_mask [B, N]) -> (sequence_output [B, N, h], pooled_output [B, h])."""

    def __init__(self, config: ProteinBertConfig):
        super().__init__(config)
        self.encoder = ProteinBert(config.model_config(), lm_head=False)
        initialize(self.encoder, seed=int(torch.randint(0, 2**31, ())))  # so that torch.manual_seed decides
        self.register_load_state_dict_pre_hook(rename_encoder)

    def forward(self, input_ids: Tensor, input_mask: Tensor | None = None) -> tuple:
        """sequence_output is 0 at padding; pooled_output is each protein's first token's state (no dense, no tanh), or
        with config.pooling "mean" the mean of its residues' states.

        Without input_mask, <pad> tokens are taken as padding. With config.output_hidden_states a third element: the
        L + 1 hidden states, each [B, N, h]. A protein longer than the learned positions go is an InputError.
        """
        mask = outputs.real_tokens(input_ids, input_mask)
        config, every_layer = self.encoder.config, self.config.output_hidden_states
        outputs.check_positions(mask, config.max_tokens)
        *stream, where = outputs.flatten_tokens(input_ids, mask)
        depths = range(config.num_layers + 1) if every_layer else [config.num_layers]
        states = self.encoder.states_after(depths, *stream)
        hidden = tuple(outputs.scatter(state, where, mask) for state in states)
        pool = outputs.mean_of_residues if self.config.pooling == "mean" else outputs.first_state
        return (hidden[-1], pool(hidden[-1], mask), *([hidden] if every_layer else []))


def rename_encoder(module: ProteinBertModel, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """load_state_dict pre-hook of ProteinBertModel: renames TAPE's tensors to ProteinBert's names, in place."""
    spellings = ("embeddings.", "encoder.layer.", "encoder.final_ln.", "bert_tail_dense.")
    names = [name for name in state if name.startswith(tuple(prefix + part for part in spellings))]
    tensors = {f"bert.{name.removeprefix(prefix)}": state.pop(name) for name in names}
    renamed, notes = from_tape(tensors, module.encoder.config)
    state.update({f"{prefix}encoder.{name}": value for name, value in renamed.items()})
    for note in notes:
        logger.info("%s", note)


class ProteinBertForMaskedLM(kinds.LanguageModel, ProteinBertAbstractModel):
    """Masked language model, decoder tied to the embedding (unless the config says untied)."""

    kind = "masked_language_modeling"
    trunk_class = ProteinBertModel

    def __init__(self, config: ProteinBertConfig):
        super().__init__(config)
        self.mlm = LMHead(config.model_config())
        if self.mlm.decoder is not None:
            nn.init.normal_(self.mlm.decoder.weight, std=config.initializer_range)
        if self.mlm.dense is not None:
            nn.init.normal_(self.mlm.dense.weight, std=config.initializer_range)
            nn.init.zeros_(self.mlm.dense.bias)
        self.register_load_state_dict_pre_hook(rename_lm_head)

    def _logits(self, hidden: Tensor, pooled: Tensor, mask: Tensor) -> Tensor:
        return self.mlm(hidden, self.bert.encoder.word_embeddings.weight)


def rename_lm_head(module: ProteinBertForMaskedLM, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """load_state_dict pre-hook of ProteinBertForMaskedLM: renames TAPE's mlm.* to LMHead's names, in place. A tied
    decoder that is not the embedding drops all of mlm.*, which strict loading then reports as missing."""
    spellings = (f"{prefix}bert.embeddings.word_embeddings.weight", f"{prefix}bert.encoder.word_embeddings.weight")
    words = next((state[name] for name in spellings if name in state), None)
    decoder = state.pop(f"{prefix}mlm.decoder.weight", None) if module.mlm.decoder is None else None
    head = {name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(f"{prefix}mlm.")}
    if decoder is not None and words is not None and not same(decoder, words):
        logger.warning("mlm.decoder.weight differs from the word embedding: the embedding is kept, mlm.* dropped")
        return
    renamed, _ = from_tape(head, module.bert.encoder.config)
    state.update({prefix + name.replace("lm_head.", "mlm.", 1): value for name, value in renamed.items()})


class ProteinBertForValuePrediction(kinds.Value, ProteinBertAbstractModel):
    trunk_class = ProteinBertModel


class ProteinBertForSequenceClassification(kinds.Classification, ProteinBertAbstractModel):
    trunk_class = ProteinBertModel


class ProteinBertForSequenceToSequenceClassification(kinds.TokenClassification, ProteinBertAbstractModel):
    trunk_class = ProteinBertModel


class ProteinBertForContactPrediction(kinds.Contacts, ProteinBertAbstractModel):
    trunk_class = ProteinBertModel
