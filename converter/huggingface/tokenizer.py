"""The tokenizer files of a Hugging Face directory, for `AutoTokenizer.from_pretrained(dir)("MKTAYIAK...")`.

A plain sequence becomes `[CLS]` and one token a residue, as pretraining wrote proteins (no `[SEP]`: its row is
untrained). Lower case is upper-cased, white space is dropped, and what is no residue becomes `[UNK]`.
"""

from collections.abc import Sequence
from pathlib import Path

from proteinlm.errors import InputError
from proteinlm.files import write_json, write_text
from proteinlm.tokenizer import PRETRAIN_SPECIALS, RESIDUES, read_tokens
from proteinlm.untrusted.json_files import read_json


def write_tokenizer(directory: Path, tokens: Sequence[str], longest: int) -> None:
    """tokenizer.json, tokenizer_config.json, special_tokens_map.json and vocab.txt for `tokens` (id = place)."""
    ids = {token: i for i, token in enumerate(tokens)}
    names = {f"{token[1:-1].lower()}_token": token for token in PRETRAIN_SPECIALS}
    write_json(directory / "tokenizer.json", _fast_tokenizer(ids))
    write_json(directory / "special_tokens_map.json", names)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }
    write_json(directory / "tokenizer_config.json", config | names)
    write_text(directory / "vocab.txt", "\n".join(tokens) + "\n")


def _fast_tokenizer(ids: dict[str, int]) -> dict:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    cls = {"[CLS]": {"id": "[CLS]", "ids": [ids["[CLS]"]], "tokens": ["[CLS]"]}}
    special = [{"id": ids[token], "content": token, **flags} for token in sorted(PRETRAIN_SPECIALS, key=ids.get)]
    start = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
    upper = [{"type": "Replace", "pattern": {"String": letter.lower()}, "content": letter} for letter in RESIDUES]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": ""}, *upper],
        },
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [start, {"Sequence": {"id": "A", "type_id": 0}}, start, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": cls,
        },
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": "[UNK]"},
    }


def read_vocabulary(directory: Path) -> list[str] | None:
    """The tokens of a directory's vocab.txt or tokenizer.json in the order of their ids; None without either."""
    text, fast = directory / "vocab.txt", directory / "tokenizer.json"
    if text.is_file():
        path, tokens = text, read_tokens(text)
    elif fast.is_file():
        path, tokens = fast, _read_fast_tokenizer(fast)
    else:
        return None
    if len(set(tokens)) != len(tokens) or not tokens:
        raise InputError(f"{path}: the vocabulary is empty or names a token twice")
    return tokens


def _read_fast_tokenizer(path: Path) -> list[str]:
    vocab = read_json(path, "a tokenizer", {"model": {"vocab": {"*": int}}})["model"]["vocab"]
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise InputError(f"{path}: model.vocab is not a map from tokens to 0, 1, 2 ...")
    return sorted(vocab, key=vocab.get)
