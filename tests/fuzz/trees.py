"""Damage to what a file holds, as a tree of dicts, lists, namespaces, arrays and plain values.

tree, what = damage(rng, tree)          what: "/hidden_size: -1"

What JSON and YAML can say and Python's writers cannot (an integer of 5,000 digits, a key twice, 100,000 brackets)
stands in the tree as a Raw, which the writer of the format puts in.
"""

import argparse
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

DEEP = 100_000


@dataclass(frozen=True)
class Raw:
    """Text of the format itself, and a short name for messages."""

    text: str
    name: str


DIGITS = Raw("9" * 5000, "5000 digits")
BRACKETS = Raw("[" * DEEP + "]" * DEEP, f"{DEEP} brackets")
BRACES = Raw('{"a":' * DEEP + "1" + "}" * DEEP, f"{DEEP} braces")
TWICE = "twice"  # the key of a Raw that stands for an entry that is there a second time
VALUES = (
    *(float("nan"), float("inf"), float("-inf"), 1e308, -1, 0, 1, 2, 0.5, -0.5, 2**31, 2**63, 2**64, 2**70, -(2**70)),
    *(None, True, False, "", "x", "0", "-1", "nan", "é\u202e😀", "a\0b", "\n", "../x", "A" * 70_000),
    *([], {}, [[]], [None], {"": None}, [1, 2, 3], ["x"] * 50_000, {"x": 1}),
)


