"""config.json of a TAPE model directory: its keys, what they may hold, and the ModelConfig that they mean.

    config = model_config_of({"hidden_size": 768, "num_hidden_layers": 12, ...})

What must hold: a value that passes can be built from; anything else is an InputError with the key and its value.
"""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from proteinlm.errors import InputError
from proteinlm.network.config import ACTIVATIONS, MOST_LAYERS, NORMALIZATIONS, POSITION_EMBEDDING_TYPES, ModelConfig

LARGEST_SIZE = 2**28  # beyond any model, and a matrix of this by this still has a size that torch can compute

# What a value must satisfy, and the complaint where it does not.
Rule = tuple[Callable[[object], bool], str]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def same_value(value: object, other: object) -> bool:
    """Whether they are equal and of one kind: true is not 1."""
    return type(value) is type(other) and value == other


def one_of(choices: Collection) -> Rule:
    return lambda value: value in tuple(choices), f"{{!r}} is not one of {', '.join(map(str, choices))}"


SIZE: Rule = (
    lambda v: type(v) is int and 0 < v < LARGEST_SIZE,
    "is {!r}; a positive whole number is needed (below 2**28)",
)
LAYERS: Rule = (
    lambda v: type(v) is int and 0 < v <= MOST_LAYERS,
    f"is {{!r}}; a positive whole number is needed ({MOST_LAYERS:,} at most)",
)
SIZE_OR_NONE: Rule = (lambda v: v is None or SIZE[0](v), SIZE[1])
POSITIVE: Rule = (lambda v: _number(v) and 0 < v < LARGEST_SIZE, "is {!r}; a positive number is needed")
NOT_NEGATIVE: Rule = (lambda v: _number(v) and 0 <= v < LARGEST_SIZE, "is {!r}; a number of 0 or more is needed")
SMALL: Rule = (lambda v: _number(v) and 0 < v < 0.1, "is {!r}; a small positive number is needed, such as 1e-12")
COUNT: Rule = (lambda v: type(v) is int and 0 <= v < LARGEST_SIZE, "is {!r}; a whole number of 0 or more is needed")
ID: Rule = (lambda v: v is None or (type(v) is int and 0 <= v < LARGEST_SIZE), "is {!r}; a token's number is needed")
PROBABILITY: Rule = (lambda v: _number(v) and 0 <= v < 1, "{!r} must be at least 0 and below 1")
FLAG: Rule = (lambda v: type(v) is bool, "{!r} is not one of True, False")
ACTIVATION = one_of(ACTIVATIONS)


class Key(NamedTuple):
    """Of config.json: the field of ModelConfig that it is, the default of TAPE's ProteinBertConfig, its rule."""

    field: str
    default: object
    rule: Rule


