"""The vocabularies against hand-written ids, and what must be refused."""

import json
import pickle

import numpy as np
import pytest

from proteinlm.errors import InputError
from proteinlm.tokenizer import (
    PRETRAIN_TOKENS,
    TAPE_TOKENS,
    TAPETokenizer,
    Tokenizer,
    build_tokenizer,
    train_sentencepiece,
)


def test_pretraining_ids_are_the_line_numbers_of_the_published_vocabulary():
    lines = "[PAD] [MASK] [CLS] [SEP] [UNK] [unused1] A B C D E F G H I K L M N O P Q R S T U V W X Y Z"
    tokenizer = build_tokenizer()
    assert " ".join(PRETRAIN_TOKENS) == lines and tokenizer.vocab_size == 31
    assert (tokenizer.pad_id, tokenizer.mask_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.unk_id) == (
        0,
        1,
        2,
        3,
        4,
    )
    # A=6 ... I=14, then K=15 (no J), M=17, V=26, Z=30
    assert tokenizer.encode("AIKMVZ").tolist() == [6, 14, 15, 17, 26, 30]
    assert tokenizer.encode("AIKMVZ").dtype == np.uint8
    assert tokenizer.residue_ids.tolist() == list(range(6, 31))


def test_tape_ids_by_hand():
    tape = TAPETokenizer()
    ids = tape.encode("ABCZKJ")
    assert ids.tolist() == [2, 5, 6, 7, 29, 14, 4, 3] and ids.dtype == np.int64
    assert len(TAPE_TOKENS) == tape.vocab_size == 30
    names = [tape.start_token, tape.stop_token, tape.mask_token, "<pad>", "<unk>"]
    assert tape.convert_tokens_to_ids(names) == [2, 3, 1, 0, 4]


def test_tape_row_of_each_letter_is_the_pretraining_row_less_one():
    letters = "ABCDEFGHIKLMNOPQRSTUVWXYZ"
    iupac, tape = build_tokenizer("iupac").encode(letters), build_tokenizer("tape").encode(letters)
    assert (iupac.astype(int) - tape == 1).all()


def test_tape_tokenizer_has_the_songlab_interface():
    tape = TAPETokenizer.from_pretrained("anything", cache_dir=None)
    tokens = tape.add_special_tokens(tape.tokenize("MKV"))
    assert tokens == ["<cls>", "M", "K", "V", "<sep>"]
    ids = tape.convert_tokens_to_ids(tokens)
    assert ids == tape.encode("MKV").tolist() == tape.encode("mkv").tolist()
    assert tape.convert_ids_to_tokens(ids) == tokens and tape.convert_id_to_token(5) == "A"
    assert tape.convert_tokens_to_string(tokens) == "<cls>MKV<sep>"
    with pytest.raises(KeyError, match="Unrecognized token: 'J'"):
        tape.convert_token_to_id("J")
    with pytest.raises(IndexError):
        tape.convert_id_to_token(30)
    with pytest.raises(InputError, match="unirep"):
        TAPETokenizer("unirep")


@pytest.mark.parametrize("name", ["iupac", "tape"])
def test_every_byte_is_its_letter_or_unknown(name):
    tokenizer = build_tokenizer(name)
    for code in range(256):
        letter = chr(code).upper() if code < 128 else ""
        expected = tokenizer.tokens.index(letter) if letter in tokenizer.tokens else 4
        assert tokenizer.table[code] == expected == tokenizer.encode(bytes([code]))[0]


def test_one_id_per_character_whatever_the_character():
    tokenizer = build_tokenizer()
    assert tokenizer.encode("Mé→k *").tolist() == [17, 4, 4, 15, 4, 4]
    assert tokenizer.encode("").tolist() == []
    assert tokenizer.decode([2, 17, 15, 1]) == "[CLS]MK[MASK]"


def test_encoded_ids_may_be_written_to_and_shared_arrays_may_not():
    tokenizer = build_tokenizer()
    tokenizer.encode("MKV")[0] = 1
    with pytest.raises(ValueError):
        tokenizer.table[0] = 1
    with pytest.raises(ValueError):
        tokenizer.residue_ids[0] = 1


@pytest.mark.parametrize("name", ["iupac", "tape"])
def test_dict_and_pickle_round_trip(name):
    tokenizer = build_tokenizer(name)
    again = Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again == tokenizer == pickle.loads(pickle.dumps(tokenizer))


def test_a_foreign_stored_vocabulary_is_refused():
    stored = build_tokenizer().to_dict()
    with pytest.raises(InputError, match="30 tokens, 31 expected"):
        Tokenizer.from_dict({**stored, "tokens": stored["tokens"][:-1]})
    with pytest.raises(InputError, match="'gpt2'"):
        Tokenizer.from_dict({**stored, "name": "gpt2"})
    with pytest.raises(InputError, match="not a SentencePiece model"):
        Tokenizer.from_dict({**stored, "name": "sentencepiece"})


