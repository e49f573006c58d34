"""TAPE's 30 tokens in the ids of another encoder's vocabulary, found by asking its own tokenizer. Needs no torch.

    table = read_tokens(tokenizer, family, where)
    table.ids[TAPE id]                      what the network reads; table.columns[TAPE id]: where its logit is

What must hold: one letter is one token with one id wherever it stands, for each of the 20 amino acids; a tokenizer that
does otherwise is an InputError that names the letter. The table is all that is left of the tokenizer: it is stored with
a finetuned run (`to_dict`), which therefore needs no tokenizer files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from proteinlm.errors import InputError
from proteinlm.huggingface.families import Family
from proteinlm.tokenizer import RESIDUES, TAPE_SPECIALS, TAPE_TOKENS

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


@dataclass(frozen=True)
class TokenTable:
    """A protein is `prefix residues suffix`; shorter ones of a batch are filled up with pad_id.

    cls, sep: which of the tokens (*prefix, *suffix) is the one whose state stands for TAPE's <cls> and <sep>; None:
    the family has no such token.
    """

    family: str
    ids: tuple[int, ...]  # of TAPE's tokens, for input
    columns: tuple[int, ...]  # of TAPE's tokens among the logits
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pad_id: int
    cls: int | None
    sep: int | None

    def to_dict(self) -> dict:
        return asdict(self)

    @staticmethod
    def from_dict(value: object, where: str) -> "TokenTable":
        """The inverse of `to_dict`; InputError for a value that is no such table."""
        names = TokenTable.__dataclass_fields__
        if not isinstance(value, Mapping) or value.keys() != names.keys():
            raise InputError(f"{where}: tokens should have the keys {', '.join(names)}")
        lists = {name: value[name] for name in ("ids", "columns", "prefix", "suffix")}
        single = [value[name] for name in ("pad_id", "cls", "sep") if value[name] is not None]
        good = all(isinstance(ids, list | tuple) for ids in lists.values()) and value["pad_id"] is not None
        numbers = [*single, *(i for ids in lists.values() for i in ids)] if good else []
        ends = len(lists["prefix"]) + len(lists["suffix"]) if good else 0
        good = good and all(type(i) is int and i >= 0 for i in numbers)
        good = good and all(place is None or place < ends for place in (value["cls"], value["sep"]))
        if not good or {len(lists["ids"]), len(lists["columns"])} != {len(TAPE_TOKENS)}:
            raise InputError(f"{where}: tokens should be ids of TAPE's {len(TAPE_TOKENS)} tokens and of the ends")
        return TokenTable(**{**value, **{name: tuple(ids) for name, ids in lists.items()}})


def read_tokens(tokenizer: object, family: Family, where: str) -> TokenTable:
    """The table of a tokenizer of transformers. where: the directory, for errors."""
    spellings = (family, replace(family, joined=not family.joined))
    readable = [(spelling, ends) for spelling in spellings if (ends := _ends(tokenizer, spelling)) is not None]
    if not readable:
        raise InputError(f"{where}: {_not_letters(tokenizer)}")
    family, (prefix, suffix) = readable[0]
    letters = {letter: _letter_id(tokenizer, family, letter, len(prefix), len(suffix)) for letter in RESIDUES}
    unknown = letters["X"] if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    if unknown is None:
        raise InputError(f"{where}: its tokenizer has neither an unknown token nor X")
    letters = {letter: unknown if i is None else i for letter, i in letters.items()}
    read = letters | dict.fromkeys(family.replaced, letters["X"] if family.stand_in == "X" else unknown)
    names = ("pad_token_id", "mask_token_id", "cls_token_id", "sep_token_id", "unk_token_id")
    special = {token: getattr(tokenizer, name) for token, name in zip(TAPE_SPECIALS, names, strict=True)}
    special["<sep>"] = tokenizer.eos_token_id if special["<sep>"] is None else special["<sep>"]
    special = {token: unknown if i is None else i for token, i in special.items()}
    ends = [*prefix, *suffix]
    return TokenTable(
        family=family.name,
        ids=tuple((special | read)[token] for token in TAPE_TOKENS),
        columns=tuple((special | letters)[token] for token in TAPE_TOKENS),
        prefix=tuple(prefix),
        suffix=tuple(suffix),
        pad_id=special["<pad>"],
        cls=ends.index(special["<cls>"]) if special["<cls>"] in ends else None,
        sep=ends.index(special["<sep>"]) if special["<sep>"] in ends else None,
    )


def _encode(tokenizer: object, family: Family, letters: str) -> list[int]:
    """Ids of a protein, the family's tokens around it, written as the authors write it."""
    if family.joined:
        return tokenizer(family.prefix + letters)["input_ids"]
    words = [family.prefix] if family.prefix else []
    return tokenizer([*words, *letters], is_split_into_words=True)["input_ids"]


def _ends(tokenizer: object, family: Family) -> tuple[Sequence[int], Sequence[int]] | None:
    """The tokens before a protein and those after it; None where a letter is not one token.

    Found with the 20 amino acids in both directions: between the ends, one list of ids is the other one reversed.
    """
    ids, back = (_encode(tokenizer, family, letters) for letters in (AMINO_ACIDS, AMINO_ACIDS[::-1]))
    size = len(AMINO_ACIDS)
    for begin in range(len(ids) - size + 1):
        inside, inside_back = ids[begin : begin + size], back[begin : begin + size]
        if inside == inside_back[::-1] and len(set(inside)) == size and tokenizer.unk_token_id not in inside:
            return ids[:begin], ids[begin + size :]
    return None


def _not_letters(tokenizer: object) -> str:
    """What is wrong with a tokenizer that has no token for each letter."""
    bad = [letter for letter in AMINO_ACIDS if _alone(tokenizer, letter) is None]
    fault = f"{', '.join(bad[:3])} {'is' if len(bad) == 1 else 'are'} not" if bad else "a letter is not always"
    return f"its tokenizer ({type(tokenizer).__name__}): {fault} one token, which each of the 20 amino acids should be"


def _alone(tokenizer: object, letter: str) -> int | None:
    ids = tokenizer([letter], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    return ids[0] if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None


def _letter_id(tokenizer: object, family: Family, letter: str, begin: int, after: int) -> int | None:
    """The id of a letter between two others; None where it is no token of its own."""
    ids = _encode(tokenizer, family, f"A{letter}A")
    return ids[begin + 1] if len(ids) == begin + 3 + after else None
