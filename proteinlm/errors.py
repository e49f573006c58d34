"""How every command talks to a user who made a mistake: one clear line on stderr and exit status 2, no traceback.

`InputError` is for what a user can put right (a file, a key, a flag); anything else that escapes is a defect of ours
and keeps its traceback. `ArgumentParser` prints one line instead of a usage block and suggests the nearest flag. Every
command takes `--debug`: the traceback of a mistake stands above its line, that of a plugin's own error with it.
Ctrl-C is one line too, and exit status 130. Of the processes that torchrun has started the first one speaks: another
says what it has to say only when the first has had the time to say the same, which ends them all.
"""

import argparse
import difflib
import errno
import io
import os
import select
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence

EXIT_USAGE, EXIT_INTERRUPTED, EXIT_UNREAD = 2, 130, 141  # 128 + SIGINT, + SIGPIPE, as a shell has them
LONGEST = 720  # letters of a message: three long paths and what would be right
FIRST_SPEAKS_SECONDS = 10.0  # in which the first process, which may have started later, has told a mistake of all


def shortened(message: str) -> str:
    """Of a message that quotes something endless, the file at its beginning and the advice at its end."""
    return message if len(message) <= LONGEST else f"{message[: LONGEST - 165]} ... {message[-160:]}"


class InputError(ValueError):
    """Bad input from the user. One line: the file, the line or key, what was wrong and what would be right."""

    def __init__(self, message: object = ""):
        super().__init__(shortened(str(message)))


def lost_peer(error: Exception) -> str | None:
    """What a failed collective of torch.distributed says of the other process; None for any other error."""
    if "imed out" in str(error):
        return "another process of the run does not answer"
    ended = ("closed by peer", "reset by peer", "Connection refused", "Broken pipe", "Socket closed")
    return "another process of the run has ended" if any(sign in str(error) for sign in ended) else None


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
        _say(f"{self.prog}: error: {message} (--help lists the flags)")
        self.exit(EXIT_USAGE)


def run(
    main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None, resumes: bool = False
) -> int:
    """Call `main(argv)` and turn a user's mistake into one line and status 2, Ctrl-C into one and 130. Returns the
    exit status. resumes: the same command goes on with what an interrupted one has done."""
    try:
        return _run(main, argv)
    except KeyboardInterrupt as stopped:
        if process_number() == 0:
            again = f"the same command {'goes on' if resumes else 'starts again'}"
            print(f"interrupted; {str(stopped) or again}", file=sys.stderr, flush=True)
        if process_count() > 1:  # torchrun hands the signal on, for a second time, while the interpreter is taken down
            os._exit(EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED


def _run(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None) -> int:
    try:
        _check_surroundings(sys.argv[1:] if argv is None else argv)
        status = main(argv) or 0
        sys.stdout.flush()  # what is wrong with it is told here
        return status
    except InputError as error:
        return tell(str(error), error if debugging(argv) else None)
    except OSError as error:
        if error.errno == errno.EPIPE and _nobody_reads():
            return EXIT_UNREAD
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # where standard output goes
        if error.filename is None and not full:
            raise
        text = f"{error.filename or 'the output cannot be written'}: {error.strerror or error}"
        return tell(text, error if debugging(argv) else None)
    except Exception as error:
        if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop from "):  # as pathlib says it
            path = str(error).removeprefix("Symlink loop from ").strip("'")
            return tell(f"{path}: a symbolic link that leads back to itself", error if debugging(argv) else None)
        time.sleep(0)  # an interrupt that came while a library waited for a process, now gone, is raised here
        raise


def _nobody_reads() -> bool:
    """Whether standard output is a pipe that was closed (`| head`); what else is printed then goes nowhere."""
    watch = select.poll()
    try:
        watch.register(sys.stdout.fileno(), 0)
    except OSError:  # it is no file
        return False
    closed = any(what & select.POLLERR for _, what in watch.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed


def _check_surroundings(words: Sequence[str]) -> None:
    """InputError for a word that no log, record or page could hold, a directory that is gone, and what no launcher
    sets. What is printed of other names may be no text."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise InputError("the current directory is gone; should be one that is there (cd)") from None
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"):
        if not os.environ.get(name, "0").isdecimal():
            raise InputError(
                f"{name} is {os.environ[name]!r} in the environment; should be a number, as torchrun's, or unset"
            )
    for name in ("stdin", "stdout", "stderr"):  # a file that is opened must not get a closed one's number
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    for word in words:
        if not str(word).isascii() and any("\ud800" <= letter <= "\udfff" for letter in str(word)):
            raise InputError(f"{word!a}: is not UTF-8 text; should be a name that is (a link to the file will do)")


def debugging(argv: Sequence[str] | None) -> bool:
    """Whether a command line (None: the process's own) asks for tracebacks."""
    return "--debug" in (sys.argv[1:] if argv is None else argv)


def tell(message: str, error: BaseException | None = None) -> int:
    """One line on stderr, whatever white space the message holds, below the traceback of `error`.

    Returns the exit status of a user's mistake.
    """
    if error is not None:
        traceback.print_exception(error)
    _say(f"error: {message}")
    return EXIT_USAGE


_copies: dict[str, str] = {}  # of what a pipe gave, and how the user calls it (proteinlm.files.reread)


def name_copy(copy: str, name: str) -> None:
    """Let messages say `name` for the path of a copy, which nobody has given."""
    _copies[copy] = name


def one_line(message: str) -> str:
    """Its words, within a line."""
    for copy, name in _copies.items():
        message = message.replace(copy, name)
    return shortened(" ".join(message.split()))


def _say(line: str) -> None:
    line = one_line(line)
    if process_number() > 0:
        time.sleep(FIRST_SPEAKS_SECONDS + int(os.environ.get("LOCAL_RANK", "0")))
        line = f"process {process_number()}: {line}"
    print(line, file=sys.stderr, flush=True)


def process_count() -> int:
    """How many processes torchrun (or a script that sets its variables) has started."""
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdecimal() else 1


def process_number() -> int:
    """Which of them this is; 0 for one that is alone."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() and process_count() > 1 else 0