# As TAPE and Hugging Face call them, then what TAPE's files lack under ModelConfig's own names.
MODEL_KEYS = {
    "vocab_size": Key("vocab_size", 30, SIZE),
    "hidden_size": Key("hidden_size", 768, SIZE),
    "num_hidden_layers": Key("num_layers", 12, LAYERS),
    "num_attention_heads": Key("num_attention_heads", 12, SIZE),
    "intermediate_size": Key("ffn_hidden_size", 3072, SIZE),
    "hidden_act": Key("hidden_act", "gelu", ACTIVATION),  # in the MLP: "gelu" = erf, "gelu_new" = tanh
    "hidden_dropout_prob": Key("hidden_dropout", 0.1, PROBABILITY),
    "attention_probs_dropout_prob": Key("attention_dropout", 0.1, PROBABILITY),
    "max_position_embeddings": Key("max_position_embeddings", 8096, SIZE),
    "initializer_range": Key("init_method_std", 0.02, NOT_NEGATIVE),
    "layer_norm_eps": Key("layernorm_epsilon", 1e-12, SMALL),
    "lm_head_act": Key("lm_head_act", "gelu", ACTIVATION),
    # false: as the original project's finetuned runs, which threw it away
    "final_layernorm": Key("final_layernorm", True, FLAG),
    # false: no dropout after attention.dense and dense_4h_h, as in the original project
    "output_dropout": Key("output_dropout", True, FLAG),
    "position_embedding_type": Key("position_embedding_type", "learned_absolute", one_of(POSITION_EMBEDDING_TYPES)),
    "rotary_base": Key("rotary_base", 10000.0, POSITIVE),
    "position_offset": Key("position_offset", 0, COUNT),
    "token_dropout": Key("token_dropout", False, FLAG),
    "mask_token_id": Key("mask_token_id", None, ID),
    "embedding_layernorm": Key("embedding_layernorm", False, FLAG),
    "normalization": Key("normalization", "LayerNorm", one_of(NORMALIZATIONS)),
    "add_bias_linear": Key("add_bias_linear", True, FLAG),
    "swiglu": Key("swiglu", False, FLAG),
    "qk_layernorm": Key("qk_layernorm", False, FLAG),
    "residual_scale": Key("residual_scale", 1.0, POSITIVE),
    "untie_embeddings_and_output_weights": Key("untie_embeddings_and_output_weights", False, FLAG),
    "lm_head_transform": Key("lm_head_transform", True, FLAG),
}
# Written only where it is not the default, so that files of the default recipe are what they always were.
OPTIONAL_KEYS = list(MODEL_KEYS)[list(MODEL_KEYS).index("position_embedding_type") :]
MODEL_DEFAULTS = {name: key.default for name, key in MODEL_KEYS.items()}
CONFIG_KEYS = {key.field: name for name, key in MODEL_KEYS.items()}
RULES = {name: key.rule for name, key in MODEL_KEYS.items()}
SHAPE_KEYS = [name for name, key in MODEL_KEYS.items() if key.rule in (SIZE, LAYERS)]
# What TAPE's own config.json holds beyond these: its default, its rule.
TEXT: Rule = (lambda v: v is None or isinstance(v, str), "is {!r}; a text or null is needed")
LABELS: Rule = (
    lambda v: type(v) is int and -1 <= v < LARGEST_SIZE,
    "is {!r}; a positive number is needed, or -1",
)
EXTRAS = {
    "base_model": ("transformer", TEXT),
    "finetuning_task": (None, TEXT),
    "num_labels": (2, LABELS),
    "output_attentions": (False, FLAG),
    "output_hidden_states": (False, FLAG),
    "pruned_heads": ({}, (lambda v: not v, "{} is not supported; only {{}} is")),
    "torchscript": (False, FLAG),
    "type_vocab_size": (1, SIZE),
}
TAPE_EXTRAS = {name: default for name, (default, _) in EXTRAS.items()}
EXTRA_RULES = {name: rule for name, (_, rule) in EXTRAS.items()}


def check_values(config: Mapping, keys: Collection[str], where: str, rules: Mapping[str, Rule] = RULES) -> None:
    """InputError, beginning with `where`, unless the values of `keys` satisfy their rules."""
    for key in keys:
        holds, complaint = rules[key]
        if not holds(config[key]):
            raise InputError(f"{where}: {key} {complaint.format(config[key])}")


def check_shape_keys(config: Mapping, where: str) -> None:
    """The numbers that give every shape: positive integers, all there, and heads that divide the hidden size."""
    missing = [key for key in SHAPE_KEYS if key not in config]
    if missing:
        raise InputError(f"{where}: {missing[0]} is missing; a positive whole number is needed")
    check_values(config, SHAPE_KEYS, where)
    if config["hidden_size"] % config["num_attention_heads"]:
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        raise InputError(f"{where}: num_attention_heads {heads} must divide hidden_size {hidden}")
    if config.get("pruned_heads"):
        raise InputError(f"{where}: pruned_heads {config['pruned_heads']} is not supported; only {{}} is")


def check_extras(config: Mapping, where: str) -> None:
    """InputError unless what is there of TAPE's further keys is what they may hold."""
    check_values(config, [key for key in EXTRA_RULES if key in config], where, EXTRA_RULES)


def model_config_of(config: Mapping, where: str = "config.json") -> ModelConfig:
    """The encoder of a config.json. The sizes must be there, other keys have TAPE's defaults; the vocabulary is not
    padded."""
    check_shape_keys(config, where)
    check_extras(config, where)
    values = MODEL_DEFAULTS | dict(config)
    check_values(values, MODEL_KEYS, where)
    fields = {field: values[key] for field, key in CONFIG_KEYS.items()}
    try:
        return ModelConfig(**fields, make_vocab_size_divisible_by=1)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def config_values(config: ModelConfig) -> dict[str, object]:
    """The keys of config.json that mean `config`; those of newer options only where they are not the default."""
    values = {key: getattr(config, field) for field, key in CONFIG_KEYS.items()}
    return {k: v for k, v in values.items() if k not in OPTIONAL_KEYS or v != MODEL_DEFAULTS[k]}
