"""songlab's own transformer (its `bert-base`): BERT as published, LayerNorm after each sum and on the embedding.

    model = TapeTransformerModel.from_pretrained("bert-base")         a directory below $TAPE_MODELS or ~/.cache/tape
    sequence_output, pooled_output = model(input_ids, input_mask)[:2]

Model type tape_transformer; tape.models.modeling_bert's classes load these for a file of that architecture. Names,
shapes, sizes and first weights are songlab's (modeling_bert.py), whose files have base_model "transformer" or nothing:
files written here have "tape_transformer". What must hold: hidden states, pooled output and masked-LM logits are those
of Hugging Face's BERT with the same weights; padding changes nothing; every name of a file is checked, and a pre-LN
file is refused.

Only real tokens are computed: padding is dropped before the embedding and put back as zeros. ProtBert is this network
under Hugging Face's names: its directories open here too, rows of the vocabulary moved by token.

Legend: B proteins, N tokens of the longest (residues + 2), T real tokens of the batch, h hidden size, H heads, D head
size, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from proteinlm.errors import InputError
from proteinlm.huggingface.directory import model_type_in
from proteinlm.huggingface.families import find_family
from proteinlm.model_dir.config import check_shape_keys
from proteinlm.model_dir.vocabulary import SPECIAL_TOKENS, remap_rows
from proteinlm.network.attention import AttentionPlan, choose_backend, make_plan, packed_attention
from proteinlm.network.layers import ACTIVATIONS
from proteinlm.tokenizer import TAPE_TOKENS, read_tokens
from tape.models import kinds, outputs
from tape.models.base import WeightFile
from tape.models.config import BaselineConfig, check

PRE_LN_NAMES = (".input_ln.", ".post_attn_ln.", "encoder.final_ln.")  # only in files of model type transformer


class TapeTransformerConfig(BaselineConfig):
    """songlab's keys with its defaults, and `pooling` (tape.models.config)."""

    model_type = "tape_transformer"

    defaults: ClassVar = {
        "vocab_size": 30,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",  # erf; of the MLP and of the masked-LM head
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 8096,
        "type_vocab_size": 2,  # 1 in bert-base; only row 0 is ever used
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "pooling": "first",
        "pruned_heads": {},
    }

    def __init__(self, *arguments, **values):
        super().__init__(*arguments, **values)
        check_shape_keys(self.__dict__, type(self).__name__)
        check(self, "type_vocab_size", "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob")
        check(self, "initializer_range", "layer_norm_eps", "pooling", "output_attentions")


def layer_norm(config: TapeTransformerConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class Embeddings(nn.Module):
    """LayerNorm(word + position + token type 0): ids and positions [T] -> [T, h]."""

    def __init__(self, config: TapeTransformerConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = layer_norm(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        summed = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        return self.dropout(self.LayerNorm(summed + self.token_type_embeddings.weight[0]))


class SelfAttention(nn.Module):
    """[T, h] -> [T, h]: each protein of the stream attends to itself."""

    def __init__(self, config: TapeTransformerConfig):
        super().__init__()
        self.heads, self.dropout = config.num_attention_heads, config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, plan: AttentionPlan) -> Tensor:
        parts = [part(x).unflatten(1, (self.heads, -1)) for part in (self.query, self.key, self.value)]
        dropout = self.dropout if self.training else 0.0
        return packed_attention(torch.stack(parts, 2), plan, dropout).flatten(1)


class AddAndNorm(nn.Module):
    """LayerNorm(x + dropout(dense(update)))."""

    def __init__(self, in_features: int, config: TapeTransformerConfig):
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = layer_norm(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, update: Tensor, x: Tensor) -> Tensor:
        return self.LayerNorm(x + self.dropout(self.dense(update)))


class Dense(nn.Module):
    """activation(dense(x))."""

    def __init__(self, in_features: int, out_features: int, activation):
        super().__init__()
        self.dense = nn.Linear(in_features, out_features)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.dense(x))


class TransformerLayer(nn.Module):
    """One post-LN block on the stream: [T, h] -> [T, h]."""

    def __init__(self, config: TapeTransformerConfig):
        super().__init__()
        attention = {"self": SelfAttention(config), "output": AddAndNorm(config.hidden_size, config)}
        self.attention = nn.ModuleDict(attention)
        self.intermediate = Dense(config.hidden_size, config.intermediate_size, ACTIVATIONS[config.hidden_act])
        self.output = AddAndNorm(config.intermediate_size, config)

    def forward(self, x: Tensor, plan: AttentionPlan) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, plan), x)
        return self.output(self.intermediate(x), x)


