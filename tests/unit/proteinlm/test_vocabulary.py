"""Rows follow their tokens, whatever the order, the spelling and the padding of the two vocabularies."""

import pytest
import torch

from proteinlm.errors import InputError
from proteinlm.model_dir.vocabulary import canonical, remap_rows, take_rows
from proteinlm.tokenizer import PRETRAIN_TOKENS, TAPE_TOKENS, build_tokenizer


def test_pretraining_to_tape_by_hand():
    """Row r of TAPE is row r of pretraining below 5 and row r + 1 from there on."""
    rows = torch.arange(128.0)[:, None].repeat(1, 2)
    tensors, notes = take_rows({"word_embeddings.weight": rows}, PRETRAIN_TOKENS, build_tokenizer("tape"), 1, "x")
    assert tensors["word_embeddings.weight"][:, 0].tolist() == [0, 1, 2, 3, 4, *range(6, 31)]
    assert any("97 padding rows" in note for note in notes)
    assert any("[unused1] left out" in note for note in notes)


def test_tape_to_pretraining_by_hand():
    tensors, notes = take_rows({"lm_head.bias": torch.arange(1.0, 31)}, TAPE_TOKENS, build_tokenizer(), 128, "x")
    expected = [1, 2, 3, 4, 5, 0, *range(6, 31), *[0] * 97]
    assert tensors["lm_head.bias"].tolist() == expected
    assert notes == ["rows of [unused1] are zeros: the source's vocabulary does not have them"]


def test_order_and_spelling_do_not_matter():
    source = [*reversed(PRETRAIN_TOKENS)]
    tensor = torch.arange(31.0)
    rows = remap_rows(tensor, source, PRETRAIN_TOKENS, 31)
    assert rows.tolist() == [*reversed(range(31))]
    assert canonical(TAPE_TOKENS) == [token for token in PRETRAIN_TOKENS if token != "[unused1]"]


@pytest.mark.parametrize("tensor", [torch.zeros(30), torch.zeros(())])
def test_too_few_rows_are_refused(tensor):
    with pytest.raises(InputError, match="31 tokens"):
        take_rows({"lm_head.bias": tensor}, PRETRAIN_TOKENS, build_tokenizer(), 1, "x")
