"""JSON from elsewhere: configurations and records of runs, lists of records, and JSON lines.

    args = read_json("RUN_DIR/args.json", "what tape-train wrote", {"args?": {"task": str}})

What must hold: text that is no JSON, a key given twice, and a value that is not of the reader's shape
(proteinlm.untrusted.shapes) are an InputError with the file and the key; what was read can be written.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from proteinlm.errors import InputError
from proteinlm.untrusted.shapes import Shape, misfits
from proteinlm.untrusted.text_files import read_bytes, read_text

DEEPEST = 64  # brackets within brackets
LARGEST = 1 << 25  # bytes of an object; what Python makes of them can be 20 times as large
LARGEST_INTEGER = 1 << 64


def _unique(pairs: list[tuple[str, object]]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def decode_json(text: str | bytes) -> object:
    """The value; a ValueError for everything that is no JSON."""
    try:
        return _DECODER.decode(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError:
        raise ValueError("brackets within brackets, too deep") from None


def read_json(path: str | Path, content: str = "", shape: Shape = dict) -> dict:
    """A JSON object. content: what it should be, for messages."""
    should = f"; should be {content}" if content else ""
    value = _read(path, should, LARGEST)
    if not isinstance(value, dict):
        raise InputError(f"{path}: a JSON object was expected, found {type(value).__name__}{should}")
    for fault in (*_unwritable(value), *misfits(value, shape)):
        raise InputError(f"{path}: {fault}{should}")
    return value


def read_json_records(path: str | Path) -> object:
    """JSON of any size and shape, not looked through: its reader checks each record."""
    return _read(path, "", None)


def _read(path: str | Path, should: str, largest: int | None) -> object:
    text = read_text(path, f"should be {'JSON' if not should else should.removeprefix('; should be ')}", largest)
    try:
        return decode_json(text)
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({str(error)[:100]}){should}") from None


def read_json_lines(path: str | Path) -> Iterator[tuple[int, str, dict | None]]:
    """(number, text, object) of every line but empty ones, None where it is none: a damaged line harms no other one.

    NUL bytes and spaces around a line, which a power cut may leave, are no part of it.
    """
    for number, line in enumerate(read_bytes(path).split(b"\n"), 1):
        line = line.strip(b"\0 \t\r")
        if not line:
            continue
        try:
            value = decode_json(line)
        except ValueError:
            value = None
        yield number, line.decode("utf-8", "replace"), value if isinstance(value, dict) else None


def _unwritable(value: dict | list, key: str = "", depth: int = 0) -> Iterator[str]:
    """What can be read, but would stop whoever computes with it, prints it or writes it again."""
    if depth == DEEPEST:
        yield f"key {key[:40]!r} ...: more than {DEEPEST} brackets within brackets"
        return
    if isinstance(value, dict) and _has_half("".join(value)):
        yield f"key {key!a}: half a surrogate pair, which is no text"
    for name, own in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(own, dict | list):
            yield from _unwritable(own, f"{key}.{name}".lstrip("."), depth + 1)
        elif isinstance(own, str) and _has_half(own):
            yield f"key {f'{key}.{name}'.lstrip('.')!a}: half a surrogate pair, which is no text"
        elif isinstance(own, int) and abs(own) >= LARGEST_INTEGER:
            yield f"key {f'{key}.{name}'.lstrip('.')!r}: an integer of more than 64 bits"


def _has_half(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)
