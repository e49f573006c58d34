"""config.json as attributes: ProteinBertConfig, and what the configurations of songlab's models share.

Unknown keys are kept and written back; the values of known ones are checked by one table of rules.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from proteinlm.model_dir import config as ground
from proteinlm.model_dir.config import MODEL_DEFAULTS, OPTIONAL_KEYS, POSITIVE, PROBABILITY, SIZE, TAPE_EXTRAS, one_of
from proteinlm.model_dir.find import CONFIG_NAME, find_model, read_config
from proteinlm.model_dir.load import CONFIGS
from proteinlm.model_dir.vocabulary import on_vocabulary
from proteinlm.network.config import ModelConfig
from proteinlm.tokenizer import build_tokenizer
from tape.models.base import ProteinConfig, naming
from tape.runs.names import HEADS

# Key of config.json -> default: TAPE's own, then what its files lack.
CONFIG_DEFAULTS = {
    **MODEL_DEFAULTS,
    **TAPE_EXTRAS,
    "head": "proteinlm",  # or "tape" (tape.models.heads)
    "contact_dropout_prob": 0.5,  # both originals
    "pooling": "first",  # pooled_output: the first token's state, as both originals; "mean": over the residues
}
RULES = ground.RULES | {
    **dict.fromkeys(("input_size", "type_vocab_size"), SIZE),
    "initializer_range": POSITIVE,
    "contact_dropout_prob": PROBABILITY,
    "head": one_of(HEADS),
    "use_evolutionary": ground.FLAG,
    "pooling": one_of(("first", "mean")),
    "num_labels": (SIZE[0], "is {!r}; a classification needs a positive number"),  # songlab's bert-base has -1
    "output_attentions": (lambda value: not value, "true is not supported (attention keeps no weights)"),
}


def check(config: ProteinConfig, *keys: str) -> None:
    """InputError unless the values of `keys` are such that a model can be built from them."""
    ground.check_values(vars(config), keys, type(config).__name__, RULES)


def check_keys(values: Mapping, where: str) -> None:
    """InputError unless every known key of a ProteinBertConfig, as far as it is there, has a value that it may have."""
    rules = {key: rule for key, rule in RULES.items() if key in CONFIG_DEFAULTS} | ground.EXTRA_RULES
    ground.check_values(values, [key for key in values if key in rules], where, rules)


def tape_keys(config: ModelConfig) -> dict[str, object]:
    """The keys of config.json that mean `config` on TAPE's vocabulary, whichever its own is."""
    return ground.config_values(on_vocabulary(config, build_tokenizer("tape")))


def read_keys(path: str | Path) -> dict:
    """config.json of a model directory, or a JSON file, under TAPE's keys: Hugging Face's of an ESM are translated."""
    stored = read_config(path)
    config_of = CONFIGS.get(str(stored.get("model_type")))
    return stored if config_of is None else tape_keys(config_of(stored, str(path)))


class ProteinBertConfig(ProteinConfig):
    """The keys of config.json as attributes. Unknown keys of a file are kept and written back."""

    def __init__(self, vocab_size_or_config_json_file: int | str | Path = 30, **values):
        """TAPE's constructor: the vocabulary size, or the path of a JSON file; then any key of CONFIG_DEFAULTS."""
        first = vocab_size_or_config_json_file
        from_file = isinstance(first, str | Path)
        self.__dict__.update(CONFIG_DEFAULTS | (read_keys(first) if from_file else {"vocab_size": first}) | values)
        with naming(first if from_file else None, type(self)):
            self.model_config()  # for its checks
            check(self, "head", "pooling", "contact_dropout_prob", "output_attentions")

    @classmethod
    def from_pretrained(cls, directory: str | Path, **overrides) -> "ProteinBertConfig":
        path = find_model(directory)
        with naming(path / CONFIG_NAME if path.is_dir() else path, cls):
            return cls.from_dict(read_keys(path) | overrides)

    @classmethod
    def from_json_file(cls, path: str | Path) -> "ProteinBertConfig":
        with naming(path, cls):
            return cls.from_dict(read_keys(path))

    @classmethod
    def from_dict(cls, values: Mapping) -> "ProteinBertConfig":
        return cls(**values)

    def to_dict(self) -> dict:
        """Options of other encoders only where they are not the default, so that TAPE's files stay as they were."""
        return {key: v for key, v in vars(self).items() if key not in OPTIONAL_KEYS or v != MODEL_DEFAULTS[key]}

    def model_config(self) -> ModelConfig:
        """The encoder's configuration; the vocabulary is not padded."""
        return ground.model_config_of(self.__dict__, type(self).__name__)


class BaselineConfig(ProteinConfig):
    """ProteinConfig with this package's keys: `head`, `contact_dropout_prob`, `base_model` (the model type)."""

    model_type: ClassVar[str] = ""
    defaults: ClassVar[dict] = {}  # key -> value, in the order of songlab's arguments

    def __init__(self, *arguments, **values):
        positional = dict(zip(list(self.defaults)[: len(arguments)], arguments, strict=True))
        super().__init__(**{"head": "proteinlm", "contact_dropout_prob": 0.5} | self.defaults | positional | values)
        self.base_model = self.model_type  # songlab's files say "transformer", or nothing
        check(self, "head", "contact_dropout_prob", *{"initializer_range", "use_evolutionary"} & vars(self).keys())
        ground.check_extras(vars(self), type(self).__name__)

    @classmethod
    def from_dict(cls, values: Mapping) -> "BaselineConfig":
        return cls(**values)  # so that a file's values pass the checks