class TransformerEncoder(nn.Module):
    """The embedded stream [T, h] -> its L + 1 states one after another, the embedding first."""

    def __init__(self, config: TapeTransformerConfig):
        super().__init__()
        self.recompute = False  # activation checkpointing of every layer; --recompute sets it
        self.layer = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, plan: AttentionPlan) -> Iterator[Tensor]:
        yield x
        for layer in self.layer:
            again = self.recompute and self.training
            x = checkpoint(layer, x, plan, use_reentrant=False) if again else layer(x, plan)
            yield x


class TapeTransformerAbstractModel(kinds.BuiltInModel):
    config_class = TapeTransformerConfig
    sizes_first = True
    base_model_prefix = "bert"
    of_others = ("bert",)  # ProtBert

    @classmethod
    def _read(cls, directory: Path, values: dict, overrides: dict) -> WeightFile:
        """Refuse a pre-LN file before anything is made; take TensorFlow's spelling of LayerNorm, as songlab does."""
        file = _from_protbert(super()._read(directory, values, overrides), directory, values)
        pre_ln = next((name for name in file.tensors if any(part in name for part in PRE_LN_NAMES)), None)
        post_ln = next((name for name in file.tensors if "embeddings.LayerNorm." in name), None)
        if pre_ln and post_ln:
            beside = f"{post_ln} of a post-LN model beside {pre_ln} of a pre-LN one"
            raise InputError(f"{file.path}: {beside}; a file holds one")
        if pre_ln:
            raise InputError(f"{file.path}: {pre_ln} is of a pre-LN model; its model type is transformer")
        tensors = {
            name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): value
            for name, value in file.tensors.items()
        }
        types = next((v for name, v in tensors.items() if name.endswith("token_type_embeddings.weight")), None)
        rows = {"type_vocab_size": len(types)} if types is not None and types.dim() == 2 else {}
        return file._replace(tensors=tensors, config=file.config | rows)  # a ProteinBertConfig says 1 whatever it has


def _from_protbert(file: WeightFile, directory: Path, values: Mapping) -> WeightFile:
    """A directory of ProtBert under songlab's names and TAPE's tokens; another file as it is.

    values: what replaces keys of config.json.
    """
    if "base_model" in file.config or not {"model_type", "architectures"} & file.config.keys():
        return file
    if model_type_in(file.config) != "bert":
        return file
    known = {key: file.config[key] for key in TapeTransformerConfig.defaults if key in file.config}
    config = TapeTransformerConfig.defaults | known | {"vocab_size": len(TAPE_TOKENS)} | dict(values)
    replaced, tensors = find_family("bert", {}).replaced, {}
    letters = [SPECIAL_TOKENS.get(token, "X" if token in replaced else token) for token in TAPE_TOKENS]
    tokens = _protbert_tokens(directory / "vocab.txt", letters)
    for name, value in file.tensors.items():
        name = name.replace("cls.predictions.", "mlm.")
        if name.endswith("word_embeddings.weight") or name in ("mlm.bias", "mlm.decoder.weight"):
            if value.dim() == 0 or len(value) < len(tokens):
                shape = list(value.shape)
                raise InputError(f"{file.path}: {name} has shape {shape}; vocab.txt has {len(tokens)} tokens")
            value = remap_rows(value, tokens, letters, len(letters))
        if not name.startswith("cls.") and not name.endswith(("decoder.bias", "position_ids")):
            tensors[name] = value
    notes = ("ProtBert: rows of U, Z, O, B are those of X, as its authors replace these letters",)
    if not any(".pooler." in name for name in tensors):  # of a BertForMaskedLM; songlab's pooler, untrained
        size = config["hidden_size"]
        weight = torch.empty(size, size).normal_(std=config["initializer_range"])
        tensors |= {"bert.pooler.dense.weight": weight, "bert.pooler.dense.bias": torch.zeros(size)}
        config |= {"pooling": values.get("pooling", "mean")}
        notes += ('no pooler in the file: pooled_output is the mean over residues (pooling "mean")',)
    return WeightFile(config, file.path, tensors, (*file.notes, *notes))


