"""Rows of packed, masked proteins by number: the data order of pretraining as a pure function of (seed, sample number).

    train = PackedDataset(IndexedDataset(prefix), (0, 9000), tokenizer, 2176, 0.15, seed, train=True)
    row = train.sample(12345)

A row is `[CLS] residues [CLS] residues ... [PAD]...`, with ESM's vocabulary `<cls> residues <eos> <cls> ...`, which
crops have as whole proteins do. Position ids restart at 0 with every protein, and the padding tail is a segment of its
own. Sample n of a training set is row n % R of epoch n // R, whose order is drawn from
(seed, epoch); what is hidden, and which part of a too long protein is seen, is drawn from (seed, n). Nothing else
decides, so `consumed_train_samples` is the whole state of the data. Where groups are balanced (`Balance`), each epoch
has proteins of its own, packed when it begins, and R is its own number of rows.

A dataset answers in two steps: `locate(n)` says which proteins make the row and needs the packed index; a `RowReader`
reads and masks them and needs only the shard. Worker processes hold readers alone, not a copy of the index of millions
of proteins. numpy only.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pretrain.data.groups import Balance, GroupSampler, read_groups
from pretrain.data.indexed import IndexedDataset
from pretrain.data.packing import PackedIndex, pack, utilisation
from proteinlm.errors import InputError
from proteinlm.masking import (
    CROP_STREAM,
    EPOCH_STREAM,
    GROUP_STREAM,
    MASK_STREAM,
    mask_tokens,
    permutation,
    sample_rng,
)
from proteinlm.tokenizer import Tokenizer
from proteinlm.untrusted.json_files import read_json

CLS_PROBES = 1024  # proteins looked at to learn whether a shard's proteins begin with [CLS]


@dataclass(frozen=True, eq=False)
class Row:
    """One packed row of s tokens."""

    tokens: np.ndarray  # int64 [s], masked
    position_ids: np.ndarray  # int64 [s]
    segment_starts: np.ndarray  # int32 [segments]: every protein, then the padding tail if there is one
    masked_positions: np.ndarray  # int64 [m]
    labels: np.ndarray  # int64 [m]
    num_real_tokens: int  # [CLS] and <eos> included
    num_proteins: int
    sum_squared_lengths: int  # over the proteins
    num_cropped: int


@dataclass(frozen=True, eq=False)
class Request:
    """Where a row comes from: which of a dataset's readers, the sample number there, its sequences in the shard."""

    reader: int
    sample: int
    sequences: np.ndarray  # int64 [proteins]


