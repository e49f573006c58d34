"""Python's own pickle reader, `pickle._Unpickler`, with everything that runs taken out, and what a pickle may name.

A pickle is a program. Here each class or function that it names becomes an `Admitted` entry, whose maker takes anything
without harm or checks it. What must hold:
- REDUCE, NEWOBJ and BUILD act on entries and on what they made alone; no attribute of a class is ever set.
- Nothing is allocated because a number in the file is large; copies of memoised data are charged to a budget.
- A key set twice in one dict is refused: honest writers never do it, and keeping one of the two would be silent.
"""

import argparse
import contextlib
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass

import numpy as np

from proteinlm.errors import InputError

LONGEST_INTEGER = 8192  # bits; Python refuses to print 4,300 digits
BUDGET_FACTOR, BUDGET_FLOOR = 64, 1 << 20  # bytes that building objects may copy: per byte of pickle, and at least
MAX_DIMENSIONS, MAX_KEY_DEPTH, MAX_KEY_PARTS = 64, 16, 256  # numpy's and torch's limit; of what hashing a key visits
ENCODINGS = {"latin1": "latin1", "latin-1": "latin1", "utf-8": "utf8", "utf8": "utf8", "ascii": "ascii"}
BYTES = (bytes, bytearray)
STAND_INS = ("megatron", "fp16", "omegaconf")  # packages whose classes come as a StandIn
DTYPE_NAME = re.compile(r"[<>|=]?(?:[biufc]\d{1,2}|[SU]\d{0,9}|\?)")
# What builds plain data. Not: persistent ids as text, DUP, copyreg's extensions, keyword arguments, foreign buffers.
DATA_OPCODES = b"(.01BCFGIJKLMNQRSTUVX]abcdeghijlopqrstu})\x80\x81\x93\x94\x95\x96" + bytes(range(0x85, 0x92))


@contextlib.contextmanager
def named(what: object):
    """Whatever is wrong with the file that is read inside becomes an InputError that names `what`."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {error}") from None
    except Exception as error:
        reason = " ".join(f"damaged, truncated or of another format: {type(error).__name__} {error}".split())[:250]
        raise InputError(f"{what}: {reason}") from None


def require(condition: object, message: str, value=None):
    """`value`, if the condition holds."""
    if not condition:
        raise InputError(message)
    return value


def sizes(values: object) -> tuple[int, ...]:
    whole = type(values) in (list, tuple) and all(type(value) is int and value >= 0 for value in values)
    return require(whole and len(values) <= MAX_DIMENSIONS, "sizes that are not a few whole numbers", tuple(values))


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
    require(type(keys) in (list, tuple), "keys that are not a list")
    for key in keys:
        parts = [] if type(key) in (str, int, bytes) else [(key, 0)]
        for value, depth in parts:
            inner = value if isinstance(value, (tuple, frozenset)) else getattr(value, "__dict__", {}).values()
            parts.extend((item, depth + 1) for item in inner)
            require(depth <= MAX_KEY_DEPTH and len(parts) <= MAX_KEY_PARTS, "a key nested too deeply")
    return keys


@dataclass(eq=False)
class StandIn:
    """An object of a class that is not loaded here: its class's name, arguments and state, as data. Does nothing."""

    class_name: str
    arguments: tuple = field(default=(), repr=False)
    state: object = field(default=None, repr=False)


def find(module: str, name: str) -> object:
    """The entry, or the value, that `module.name` stands for; an InputError names what is not admitted."""
    module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
    full = f"{module}.{name}".replace("numpy.core.", "numpy._core.")
    if module.split(".")[0] in STAND_INS:
        return Admitted(full, lambda *arguments: StandIn(full, arguments))
    require(full in NAMES, f"names {ascii(full)[1:-1][:200]}, which is not data; refused, nothing was run")
    return NAMES[full]


def _dtype(name, align=False, copy=False) -> np.dtype:
    plain = DTYPE_NAME.fullmatch(name)
    require(plain, f"numpy dtype {name!a:.40} is not a plain number or text (object arrays are not admitted)")
    return np.dtype(name, False, True)  # a copy of its own, because BUILD may set its byte order


def _array(raw, dtype, shape, order="C") -> np.ndarray:
    require(isinstance(dtype, np.dtype) and type(raw) in BYTES, "a numpy array without a dtype or data")
    shape = sizes(shape)
    fits = dtype.itemsize and len(raw) == math.prod(shape) * dtype.itemsize
    require(fits, f"a numpy array of shape {shape} whose data does not have that size")
    return np.frombuffer(raw, dtype=dtype).reshape(shape, order="F" if order == "F" else "C").copy()


