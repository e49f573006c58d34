"""The flags that several commands share, how the values of flags are read, and words made of flags again.

What must hold: a flag means the same in every command; an error names the flag whose value cannot be used.
"""

import argparse
import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence

from proteinlm.errors import InputError, process_number
from proteinlm.running import MOST_WORKERS


def within(kind: type, low: float, high: float = math.inf) -> Callable[[str], float]:
    """argparse's `type` of a finite number from `low` to `high`."""
    bounds = f"at least {low}" if high == math.inf else f"between {low} and {high}"

    def read(text: str) -> float:
        value = kind(text)
        if not (low <= value <= high and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{text} should be {bounds}")
        return value

    read.__name__ = kind.__name__  # argparse names it where the text is no number
    return read


count, positive, non_negative, fraction = within(int, 0), within(int, 1), within(float, 0), within(float, 0, 1)
seed = within(int, 0, 2**32 - 1)  # as scikit-learn takes it

LOG_LEVELS = ("DEBUG", "INFO", "WARN", "WARNING", "ERROR", "10", "20", "30", "40")
FLAGS: dict[str, dict] = {  # name -> add_argument's keywords
    "plugin": {"action": "append", "default": [], "metavar": "FILE", "help": "a .py that registers tasks, models ..."},
    "tokenizer": {"default": "iupac", "choices": ("iupac", "unirep"), "help": "iupac; unirep is left out"},
    "log_level": {"type": str.upper, "choices": LOG_LEVELS, "default": "INFO", "help": "of Python's logging"},
    "max_length": {"type": positive, "help": "residues of a protein the model may see (default: all it can)"},
    "too_long": {"choices": ("crop", "error"), "help": "a protein over max_length: its first residues, or stop"},
    "device": {"default": "auto", "help": "auto, cpu, cuda, cuda:1 ..."},
    "no_cuda": {"action": "store_const", "dest": "device", "const": "cpu", "help": "the same as --device cpu"},
    "bf16": {"action": "store_true", "help": "bfloat16 autocast (CPU too)"},
    "fp16": {"action": "store_true", "help": "float16 autocast with loss scaling in training"},
    "num_workers": {
        "type": within(int, 0, MOST_WORKERS),
        "default": 0,
        "help": "processes that prepare batches (0: none)",
    },
}
DEVICE_FLAGS = ("device", "no_cuda", "bf16", "fp16")


def add_flags(parser: argparse._ActionsContainer, *names: str) -> None:
    """Add the flags of these names, as FLAGS declares them."""
    for name in names:
        parser.add_argument(f"--{name}", **FLAGS[name])


def refuse_flags(parser: argparse.ArgumentParser, args: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """InputError for the first of these flags that was given another value than its default."""
    for name in names:
        if getattr(args, name) != parser.get_default(name):
            raise InputError(f"--{name}: {why}")


def start_logging(level: str) -> None:
    """Python's logging at a --log_level."""
    logging.basicConfig(level=int(level) if level.isdigit() else level, format="%(levelname)s: %(message)s")


def precision_name(fp16: bool, bf16: bool) -> str:
    """ "fp16", "bf16" or "fp32", as proteinlm.load takes it."""
    if fp16 and bf16:
        raise InputError("--fp16 and --bf16 exclude each other; give one")
    return "fp16" if fp16 else "bf16" if bf16 else "fp32"


def is_main_process() -> bool:
    """Is this rank 0, among the processes that torchrun started? Starts nothing."""
    return process_number() == 0


def add_ignored_flags(parser: argparse._ActionsContainer, names: Sequence[str]) -> None:
    """TAPE's flags without meaning in a command, and --local_rank (the environment has it); left out of its help."""
    for name in names:
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)  # torch's launcher has used both


def check_flags(args: argparse.Namespace, ignored: Sequence[str]) -> None:
    """A notice, from one process, of each ignored flag on the command line; InputError for --tokenizer unirep."""
    for name in ignored:
        if getattr(args, name) is not None and is_main_process():
            print(f"notice: --{name} means nothing here and is ignored", file=sys.stderr)
    if args.tokenizer == "unirep":
        raise InputError("--tokenizer unirep belongs to the model type unirep, which is left out; should be iupac")


def flag_words(flags: Mapping[str, object]) -> list[str]:
    """['--batch_size', '16', '--bf16']: True is the flag alone, False, None and [] no flag, a list several words."""
    words = []
    for key, value in flags.items():
        if value is True:
            words.append(f"--{key}")
        elif value is not None and value is not False and value != []:
            words += [f"--{key}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return words
