"""ProteinBertConfig: config.json of a TAPE model directory as attributes; TAPE's keys and a few that its files lack."""

from collections.abc import Mapping
from pathlib import Path

from proteinlm.errors import InputError
from proteinlm.model import ACTIVATIONS, ModelConfig
from proteinlm.model_dir.files import TAPE_EXTRAS, check_shape_keys, read_config
from tape.models.base import ProteinConfig
from tape.models.heads import HEADS

POOLING = ("first", "mean")

# Key of config.json -> default: TAPE's own, then what its files lack.
CONFIG_DEFAULTS = {
    "vocab_size": 30,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",  # in the MLP: "gelu" = erf, "gelu_new" = tanh
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 8096,
    "type_vocab_size": 1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    **TAPE_EXTRAS,
    "lm_head_act": "gelu",
    "final_layernorm": True,  # false reproduces the original project's finetuned runs, which threw it away
    "output_dropout": True,  # false: no dropout after attention.dense and dense_4h_h, as in the original project
    "head": "proteinlm",  # or "tape" (tape.models.heads)
    "contact_dropout_prob": 0.5,  # both originals
    "pooling": "first",  # pooled_output: the first token's state, as both originals; "mean": over the residues
}


class ProteinBertConfig(ProteinConfig):
    """The keys of config.json as attributes. Unknown keys of a file are kept and written back."""

    def __init__(self, vocab_size_or_config_json_file: int | str | Path = 30, **values):
        """TAPE's constructor: the vocabulary size, or the path of a JSON file; then any key of CONFIG_DEFAULTS."""
        if isinstance(vocab_size_or_config_json_file, str | Path):
            values = read_config(vocab_size_or_config_json_file) | values
        else:
            values = {"vocab_size": vocab_size_or_config_json_file} | values
        self.__dict__.update(CONFIG_DEFAULTS | values)
        self._check()

    @classmethod
    def from_dict(cls, values: Mapping) -> "ProteinBertConfig":
        return cls(**values)

    def _check(self) -> None:
        check_shape_keys(self.__dict__, "ProteinBertConfig")
        for key in ("hidden_act", "lm_head_act"):
            _one_of(key, getattr(self, key), tuple(ACTIVATIONS))
        _one_of("head", self.head, HEADS)
        _one_of("pooling", self.pooling, POOLING)
        for key in ("hidden_dropout_prob", "attention_probs_dropout_prob", "contact_dropout_prob"):
            value = getattr(self, key)
            if not isinstance(value, int | float) or not 0 <= value < 1:
                raise InputError(f"ProteinBertConfig: {key} {getattr(self, key)} must be at least 0 and below 1")
        if self.output_attentions:
            raise InputError("ProteinBertConfig: output_attentions true is not supported (attention keeps no weights)")

    def model_config(self) -> ModelConfig:
        """The encoder's configuration; the vocabulary is not padded."""
        return ModelConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            ffn_hidden_size=self.intermediate_size,
            max_position_embeddings=self.max_position_embeddings,
            layernorm_epsilon=self.layer_norm_eps,
            hidden_dropout=self.hidden_dropout_prob,
            attention_dropout=self.attention_probs_dropout_prob,
            hidden_act=self.hidden_act,
            lm_head_act=self.lm_head_act,
            init_method_std=self.initializer_range,
            make_vocab_size_divisible_by=1,
            final_layernorm=self.final_layernorm,
            output_dropout=self.output_dropout,
        )


def _one_of(key: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"ProteinBertConfig: {key} {value!r} is not one of {', '.join(known)}")
