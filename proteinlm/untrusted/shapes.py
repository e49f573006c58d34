"""What a reader relies on in a value from elsewhere, said as a shape and compared in one place.

    misfits({"args": {"task": 5}}, {"args?": {"task": str}})        "key 'args.task' is 5; a text was expected"

A shape is a type or a union of types (bool is no int, NaN is no float), [shape] for a list, or {key: shape} for an
object, whose other keys may hold anything; "key?" may be absent or null, "*" is every other key.
"""

import math
from collections.abc import Iterator
from types import NoneType, UnionType

NUMBER = int | float
Shape = type | UnionType | dict | list
NAMES = {dict: "an object", list: "a list", str: "a text", bool: "true or false", NoneType: "null"}
NAMES |= {int: "a whole number", float: "a finite number"}


def misfits(value: object, shape: Shape, key: str = "") -> Iterator[str]:
    """What is not as `shape` says, in words."""
    kind = type(shape) if isinstance(shape, dict | list) else shape
    if not _is_a(value, kind):
        text = ascii(value)
        yield f"key {key!r} is {text if len(text) <= 40 else text[:37] + '...'}; {_words(kind)} was expected"
    elif isinstance(shape, list):
        for place, own in enumerate(value):
            yield from misfits(own, shape[0], f"{key}.{place}")
    elif isinstance(shape, dict):
        for name, own in _by_name(value, shape):
            short = name.removesuffix("?")
            whole = f"{key}.{short}".lstrip(".")
            if value.get(short) is None and short != name:
                continue
            if short not in value:
                yield f"key {whole!r} is missing"
            else:
                yield from misfits(value[short], own, whole)


def _by_name(value: dict, shape: dict) -> Iterator[tuple[str, Shape]]:
    """The shape of each key; "*" stands for those of the value that are not named."""
    named = {name.removesuffix("?") for name in shape}
    for name, own in shape.items():
        if name.startswith("*"):
            yield from ((key + name[1:], own) for key in value if key not in named)
        else:
            yield name, own


def _parts(kind: type | UnionType) -> tuple:
    return getattr(kind, "__args__", (kind,))


def _is_a(value: object, kind: type | UnionType) -> bool:
    if isinstance(value, bool):
        return bool in _parts(kind)
    return isinstance(value, kind) and not (isinstance(value, float) and not math.isfinite(value))


def _words(kind: type | UnionType) -> str:
    kinds = [own for own in _parts(kind) if own is not int or float not in _parts(kind)]
    return " or ".join(NAMES[own] for own in kinds)
