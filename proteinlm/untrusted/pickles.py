"""Python's own pickle reader, `pickle._Unpickler`, with everything that runs taken out of it.

A pickle is a program. Here each class or function that it names becomes an `Admitted` entry of our allow-list
(`proteinlm/untrusted/allowed.py`), and only such entries are ever called. What must hold:
- REDUCE, NEWOBJ and BUILD act on entries and on what they made; no attribute of a class is ever set.
- Nothing is allocated because a number in the file is large; copies of memoised data are charged to a budget.
- A key set twice in one dict is refused: honest writers never do it, and keeping one of the two would be silent.
"""

import contextlib
import pickle
from collections import OrderedDict
from collections.abc import Callable

from proteinlm.errors import InputError

BUDGET_FACTOR, BUDGET_FLOOR = 64, 1 << 20  # bytes that building objects may copy: per byte of pickle, and at least
MAX_DIMENSIONS = 64  # numpy's limit, and torch's for what it saves
MAX_KEY_DEPTH, MAX_KEY_PARTS = 16, 256  # of what hashing one key visits
# What builds plain data. Not: persistent ids as text, DUP, copyreg's extensions, keyword arguments, foreign buffers.
DATA_OPCODES = b"(.01BCFGIJKLMNQRSTUVX]abcdeghijlopqrstu})\x80\x81\x93\x94\x95\x96" + bytes(range(0x85, 0x92))


@contextlib.contextmanager
def named(what: object):
    """Whatever is wrong with the file that is read inside becomes an InputError that names `what`."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {error}") from None
    except OSError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")
        raise InputError(f"{what}: damaged, truncated or of another format ({reason})") from None


def require(condition: object, message: str) -> None:
    if not condition:
        raise InputError(message)


def sizes(values: object) -> tuple[int, ...]:
    listed = type(values) in (list, tuple) and len(values) <= MAX_DIMENSIONS
    whole = listed and all(type(value) is int and value >= 0 for value in values)
    require(whole, f"sizes that are not at most {MAX_DIMENSIONS} whole numbers >= 0")
    return tuple(values)


class Admitted:
    """What stands on the stack for a class or function. make: builds it of the file's arguments (None: uncallable)."""

    def __init__(self, name: str, make: Callable[..., object] | None = None):
        self.name, self.make = name, make


def build(entry: object, arguments: object) -> object:
    name = entry.name if type(entry) is Admitted else type(entry).__name__
    require(type(entry) is Admitted and entry.make and type(arguments) is tuple, f"{name} may not be called")
    return entry.make(*arguments)


def check_keys(keys):
    """`keys`, refused if hashing one would overflow the C stack, which nothing can catch, or take for ever."""
    for key in keys:
        parts = [] if type(key) in (str, int, bytes) else [(key, 0)]
        for value, depth in parts:
            inner = value if isinstance(value, (tuple, frozenset)) else getattr(value, "__dict__", {}).values()
            parts.extend((item, depth + 1) for item in inner)
            require(depth <= MAX_KEY_DEPTH and len(parts) <= MAX_KEY_PARTS, "a key nested too deeply")
    return keys


def _set_pairs(target: dict, pairs: list) -> None:
    before, keys = len(target), check_keys(pairs[::2])
    target.update(zip(keys, pairs[1::2], strict=True))
    require(len(target) == before + len(keys), "a key occurs twice in one dict")


def _adding(add: Callable, kinds: tuple[type, ...], count: int = 0) -> Callable:
    """Handler that adds the top `count` values (0: those above the mark) to what lies below, which is of `kinds`."""

    def handler(self) -> None:
        items = self.stack[-count:] if count else self.pop_mark()
        del self.stack[len(self.stack) - count :]
        if type(self.stack[-1]) not in kinds:
            raise InputError(f"items added to {type(self.stack[-1]).__name__}")
        add(self.stack[-1], items)

    return handler


class Unpickler(pickle._Unpickler):
    """One reading of `file`, in which `size` bytes are left.

    find(module, name) -> what is named there. set_state(object, state) applies BUILD. storage(id) resolves a persistent
    id (None: not admitted).
    """

    def __init__(self, file, size: int, find: Callable, set_state: Callable, storage: Callable | None = None):
        super().__init__(file, encoding="latin1")
        self.find_class, self.set_state = find, set_state
        self.persistent_load = storage or self.persistent_load
        self.budget = max(BUDGET_FLOOR, BUDGET_FACTOR * size)

    def charge(self, values) -> None:
        """Count what building from `values` may copy, so that memoised data cannot be multiplied without end."""
        for value in values:
            if isinstance(value, (str, bytes, bytearray, list, tuple, dict, set, frozenset)):
                self.budget -= 8 * len(value)
        require(self.budget >= 0, "the pickle would unpack to far more than its own size")

    def _instantiate(self, function: object, arguments) -> None:  # how INST and OBJ call
        self.charge(arguments)
        self.append(build(function, tuple(arguments)))

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        require(type(arguments) is tuple, f"called with {type(arguments).__name__}, not with a tuple")
        self._instantiate(self.stack.pop(), arguments)

    def load_build(self) -> None:
        state = self.stack.pop()
        self.charge(state if isinstance(state, (tuple, list)) else [state])
        self.set_state(self.stack[-1], state)

    def load_bytearray8(self) -> None:
        self.load_binbytes8()  # Python's own allocates what the file claims before it reads
        self.append(bytearray(self.stack.pop()))

    def load_frozenset(self) -> None:
        check_keys(self.stack)
        super().load_frozenset()

    def load_dict(self) -> None:
        self.metastack[-1].append({})
        self.load_setitems()

    load_newobj = load_reduce
    load_append, load_appends = _adding(list.extend, (list,), 1), _adding(list.extend, (list,))
    load_setitem, load_setitems = (_adding(_set_pairs, (dict, OrderedDict), count) for count in (2, 0))
    load_additems = _adding(lambda target, items: target.update(check_keys(items)), (set,))


# Each opcode's handler under its own name, so that a method above cannot be forgotten here.
_NAMES = {code: pickle._Unpickler.dispatch[code].__name__ for code in DATA_OPCODES}
Unpickler.dispatch = {code: getattr(Unpickler, name) for code, name in _NAMES.items()}
