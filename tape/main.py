"""songlab's tape.main: the commands as functions, for scripts that register a task or a model and then run.

    if __name__ == "__main__":
        from tape.main import run_train
        run_train()                                 # python my_task.py transformer my_task --data_dir data ...

Without `args` the process's own arguments are read, as by tape-train, tape-train-distributed, tape-eval and tape-embed.
`args` may be those words, or (songlab's way) an argparse.Namespace. A user's mistake ends the process with one line and
status 2.

The commands themselves are imported where they are called: each is a program of its own.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from proteinlm import errors
from tape.runs.flags import flag_words
from tape.runs.results import read_result

Arguments = argparse.Namespace | Sequence[str] | None


def to_argv(args: Arguments, positional: Sequence[str]) -> list[str] | None:
    """The words of a Namespace: those in `positional` in that order, every other entry as --name value.

    None and False say that a flag was not given, True that it stands alone; a list gives several words.
    """
    if not isinstance(args, argparse.Namespace):
        return None if args is None else [str(word) for word in args]
    values = dict(vars(args))
    words = [str(values.pop(name)) for name in positional]
    return words + flag_words(values)


def _run(main: Callable, argv: list[str] | None) -> None:
    status = errors.run(main, argv)
    if status:
        sys.exit(status)


def run_train(args: Arguments = None, env: dict | None = None) -> None:
    """tape-train. `env` (songlab's, what its launcher passed on) is not needed: torchrun sets the environment."""
    from tape.train import main

    _run(main, to_argv(args, ("model_type", "task")))


def run_train_distributed(args: Arguments = None) -> None:
    """tape-train-distributed."""
    from tape.train_distributed import main

    _run(main, to_argv(args, ("model_type", "task")))


def run_eval(args: Arguments = None) -> dict[str, float]:
    """tape-eval; returns the metrics asked for on the (last) split, as its result file has them."""
    from tape.evaluate import build_parser, main

    argv = to_argv(args, ("model_type", "task", "from_pretrained"))
    _run(main, argv)
    from tape.data.splits import choose_splits
    from tape.registry import resolve_task

    flags = build_parser().parse_args(argv)
    splits, _ = choose_splits(resolve_task(flags.task, flags.model_type), flags.data_dir, flags.split)
    return read_result(Path(flags.run_dir) / f"{flags.task}-{splits[-1]}.json")["requested"]


def run_embed(args: Arguments = None) -> None:
    """tape-embed."""
    from tape.embed import main

    _run(main, to_argv(args, ("model_type", "data_file", "out_file", "from_pretrained")))


if __name__ == "__main__":
    run_train_distributed()
