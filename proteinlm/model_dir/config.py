"""config.json of a TAPE model directory: its keys, what they may hold, and the ModelConfig that they mean.

    config = model_config_of({"hidden_size": 768, "num_hidden_layers": 12, ...})

What must hold: a value that passes can be built from; anything else is an InputError with the key and its value.
"""

from collections.abc import Callable, Collection, Mapping

from proteinlm.errors import InputError
from proteinlm.model import ACTIVATIONS, ModelConfig

# Field of ModelConfig -> key of config.json, as TAPE and Hugging Face call it.
CONFIG_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "ffn_hidden_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "lm_head_act": "lm_head_act",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "max_position_embeddings": "max_position_embeddings",
    "init_method_std": "initializer_range",
    "layernorm_epsilon": "layer_norm_eps",
    "final_layernorm": "final_layernorm",
    "output_dropout": "output_dropout",
}
# Key -> default of TAPE's ProteinBertConfig; then of what its files lack.
MODEL_DEFAULTS = {
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
    "lm_head_act": "gelu",
    "final_layernorm": True,  # false reproduces the original project's finetuned runs, which threw it away
    "output_dropout": True,  # false: no dropout after attention.dense and dense_4h_h, as in the original project
}
# What TAPE's own config.json holds beyond the shape.
TAPE_EXTRAS = {
    "base_model": "transformer",
    "finetuning_task": None,
    "num_labels": 2,
    "output_attentions": False,
    "output_hidden_states": False,
    "pruned_heads": {},
    "torchscript": False,
}
SHAPE_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
LARGEST_SIZE = 2**28  # beyond any model, and a matrix of this by this still has a size that torch can compute

# What a value must satisfy, and the complaint where it does not.
Rule = tuple[Callable[[object], bool], str]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def one_of(choices: Collection) -> Rule:
    return lambda value: value in tuple(choices), f"{{!r}} is not one of {', '.join(map(str, choices))}"


SIZE: Rule = (lambda v: type(v) is int and 0 < v < LARGEST_SIZE, "is {!r}; a positive whole number is needed")
POSITIVE: Rule = (lambda v: _number(v) and 0 < v < LARGEST_SIZE, "is {!r}; a positive number is needed")
NOT_NEGATIVE: Rule = (lambda v: _number(v) and 0 <= v < LARGEST_SIZE, "is {!r}; a number of 0 or more is needed")
PROBABILITY: Rule = (lambda v: _number(v) and 0 <= v < 1, "{!r} must be at least 0 and below 1")
FLAG: Rule = (lambda v: type(v) is bool, "{!r} is not one of True, False")
RULES: dict[str, Rule] = {
    **dict.fromkeys(SHAPE_KEYS, SIZE),
    **dict.fromkeys(("hidden_act", "lm_head_act"), one_of(ACTIVATIONS)),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), PROBABILITY),
    **dict.fromkeys(("initializer_range", "layer_norm_eps"), NOT_NEGATIVE),
    **dict.fromkeys(("final_layernorm", "output_dropout"), FLAG),
}


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


def model_config_of(config: Mapping, where: str = "config.json") -> ModelConfig:
    """The encoder of a config.json. The sizes must be there, other keys have TAPE's defaults; the vocabulary is not
    padded."""
    check_shape_keys(config, where)
    values = MODEL_DEFAULTS | dict(config)
    check_values(values, CONFIG_KEYS.values(), where)
    fields = {field: values[key] for field, key in CONFIG_KEYS.items()}
    return ModelConfig(**fields, make_vocab_size_divisible_by=1)