def containers(tree: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(path, container) of everything that has entries to change, the outermost first."""
    own = entries_of(tree)
    if own is None or depth > 12:
        return
    yield path, tree
    for key, value in list(own.items())[:400]:
        yield from containers(value, f"{path}/{key}", depth + 1)


def entries_of(node: Any) -> dict | None:
    """A container's entries by key."""
    if isinstance(node, argparse.Namespace):
        return vars(node)
    if isinstance(node, dict):
        return node
    return dict(enumerate(node)) if isinstance(node, list) else None


def put(node: Any, key: Any, value: Any) -> None:
    if isinstance(node, argparse.Namespace):
        setattr(node, str(key), value)
    else:
        node[key] = value


def damage(rng: random.Random, tree: Any) -> tuple[Any, str]:
    """The tree with one thing changed, and what."""
    places = list(containers(tree))
    if not places or rng.random() < 0.04:
        value = odd(rng, tree)
        return value, f"whole: {name_of(value)}"
    # half of the time one of the outer containers, whose keys are what readers look at first
    path, node = rng.choice(places[:3] if rng.random() < 0.5 else places)
    keys = list(entries_of(node))
    if not keys:
        value = odd(rng, None)
        node.append(value) if isinstance(node, list) else put(node, "x", value)
        return tree, f"{path or '/'}: gets {name_of(value)}"
    key = rng.choice(keys)
    return tree, f"{path}/{key}: {rng.choice(CHANGES)(rng, node, key)}"


def _value(rng: random.Random, node: Any, key: Any) -> str:
    value = odd(rng, entries_of(node)[key])
    put(node, key, value)
    return name_of(value)


def _drop(rng: random.Random, node: Any, key: Any) -> str:
    if isinstance(node, argparse.Namespace):
        delattr(node, key)
    else:
        del node[key]
    return "dropped"


def _rename(rng: random.Random, node: Any, key: Any) -> str:
    if isinstance(node, list):
        node.insert(key, node[key])
        return "repeated"
    text = key.decode("latin-1") if isinstance(key, bytes) else str(key)
    name = rng.choice([text + "x", text.upper() + "_", "", f" {text}", text[1:], "é" + text])
    put(node, name.encode() if isinstance(key, bytes) else name, entries_of(node)[key])
    _drop(rng, node, key)
    return f"renamed {name!r}"


def _reorder(rng: random.Random, node: Any, key: Any) -> str:
    if isinstance(node, list):
        rng.shuffle(node)
    elif isinstance(node, dict):
        items = list(node.items())
        rng.shuffle(items)
        node.clear()
        node.update(items)
    return "reordered"


def _container(rng: random.Random, node: Any, key: Any) -> str:
    value = entries_of(node)[key]
    own = entries_of(value)
    if own is None:
        new = rng.choice([[value], {"x": value}, [value] * 3, [[value]]])
    else:
        new = list(own.values()) if not isinstance(value, list) else {str(k): v for k, v in own.items()}
    put(node, key, new)
    return f"as {type(new).__name__}"


def _twice(rng: random.Random, node: Any, key: Any) -> str:
    if isinstance(node, dict) and isinstance(key, str):
        node[f"{TWICE} {key}"] = Raw(f"{TWICE} {key}", TWICE)
        return TWICE
    return _value(rng, node, key)


def _nest(rng: random.Random, node: Any, key: Any) -> str:
    value = entries_of(node)[key]
    for _ in range(500):
        value = [value]
    put(node, key, value)
    return "500 lists around it"


CHANGES: list[Callable[[random.Random, Any, Any], str]] = [
    *([_value] * 8), *([_drop] * 3), *([_rename] * 2), _reorder, _container, _twice, _nest,
]  # fmt: skip


def odd(rng: random.Random, value: Any) -> Any:
    """Something else in the place of a value: half of the time of its own kind."""
    if isinstance(value, torch.Tensor):
        return tensor(rng, value) if rng.random() < 0.85 else rng.choice(VALUES)
    if isinstance(value, np.ndarray):
        return array(rng, value) if rng.random() < 0.7 else rng.choice(VALUES)
    if rng.random() < 0.5:
        if isinstance(value, bool):
            return rng.choice([not value, int(value), str(value)])
        if isinstance(value, int):
            return rng.choice(
                [-value, value + 1, value - 1, value * 2, value * 1000, float(value), value + 0.5, str(value)]
            )
        if isinstance(value, float):
            return rng.choice([-value, value * 1e6, value + 1, str(value), int(value), float("nan"), float("inf")])
        if isinstance(value, str):
            return rng.choice([value.upper(), value[:-1], value + "x", value * 300, f" {value}", value.encode().hex()])
        if isinstance(value, bytes):
            return rng.choice([value[:-1], value + b"\xff", value.decode("latin-1"), b""])
    return rng.choice([*VALUES, DIGITS, BRACKETS, BRACES])


def array(rng: random.Random, value: np.ndarray) -> np.ndarray:
    value = np.atleast_1d(value)
    if value.size and rng.random() < 0.5:
        if value.dtype.kind not in "f":
            value = value.astype(np.float32)
        value = value.copy()
        with np.errstate(over="ignore"):
            value.reshape(-1)[rng.randrange(value.size)] = rng.choice([np.nan, np.inf, -np.inf, 1e38, -1, 1e9])
        return value
    shape = (-1,) if value.ndim != 1 else (1, -1)
    return rng.choice(
        [value[:-1], np.concatenate([value, value]), value.reshape(shape), value[:0], value.astype(np.float64),
         value.astype(str), value.astype(object), np.zeros((0, 3)), value.astype(np.complex64), value.copy("F"),
         np.array(3.0), value.astype(np.int64) - 5 if value.dtype.kind in "biuf" else value]
    )  # fmt: skip


def tensor(rng: random.Random, value: torch.Tensor) -> torch.Tensor:
    if value.is_floating_point() and value.numel() and rng.random() < 0.35:
        value = value.clone()
        value.reshape(-1)[rng.randrange(value.numel())] = rng.choice([float("nan"), float("inf"), -float("inf"), 1e38])
        return value
    ways = [
        lambda: value.reshape(-1), lambda: value[None], lambda: value.flatten()[:-1], lambda: value.flatten()[:0],
        lambda: value.double(), lambda: value.half(), lambda: value.long(), lambda: value.bool(),
        lambda: value.to(torch.complex64), lambda: torch.cat([value, value]), lambda: value.mT.contiguous(),
        lambda: torch.zeros(1).expand(2**40), lambda: torch.zeros(1, 1).expand(2**20, 2**20), lambda: value * 1e30,
        lambda: torch.tensor(3.0), lambda: torch.zeros_like(value), lambda: value.to_sparse(), lambda: -value,
        lambda: value.to(torch.uint8), lambda: value.bfloat16(),
    ]  # fmt: skip
    try:
        return rng.choice(ways)()
    except (RuntimeError, IndexError):
        return value.reshape(-1)[:0]


def name_of(value: Any) -> str:
    """A short name of a value, the same in every run."""
    if isinstance(value, Raw):
        return value.name
    if isinstance(value, torch.Tensor):
        finite = value.layout == torch.strided and value.numel() < 2**20 and bool(value.isfinite().all())
        big = value.layout != torch.strided or value.numel() >= 2**20
        return f"tensor {str(value.dtype)[6:]} {list(value.shape)}" + ("" if finite or big else " not finite")
    if isinstance(value, np.ndarray):
        finite = value.dtype.kind not in "fc" or bool(np.isfinite(value).all())
        return f"array {value.dtype} {list(value.shape)}" + ("" if finite else " not finite")
    text = ascii(value)
    return text if len(text) <= 40 else f"{type(value).__name__} {text[:20]}... of {len(text)}"