@dataclass(frozen=True, eq=False)
class RowReader:
    """Reads and masks rows of one shard; small to send to a worker process (the shard is reopened there)."""

    indexed: IndexedDataset
    tokenizer: Tokenizer
    seq_length: int
    mask_prob: float
    seed: int
    train: bool
    has_cls: bool  # the shard's proteins begin with a [CLS] of their own
    mask_only: bool = False  # every residue to predict is shown as [MASK]

    def read(self, sample: int, sequences: np.ndarray) -> Row:
        """The row of `sequences`; `sample` decides the crop and the masks. InputError for ids the vocabulary lacks."""
        s, tokenizer, own_cls = self.seq_length, self.tokenizer, int(self.has_cls)
        most = s - num_added(tokenizer)
        residues = self.indexed.lengths[sequences].astype(np.int64) - own_cls
        lengths = np.minimum(residues, most) + num_added(tokenizer)
        ends = np.cumsum(lengths)
        starts = ends - lengths
        used = int(ends[-1])
        assert used <= s, (used, s)
        tokens = np.full(s, tokenizer.pad_id, np.int64)
        tokens[starts] = tokenizer.cls_id
        if tokenizer.ends_proteins:
            tokens[ends - 1] = tokenizer.sep_id
        crops = residues > most
        for sequence, start, crop, length in zip(
            sequences.tolist(), starts.tolist(), crops.tolist(), residues.tolist(), strict=True
        ):
            if crop:
                first = own_cls + self._crop_start(sample, length - most)
                tokens[start + 1 : start + 1 + most] = self.indexed.read(sequence, first, first + most)
            else:  # with a [CLS] of its own it is read over ours, which `_check` then compares
                tokens[start + 1 - own_cls : start + 1 + length] = self.indexed.read(sequence)
        self._check(tokens[:used], len(sequences))
        segments, sizes = (starts, lengths) if used == s else (np.append(starts, used), np.append(lengths, s - used))
        position_ids = np.arange(s) - np.repeat(segments, sizes)
        rng = sample_rng(self.seed, MASK_STREAM, sample)
        masked, positions, labels = mask_tokens(
            tokens, self._maskable[tokens], tokenizer, rng, self.mask_prob, mask_only=self.mask_only
        )
        return Row(
            tokens=masked,
            position_ids=position_ids,
            segment_starts=segments.astype(np.int32),
            masked_positions=positions,
            labels=labels,
            num_real_tokens=used,
            num_proteins=len(sequences),
            sum_squared_lengths=int((lengths * lengths).sum()),
            num_cropped=int(crops.sum()),
        )

    def _crop_start(self, sample: int, spare: int) -> int:
        """Where the part of a protein begins that is `spare` residues too long, 0 ... spare; 0 in evaluation."""
        if not self.train:
            return 0
        return int(sample_rng(self.seed, CROP_STREAM, sample).random() * (spare + 1))

    @cached_property
    def _maskable(self) -> np.ndarray:  # bool [vocabulary]
        t = self.tokenizer
        table = np.ones(t.vocab_size, bool)
        table[[t.pad_id, t.mask_id, t.cls_id, t.sep_id, t.unk_id]] = False
        return table

    def _check(self, tokens: np.ndarray, num_proteins: int) -> None:
        low, high, vocab_size = int(tokens.min()), int(tokens.max()), self.tokenizer.vocab_size
        if low < 0 or high >= vocab_size:
            bad = low if low < 0 else high
            raise InputError(
                f"{self.indexed.prefix}: token id {bad}; the vocabulary has {vocab_size} (0 ... {vocab_size - 1}): "
                f"preprocess with the tokenizer that training uses"
            )
        num_cls = np.count_nonzero(tokens == self.tokenizer.cls_id)
        if num_cls != num_proteins:
            raise InputError(
                f"{self.indexed.prefix}: {num_cls} [CLS] in a row of {num_proteins} proteins: every protein "
                f"of a shard must begin with one, or none may hold any"
            )
        num_eos = np.count_nonzero(tokens == self.tokenizer.sep_id)
        if self.tokenizer.ends_proteins and num_eos != num_proteins:
            raise InputError(
                f"{self.indexed.prefix}: {num_eos} <eos> in a row of {num_proteins} proteins: a shard holds residues "
                "only, and each protein gets its one <eos> here"
            )


def num_added(tokenizer: Tokenizer) -> int:
    """Tokens that a row has of every protein beside its residues: [CLS], and <eos> where the vocabulary has it."""
    return 1 + tokenizer.ends_proteins


class Dataset:
    """What the loader and the trainer ask of a dataset. len() is its number of rows (of its first epoch)."""

    readers: tuple[RowReader, ...]
    num_proteins: int
    num_cropped: int  # proteins longer than a row: cropped in every epoch

    @property
    def shards(self) -> list[IndexedDataset]:
        """What the proteins are read from, one a prefix of --data-path."""
        return [reader.indexed for reader in self.readers]

    def __len__(self) -> int:
        raise NotImplementedError

    def locate(self, sample: int) -> Request:
        """What row `sample` is made of; IndexError where there is no such row."""
        raise NotImplementedError

    def sample(self, sample: int) -> Row:
        """Row number `sample`, read and masked."""
        request = self.locate(sample)
        return self.readers[request.reader].read(request.sample, request.sequences)


