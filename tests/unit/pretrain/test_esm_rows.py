"""Rows in ESM's vocabulary: every protein is `<cls> residues <eos>`, a cropped one too."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tiny_shards import original, write

from pretrain.data.dataset import PackedDataset
from pretrain.data.indexed import IndexedDataset
from proteinlm.errors import InputError
from proteinlm.files import write_json
from proteinlm.tokenizer import build_tokenizer

ESM = build_tokenizer("esm")
CLS, PAD, EOS, MASK = 0, 1, 2, 32


def dataset(prefix: str, seq_length: int = 64, train: bool = True, mask_prob: float = 0.15) -> PackedDataset:
    return PackedDataset(IndexedDataset(prefix), (0, len(IndexedDataset(prefix))), ESM, seq_length, mask_prob, 1, train)


def proteins_of(row) -> list[list[int]]:
    bounds = [*row.segment_starts.tolist(), row.num_real_tokens][: row.num_proteins + 1]
    return [original(row)[a:b].tolist() for a, b in pairwise(bounds)]


def random_shard(folder: Path, letters: str = "LAGVSERTIDPKQNFYMHWC", cls: bool = False) -> str:
    rng = np.random.default_rng(0)
    proteins = [rng.choice(ESM.encode(letters), size) for size in rng.integers(3, 100, 60)]
    proteins = [np.array([*[CLS] * cls, *protein]) for protein in proteins]
    return write(folder / "shard", proteins)


def test_a_row_by_hand(tmp_path):
    data = dataset(write(tmp_path / "two", [ESM.encode("LAG"), ESM.encode("S-")]), 12, train=False, mask_prob=0.3)
    row = data.sample(0)
    assert len(data) == 1 and data.utilisation == 9 / 12
    whole = [[CLS, 4, 5, 6, EOS], [CLS, 8, 30, EOS]]
    first = 0 if original(row)[1] == 4 else 1
    assert original(row).tolist() == [*whole[first], *whole[1 - first], PAD, PAD, PAD]
    lengths = [len(whole[first]), len(whole[1 - first])]
    assert row.position_ids.tolist() == [*range(lengths[0]), *range(lengths[1]), 0, 1, 2]
    assert row.segment_starts.tolist() == [0, lengths[0], 9]
    assert (row.num_real_tokens, row.num_proteins, row.sum_squared_lengths) == (9, 2, 25 + 16)
    assert len(row.labels) == round(0.3 * 9)


def test_gaps_can_be_hidden_and_are_never_drawn_and_special_tokens_neither(tmp_path):
    data = dataset(random_shard(tmp_path, letters="LA-."))
    labels, changed = [], []
    for sample in range(3 * len(data)):
        row = data.sample(sample)
        labels += row.labels.tolist()
        changed += row.tokens[row.masked_positions][row.tokens[row.masked_positions] != row.labels].tolist()
        assert all(protein[0] == CLS and protein[-1] == EOS for protein in proteins_of(row))
    assert set(labels) == set(ESM.encode("LA-.").tolist())
    assert set(changed) == {MASK, *ESM.residue_ids.tolist()} and len(ESM.residue_ids) == 25


def test_crops_keep_both_ends(tmp_path):
    """Ids count up along the protein, so a crop shows where it was taken; 10 residues just fit."""
    data = [dataset(write(tmp_path / "long", [np.arange(4, 29), np.full(10, 4)]), 12, train) for train in (True, False)]
    assert data[0].num_cropped == 1 and data[0].num_proteins == 2
    rows = [data[0].sample(sample) for sample in range(400)]
    cropped = [proteins_of(row)[0] for row in rows if row.num_cropped]
    assert len(cropped) == 200 and {row.num_real_tokens for row in rows} == {12}
    assert all(c == [CLS, *range(c[1], c[1] + 10), EOS] for c in cropped)
    assert {c[1] for c in cropped} == set(range(4, 4 + 16))
    evaluated = [proteins_of(data[1].sample(place))[0] for place in range(2)]
    assert sorted(evaluated) == [[CLS, *[4] * 10, EOS], [CLS, *range(4, 14), EOS]]


def test_a_shard_may_have_its_own_cls_but_no_eos(tmp_path):
    plain = dataset(random_shard(tmp_path / "plain"))
    with_cls = dataset(random_shard(tmp_path / "cls", cls=True))
    for sample in range(len(plain)):
        assert np.array_equal(plain.sample(sample).tokens, with_cls.sample(sample).tokens)
    with_eos = dataset(write(tmp_path / "eos", [np.array([4, 5, EOS])]))
    with pytest.raises(InputError, match="2 <eos> in a row of 1 proteins: a shard holds residues only"):
        with_eos.sample(0)


def test_an_empty_sequence_is_no_protein_and_a_row_has_room_for_a_residue(tmp_path):
    prefix = write(tmp_path / "empty", [np.array([CLS]), np.array([CLS, 4, 5])])
    assert dataset(prefix).num_proteins == 1
    with pytest.raises(InputError, match="--seq-length 2 must be at least 3: <cls>, <eos> and a residue"):
        dataset(prefix, 2)


def test_a_shard_of_another_vocabulary_is_refused(tmp_path):
    """Its ids are all valid here, so only the summary that preprocessing wrote can tell."""
    prefix = random_shard(tmp_path)
    write_json(f"{prefix}.summary.json", {"tokenizer": ESM.to_dict()})
    assert len(dataset(prefix))
    write_json(f"{prefix}.summary.json", {"tokenizer": build_tokenizer("iupac").to_dict()})
    with pytest.raises(InputError, match=r"summary.json: preprocessed with the vocabulary iupac, this run's is esm"):
        dataset(prefix)
