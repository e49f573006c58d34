"""The command line of `python -m pretrain`: Megatron-LM's flags, read into plain text by name.

Three kinds: the options of `pretrain.config.options`; old spellings that mean one of them (`ALIASES`, `MATHS`); flags
that Megatron's launch lines carry but that mean nothing here (`OBSOLETE`), accepted with a line of notice that says
why. Flags that would train another model (`REFUSED`) are an error. Underscores in a flag's name are read as dashes.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import Field, dataclass, fields

from pretrain.config.options import OPTIONS, SECTIONS
from proteinlm.errors import ArgumentParser, InputError

# old or newer name -> option
ALIASES = {
    "model-parallel-size": "tensor_model_parallel_size",
    "batch-size": "micro_batch_size",
    "warmup": "lr_warmup_fraction",
    "encoder-num-layers": "num_layers",
    "encoder-seq-length": "seq_length",
}
# flags that choose an activation or another option: flag -> {option: value}; among several the later entry here wins
MATHS = {
    "bias-gelu-fusion": {"hidden_act": "gelu_new"},
    "no-bias-gelu-fusion": {"hidden_act": "gelu"},
    "onnx-safe": {"hidden_act": "gelu"},
    "openai-gelu": {"hidden_act": "gelu_new", "lm_head_act": "gelu_new"},
    "disable-bias-linear": {"add_bias_linear": False},
    "checkpoint-activations": {"recompute_granularity": "full"},
    "recompute-activations": {"recompute_granularity": "full"},
}
# Flags of Megatron's launch lines that mean nothing here, by the reason why; those that may take a value end in "=".
NO_EFFECT = {
    "one implementation, PyTorch's, serves all": "DDP-impl=",
    "process groups are made by PyTorch": "lazy-mpu-init=",
    "initial weights depend only on the seed and the parameter's name": "use-cpu-initialization",
    "PyTorch's own kernels are used; the maths is the same": (
        "masked-softmax-fusion no-masked-softmax-fusion scaled-masked-softmax-fusion "
        "no-scaled-masked-softmax-fusion scaled-upper-triang-masked-softmax-fusion= no-bias-dropout-fusion "
        "bias-dropout-fusion no-persist-layer-norm no-gradient-accumulation-fusion "
        "no-async-tensor-model-parallel-allreduce"
    ),
    "attention is always PyTorch's fused kernel where one exists": "use-flash-attn",
    "the scaling by layer cancels out": "apply-query-key-layer-scaling no-query-key-layer-scaling",
    "softmax is always accumulated in fp32": "attention-softmax-in-fp32",
    "gradients are always fp32": "fp32-allreduce accumulate-allreduce-grads-in-fp32",
    "the loss is always computed in fp32": "fp16-lm-cross-entropy",
    "PyTorch keeps the gradients' buffers": "no-contiguous-buffers-in-local-ddp use-contiguous-buffers-in-local-ddp",
    "PyTorch's allocator reuses memory by itself": "empty-unused-memory-level=",
    "sequence-parallel cuts stored activations instead": "distribute-checkpointed-activations",
    "recomputation is layer by layer": (
        "checkpoint-num-layers= activations-checkpoint-num-layers= recompute-method= recompute-num-layers="
    ),
    "no vocabulary here has merges": "merge-file=",
    "rows are packed with whole proteins, never shortened at random": "short-seq-prob=",
    "the data order is a function of the seed and the sample's number": "dataloader-type=",
    "shards are mapped and read on demand": "mmap-warmup",
    "positions and attention always restart at every protein": "reset-position-ids reset-attention-mask",
    "the loss is over masked residues only": "eod-mask-loss",
    "there is no next-sentence task": "bert-no-binary-head",
    "SIGTERM saves and leaves on every cluster": "adlr-autoresume adlr-autoresume-interval=",
    "metrics.jsonl and TensorBoard hold everything that is measured": (
        "tensorboard-log-interval= tensorboard-queue-size= log-timers-to-tensorboard "
        "log-batch-size-to-tensorboard log-validation-ppl-to-tensorboard log-params-norm "
        "log-num-zeros-in-grad"
    ),
}
OBSOLETE = {flag.rstrip("="): (flag[-1] == "=", why) for why, flags in NO_EFFECT.items() for flag in flags.split()}
REFUSED = {"apply-residual-connection-post-layernorm": "the model is Megatron's pre-LayerNorm BERT, as ProteinLM is"}
# flag -> (values that mean what is done here anyway, what is)
ONE_WAY = {
    "data-impl": (("mmap", "infer"), "shards are memory-mapped: --data-impl mmap"),
}


@dataclass(frozen=True)
class CommandLine:
    """The YAML file, options as text (True/False for switches), and notices for the user."""

    config: str | None
    options: dict[str, object]
    notices: tuple[str, ...]


def read_flags(argv: Sequence[str] | None) -> CommandLine:
    """Parse `argv` (None: the process's own)."""
    words = [_dashed(word) for word in (sys.argv[1:] if argv is None else argv)]
    flags = {name: value for name, value in vars(_parser().parse_args(words)).items() if value is not None}
    for flag, why in REFUSED.items():
        if flag in flags:
            raise InputError(f"--{flag} is not supported: {why}")
    for flag, (values, what) in ONE_WAY.items():
        if flags.get(flag, values[0]) not in values:
            raise InputError(f"--{flag} {flags[flag]} is not supported: {what}")
    notices = [f"--{flag} has no effect: {why}" for flag, (_, why) in OBSOLETE.items() if flag in flags]
    options = {name: value for name, value in flags.items() if name in OPTIONS}
    renamed = {name: (flags[flag], flag) for flag, name in ALIASES.items() if flag in flags}
    for name, (value, flag) in [*renamed.items(), *_chosen_by_maths(flags).items()]:
        if name in options and str(options[name]) != str(value):
            own = name.replace("_", "-")
            raise InputError(f"--{flag} means --{own} {value}, but --{own} {options[name]} is given too")
        options[name] = value
    return CommandLine(flags.get("config"), options, tuple(notices))


def _chosen_by_maths(flags: dict[str, object]) -> dict[str, tuple[object, str]]:
    """Option -> (value, the flag that chose it)."""
    chosen = {}
    for flag, effects in MATHS.items():
        if str(flags.get(flag, "false")).lower() not in ("false", "0", "no"):
            chosen |= {name: (value, flag) for name, value in effects.items()}
    if "activations-checkpoint-method" in flags:
        chosen.setdefault("recompute_granularity", ("full", "activations-checkpoint-method"))
    return chosen


def _dashed(word: str) -> str:
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m pretrain",
        usage="%(prog)s [--config FILE] --data-path PREFIX --save DIR [--OPTION VALUE ...]",
        description="Pretrain a protein BERT on packed shards. Flags override --config; both use Megatron-LM's names.",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of options, by name or under their section's name")
    for name, section in SECTIONS.items():
        group = parser.add_argument_group(name, section.__doc__)
        for option in fields(section):
            _add_option(group, option)
    switch, one_value, may_take_one = {"action": "store_const", "const": True}, {}, {"nargs": "?", "const": True}
    hidden = {
        **dict.fromkeys((*ALIASES, *ONE_WAY, "activations-checkpoint-method"), one_value),
        **dict.fromkeys((*MATHS, *REFUSED), switch),
        "onnx-safe": may_take_one,
        **{flag: may_take_one if value else switch for flag, (value, _) in OBSOLETE.items()},
    }
    for flag, arguments in hidden.items():
        parser.add_argument(f"--{flag}", dest=flag, help=argparse.SUPPRESS, **arguments)
    return parser


METAVARS = {float: "X", float | None: "X", int: "N", int | None: "N"}


def _add_option(group: argparse._ArgumentGroup, option: Field) -> None:
    flag, doc = option.name.replace("_", "-"), option.metadata["doc"].replace("%", "%%")
    if option.type in (bool, bool | None):
        group.add_argument(f"--{flag}", dest=option.name, action="store_const", const=True, help=doc)
        opposite = flag.removeprefix("no-") if flag.startswith("no-") else f"no-{flag}"
        group.add_argument(f"--{opposite}", dest=option.name, action="store_const", const=False, help=argparse.SUPPRESS)
        return
    many = {"nargs": "*"} if "tuple" in str(option.type) else {}
    choices = f" [{' | '.join(option.metadata['choices'])}]" if option.metadata["choices"] else ""
    default = "" if option.default in (None, ()) else f" (default {option.default})"
    metavar = METAVARS.get(option.type, "VALUE")
    group.add_argument(f"--{flag}", dest=option.name, metavar=metavar, help=doc + choices + default, **many)
