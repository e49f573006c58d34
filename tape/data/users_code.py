"""A user's code (a plugin's data sets, models and metrics) called so that what it does wrong is one line that names it.

    with calling(dataset, "__getitem__(3)"):
        item = dataset[3]               # "my_task.py, MyDataset.__getitem__(3): KeyError: 'length' (line 21)"
    refuse(model, "forward returned None; ...")

Nothing is caught of this project's own code: an error there is a defect, and keeps its traceback. `--debug` shows the
user's.
"""

import contextlib
import inspect
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NoReturn

from proteinlm.errors import InputError

OURS = ("tape", "proteinlm", "torch", "peft", "transformers")  # packages whose errors are no plugin's


class UsersCodeError(InputError):
    """What is wrong is in the code of a plugin."""


def is_users(thing: object) -> bool:
    """Whether a class, an instance of one, or a function is a plugin's."""
    return _kind(thing).__module__.partition(".")[0] not in OURS


def _kind(thing: object) -> object:
    """The class or the function that a thing is or belongs to."""
    if isinstance(thing, partial):
        return _kind(thing.args[0] if thing.args and isinstance(thing.args[0], type) else thing.func)
    thing = getattr(thing, "__self__", thing)
    return thing if isinstance(thing, type) or inspect.isfunction(thing) else type(thing)


def name_of(thing: object, method: str = "") -> str:
    """ "my_task.py, MyDataset.collate_fn"."""
    kind = _kind(thing)
    method = method if isinstance(kind, type) else ""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) or kind.__module__
    name = kind.__qualname__.rpartition("<locals>.")[2]
    return f"{Path(file).name}, {name}{'.' if method else ''}{method}"


def refuse(thing: object, complaint: str) -> NoReturn:
    """complaint: begins with the method."""
    raise UsersCodeError(f"{name_of(thing)}.{complaint}")


@contextlib.contextmanager
def calling(thing: object, method: str = "", *others: object) -> Iterator[None]:
    """What a user's code raises inside, sys.exit too, becomes a UsersCodeError.

    thing: whose `method` is called; others: what may be at fault where that is this project's own.
    """
    try:
        yield
    except (InputError, FileNotFoundError):  # is one line already
        raise
    except (Exception, SystemExit) as error:
        if is_users(thing):
            raise UsersCodeError(f"{name_of(thing, method)}: {describe(error, thing)}") from error
        at_fault = next(filter(is_users, others), None)
        if at_fault is None:
            raise
        called = f"{_kind(thing).__name__}.{method} of what it gives"
        raise UsersCodeError(f"{name_of(at_fault)}: {called}: {describe(error, at_fault)}") from error


def describe(error: BaseException, thing: object) -> str:
    """The error in a few words, and the line of the user's file where it arose."""
    if isinstance(error, SystemExit):
        text = f"called sys.exit({'' if error.code is None else repr(error.code)})"
    else:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        text = f"{type(error).__name__}: {' '.join(str(message).split())[:300]}"
    module = thing if isinstance(thing, Path) else getattr(sys.modules.get(_kind(thing).__module__), "__file__", None)
    return text + (line_in(error, Path(module)) if module else "")


def line_in(error: BaseException, file: Path) -> str:
    """ " (line N)" of a file where the error arose last; "" if nowhere."""
    trace, line = error.__traceback__, None
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).resolve() == file.resolve():
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line})" if line else ""
