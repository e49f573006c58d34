"""The flags that several commands share, how the values of flags are read, and words made of flags again.

What must hold: a flag means the same in every command; a value that cannot be used is told by its flag.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence

import torch

from proteinlm.errors import InputError
from tape.runs.processes import is_main_process

SWITCHES = ("debug",)  # of TAPE's flags without meaning here, those that take no value


def count(text: str) -> int:
    """An int of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} should be at least 0")
    return value


def positive(text: str) -> int:
    """An int of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} should be at least 1")
    return value


def non_negative(text: str) -> float:
    """A float of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} should be a number of at least 0")
    return value


def fraction(text: str) -> float:
    """A float from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} should lie between 0 and 1")
    return value


def add_plugin_flag(parser: argparse._ActionsContainer) -> None:
    """--plugin in a command's help; its value is a list (tape.registry.load_plugins has already read it)."""
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE", help="a .py that registers tasks, models or metrics"
    )


def add_tokenizer_flag(parser: argparse._ActionsContainer) -> None:
    """TAPE's --tokenizer; `check_tokenizer` refuses UniRep's by name."""
    parser.add_argument("--tokenizer", default="iupac", choices=("iupac", "unirep"), help="iupac; unirep is left out")


def check_tokenizer(name: str) -> None:
    if name == "unirep":
        raise InputError("--tokenizer unirep belongs to the model type unirep, which is left out; should be iupac")


def add_log_level_flag(parser: argparse._ActionsContainer) -> None:
    """--log_level, which `start_logging` reads."""
    parser.add_argument(
        "--log_level", type=str.upper, default="INFO", help="of Python's logging: DEBUG INFO WARN ERROR"
    )


def check_log_level(level: str) -> None:
    if level not in ("DEBUG", "INFO", "WARN", "WARNING", "ERROR", "10", "20", "30", "40"):
        raise InputError(f"--log_level {level}: should be DEBUG, INFO, WARN or ERROR")


def start_logging(level: str) -> None:
    """Python's logging at a --log_level; InputError for one that is none."""
    check_log_level(level)
    logging.basicConfig(level=int(level) if level.isdigit() else level, format="%(levelname)s: %(message)s")


def add_length_flags(parser: argparse._ActionsContainer, too_long: str | None) -> None:
    """--max_length and --too_long, shared by training and evaluation."""
    parser.add_argument(
        "--max_length", type=positive, help="residues of a protein the model may see (default: all it can)"
    )
    parser.add_argument(
        "--too_long",
        choices=("crop", "error"),
        default=too_long,
        help="a longer protein: keep its first max_length residues and count it, or stop (training's default: error)",
    )


def add_device_flags(parser: argparse._ActionsContainer) -> None:
    """--device, --bf16, --fp16 and TAPE's --no_cuda."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--no_cuda", action="store_const", dest="device", const="cpu", help="the same as --device cpu")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast (CPU too)")
    parser.add_argument("--fp16", action="store_true", help="float16 autocast with loss scaling in training")


def choose_precision(fp16: bool, bf16: bool, device: torch.device) -> torch.dtype:
    """The autocast dtype; float32 means none."""
    if fp16 and bf16:
        raise InputError("--fp16 and --bf16 exclude each other; give one")
    if fp16 and device.type not in ("cuda", "cpu"):
        raise InputError(f"--fp16 needs a CUDA device or a CPU, this run is on {device.type}")
    return torch.float16 if fp16 else torch.bfloat16 if bf16 else torch.float32


def add_worker_flag(parser: argparse._ActionsContainer) -> None:
    """--num_workers."""
    parser.add_argument("--num_workers", type=count, default=0, help="processes that prepare batches (0: none)")


def add_ignored_flags(parser: argparse._ActionsContainer, names: Sequence[str]) -> None:
    """TAPE's flags without meaning in a command, left out of its help. Under them --local_rank, torchrun's business."""
    for name in names:
        value = {"action": "store_true"} if name in SWITCHES else {}
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS, **value)
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)  # torch's launcher has used both


def note_ignored_flags(args: argparse.Namespace, names: Sequence[str]) -> None:
    """A notice, from one process, of each of these flags that was given."""
    for name in names:
        if getattr(args, name) not in (None, False) and is_main_process():
            print(f"notice: --{name} means nothing here and is ignored", file=sys.stderr)


def flag_words(flags: Mapping[str, object]) -> list[str]:
    """['--batch_size', '16', '--bf16']: True is the flag alone, False, None and [] no flag, a list several words."""
    words = []
    for key, value in flags.items():
        if value is True:
            words.append(f"--{key}")
        elif value is not None and value is not False and value != []:
            words += [f"--{key}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return words