def _protbert_tokens(path: Path, needed: Sequence[str]) -> list[str]:
    """The tokens of a vocab.txt, `needed` among them."""
    tokens = read_tokens(path) if path.is_file() else []
    if missing := set(needed) - set(tokens):
        fault = f"no token {min(missing)}" if tokens else "no such file"
        raise InputError(f"{path}: {fault}; ProtBert's 30 tokens are needed")
    return tokens


class TapeTransformerModel(TapeTransformerAbstractModel):
    """(input_ids [B, N], input_mask [B, N]) -> (sequence_output [B, N, h], pooled_output [B, h])."""

    def __init__(self, config: TapeTransformerConfig):
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = TransformerEncoder(config)
        self.pooler = Dense(config.hidden_size, config.hidden_size, torch.tanh)
        self.init_weights()

    def forward(self, input_ids: Tensor, input_mask: Tensor | None = None) -> tuple:
        """As ProteinBertModel's, but pooled_output is songlab's: tanh of a dense layer on the first token's state."""
        mask = outputs.real_tokens(input_ids, input_mask)
        outputs.check_positions(mask, self.config.max_position_embeddings)
        tokens, positions, bounds, where = outputs.flatten_tokens(input_ids, mask)
        state, hidden = self.embeddings(tokens, positions), []
        padding_only = [state] * (len(self.encoder.layer) + 1)
        stream = self.encoder(state, self._plan(bounds, state.dtype, mask.shape[1])) if len(where) else padding_only
        for state in stream:  # one at a time is held, unless all are asked for
            if self.config.output_hidden_states:
                hidden.append(outputs.scatter(state, where, mask))
        last = hidden[-1] if hidden else outputs.scatter(state, where, mask)
        if self.config.pooling == "mean":
            pooled = outputs.mean_of_residues(last, mask)
        else:
            pooled = self.pooler(outputs.first_state(last, mask))
        return (last, pooled, *([tuple(hidden)] if hidden else []))

    def _plan(self, bounds: Tensor, dtype: torch.dtype, longest: int) -> AttentionPlan:
        """Where each protein begins in the stream, for the attention of this device and dtype."""
        if torch.is_autocast_enabled(bounds.device.type):
            dtype = torch.get_autocast_dtype(bounds.device.type)
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        head_size = self.config.hidden_size // self.config.num_attention_heads
        return make_plan(bounds, choose_backend(bounds.device, dtype, dropout, head_size), longest)


class TapeTransformerForMaskedLM(kinds.MaskedLanguageModel, TapeTransformerAbstractModel):
    trunk_class = TapeTransformerModel


class TapeTransformerForValuePrediction(kinds.Value, TapeTransformerAbstractModel):
    trunk_class = TapeTransformerModel


class TapeTransformerForSequenceClassification(kinds.Classification, TapeTransformerAbstractModel):
    trunk_class = TapeTransformerModel


class TapeTransformerForSequenceToSequenceClassification(kinds.TokenClassification, TapeTransformerAbstractModel):
    trunk_class = TapeTransformerModel


class TapeTransformerForContactPrediction(kinds.Contacts, TapeTransformerAbstractModel):
    trunk_class = TapeTransformerModel
