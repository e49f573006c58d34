"""A training set that changes as the run goes on: which proteins are drawn, and how they are masked, by sample number.

    stages = parse_stages("--seq-length-rampup", ["70:12000", "128:33600"], int)    # ((70, 12000), (128, 33600))

What must hold: sample n is a pure function of (seed, n), so a run resumed in the middle of a stage goes on exactly.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pretrain.data.dataset import Dataset, Request
from pretrain.data.groups import Balance
from proteinlm.errors import InputError

if TYPE_CHECKING:
    from pretrain.config.options import Data

Stages = tuple[tuple[float, int], ...]  # (value, the sample that it ends before)


@dataclass(frozen=True)
class Sampling:
    """How training proteins are drawn and masked beside --seq-length and --mask-prob, which hold after the stages."""

    balance: Balance | None = None
    longest: Stages = ()  # residues of a protein
    mask_prob: Stages = ()
    mask_only: int = 0  # samples in which every residue to predict is shown as [MASK]

    @classmethod
    def of(cls, data: "Data") -> "Sampling":
        """What the options of a run say; InputError where one cannot be read."""
        return cls(
            Balance(data.group_temperature, data.group_cap),
            parse_stages("--seq-length-rampup", data.seq_length_rampup, int),
            parse_stages("--mask-prob-rampup", data.mask_prob_rampup, float),
            data.mask_only_samples,
        )


def highest_mask_prob(data: "Data") -> float:
    """Of a run, over all of its stages: what the shape of a batch has room for."""
    return max(data.mask_prob, *(prob for prob, _ in Sampling.of(data).mask_prob), 0)


def parse_stages(flag: str, words: Sequence[str], kind: Callable[[str], float]) -> Stages:
    """VALUE:SAMPLES ...: each value holds until so many samples of the run are consumed; else InputError."""
    stages: list[tuple[float, int]] = []
    for word in " ".join(words).split():
        try:
            value, end = word.split(":")
            stages.append((kind(value), int(end)))
        except ValueError:
            raise InputError(f"{flag} {word} is not VALUE:SAMPLES, such as 128:4000") from None
        if not stages[-1][0] > 0:
            raise InputError(f"{flag} {word}: {value} must be above 0")
        if stages[-1][1] <= (stages[-2][1] if len(stages) > 1 else 0):
            raise InputError(f"{flag} {word}: it must end after the stage before it, counted from the run's start")
    return tuple(stages)


class StagedDataset(Dataset):
    """Training sets one after the other, the last one for ever. Each begins with its own sample 0."""

    def __init__(self, parts: Sequence[Dataset], ends: Sequence[int]):
        """ends: the sample that each part but the last ends before."""
        self._parts, self._ends, last = tuple(parts), list(ends), parts[-1]
        self.readers = tuple(reader for part in parts for reader in part.readers)
        self.num_proteins, self.num_cropped = last.num_proteins, last.num_cropped

    @property
    def shards(self) -> list:
        return self._parts[-1].shards

    def __len__(self) -> int:
        return len(self._parts[-1])

    def locate(self, sample: int) -> Request:
        stage = bisect_right(self._ends, sample)
        inner = self._parts[stage].locate(sample - (self._ends[stage - 1] if stage else 0))
        before = sum(len(part.readers) for part in self._parts[:stage])
        return replace(inner, reader=before + inner.reader)


class RemaskedDataset(Dataset):
    """The rows of a training set, masked otherwise in its first samples."""

    def __init__(self, data: Dataset, mask_prob: Stages, mask_only: int):
        final = data.readers[0].mask_prob
        self._data = data
        self._ends = sorted({end for _, end in mask_prob} | ({mask_only} if mask_only else set()))
        starts = [0, *self._ends]
        probs = [next((prob for prob, end in mask_prob if start < end), final) for start in starts]
        self.readers = tuple(
            replace(reader, mask_prob=prob, mask_only=start < mask_only)
            for start, prob in zip(starts, probs, strict=True)
            for reader in data.readers
        )
        self.num_proteins, self.num_cropped = data.num_proteins, data.num_cropped

    @property
    def shards(self) -> list:
        return self._data.shards

    def __len__(self) -> int:
        return len(self._data)

    def locate(self, sample: int) -> Request:
        inner = self._data.locate(sample)
        return replace(inner, reader=bisect_right(self._ends, sample) * len(self._data.readers) + inner.reader)
