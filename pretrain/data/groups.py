"""Groups of proteins beside a shard (`<prefix>.groups.npy`), and epochs in which no group drowns the others.

    groups = read_groups(prefix, len(indexed))                # int32 [N]: the group of every sequence
    draw = GroupSampler(groups, Balance(temperature=0.5), seed=1).draw(epoch)

A group of n proteins gives min(n^temperature, cap) of them to an epoch, the next ones to the next epoch, so that every
member is seen before one is seen again. What must hold: the draw is a pure function of (groups, seed, epoch). numpy
only.
"""

import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from proteinlm.errors import InputError
from proteinlm.files import atomic_path
from proteinlm.masking import GROUP_STREAM, permutation, sample_rng
from proteinlm.untrusted.array_files import read_npy
from proteinlm.untrusted.json_files import read_json

UNIT = 1 << 12  # a group's share of an epoch is counted in these parts of a protein


@dataclass(frozen=True)
class Balance:
    """How much of a large group an epoch sees. False where that is all of it."""

    temperature: float = 1.0  # 0 ... 1: 1 takes all, 0 one protein of every group
    cap: int | None = None  # at most so many of a group

    def __bool__(self) -> bool:
        return self.temperature != 1 or self.cap is not None


RULES = {  # by name, for --group-by: the first match in a FASTA header is the protein's group
    "pfam": r"\bPF\d{5}\b",
    "interpro": r"\bIPR\d{6}\b",
    "uniref": r"\bUniRef\d+_\w+\b",
    "taxon": r"\b(?:TaxID=|OX=)(\d+)",
}


def compile_rule(rule: str) -> re.Pattern:
    """A rule by name, or a regular expression of which the first group counts, if it has one; else InputError."""
    try:
        return re.compile(RULES.get(rule, rule))
    except re.error as error:
        raise InputError(
            f"--group-by {rule} is neither one of {', '.join(RULES)} nor a regular expression: {error}"
        ) from None


def keys_of(headers: Sequence[str], rule: re.Pattern) -> list[str | None]:
    """The group's name in each header, None where the rule finds none."""
    found = [rule.search(header) for header in headers]
    return [match and match[rule.groups and 1] for match in found]


class GroupNumbers:
    """Numbers groups in the order in which they appear; what has no name is a group of its own."""

    def __init__(self):
        self._numbers: dict[str, int] = {}
        self._parts: list[np.ndarray] = []
        self._next = self.unknown = 0

    def add(self, keys: Sequence[str | None]) -> None:
        numbers = np.empty(len(keys), np.int32)
        for i, key in enumerate(keys):
            number = self._numbers.get(key, self._next) if key else self._next
            if number == self._next:
                self._next += 1
                if key:
                    self._numbers[key] = number
                else:
                    self.unknown += 1
            numbers[i] = number
        self._parts.append(numbers)

    def groups(self) -> np.ndarray:
        """int32 [N]."""
        return np.concatenate(self._parts) if self._parts else np.empty(0, np.int32)


def groups_path(prefix: str) -> str:
    return f"{prefix}.groups.npy"


def write_groups(prefix: str, groups: np.ndarray) -> None:
    """groups: int [N], the group of every sequence of the shard, from 0."""
    with atomic_path(groups_path(prefix)) as temporary, open(temporary, "wb") as file:
        np.save(file, np.asarray(groups, "<i4"), allow_pickle=False)


def checksum(groups: np.ndarray) -> int:
    """CRC-32 of groups int [N], by which the summary beside a shard knows them."""
    return zlib.crc32(np.ascontiguousarray(groups, "<i4").view(np.uint8))


def read_groups(prefix: str, num_sequences: int) -> np.ndarray:
    """int32 [N]. InputError where the file is missing, not one group for every sequence of the shard, or other than
    what the summary beside it says (one that is older, or not there, says nothing)."""
    path = groups_path(prefix)
    if not os.path.isfile(path):
        raise InputError(
            f"{path}: no such file, and --group-temperature and --group-cap need it; preprocess with --group-by or "
            "--cluster"
        )
    advice = f"preprocess again, for the shard's {num_sequences} sequences"
    groups = read_npy(path, (num_sequences,), "<i4", mapped=True, advice=advice)
    if num_sequences and groups.min() < 0:
        raise InputError(f"{path}: group {int(groups.min())} is below 0; preprocess again")
    summary = f"{prefix}.summary.json"
    if os.path.isfile(summary):
        stored = read_json(summary, "what pretrain.preprocess wrote", {"groups?": {"crc32?": int}}).get("groups", {})
        if stored.get("crc32") not in (None, checksum(groups)):
            raise InputError(f"{path}: damaged, or of another run: not the groups that {summary} tells of; {advice}")
    return groups


class GroupSampler:
    """Which of `groups` int [P] proteins each epoch sees; indices into `groups`."""

    def __init__(self, groups: np.ndarray, balance: Balance, seed: int):
        order = permutation(len(groups), seed, GROUP_STREAM)
        self._order = order[np.argsort(groups[order], kind="stable")]  # by group, in a random order within
        self._sizes = np.unique(groups, return_counts=True)[1].astype(np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        most = np.inf if balance.cap is None else balance.cap
        share = np.minimum(self._sizes.astype(np.float64) ** balance.temperature, most)
        self._share = np.rint(share * UNIT).astype(np.int64)
        # Groups of one size round up in different epochs, so that epochs are alike.
        raw = sample_rng(seed, GROUP_STREAM, 1).bit_generator.random_raw(len(self._sizes))
        self._phase = (raw % np.uint64(UNIT)).astype(np.int64)

    def draw(self, epoch: int) -> np.ndarray:
        """int64, ascending; no protein twice."""
        first, last = ((number * self._share + self._phase) // UNIT for number in (epoch, epoch + 1))
        counts = last - first
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        places = (np.repeat(first, counts) + within) % np.repeat(self._sizes, counts)
        return np.sort(self._order[np.repeat(self._starts, counts) + places])
