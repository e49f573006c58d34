"""The values of --data-path, --valid-data-path and --split, parsed here for the flags' check and for the datasets.

parse_data_path(["0.7", "pfam", "0.3", "uniref"])    # [Source(0.7, "pfam"), Source(0.3, "uniref")]
Split.parse("969,30,1").ranges(50)                   # ((0, 48), (48, 50), (50, 50))
"""

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

from pretrain.data.indexed import require_shard, strip_suffix
from proteinlm.errors import InputError

NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Source:
    """A shard to train on, and its weight in the mixture."""

    weight: float
    prefix: str


@dataclass(frozen=True)
class Split:
    """Shares of the documents; only their ratio counts."""

    train: float
    valid: float = 0.0
    test: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Split":
        """Megatron's grammar: one to three numbers like "969,30,1" or "9/1", missing ones are 0; else InputError."""
        try:
            shares = [float(word) for word in text.replace("/", ",").split(",")]
        except ValueError:
            shares = []
        if not 1 <= len(shares) <= 3 or not min(shares) >= 0 or not 0 < sum(shares) < math.inf:
            raise InputError(f"--split {text} is not one to three shares train,valid,test such as 969,30,1")
        return cls(*shares)

    def ranges(self, num_documents: int) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """(start, end) of the train, valid and test documents.

        Megatron's rule, so that the same string cuts the same corpus the same way: each share is rounded, and what
        rounding adds or loses is taken from or given to the first. A share of 0 stays empty.
        """
        shares = astuple(self)
        bounds = [0]
        for share in shares:
            bounds.append(bounds[-1] + round(share / sum(shares) * num_documents))
        excess = bounds[-1] - num_documents
        train_end = max(0, bounds[1] - excess) if self.train > 0 else 0
        valid_end = max(train_end, bounds[2] - excess)
        return (0, train_end), (train_end, valid_end), (valid_end, num_documents)


def parse_data_path(words: Sequence[str]) -> list[Source]:
    """--data-path: one prefix, or WEIGHT PREFIX WEIGHT PREFIX ...; InputError where it is neither."""
    if len(words) == 1:
        return [Source(1.0, words[0])]
    if len(words) == 0 or len(words) % 2:
        raise InputError(f"--data-path has {len(words)} words; give one prefix, or pairs WEIGHT PREFIX WEIGHT PREFIX")
    return [Source(_weight(*pair), pair[1]) for pair in zip(words[::2], words[1::2], strict=True)]


def _weight(word: str, prefix: str) -> float:
    try:
        weight = float(word)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise InputError(f"--data-path: {word!r} before {prefix} is not a weight, a number above 0")
    return weight


def parse_valid_data_path(entries: Iterable[str]) -> dict[str, str]:
    """--valid-data-path: name -> prefix. InputError where two have one name, or one has the training set's."""
    prefixes: dict[str, str] = {}
    for entry in entries:
        name, prefix = _name_and_prefix(entry)
        if not prefix:
            raise InputError(f"--valid-data-path {entry!r} has no prefix; give PREFIX or NAME=PREFIX")
        if name == "train":
            raise InputError(f"--valid-data-path {prefix} is named train, as the training set is; give another NAME=")
        if name in prefixes:
            raise InputError(f"--valid-data-path: {prefixes[name]} and {prefix} are both named {name}; use NAME=PREFIX")
        prefixes[name] = prefix
    return prefixes


def require_shards(data_path: Sequence[str], valid_data_path: Iterable[str]) -> None:
    """InputError where a shard of --data-path or --valid-data-path is not there."""
    prefixes = [source.prefix for source in parse_data_path(data_path)]
    for prefix in [*prefixes, *parse_valid_data_path(valid_data_path).values()]:
        require_shard(strip_suffix(prefix))


def _name_and_prefix(entry: str) -> tuple[str, str]:
    """NAME=PREFIX, or a PREFIX named by its file; a prefix may hold "=" itself."""
    name, equals, prefix = entry.partition("=")
    if equals and NAME.fullmatch(name) and not os.path.isfile(f"{strip_suffix(entry)}.idx"):
        return name, prefix
    return strip_suffix(entry).rsplit("/", 1)[-1], entry
