"""YAML from elsewhere: configurations of pretraining, recipes, presets of tables.

    options = read_yaml("config.yaml")
    options["lr"], options.lines["lr"]          a mapping within it knows its lines too

What must hold: a key given twice, a tag of a class, a value that its tag cannot have, and aliases within aliases that
make a value of any size are an InputError with file, line and key; no class is made of a file's words.
"""

import math
from pathlib import Path

import yaml

from proteinlm.errors import InputError
from proteinlm.untrusted.text_files import read_text

LARGEST_FILE = 1 << 19  # bytes, which PyYAML reads in seconds
LARGEST = 100_000  # values, each alias counted as what it stands for
# What PyYAML's constructors raise beside their own: for 2001-99-99, !!float x, !!bool maybe, !!timestamp x, 10^5000 ...
FAULTS = (ValueError, TypeError, LookupError, AttributeError, OverflowError)


class YamlMapping(dict):
    """Keys and values; lines: of each key, from 1."""

    def __init__(self):
        super().__init__()
        self.lines: dict[str, int] = {}


def read_yaml(path: str | Path) -> YamlMapping:
    """The file's mapping, empty for an empty file."""
    text = read_text(path, "should be lines of `key: value`", LARGEST_FILE)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return YamlMapping()
        if not isinstance(node, yaml.MappingNode):
            raise InputError(f"{path}: should hold lines of `key: value`, found a YAML {node.id}")
        if _size(node, {}) > LARGEST:
            raise InputError(f"{path}: aliases that make more than {LARGEST:,} values, or hold themselves")
        return _mapping(loader, node, path)
    except RecursionError:
        raise InputError(f"{path}: not YAML: brackets within brackets, too deep") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(f"{path}{line}: not YAML: {reason[:200]}") from None


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """Values in a node, infinite for one within itself; each node is looked at once."""
    if id(node) not in known:
        known[id(node)] = math.inf
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = sum(parts, ()) if isinstance(node, yaml.MappingNode) else parts
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode, path: str | Path) -> YamlMapping:
    mapping, own = YamlMapping(), {}
    for key_node, _ in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise InputError(f"{path}:{line}: a key is one word, found a YAML {key_node.id}")
        if key in own:
            raise InputError(f"{path}:{line}: {key} is given twice, first on line {own[key]}")
        own[key] = line
    loader.flatten_mapping(node)  # what `<<` brings in comes first, so that the mapping's own keys win
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        mapping.lines[key] = line
        mapping[key] = _value(loader, value_node, path, f"{path}:{line}: {key}")
    return mapping


def _value(loader: yaml.SafeLoader, node: yaml.Node, path: str | Path, where: str) -> object:
    if isinstance(node, yaml.MappingNode) and node.tag.endswith(":map"):
        return _mapping(loader, node, path)
    try:
        return loader.construct_object(node, deep=True)
    except FAULTS as error:
        kind = node.tag.split(":")[-1]
        raise InputError(f"{where} {str(node.value)[:40]!r} is not YAML's {kind} ({str(error)[:80]})") from None
