"""How every command talks to a user who made a mistake: one clear line on stderr and exit status 2, no traceback.

`InputError` is for what a user can put right (a file, a key, a flag); anything else that escapes is a defect of ours
and keeps its traceback. `ArgumentParser` prints one line instead of a usage block and suggests the nearest flag. Every
command takes `--debug`: the traceback of a mistake stands above its line, that of a plugin's own error with it.
"""

import argparse
import difflib
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence

EXIT_USAGE = 2


class InputError(ValueError):
    """Bad input from the user. One line: the file, the line or key, what was wrong and what would be right."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a complaint about an unknown word: the nearest known one, where one is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one-line errors, no abbreviated flags, and the nearest flag suggested for an unknown one.

    intermixed: flags may stand between the words of a command one of which may be absent (nargs="?").
    """

    def __init__(self, *args, intermixed: bool = False, **kwargs):
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self.intermixed = intermixed
        if self.add_help:
            self.add_argument("--debug", action="store_true", help="of a mistake, its traceback too")

    def parse_args(self, args: Sequence[str] | None = None, namespace=None):
        parse = self.parse_known_intermixed_args if self.intermixed else self.parse_known_args
        parsed, unknown = parse(args, namespace)
        if unknown:
            flag = next((word for word in unknown if word.startswith("-")), unknown[0]).split("=")[0]
            self.error(f"unknown argument {flag}{did_you_mean(flag, self._option_string_actions)}")
        return parsed

    def error(self, message: str):
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message} (--help lists the flags)\n")


def run(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Call `main(argv)` and turn a user's mistake into one line and status 2. Returns the exit status."""
    try:
        return main(argv) or 0
    except InputError as error:
        return tell(str(error), error if debugging(argv) else None)
    except OSError as error:
        if error.filename is None:
            raise
        return tell(f"{error.filename}: {error.strerror or error}", error if debugging(argv) else None)
    except RuntimeError as error:
        if not str(error).startswith("Symlink loop from "):  # as pathlib says it
            raise
        path = str(error).removeprefix("Symlink loop from ").strip("'")
        return tell(f"{path}: a symbolic link that leads back to itself", error if debugging(argv) else None)


def debugging(argv: Sequence[str] | None) -> bool:
    """Whether a command line (None: the process's own) asks for tracebacks."""
    return "--debug" in (sys.argv[1:] if argv is None else argv)


def tell(message: str, error: BaseException | None = None) -> int:
    """One line on stderr, whatever white space the message holds, below the traceback of `error`.

    Returns the exit status of a user's mistake.
    """
    if error is not None:
        traceback.print_exception(error)
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return EXIT_USAGE
