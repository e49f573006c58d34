"""Reads a pickle without `pickle`: a small stack machine that knows data and nothing that runs.

A pickle is a program. Python's own reader calls whatever the program names; this one has only the opcodes that build
plain data, and every class or function a pickle names goes through `find(module, name)`, which answers with an
`Admitted` entry of ours (`proteinlm/untrusted/pickle_names.py`) or raises `Refused`. No callable of the file's choice
is called.

What must hold:
- REDUCE, NEWOBJ and BUILD act only on `Admitted` entries and on objects they made; no class's attributes are ever set.
- Nothing is allocated because a number in the file is large: lengths are checked against the bytes that are there, the
  memo is a dict, and copies of memoised data are charged against a budget proportional to the pickle's size.
- A key set twice in one dict is refused: honest writers never do it, and keeping one of the two would be silent.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

BUDGET_FACTOR = 64  # bytes that building objects may copy, per byte of pickle ...
BUDGET_FLOOR = 1 << 20  # ... and at least this many
MALFORMED = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, EOFError, MemoryError, RecursionError)
MALFORMED += (struct.error,)


class Refused(ValueError):
    """The pickle names something that is not data, or is not a pickle at all. The message is for the user."""


@dataclass(frozen=True, eq=False)
class Admitted:
    """What stands on the stack for a class or function that a pickle may name.

    make: builds the object from REDUCE's or NEWOBJ's arguments (None: may not be called).
    value: set where the name itself is the data (a dtype); pushed instead of this entry.
    """

    name: str
    make: Callable[..., object] | None = None
    value: object = None


class Mark:
    """The stack's MARK; a class of its own so that no value of a pickle can be mistaken for it."""


MARK = Mark()


