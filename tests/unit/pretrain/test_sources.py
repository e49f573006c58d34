"""--data-path, --valid-data-path and --split: what each spelling means, and what is refused."""

import pytest
from tiny_shards import random_proteins, write

from pretrain.data.sources import Source, Split, parse_data_path, parse_valid_data_path
from proteinlm.errors import InputError


def test_split_of_the_published_corpus():
    assert Split.parse("32593668,1715454,44311").ranges(34_353_433) == (
        (0, 32_593_668),
        (32_593_668, 34_309_122),
        (34_309_122, 34_353_433),
    )


def test_split_rounds_as_megatron_does():
    # 969/1000 and 30/1000 of 50 are 48.45 and 1.5: 48 and 2 (to even), the rest (0.05) rounds to 0.
    assert Split.parse("969,30,1").ranges(50) == ((0, 48), (48, 50), (50, 50))
    # thirds of 2 round to 1, 1, 1: one too many, taken from the first.
    assert Split.parse("1,1,1").ranges(2) == ((0, 0), (0, 1), (1, 2))
    # thirds of 1 round to 0, 0, 0: one too few, given to the first.
    assert Split.parse("1,1,1").ranges(1) == ((0, 1), (1, 1), (1, 1))
    assert Split.parse("9,1").ranges(10) == ((0, 9), (9, 10), (10, 10))
    assert Split.parse("9/1").ranges(10) == Split.parse("0.9,0.1,0").ranges(10)
    assert Split.parse("100").ranges(10) == ((0, 10), (10, 10), (10, 10))


@pytest.mark.parametrize("split", ["0,1,1", "0,1,0", "1,0,1", "5,3,2", "1,1e-9,1", "1,0,0", "0,0,1"])
def test_splits_cover_every_document_once_and_empty_shares_stay_empty(split):
    weights = [float(word) for word in split.split(",")]
    for documents in range(1, 40):
        ranges = Split.parse(split).ranges(documents)
        assert [start for start, _ in ranges] == [0, ranges[0][1], ranges[1][1]] and ranges[2][1] == documents
        for (start, end), weight in zip(ranges, weights, strict=True):
            assert start <= end and (weight > 0 or start == end)


@pytest.mark.parametrize("split", ["", "a,b", "1,2,3,4", "0,0,0", "-1,1,1", "nan,1,1", "inf,1"])
def test_wrong_splits_are_refused(split):
    with pytest.raises(InputError, match="--split"):
        Split.parse(split)


def test_a_data_path_is_a_prefix_or_a_blend():
    assert parse_data_path(["a"]) == [Source(1.0, "a")]
    assert parse_data_path(["0.7", "a", "3", "b"]) == [Source(0.7, "a"), Source(3.0, "b")]


def test_names_of_validation_sets(tmp_path):
    """NAME= is plain text before the first "="; a path that holds one is a path."""
    entries = ["x/heldout", "new=y/a=b", "z/lr=1/heldout2", "my-set.v2=heldout"]
    assert parse_valid_data_path(entries) == {
        "heldout": "x/heldout",
        "new": "y/a=b",
        "heldout2": "z/lr=1/heldout2",
        "my-set.v2": "heldout",
    }
    prefix = write(tmp_path / "seed=1", random_proteins(2, seed=1))
    assert parse_valid_data_path([prefix]) == {"seed=1": prefix}


def test_a_prefix_that_exists_is_no_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("seed=1", random_proteins(2, seed=1))
    assert parse_valid_data_path(["seed=1", "seed=2"]) == {"seed=1": "seed=1", "seed": "2"}


@pytest.mark.parametrize("entries", [["a/valid", "b/valid"], ["x=a", "x=b"], ["x=a", "b/x"]])
def test_two_validation_sets_of_one_name_are_refused(entries):
    with pytest.raises(InputError, match=r"are both named .*; use NAME=PREFIX") as error:
        parse_valid_data_path(entries)
    assert "a" in str(error.value) and "b" in str(error.value)


def test_a_validation_set_is_named_without_the_end_of_its_files(tmp_path):
    assert parse_valid_data_path(["x/heldout.bin", "y/other.idx"]) == {
        "heldout": "x/heldout.bin",
        "other": "y/other.idx",
    }
    with pytest.raises(InputError, match=r"p and p\.bin are both named p"):
        parse_valid_data_path(["p", "p.bin"])


@pytest.mark.parametrize("entry", ["train=p", "x/train", "x/train.bin"])
def test_no_validation_set_is_named_train(entry):
    with pytest.raises(InputError, match="is named train, as the training set is; give another NAME="):
        parse_valid_data_path([entry])


@pytest.mark.parametrize("entry", ["x=", ""])
def test_a_validation_set_without_a_prefix_is_refused(entry):
    with pytest.raises(InputError, match=f"--valid-data-path '{entry}' has no prefix"):
        parse_valid_data_path([entry])
