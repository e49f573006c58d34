"""TAPE's records read by Python's own unpickler in C, where their bytes prove beforehand that nothing can go wrong.

    record = read_record(data)
    if record is None: ...      # not proven

The usual record is one dict: its keys short words, its values texts, bytes, numbers, lists of numbers and arrays of
numbers. The patterns below are that form, opcode by opcode, as pickle writes it in protocols 2 to 5 (arrays: 3 and 4);
what may be of any length has its length in front and is stepped over. What must hold:
- All else, and all that fails, is left to `pickles.Unpickler`; what is read is what that one would have read.
- An index into the memo (BINGET) may mean anything read before. Whatever it means, only `Dtype` and `Array` can be
  called or get a state; `pickles` makes the dtypes, and numpy refuses data that do not fit an array's shape.
"""

import functools
import io
import pickle
import re

import numpy as np

from proteinlm.untrusted.pickles import NAMES, build, set_state

LARGEST = 1 << 18  # bytes; while a list of numbers is matched, re holds 130 times its size
MEMO, GET = rb"(?:\x94|q.)", rb"h."
NUMBER, SIZE = rb"(?:K.|M..|J.{4}|G.{8}|[N\x88\x89])", rb"(?:K.|M..)"
FALSE_TRUE = rb"(?:\x89\x88|K\x00K\x01)"


def either(*patterns: bytes) -> bytes:
    return b"(?:" + b"|".join(patterns) + b")"


def text(length: int, pattern: bytes) -> bytes:
    """A text of `length` bytes, as many as `pattern` matches; or anything read before."""
    size = re.escape(bytes([length]))
    return either(rb"(?:\x8c" + size + rb"|X" + size + rb"\0\0\0)" + pattern + MEMO, GET)


def named(module: str, name: str) -> bytes:
    """A class or function; or anything read before."""
    words = [text(len(word), re.escape(word.encode())) for word in (module, name)]
    return either(b"".join(words) + rb"\x93" + MEMO, b"c" + re.escape(f"{module}\n{name}\n".encode()) + MEMO, GET)


RECONSTRUCT = either(*(named(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")))
DTYPE = (
    named("numpy", "dtype") + text(2, b"[biuf][1248]") + FALSE_TRUE + rb"\x87" + MEMO + b"R" + MEMO
    + rb"\(K\x03" + text(1, b"[<>|]") + rb"NNN(?:J\xff{4}){2}K\x00t" + MEMO + b"b"
)  # fmt: skip
SHAPE = either(rb"\)", *(SIZE * n + code + MEMO for n, code in enumerate((rb"\x85", rb"\x86", rb"\x87"), 1)))
ARRAY = (  # up to its data
    RECONSTRUCT + named("numpy", "ndarray") + rb"K\x00\x85" + MEMO + either(rb"C\x01b" + MEMO, GET) + rb"\x87" + MEMO
    + b"R" + MEMO + rb"\(K\x01" + SHAPE + either(DTYPE, GET) + rb"[\x88\x89]"
)  # fmt: skip
LIST = rb"\]" + MEMO + rb"(?:\(" + NUMBER + b"*e)*"
KEY, LENGTH = rb"(?:\x8c(.)|X(.)\0\0\0)(\w+)" + MEMO, rb"(?:[\x8cC](.)|[XB](.{4}))"
START, ENTRY, BEHIND_TEXT, BEHIND_DATA = (
    re.compile(pattern, re.DOTALL)
    for pattern in (
        rb"\x80[\x02-\x05](?:\x95.{8})?}" + MEMO + rb"\(",
        KEY + either(NUMBER, LIST, b"(" + ARRAY + b")?" + LENGTH),
        MEMO,
        MEMO + b"t" + MEMO + b"b",
    )
)


def count_entries(data: bytes) -> int:
    """How many keys a record of the usual form has; 0 where the form is another."""
    start = START.match(data) if len(data) <= LARGEST else None
    count, place = 0, start.end() if start else 0
    while start and (entry := ENTRY.match(data, place)):
        short, long, key, array, few, many = entry.groups()
        if len(key) != (short or long)[0]:
            return 0
        place = entry.end()
        if few or many:
            place += int.from_bytes(few or many, "little")
            behind = (BEHIND_DATA if array else BEHIND_TEXT).match(data, place)
            if not behind:
                return 0
            place = behind.end()
        count += 1
    return count if data[place:] == b"u." else 0


@functools.lru_cache(64)
def make_dtype(name: str, state: tuple) -> np.dtype:
    dtype = build(NAMES["numpy.dtype"], (name,))
    set_state(dtype, state)
    return dtype


class Dtype:
    """Stands for a dtype until its state comes; from then on, `value` is the dtype."""

    __slots__ = ("value",)

    def __init__(self, name: str, align: object, copy: object):
        self.value = name

    def __setstate__(self, state: tuple) -> None:
        self.value = make_dtype(self.value, state)


class Array:
    """Stands for an array, which is its `value`, until the whole record is read."""

    __slots__ = ("value",)

    def __init__(self, kind: object, shape: tuple, code: object):
        self.value = np.ndarray(0, "b")

    def __setstate__(self, state: tuple) -> None:
        version, shape, dtype, fortran, raw = state
        self.value.__setstate__((version, shape, dtype.value, fortran, raw))


CLASSES = {("numpy", "dtype"): Dtype, ("numpy", "ndarray"): None}
CLASSES |= {(f"numpy.{core}.multiarray", "_reconstruct"): Array for core in ("core", "_core")}


class Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        return CLASSES[module, name]


def read_record(data: bytes) -> dict | None:
    """The record in `data`; None where it is not of the usual form, or not in order."""
    entries = count_entries(data)
    if not entries:
        return None
    try:  # in one frame, because the C reader asks its file for every opcode outside of one
        record = Reader(io.BytesIO(b"\x95" + len(data).to_bytes(8, "little") + data)).load()
    except Exception:
        return None
    for key, value in record.items():
        if type(value) is Array:
            record[key] = value.value
    return record if len(record) == entries else None  # a key occurs twice
