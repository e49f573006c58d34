"""Rows: hand-worked, each protein once an epoch, crops, shards from elsewhere, and several shards blended."""

import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_shards import (
    CLS,
    MASK,
    PAD,
    TOKENIZER,
    dataset,
    original,
    proteins_of,
    random_proteins,
    same,
    same_content,
    write,
)

from pretrain.data.blending import BlendedDataset, build_datasets
from pretrain.data.dataset import PackedDataset
from pretrain.data.indexed import IndexedDataset
from pretrain.data.loader import PackedLoader, collate, evaluation_batches
from proteinlm.errors import InputError


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> str:
    return write(tmp_path_factory.mktemp("shard") / "a", random_proteins(300, seed=1))


@pytest.fixture(scope="module")
def other_shard(tmp_path_factory) -> str:
    return write(tmp_path_factory.mktemp("shard") / "b", random_proteins(200, seed=2, longest=100))


# ---- one row


def test_a_batch_by_hand(tmp_path):
    proteins = [np.array([6, 7, 8]), np.array([9, 10])]  # with [CLS]: 4 + 3 of 8 tokens
    data = dataset(write(tmp_path / "two", proteins), seq_length=8, train=False, mask_prob=0.3)
    assert len(data) == 1 and data.utilisation == 7 / 8
    row = data.sample(0)
    batch = collate([row, row], 0.3)
    first = 0 if tuple(original(row)[1:4]) == (6, 7, 8) else 1
    lengths = [4, 3] if first == 0 else [3, 4]
    whole = [[CLS, 6, 7, 8], [CLS, 9, 10]]
    assert original(row).tolist() == [*whole[first], *whole[1 - first], PAD]
    positions = [*range(lengths[0]), *range(lengths[1]), 0]
    assert batch.position_ids.tolist() == [positions, positions]
    assert batch.cu_seqlens.tolist() == [0, lengths[0], 7, 8, 8 + lengths[0], 15, 16]
    assert batch.cu_seqlens.dtype == torch.int32 and batch.tokens.dtype == torch.int64
    # round(0.3 * 7 real tokens) = 2 a row are hidden; there is room for round(0.3 * 8) = 2 a row
    assert batch.num_masked == 4 and batch.labels.shape == batch.masked_positions.shape == (4,)
    assert torch.equal(batch.masked_positions[2:], batch.masked_positions[:2] + 8)
    assert (batch.num_real_tokens, batch.num_proteins, batch.sum_squared_lengths) == (14, 4, 2 * (16 + 9))


def test_unused_places_are_ignored_and_point_into_their_row(tmp_path):
    data = dataset(write(tmp_path / "short", [np.array([6, 7, 8, 9, 10])]), seq_length=64, train=False)
    batch = collate([data.sample(0)] * 2, 0.15)  # round(0.15 * 6) = 1 hidden, room for round(0.15 * 64) = 10
    assert batch.num_masked == 2 and batch.labels.shape == (20,)
    assert (batch.labels != -100).tolist() == ([True] + [False] * 9) * 2
    assert batch.masked_positions[1:10].tolist() == [0] * 9 and batch.masked_positions[11:].tolist() == [64] * 9


def test_masks_follow_the_rule_in_every_row(shard):
    data = dataset(shard)
    for sample in range(len(data)):
        row = data.sample(sample)
        assert len(row.labels) == round(0.15 * row.num_real_tokens)
        assert np.isin(row.labels, TOKENIZER.residue_ids).all()
        untouched = np.delete(row.tokens, row.masked_positions)
        assert np.array_equal(untouched, np.delete(original(row), row.masked_positions)) and MASK not in untouched


def test_epochs_hide_other_residues(shard):
    data, rows = dataset(shard), {}
    for sample in range(2 * len(data)):
        row = data.sample(sample)
        rows.setdefault(tuple(original(row).tolist()), []).append(row.masked_positions.tolist())
    assert len(rows) == len(data) and all(len(positions) == 2 for positions in rows.values())
    assert np.mean([first == second for first, second in rows.values()]) < 0.05


# ---- epochs and order


def test_every_protein_once_an_epoch_never_split(shard):
    data = dataset(shard)
    expected = Counter(tuple(protein.tolist()) for protein in random_proteins(300, seed=1))
    for epoch in range(2):
        rows = [data.sample(epoch * len(data) + place) for place in range(len(data))]
        assert Counter(protein for row in rows for protein in proteins_of(row)) == expected
    rows = [data.sample(place + 1) for place in range(len(data))]  # not an epoch: one row again, one missing
    assert Counter(protein for row in rows for protein in proteins_of(row)) != expected


def test_epochs_and_seeds_have_orders_of_their_own(shard):
    data = dataset(shard)
    rows = len(data)
    order = [[tuple(data.locate(start + n).sequences) for n in range(rows)] for start in (0, rows)]
    assert order[0] != order[1] and sorted(order[0]) == sorted(order[1])
    assert order[0] == [tuple(dataset(shard).locate(n).sequences) for n in range(rows)]
    other = dataset(shard, seed=2)
    assert sorted(tuple(other.locate(n).sequences) for n in range(len(other))) != sorted(order[0])
    assert data.locate(0).sequences.tolist() == list(order[0][0])  # back in the first epoch