class PickleMachine:
    """One run over `data` from `position`; `load()` returns the object, `position` is then the byte after STOP.

    data: anything with indexing to int and slicing to bytes (bytes, mmap). find(module, name) -> Admitted or Refused.
    set_state(object, state) applies BUILD or raises Refused. persistent(id) resolves a storage (None: not admitted).
    """

    def __init__(self, data, find, set_state, persistent=None, position: int = 0):
        self.data, self.find, self.set_state, self.persistent, self.position = (
            data,
            find,
            set_state,
            persistent,
            position,
        )
        self.stack: list = []
        self.memo: dict[int, object] = {}
        self.budget = max(BUDGET_FLOOR, BUDGET_FACTOR * (len(data) - position))

    def load(self) -> object:
        start = self.position
        try:
            return self._run()
        except Refused:
            raise
        except MALFORMED as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise Refused(f"not a readable pickle (at byte {self.position - start}: {reason[:200]})") from None

    def _run(self) -> object:
        data, size = self.data, len(self.data)
        while True:
            if self.position >= size:
                raise Refused("the pickle is cut short")
            code = data[self.position]
            self.position += 1
            if code == 0x2E:  # STOP
                return self.stack.pop()
            handler = HANDLERS.get(code)
            if handler is None:
                raise Refused(f"pickle opcode 0x{code:02x} is not data")
            handler(self)

    # reading
    def take(self, count: int) -> bytes:
        chunk = self.data[self.position : self.position + count]
        if count < 0 or len(chunk) != count:
            raise Refused("the pickle is cut short")
        self.position += count
        return chunk

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise Refused("the pickle is cut short")
        text = self.data[self.position : end]
        self.position = end + 1
        return text

    def integer(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    # the stack
    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> object:
        value = self.stack.pop()
        if value is MARK:
            raise Refused("not a readable pickle (a stray mark)")
        return value

    def since_mark(self) -> list:
        stack = self.stack
        for index in range(len(stack) - 1, -1, -1):
            if stack[index] is MARK:
                items = stack[index + 1 :]
                del stack[index:]
                return items
        raise Refused("not a readable pickle (no mark)")

    def top(self, *kinds: type) -> object:
        value = self.stack[-1]
        if type(value) not in kinds:
            raise Refused(f"not a readable pickle (items added to {type(value).__name__})")
        return value

    def charge(self, values) -> None:
        """Count what building from `values` may copy, so that memoised data cannot be multiplied without end."""
        for value in values:
            if isinstance(value, (str, bytes, bytearray)):
                self.budget -= len(value)
            elif isinstance(value, (list, tuple, dict, set, frozenset)):
                self.budget -= 16 * len(value)
        if self.budget < 0:
            raise Refused("the pickle would unpack to far more than its own size")

    def call(self, function: object, arguments: object) -> None:
        if not isinstance(function, Admitted) or function.make is None or not isinstance(arguments, tuple):
            name = function.name if isinstance(function, Admitted) else type(function).__name__
            raise Refused(f"{name} may not be called")
        self.charge(arguments)
        self.push(function.make(*arguments))


def check_keys(values, depth: int = 0) -> None:
    """Refuse keys nested so deeply that hashing them would overflow the C stack, which no exception can stop."""
    for value in values:
        if type(value) in (str, int, float, bool, bytes, type(None)):
            continue
        if depth > 16:
            raise Refused("a key nested too deeply")
        if isinstance(value, (tuple, frozenset)):
            check_keys(value, depth + 1)
        else:
            check_keys(getattr(value, "__dict__", {}).values(), depth + 1)


def fill_dict(target, pairs: list) -> None:
    if len(pairs) % 2:
        raise Refused("not a readable pickle (a key without a value)")
    check_keys(pairs[::2])
    before = len(target)
    for index in range(0, len(pairs), 2):
        target[pairs[index]] = pairs[index + 1]
    if len(target) != before + len(pairs) // 2:
        raise Refused("a key occurs twice in one dict")


def op_global(machine: PickleMachine, module: str, name: str) -> None:
    found = machine.find(module, name)
    machine.push(found.value if found.value is not None else found)


def op_text_global(machine: PickleMachine) -> None:
    module = machine.line().decode("utf-8")
    op_global(machine, module, machine.line().decode("utf-8"))


def op_stack_global(machine: PickleMachine) -> None:
    name, module = machine.pop(), machine.pop()
    if type(name) is not str or type(module) is not str:
        raise Refused("a class is named by something other than text")
    op_global(machine, module, name)


def op_inst(machine: PickleMachine) -> None:
    arguments = tuple(machine.since_mark())
    op_text_global(machine)
    machine.call(machine.pop(), arguments)


def op_obj(machine: PickleMachine) -> None:
    function, *arguments = machine.since_mark()
    machine.call(function, tuple(arguments))


def op_reduce(machine: PickleMachine) -> None:
    arguments = machine.pop()
    machine.call(machine.pop(), arguments)


def op_newobj_ex(machine: PickleMachine) -> None:
    if machine.pop() != {}:
        raise Refused("an object made with keyword arguments is not admitted")
    op_reduce(machine)


def op_build(machine: PickleMachine) -> None:
    state = machine.pop()
    machine.charge(state if isinstance(state, (tuple, list)) else [state])
    machine.set_state(machine.stack[-1], state)


def op_persistent(machine: PickleMachine) -> None:
    if machine.persistent is None:
        raise Refused("a reference to a storage outside the pickle is not admitted here")
    machine.push(machine.persistent(machine.pop()))


def op_appends(machine: PickleMachine) -> None:
    items = machine.since_mark()
    machine.top(list).extend(items)


def op_append(machine: PickleMachine) -> None:
    item = machine.pop()
    machine.top(list).append(item)


def op_setitems(machine: PickleMachine) -> None:
    pairs = machine.since_mark()
    fill_dict(machine.top(*DICTS), pairs)


def op_setitem(machine: PickleMachine) -> None:
    value, key = machine.pop(), machine.pop()
    fill_dict(machine.top(*DICTS), [key, value])


def op_dict(machine: PickleMachine) -> None:
    result: dict = {}
    fill_dict(result, machine.since_mark())
    machine.push(result)


def op_additems(machine: PickleMachine) -> None:
    items = machine.since_mark()
    check_keys(items)
    machine.top(set).update(items)


def op_frozenset(machine: PickleMachine) -> None:
    items = machine.since_mark()
    check_keys(items)
    machine.push(frozenset(items))


def op_tuple(count: int) -> Callable:
    def handler(machine: PickleMachine) -> None:
        items = [machine.pop() for _ in range(count)]
        machine.push(tuple(reversed(items)))

    return handler


def op_int_line(machine: PickleMachine) -> None:
    text = machine.line()
    machine.push({b"00": False, b"01": True}[text] if text in (b"00", b"01") else int(text.rstrip(b"L")))


def op_string_line(machine: PickleMachine) -> None:
    text = machine.line().strip()
    if len(text) < 2 or text[:1] not in b"'\"" or text[-1:] != text[:1]:
        raise Refused("not a readable pickle (an unquoted string)")
    machine.push(text[1:-1].decode("unicode_escape"))


def op_pop(machine: PickleMachine) -> None:
    machine.stack.pop()


def op_frame(machine: PickleMachine) -> None:
    machine.take(8)  # frames only help streaming readers; their contents follow as ordinary opcodes


def op_protocol(machine: PickleMachine) -> None:
    version = machine.integer(1)
    if version > 5:
        raise Refused(f"pickle protocol {version} is newer than 5")


def remember(machine: PickleMachine, index: int) -> None:
    value = machine.stack[-1]
    if value is MARK:
        raise Refused("not a readable pickle (a stray mark)")
    machine.memo[index] = value


def _utf8(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _latin1(raw: bytes) -> str:
    return raw.decode("latin-1")


def _signed(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


def counted(width: int, convert: Callable[[bytes], object]) -> Callable:
    """Handler for an item of `width` bytes of length and that many bytes of content."""
    return lambda machine: machine.push(convert(machine.take(machine.integer(width))))


def constant(make: Callable[[], object]) -> Callable:
    return lambda machine: machine.push(make())


DICTS = (dict, OrderedDict)
HANDLERS: dict[int, Callable[[PickleMachine], None]] = {
    0x80: op_protocol,
    0x95: op_frame,
    ord("("): constant(lambda: MARK),
    ord("0"): op_pop,
    ord("1"): lambda machine: machine.since_mark() and None,
    ord("N"): constant(lambda: None),
    0x88: constant(lambda: True),
    0x89: constant(lambda: False),
    ord("I"): op_int_line,
    ord("L"): op_int_line,
    ord("J"): lambda machine: machine.push(_signed(machine.take(4))),
    ord("K"): lambda machine: machine.push(machine.integer(1)),
    ord("M"): lambda machine: machine.push(machine.integer(2)),
    0x8A: counted(1, _signed),
    0x8B: counted(4, _signed),
    ord("F"): lambda machine: machine.push(float(machine.line())),
    ord("G"): lambda machine: machine.push(struct.unpack(">d", machine.take(8))[0]),
    ord("S"): op_string_line,
    ord("V"): lambda machine: machine.push(machine.line().decode("raw-unicode-escape")),
    ord("T"): counted(4, _latin1),
    ord("U"): counted(1, _latin1),
    ord("X"): counted(4, _utf8),
    0x8C: counted(1, _utf8),
    0x8D: counted(8, _utf8),
    ord("B"): counted(4, bytes),
    ord("C"): counted(1, bytes),
    0x8E: counted(8, bytes),
    0x96: counted(8, bytearray),
    ord("]"): constant(list),
    ord("}"): constant(dict),
    ord(")"): constant(tuple),
    0x8F: constant(set),
    ord("t"): lambda machine: machine.push(tuple(machine.since_mark())),
    0x85: op_tuple(1),
    0x86: op_tuple(2),
    0x87: op_tuple(3),
    ord("l"): lambda machine: machine.push(machine.since_mark()),
    ord("d"): op_dict,
    0x91: op_frozenset,
    ord("a"): op_append,
    ord("e"): op_appends,
    ord("s"): op_setitem,
    ord("u"): op_setitems,
    0x90: op_additems,
    ord("p"): lambda machine: remember(machine, int(machine.line())),
    ord("q"): lambda machine: remember(machine, machine.integer(1)),
    ord("r"): lambda machine: remember(machine, machine.integer(4)),
    0x94: lambda machine: remember(machine, len(machine.memo)),
    ord("g"): lambda machine: machine.push(machine.memo[int(machine.line())]),
    ord("h"): lambda machine: machine.push(machine.memo[machine.integer(1)]),
    ord("j"): lambda machine: machine.push(machine.memo[machine.integer(4)]),
    ord("c"): op_text_global,
    0x93: op_stack_global,
    ord("i"): op_inst,
    ord("o"): op_obj,
    ord("R"): op_reduce,
    0x81: op_reduce,
    0x92: op_newobj_ex,
    ord("b"): op_build,
    ord("Q"): op_persistent,
}