MAKERS = {
    "argparse.Namespace": lambda: argparse.Namespace(),
    "collections.OrderedDict": lambda items=(): require(not items, "an old Python 2 form is not read", OrderedDict()),
    "collections.defaultdict": lambda factory=None: {},
    "copyreg._reconstructor": lambda kind, base, state: build(kind, () if state is None else (state,)),
    "_codecs.encode": lambda text, encoding="latin1": str.encode(text, ENCODINGS[encoding]),
    "builtins.set": lambda items=(): set(check_keys(items)),
    "builtins.frozenset": lambda items=(): frozenset(check_keys(items)),
    "builtins.bytearray": lambda x=b"", c="latin1": bytearray(x if type(x) in BYTES else str.encode(x, ENCODINGS[c])),
    "builtins.bytes": lambda: b"",  # how protocols 0 to 2 write empty bytes
    "builtins.complex": complex,
    "numpy.dtype": _dtype,
    "numpy.ndarray": None,
    "numpy._core.multiarray._reconstruct": lambda kind, shape, code: np.empty(0, np.uint8).reshape(shape),
    "numpy._core.multiarray.scalar": lambda dtype, raw=b"": _array(raw, dtype, (1,))[0],
    "numpy._core.numeric._frombuffer": _array,
}
for _name in ("object", "dict", "list", "tuple", "int", "float", "str", "bool"):
    MAKERS[f"builtins.{_name}"] = None  # as an argument (defaultdict's factory)
MAKERS |= dict.fromkeys(("typing.Any", "typing.Dict", "typing.List"))  # omegaconf notes types by them
MAKERS |= {f"pathlib.{name}Path": lambda *parts: "/".join(parts) for name in ("Posix", "PurePosix", "Windows")}
NAMES = {name: Admitted(name, make) for name, make in MAKERS.items()}


def set_state(target: object, state: object) -> None:
    """Give `target`, which one of the makers made, the state that the file holds for it (BUILD)."""
    if type(target) is StandIn:
        target.state = state
    elif type(target) is np.ndarray:
        _, shape, dtype, fortran, raw = state
        raw = raw.encode("latin-1") if type(raw) is str else raw  # Python 2's bytes
        _array(raw, dtype, shape)  # only to check that they agree
        target.__setstate__((1, sizes(shape), dtype, bool(fortran), raw))
    elif isinstance(target, np.dtype):
        written = target.newbyteorder(state[1]).__reduce__()[2]  # by numpy, for the same dtype
        own = state[:7] == written[:7] and state[7:] in ((0,), (8,))
        require(own, "a numpy dtype with fields or sizes of its own is not admitted")
        target.__setstate__(state)
    elif is_dataclass(target) and type(state) is tuple:  # DCP's TensorProperties
        target.__setstate__(state)
    else:
        require(type(state) is dict and all(type(key) is str for key in state), "a state that is not a dict of names")
        if type(target) is OrderedDict:  # module versions, which load_state_dict reads
            state = {key: state[key] for key in ("_metadata",) if isinstance(state.get(key), dict)}
        elif is_dataclass(target):  # DCP's
            require(set(state) <= {f.name for f in fields(target)}, f"{type(target).__name__} with unknown fields")
        else:
            require(type(target) is argparse.Namespace, f"state for {type(target).__name__} is not admitted")
        vars(target).update(state)


def _set_pairs(target: dict, pairs: list) -> None:
    require(type(target) in (dict, OrderedDict), "keys and values put into something other than a dict")
    before, keys = len(target), check_keys(pairs[::2])
    target.update(zip(keys, pairs[1::2], strict=True))
    require(len(target) == before + len(keys), "a key occurs twice in one dict")


def _adding(add: Callable, count: int = 0) -> Callable:
    """Handler that adds the top `count` values (0: those above the mark) to what lies below them."""

    def handler(self) -> None:
        items = [self.stack.pop() for _ in range(count)][::-1] if count else self.pop_mark()
        add(self.stack[-1], items)

    return handler


class Unpickler(pickle._Unpickler):
    """Reads an object from `file`, with `size` bytes left. find(module, name), storage(id): what a name, an id is."""

    def __init__(self, find: Callable, file, size: int, storage: Callable | None = None):
        super().__init__(file, encoding="latin1")
        self.find_class, self.budget = find, max(BUDGET_FLOOR, BUDGET_FACTOR * size)
        if storage:
            self.persistent_load = storage

    def charge(self, values) -> None:
        """Count what building from `values` may copy, so that memoised data cannot be multiplied without end."""
        sized = (str, bytes, bytearray, list, tuple, dict, set, frozenset)
        self.budget -= sum(8 * len(value) for value in values if isinstance(value, sized))
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
        set_state(self.stack[-1], state)

    def load_frame(self) -> None:
        self.read(8)  # its size, a hint to who reads a file in pieces; here all bytes are at hand, and it takes longer

    def load_long1(self) -> None:
        super().load_long1()
        self._check_long()

    def load_long4(self) -> None:
        super().load_long4()
        self._check_long()

    def _check_long(self) -> None:
        """No number here has as many digits, and Python refuses to print one of thousands."""
        require(self.stack[-1].bit_length() <= LONGEST_INTEGER, "a whole number of thousands of digits")

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
    load_append, load_appends = _adding(list.extend, 1), _adding(list.extend)  # which takes nothing but a list
    load_setitem, load_setitems = _adding(_set_pairs, 2), _adding(_set_pairs)
    load_additems = _adding(lambda target, items: set.update(target, check_keys(items)))


# Each opcode's handler under its own name, so that a method above cannot be forgotten here.
Unpickler.dispatch = {code: getattr(Unpickler, pickle._Unpickler.dispatch[code].__name__) for code in DATA_OPCODES}