def evaluated(data, rows: int, **options) -> list:
    return [batch for together in evaluation_batches(data, rows, **options) for batch in together]


def test_evaluation_has_each_row_once(shard):
    data = dataset(shard, train=False)
    with pytest.raises(IndexError):
        data.sample(len(data))
    batches = evaluated(data, 7)
    assert [len(batch.tokens) for batch in batches[:-1]] == [7] * (len(data) // 7)
    assert sum(len(batch.tokens) for batch in batches) == len(data)
    assert sum(batch.num_proteins for batch in batches) == 300
    assert same_content(batches, evaluated(data, 1))
    assert len(evaluated(data, 7, limit=2)) == 2


@pytest.mark.parametrize("limit", [None, 3])
def test_replicas_share_an_evaluation_in_batches_of_one_shape(shard, limit):
    data = dataset(shard, train=False)
    whole = evaluated(data, 7, limit=limit)
    shares = [evaluated(data, 7, limit=limit, dp_rank=rank, dp_size=2, together=2, same_shape=True) for rank in (0, 1)]
    assert {len(batch.tokens) for share in shares for batch in share} == {7}
    assert len(shares[0]) == len(shares[1]) and len(shares[0]) % 2 == 0
    assert sum(batch.num_masked for batch in [*shares[0], *shares[1]]) == sum(batch.num_masked for batch in whole)
    assert same(shares[1][0], whole[1]) and same(shares[0][1], whole[2])


# ---- proteins longer than a row


def test_crops(tmp_path):
    """Each residue's id depends on its place, so a crop shows where it was taken."""
    long = np.concatenate([np.full(9, 6), np.full(10, 7), np.full(10, 8)])  # 29 residues: three runs
    prefix = write(tmp_path / "long", [long, np.array([9, 9])])
    train, valid = dataset(prefix, seq_length=20), dataset(prefix, seq_length=20, train=False)
    assert train.num_cropped == valid.num_cropped == 1 and train.num_proteins == 2
    place = next(n for n in range(2) if valid.locate(n).sequences.tolist() == [0])
    row = valid.sample(place)
    assert row.num_cropped == 1 and proteins_of(row) == [tuple(long[:19].tolist())]
    starts = Counter()
    for sample in range(600):
        row = train.sample(sample)
        if row.num_cropped:
            (seen,) = proteins_of(row)
            assert row.num_real_tokens == 20 and len(seen) == 19
            starts[9 - seen.count(6) if 6 in seen else 9 + 10 - seen.count(7)] += 1
            assert proteins_of(train.sample(sample)) == [seen]  # the same again
    assert sum(starts.values()) == 300
    assert set(starts) == set(range(11))  # every start from 0 to 29 - 19 comes up
    assert max(starts.values()) < 60  # of 27 expected


def test_a_protein_that_just_fits_is_not_cropped(tmp_path):
    data = dataset(write(tmp_path / "fits", [np.full(19, 6), np.full(20, 7)]), seq_length=20)
    assert data.num_cropped == 1
    assert sorted(data.sample(n).num_cropped for n in range(2)) == [0, 1]


# ---- shards from elsewhere


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_a_shard_with_cls_tokens_gets_no_second_one(tmp_path, dtype):
    proteins = random_proteins(40, seed=3, longest=100)  # some longer than the row
    plain = dataset(write(tmp_path / "plain", proteins))
    with_cls = dataset(write(tmp_path / "cls", [np.append(CLS, protein) for protein in proteins], dtype))
    assert len(plain) == len(with_cls) and plain.num_cropped == with_cls.num_cropped > 0
    for sample in range(2 * len(plain)):
        a, b = plain.sample(sample), with_cls.sample(sample)
        assert np.array_equal(a.tokens, b.tokens) and np.array_equal(a.position_ids, b.position_ids)


def test_a_shard_where_some_have_cls_is_refused(tmp_path):
    prefix = write(tmp_path / "mixed", [np.array([CLS, 6, 7]), np.array([6, 7])])
    with pytest.raises(InputError, match="1 of 2 proteins begin with"):
        dataset(prefix)
    prefix = write(tmp_path / "inside", [np.array([6, CLS, 7])])
    with pytest.raises(InputError, match=r"2 \[CLS\] in a row of 1 proteins"):
        dataset(prefix).sample(0)


def test_ids_beyond_the_vocabulary_are_refused_in_one_line(tmp_path):
    data = dataset(write(tmp_path / "foreign", [np.array([6, 200, 7])]))
    for workers in (0, 1):
        with pytest.raises(InputError, match="token id 200; the vocabulary has 31") as caught:
            next(iter(PackedLoader(data, 1, lambda consumed: 1, num_workers=workers, start_method="fork")))
        assert "\n" not in str(caught.value) and str(tmp_path / "foreign") in str(caught.value)


def test_documents_of_several_sequences_and_empty_ones(tmp_path):
    """Elsewhere a document may hold several sequences, or none; --split counts documents."""
    prefix = tmp_path / "documents"
    write(prefix, [np.full(4, 6), np.full(4, 7), np.full(4, 8)])
    content = Path(f"{prefix}.idx").read_bytes()
    header = content[:18] + struct.pack("<QQ", 3, 4)
    Path(f"{prefix}.idx").write_bytes(header + content[34 : 34 + 3 * 12] + struct.pack("<4q", 0, 2, 2, 3))
    data = PackedDataset(IndexedDataset(prefix), (0, 2), TOKENIZER, 16, 0.15, 0, train=True)
    assert data.num_proteins == 2 and sorted(proteins_of(data.sample(0))) == [(6,) * 4, (7,) * 4]
    data = PackedDataset(IndexedDataset(prefix), (2, 3), TOKENIZER, 16, 0.15, 0, train=True)
    assert proteins_of(data.sample(0)) == [(8,) * 4]


# ---- blending


@pytest.mark.parametrize("weights", [(1, 1), (0.7, 0.3), (5, 1, 94), (1e-4, 1, 3)])
def test_weights_hold_over_every_stretch(shard, weights):
    blend = BlendedDataset([(weight, dataset(shard)) for weight in weights], seed=3)
    which = np.array([blend.component(n) for n in range(20_000)])
    for part, weight in enumerate(weights):
        seen = np.concatenate([[0], np.cumsum(which == part)])
        off = seen - np.arange(20_001) * weight / sum(weights)
        assert off.max() - off.min() < 5  # the worst stretch of all
        for n in (0, 1, 2, 17, 4321, 20_000):
            assert blend.count(part, n) == seen[n]
    assert sum(blend.count(part, 10**12) for part in range(len(weights))) == 10**12
    drawn = np.random.default_rng(0).choice(len(weights), 20_000, p=np.array(weights) / sum(weights))
    off = np.cumsum(drawn == len(weights) - 1) - np.arange(1, 20_001) * weights[-1] / sum(weights)
    assert off.max() - off.min() > 5  # which dice would not keep


def test_each_part_is_read_in_its_own_order(shard, other_shard):
    parts = [dataset(shard), dataset(other_shard)]
    blend = BlendedDataset([(0.7, parts[0]), (0.3, parts[1])], seed=3)
    taken = Counter()
    for n in range(500):
        request = blend.locate(n)
        part = parts[request.reader]
        assert request.sample == taken[request.reader]
        assert np.array_equal(request.sequences, part.locate(taken[request.reader]).sequences)
        taken[request.reader] += 1
    assert abs(taken[0] - 350) <= 2
    assert np.array_equal(blend.sample(7).tokens, blend.sample(7).tokens)
    other = BlendedDataset([(0.7, parts[0]), (0.3, parts[1])], seed=4)
    assert [blend.component(n) for n in range(50)] != [other.component(n) for n in range(50)]


def test_data_path_and_split(shard, other_shard):
    train, valid, test = build_datasets([shard], "8,1,1", TOKENIZER, 64, 0.15, 1)
    assert (train.num_proteins, valid.num_proteins, test.num_proteins) == (240, 30, 30)
    assert build_datasets([shard], "1,0,0", TOKENIZER, 64, 0.15, 1)[1:] == (None, None)
    train, valid, test = build_datasets(["0.5", shard, "0.5", other_shard], "8,2,0", TOKENIZER, 64, 0.15, 1)
    assert isinstance(train, BlendedDataset) and test is None and valid.num_proteins == 60 + 40
    counts = Counter(protein for n in range(len(valid)) for protein in proteins_of(valid.sample(n)))
    expected = random_proteins(300, seed=1)[240:] + random_proteins(200, seed=2, longest=100)[160:]
    assert sum(counts.values()) == len(expected)
    assert sum(protein[:63].tolist() in [list(f) for f in counts] for protein in expected) == len(expected)
    with pytest.raises(IndexError):
        valid.sample(len(valid))


@pytest.mark.parametrize(
    ("data_path", "message"),
    [
        ([], "0 words"),
        (["a", "b", "c"], "3 words"),
        (["a", "b"], "'a' before b is not a weight"),
        (["-1", "b"], "'-1' before b is not a weight"),
        (["nan", "b"], "'nan' before b is not a weight"),
        (["no_such_shard"], "no such file"),
    ],
)
def test_wrong_data_paths(data_path, message):
    with pytest.raises(InputError, match=message):
        build_datasets(data_path, "1,0,0", TOKENIZER, 64, 0.15, 1)


def test_a_blend_with_nothing_of_one_shard_is_refused(tmp_path, shard):
    tiny = write(tmp_path / "tiny", [np.full(5, 6)])
    with pytest.raises(InputError, match=r"leaves no protein of .*tiny"):
        build_datasets(["1", shard, "1", tiny], "1,9,0", TOKENIZER, 64, 0.15, 1)


@pytest.mark.parametrize(("seq_length", "mask_prob"), [(1, 0.15), (64, 0.0), (64, 1.5), (64, float("nan"))])
def test_wrong_numbers(shard, seq_length, mask_prob):
    with pytest.raises(InputError, match="must be"):
        dataset(shard, seq_length=seq_length, mask_prob=mask_prob)
