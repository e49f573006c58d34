"""Shards looked at whole before the first step: what is wrong is found wherever it is, and named with its protein."""

import numpy as np
import pytest
from tiny_shards import CLS, TOKENIZER, random_proteins, write

from pretrain.data import checking
from pretrain.data.checking import first_problem
from pretrain.data.dataset import PackedDataset
from pretrain.data.indexed import IndexedDataset
from proteinlm.tokenizer import build_tokenizer


def readers(prefix, tokenizer=TOKENIZER):
    shard = IndexedDataset(prefix)
    return PackedDataset(shard, (0, len(shard)), tokenizer, 64, 0.15, 0, train=True).readers


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(checking, "CHUNK", 100)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
@pytest.mark.parametrize("place", [0, 77, 199])
def test_an_id_that_the_vocabulary_lacks_is_found_anywhere(tmp_path, place, dtype):
    proteins = random_proteins(200, seed=0)
    assert first_problem(readers(write(tmp_path / "good", proteins, dtype)), 1e9) is None
    bad = -3 if dtype != np.uint8 else 31
    proteins[place] = proteins[place].astype(np.int64)
    proteins[place][-1] = bad
    problem = first_problem(readers(write(tmp_path / "bad", proteins, dtype)), 1e9)
    assert problem.startswith(f"{tmp_path}/bad: protein {place}: token id {bad}; the vocabulary has 31 (0 ... 30)")
    proteins[place][-1] = 30  # the last one that it has
    assert first_problem(readers(write(tmp_path / "last", proteins, dtype)), 1e9) is None


def test_processes_share_the_work(tmp_path, monkeypatch):
    proteins, seen, problem = random_proteins(200, seed=0), [], checking._problem

    def counted(shard, tokenizer, has_cls, begin, end):
        seen.append(begin)
        return problem(shard, tokenizer, has_cls, begin, end)

    monkeypatch.setattr(checking, "_problem", counted)
    shard = readers(write(tmp_path / "x", proteins))
    for rank in range(3):
        assert first_problem(shard, 1e9, rank, 3) is None
    assert sorted(seen) == list(range(0, sum(map(len, proteins)), 100)), "each chunk once"
    # a run that reads a quarter of a tenth looks at a tenth, from the first chunk to the last
    seen.clear()
    monkeypatch.setattr(checking, "LEAST", 0)
    total = shard[0].indexed.num_tokens
    assert first_problem(shard, total / 40) is None
    chunks = -(-total // 100)
    assert len(seen) == round(chunks / 10) and seen[0] == 0 and seen[-1] == 100 * (chunks - 1)


@pytest.mark.parametrize("with_cls", [True, False])
@pytest.mark.parametrize("place", [3, 150])
def test_a_cls_where_none_belongs(tmp_path, with_cls, place):
    proteins = random_proteins(200, seed=0)
    if with_cls:
        proteins = [np.append(CLS, protein) for protein in proteins]
    assert first_problem(readers(write(tmp_path / "good", proteins)), 1e9) is None
    proteins[place][2] = CLS
    problem = first_problem(readers(write(tmp_path / "bad", proteins)), 1e9)
    assert problem.startswith(f"{tmp_path}/bad: protein {place}: every protein of a shard must begin with one [CLS]")


def test_an_eos_within_a_shard(tmp_path):
    tokenizer, proteins = build_tokenizer("esm"), random_proteins(50, seed=0)
    assert first_problem(readers(write(tmp_path / "good", proteins), tokenizer), 1e9) is None
    proteins[40][1] = tokenizer.sep_id
    assert "protein 40: holds an <eos>" in first_problem(readers(write(tmp_path / "bad", proteins), tokenizer), 1e9)