class PackedDataset(Dataset):
    """One shard's documents [start, end), packed into rows of `seq_length` tokens.

    len() is the number of rows R. Training: `sample(n)` for any n >= 0, epoch after epoch, too long proteins cropped at
    random. Evaluation: n < R, rows in packed order, too long proteins cropped from their start.
    balance: of training, None for every protein in every epoch. longest: leave out proteins of more residues.
    """

    def __init__(
        self,
        indexed: IndexedDataset,
        documents: tuple[int, int],
        tokenizer: Tokenizer,
        seq_length: int,
        mask_prob: float,
        seed: int,
        train: bool,
        balance: Balance | None = None,
        longest: int | None = None,
    ):
        added = num_added(tokenizer)
        if seq_length <= added:
            specials = "[CLS]" if added == 1 else "<cls>, <eos>"
            raise InputError(f"--seq-length {seq_length} must be at least {added + 1}: {specials} and a residue")
        if not 0 < mask_prob <= 1:
            raise InputError(f"--mask-prob {mask_prob} must be above 0 and at most 1")
        _check_vocabulary(indexed.prefix, tokenizer)
        start, end = (int(indexed.documents[bound]) for bound in documents)
        lengths = np.asarray(indexed.lengths[start:end])
        has_cls = _begin_with_cls(indexed, start + np.flatnonzero(lengths > 0), tokenizer.cls_id)
        usable = lengths > int(has_cls)  # an empty sequence is no protein
        if longest is not None:
            usable &= lengths <= longest + int(has_cls)
        proteins = np.flatnonzero(usable)
        sizes = lengths[proteins] - int(has_cls) + added
        self.readers = (RowReader(indexed, tokenizer, seq_length, mask_prob, seed, train, has_cls),)
        self.num_proteins = len(proteins)
        self.num_cropped = int(np.count_nonzero(sizes > seq_length))  # proteins longer than a row
        self._sequences = proteins + start  # int64 [proteins]
        self._train, self._seed, self._seq_length = train, seed, seq_length
        self._sampler = None
        if balance and train:
            groups = read_groups(indexed.prefix, len(indexed))[self._sequences]
            self._sampler, self._sizes = GroupSampler(groups, balance, seed), sizes
            self._packed = 0, *self._pack_epoch(0)
            self._ends = [self._packed[1].num_rows]  # of each epoch so far, in rows
            index, sizes = self._packed[1], sizes[self._packed[2]]
        else:
            index = pack(sizes, seq_length, seed)
        self._index = index
        self.utilisation = utilisation(index, sizes, seq_length)
        self._drawn: tuple[int, np.ndarray] | None = None  # the epoch last asked for and its order of rows

    def __len__(self) -> int:
        return self._index.num_rows

    def locate(self, sample: int) -> Request:
        """The proteins of row `sample`; O(1) but for the first one of an epoch."""
        rows = len(self)
        if sample < 0 or rows == 0 or (not self._train and sample >= rows):
            raise IndexError(f"sample {sample} of {rows} rows")
        if self._sampler:
            return Request(0, sample, self._sequences[self._balanced(sample)])
        epoch, place = divmod(sample, rows)
        row = int(self._epoch_order(epoch, rows)[place]) if self._train else place
        return Request(0, sample, self._sequences[self._index.row(row)])

    def _balanced(self, sample: int) -> np.ndarray:
        """Row `sample` where epochs differ: the rows of all epochs before count, so those are packed once."""
        while sample >= self._ends[-1]:
            epoch = len(self._ends)
            self._packed = epoch, *self._pack_epoch(epoch)
            self._ends.append(self._ends[-1] + self._packed[1].num_rows)
        epoch = bisect_right(self._ends, sample)
        if self._packed[0] != epoch:
            self._packed = epoch, *self._pack_epoch(epoch)
        _, index, drawn = self._packed
        place = sample - (self._ends[epoch] - index.num_rows)
        return drawn[index.row(int(self._epoch_order(epoch, index.num_rows)[place]))]

    def _pack_epoch(self, epoch: int) -> tuple[PackedIndex, np.ndarray]:
        """(rows of the proteins drawn for an epoch, as indices into these; the proteins, int64)."""
        drawn = self._sampler.draw(epoch)
        seed = int(sample_rng(self._seed, GROUP_STREAM, 2, epoch).bit_generator.random_raw())
        return pack(self._sizes[drawn], self._seq_length, seed), drawn

    def _epoch_order(self, epoch: int, rows: int) -> np.ndarray:
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, permutation(rows, self._seed, EPOCH_STREAM, epoch)
        return self._drawn[1]


def _check_vocabulary(prefix: str, tokenizer: Tokenizer) -> None:
    """InputError where the summary beside a shard (not every shard has one) names another vocabulary: ids of one are
    valid in another, so nothing else would tell."""
    summary = Path(f"{prefix}.summary.json")
    if not summary.is_file():
        return
    stored = read_json(summary, "what pretrain.preprocess wrote", {"tokenizer?": dict}).get("tokenizer")
    if stored and (stored.get("name"), stored.get("tokens")) != (tokenizer.name, [*tokenizer.tokens]):
        raise InputError(
            f"{summary}: preprocessed with the vocabulary {stored.get('name')}, this run's is {tokenizer.name}; give "
            "its --tokenizer-type (and --vocab-file), or preprocess again"
        )


def _begin_with_cls(indexed: IndexedDataset, sequences: np.ndarray, cls_id: int) -> bool:
    """Whether the shard's proteins begin with [CLS], judged by some spread over it; InputError when only some do."""
    probes = sequences[np.linspace(0, len(sequences) - 1, min(CLS_PROBES, len(sequences))).astype(np.int64)]
    begins = [int(indexed.read(sequence, 0, 1)[0]) == cls_id for sequence in probes.tolist()]
    if any(begins) and not all(begins):
        raise InputError(
            f"{indexed.prefix}: {sum(begins)} of {len(begins)} proteins begin with [CLS]; all must, or none"
        )
    return any(begins)