@pytest.mark.parametrize("kind", ["iupac", "BertWordPieceCase", "BertWordPieceLowerCase", "bertwordpiececase"])
def test_the_original_flag_values_are_one_vocabulary(kind, tmp_path):
    path = tmp_path / "iupac_vocab.txt"
    path.write_text("\n".join(PRETRAIN_TOKENS) + "\n")
    assert build_tokenizer(kind) == build_tokenizer(kind, str(path)) == build_tokenizer()


def test_wrong_vocabularies_are_refused(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(PRETRAIN_TOKENS).replace("M\n", "J\n"))
    with pytest.raises(InputError, match=r"vocab.txt, line 18: token 'J' where the vocabulary has 'M'"):
        build_tokenizer("iupac", str(path))
    path.write_text("\n".join(PRETRAIN_TOKENS[:-1]))
    with pytest.raises(InputError, match="30 tokens; the vocabulary has 31"):
        build_tokenizer("iupac", str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text vocabulary"):
        build_tokenizer("iupac", str(path))
    with pytest.raises(InputError, match="not a SentencePiece model"):
        build_tokenizer("SentencePiece", str(path))
    with pytest.raises(InputError, match="needs --vocab-file"):
        build_tokenizer("SentencePiece")
    with pytest.raises(InputError, match="GPT2BPETokenizer: unknown; choose one of iupac"):
        build_tokenizer("GPT2BPETokenizer")


def proteins(number: int = 400) -> list[str]:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 4)) for _ in range(40)]
    return ["".join(rng.choice(words, 20)) for _ in range(number)]


@pytest.fixture(scope="module")
def model() -> bytes:
    return train_sentencepiece(proteins(), 80)


def test_sentencepiece_specials_come_in_the_pretraining_order(model, tmp_path):
    path = tmp_path / "x.model"
    path.write_bytes(model)
    tokenizer = build_tokenizer("SentencePiece", str(path))
    assert tokenizer.tokens[:5] == PRETRAIN_TOKENS[:5] and tokenizer.vocab_size == 80
    assert (tokenizer.pad_id, tokenizer.mask_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.unk_id) == (
        0,
        1,
        2,
        3,
        4,
    )
    assert not tokenizer.one_to_one and tokenizer.dtype == np.uint8
    assert tokenizer.residue_ids.tolist() == list(range(5, 80))
    with pytest.raises(InputError, match="one to one"):
        _ = tokenizer.table


def test_sentencepiece_reads_back_what_it_wrote_and_knows_all_letters(model):
    tokenizer = Tokenizer.from_dict(
        json.loads(json.dumps({"name": "sentencepiece", "tokens": _tokens(model), "model": _base64(model)}))
    )
    for protein in (*proteins(5), "ABCDEFGHIKLMNOPQRSTUVWXYZ"):
        ids = tokenizer.encode(protein)
        assert tokenizer.decode(ids) == protein and len(ids) <= len(protein)
        assert (tokenizer.encode(protein.lower()) == ids).all()
    assert len(tokenizer.encode(proteins(1)[0])) < 80  # negative control: words were learned, not letters
    assert 4 in tokenizer.encode("MKJV")
    assert pickle.loads(pickle.dumps(tokenizer)) == tokenizer


def test_sentencepiece_many_is_each_on_its_own(model):
    tokenizer = Tokenizer("sentencepiece", tuple(_tokens(model)), model)
    some = proteins(7)
    ids, counts = tokenizer.encode_many("".join(some).encode(), np.array([len(protein) for protein in some]))
    each = [tokenizer.encode(protein) for protein in some]
    assert counts.tolist() == [len(one) for one in each]
    assert (ids == np.concatenate(each)).all()


def test_sentencepiece_training_depends_on_the_seed_alone(model):
    assert train_sentencepiece(proteins(), 80) == model
    some = [train_sentencepiece(proteins(), 80, seed=seed, sample=50) for seed in (1, 1, 2)]
    assert some[0] == some[1] != some[2]


def test_a_sentencepiece_model_from_elsewhere_without_our_specials_is_refused(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(proteins()), model_prefix=str(tmp_path / "other"), vocab_size=60, minloglevel=2
    )
    with pytest.raises(InputError, match=r"other.model: no token \[PAD\]"):
        build_tokenizer("SentencePiece", str(tmp_path / "other.model"))


@pytest.mark.parametrize("size", [29, 1_000_000])
def test_impossible_vocabulary_sizes_are_refused(size):
    with pytest.raises(InputError, match=f"--vocab-size {size}"):
        train_sentencepiece(proteins(20), size)


def _tokens(model: bytes) -> list[str]:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(i) for i in range(processor.get_piece_size())]


def _base64(model: bytes) -> str:
    import base64

    return base64.b64encode(model).decode()
