"""Several shards as one dataset: training sets blended by weight, evaluation sets one after the other.

    train, valid, test = build_datasets(["0.7", "pfam", "0.3", "uniref"], "969,30,1", tokenizer, 2176, 0.15, seed)

Which shard sample n comes from is a pure function of (seed, n), like all of the data order (dataset.py). numpy only.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from pretrain.data.dataset import Dataset, PackedDataset, Request
from pretrain.data.indexed import IndexedDataset
from pretrain.data.sources import Split, parse_data_path
from pretrain.data.stages import RemaskedDataset, Sampling, StagedDataset
from proteinlm.errors import InputError
from proteinlm.masking import BLEND_STREAM, COMPONENT_STREAM, STAGE_STREAM, sample_rng
from proteinlm.tokenizer import Tokenizer


class ConcatenatedDataset(Dataset):
    """Evaluation sets one after the other."""

    def __init__(self, parts: Sequence[PackedDataset]):
        self.readers = tuple(part.readers[0] for part in parts)
        self.num_proteins = sum(part.num_proteins for part in parts)
        self.num_cropped = sum(part.num_cropped for part in parts)
        self._parts = tuple(parts)
        self._ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def locate(self, sample: int) -> Request:
        which = bisect_right(self._ends, sample)
        if sample < 0 or which == len(self._parts):
            raise IndexError(f"sample {sample} of {len(self)} rows")
        inner = self._parts[which].locate(sample - (self._ends[which] - len(self._parts[which])))
        return Request(which, inner.sample, inner.sequences)


class BlendedDataset(Dataset):
    """Several training sets mixed by weight: which one sample n comes from is a pure function of (seed, n).

    Sample n goes to the set in whose share of the circle the point start + n x golden ratio falls. Those points are
    spread so evenly that over any stretch of samples each set gets its weight's share to within a few samples, and how
    many of the first n fell to a set has a closed form (`floor_sum`), so that its own rows follow one another without
    gaps and any n can be found without walking there.
    """

    CIRCLE = 2**62
    STEP = round(CIRCLE * (math.sqrt(5) - 1) / 2) | 1

    def __init__(self, parts: Sequence[tuple[float, PackedDataset]], seed: int):
        assert all(0 < weight < math.inf for weight, _ in parts), [weight for weight, _ in parts]
        self._parts = tuple(part for _, part in parts)
        self.readers = tuple(part.readers[0] for part in self._parts)
        self.num_proteins = sum(part.num_proteins for part in self._parts)
        self.num_cropped = sum(part.num_cropped for part in self._parts)
        total = math.fsum(weight for weight, _ in parts)
        shares = accumulate(weight / total for weight, _ in parts)
        self._bounds = [0, *(min(self.CIRCLE, round(share * self.CIRCLE)) for share in shares)]
        self._bounds[-1] = self.CIRCLE
        self._start = int(sample_rng(seed, BLEND_STREAM).bit_generator.random_raw()) % self.CIRCLE

    def __len__(self) -> int:
        """Rows of all the sets; an epoch of one set is not an epoch of another."""
        return sum(len(part) for part in self._parts)

    def component(self, sample: int) -> int:
        """The set that sample `sample` comes from."""
        return bisect_right(self._bounds, (self._start + sample * self.STEP) % self.CIRCLE) - 1

    def count(self, component: int, samples: int) -> int:
        """How many of the first `samples` samples come from set `component`."""
        return self._below(self._bounds[component + 1], samples) - self._below(self._bounds[component], samples)

    def _below(self, bound: int, samples: int) -> int:
        """How many of the first `samples` points lie below `bound` on the circle of C.

        A point x (not yet wrapped) does where floor(x / C) - floor((x - bound) / C) is 1 and not 0; this is its sum.
        """
        laps = floor_sum(samples, self.CIRCLE, self.STEP, self._start)
        laps_behind = floor_sum(samples, self.CIRCLE, self.STEP, self._start + self.CIRCLE - bound) - samples
        return laps - laps_behind

    def locate(self, sample: int) -> Request:
        which = self.component(sample)
        inner = self._parts[which].locate(self.count(which, sample))
        return Request(which, inner.sample, inner.sequences)


def floor_sum(n: int, m: int, a: int, b: int) -> int:
    """The sum of floor((a * i + b) / m) over i = 0 ... n - 1, for a, b >= 0, in O(log m) steps (Euclid's algorithm)."""
    total = 0
    while True:
        total += (a // m) * n * (n - 1) // 2 + (b // m) * n
        a, b = a % m, b % m
        top = a * n + b
        if top < m:
            return total
        n, b, m, a = top // m, top % m, a, m


def build_datasets(
    data_path: Sequence[str],
    split: str,
    tokenizer: Tokenizer,
    seq_length: int,
    mask_prob: float,
    seed: int,
    sampling: Sampling | None = None,
) -> tuple[Dataset, Dataset | None, Dataset | None]:
    """Train, validation and test sets of `--data-path`; None where the split leaves nothing to evaluate on.

    data_path: one prefix, or weight prefix weight prefix ... Training sets are blended by weight; validation and test
    sets follow one another, whatever the weights. Every prefix has a seed of its own, drawn from `seed`. sampling: of
    the training set alone. InputError where the split or the longest protein of a stage leaves nothing of a prefix to
    train on: without it the mixture would be another.
    """
    sources, sampling = parse_data_path(data_path), sampling or Sampling()
    shards = [IndexedDataset(source.prefix) for source in sources]
    ranges = [Split.parse(split).ranges(len(shard.documents) - 1) for shard in shards]

    def parts(column: int, seed: int, longest: int | None = None) -> list[PackedDataset]:
        return [
            PackedDataset(
                shard,
                documents[column],
                tokenizer,
                seq_length,
                mask_prob,
                int(sample_rng(seed, COMPONENT_STREAM, number).bit_generator.random_raw()),
                train=column == 0,
                balance=sampling.balance,
                longest=longest,
            )
            for number, (shard, documents) in enumerate(zip(shards, ranges, strict=True))
        ]

    def train_of(seed: int, longest: int | None) -> Dataset:
        train = parts(0, seed, longest)
        if empty := [source.prefix for source, part in zip(sources, train, strict=True) if len(part) == 0]:
            cause = f"--split {split}" if longest is None else f"--seq-length-rampup {longest}"
            hint = "; leave that prefix out" if len(empty) < len(sources) else ""
            raise InputError(f"{cause} leaves no protein of {empty[0]} to train on{hint}")
        pairs = [(source.weight, part) for source, part in zip(sources, train, strict=True)]
        return train[0] if len(train) == 1 else BlendedDataset(pairs, seed)

    train = train_of(seed, None)
    if sampling.longest:
        seeds = (sample_rng(seed, STAGE_STREAM, n).bit_generator.random_raw() for n in range(len(sampling.longest)))
        early = [train_of(int(own), longest) for own, (longest, _) in zip(seeds, sampling.longest, strict=True)]
        train = StagedDataset([*early, train], [end for _, end in sampling.longest])
    if sampling.mask_prob or sampling.mask_only:
        train = RemaskedDataset(train, sampling.mask_prob, sampling.mask_only)
    return train, _concatenated(parts(1, seed)), _concatenated(parts(2, seed))


def _concatenated(parts: Sequence[PackedDataset]) -> Dataset | None:
    parts = [part for part in parts if len(part)]
    if len(parts) > 1:
        return ConcatenatedDataset(parts)
    return parts[0] if parts else None
