"""The only vocabulary: pretraining ids, TAPE ids, and SentencePiece as the alternative. Needs numpy alone; no torch.

    tokenizer = build_tokenizer("iupac")          # or "tape", "esm", "esmc", or "SentencePiece" with a model file
    tokenizer.encode("MKV")                       # array([17, 15, 26], dtype=uint8): residues only, no [CLS]

What must hold: ids are the line numbers of the published vocabularies (25 letters, no J); one residue is one id unless
the vocabulary is SentencePiece (`one_to_one` says which); lower case is upper-cased; what is no residue becomes [UNK].
"""

import base64
import functools
import io
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from proteinlm.errors import InputError
from proteinlm.untrusted.text_files import read_bytes, read_text

RESIDUES = "ABCDEFGHIKLMNOPQRSTUVWXYZ"  # every IUPAC letter but J
PRETRAIN_SPECIALS = ("[PAD]", "[MASK]", "[CLS]", "[SEP]", "[UNK]")
TAPE_SPECIALS = ("<pad>", "<mask>", "<cls>", "<sep>", "<unk>")
ESM_SPECIALS = ("<pad>", "<mask>", "<cls>", "<eos>", "<unk>")
PRETRAIN_TOKENS = (*PRETRAIN_SPECIALS, "[unused1]", *RESIDUES)
TAPE_TOKENS = (*TAPE_SPECIALS, *RESIDUES)
# ESM-1b, 1v and 2 (facebookresearch/esm, esm/constants.py and data.py); "." and "-" are gaps of alignments.
ESM_TOKENS = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
# ESM C (transformers, tokenization_esmc.py): "|" stands between chains. Its models have 64 rows; the others are unused.
ESMC_TOKENS = (*ESM_TOKENS[:31], "|", "<mask>", *(f"<unused_{i}>" for i in range(33, 64)))
FIXED_VOCABULARIES = {
    "iupac": (PRETRAIN_TOKENS, PRETRAIN_SPECIALS),
    "tape": (TAPE_TOKENS, TAPE_SPECIALS),
    "esm": (ESM_TOKENS, ESM_SPECIALS),
    "esmc": (ESMC_TOKENS, ESM_SPECIALS),
}
# The original's flag values; there is one upper-cased protein alphabet, so "case" and "lower case" are the same.
IUPAC_TYPES = ("iupac", "BertWordPieceCase", "BertWordPieceLowerCase")
TOKENIZER_TYPES = (*IUPAC_TYPES, "SentencePiece", "tape", "esm", "esmc")
# How a SentencePiece model is trained. [MASK] is a control symbol and takes the first free id, 1.
SENTENCEPIECE = {
    **{"pad_id": 0, "pad_piece": "[PAD]", "bos_id": 2, "bos_piece": "[CLS]", "eos_id": 3, "eos_piece": "[SEP]"},
    **{"unk_id": 4, "unk_piece": "[UNK]", "control_symbols": ["[MASK]"]},
    **{"model_type": "unigram", "required_chars": RESIDUES, "character_coverage": 1.0},
    **{"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False},
    **{"max_sentence_length": 1_000_000, "num_threads": 1, "minloglevel": 2},
}


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and the map from residues to ids. `model` holds a SentencePiece model's bytes, else None."""

    name: str  # iupac | tape | esm | esmc | sentencepiece
    tokens: tuple[str, ...]
    model: bytes | None = None

    pad_id: int = field(init=False)
    mask_id: int = field(init=False)
    cls_id: int = field(init=False)
    sep_id: int = field(init=False)  # ESM's <eos>
    unk_id: int = field(init=False)

    def __post_init__(self):
        _, specials = FIXED_VOCABULARIES.get(self.name, (None, PRETRAIN_SPECIALS))
        for name, token in zip(("pad_id", "mask_id", "cls_id", "sep_id", "unk_id"), specials, strict=True):
            object.__setattr__(self, name, self.tokens.index(token))

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    @property
    def ends_proteins(self) -> bool:
        """Whether a protein in pretraining ends with `sep_id`, as ESM's do; the others are `[CLS] residues`."""
        return self.name in ("esm", "esmc")

    @property
    def one_to_one(self) -> bool:
        """Whether residue i of a protein is id i: what every per-residue task needs."""
        return self.model is None

    @property
    def dtype(self) -> np.dtype:
        """The smallest dtype that holds every id."""
        small = [kind for kind in (np.uint8, np.uint16) if self.vocab_size - 1 <= np.iinfo(kind).max]
        return np.dtype(small[0] if small else np.int32)

    @functools.cached_property
    def residue_ids(self) -> np.ndarray:
        """int64, the ids the 10% random replacement may draw: residues (or pieces of them), never a special token."""
        ids = [i for i, token in enumerate(self.tokens) if token.isalpha() and token.isascii()]
        array = np.array(ids, np.int64)
        array.setflags(write=False)
        return array

    @functools.cached_property
    def table(self) -> np.ndarray:
        """uint8[256], byte -> id; unknown bytes give `unk_id`."""
        if not self.one_to_one:
            raise InputError("a SentencePiece vocabulary does not map residues one to one; use --tokenizer-type iupac")
        table = np.full(256, self.unk_id, np.uint8)
        for i, token in enumerate(self.tokens):
            if len(token) == 1:
                table[[ord(token), ord(token.lower())]] = i
        table.setflags(write=False)
        return table

    def encode(self, text: str | bytes) -> np.ndarray:
        """Ids of one protein's residues, without special tokens; one per character unless SentencePiece."""
        residues = text.encode("latin-1", "replace") if isinstance(text, str) else bytes(text)
        return self.encode_many(residues, np.array([len(residues)]))[0].copy()  # a copy: the caller may write into it

    def encode_many(self, residues: bytes, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of many proteins back to back.

        residues: the proteins' residues, joined; lengths [N]: residues of each. Returns (ids [T], tokens of each [N]).
        """
        if self.one_to_one:
            return np.frombuffer(residues.translate(self.table), np.uint8), np.asarray(lengths)
        proteins = split_residues(residues.upper(), lengths)
        pieces = _processor(self.model).encode(proteins, out_type=int, num_threads=1)
        counts = np.fromiter(map(len, pieces), np.int32, len(pieces))
        flat = np.fromiter((i for ids in pieces for i in ids), self.dtype, int(counts.sum()))
        return flat, counts

    def decode(self, ids: Iterable[int]) -> str:
        """The tokens of `ids`, joined."""
        return "".join(self.tokens[int(i)] for i in ids)

    def to_dict(self) -> dict:
        """JSON-able and self-contained: a SentencePiece model travels inside, base64."""
        model = None if self.model is None else base64.b64encode(self.model).decode("ascii")
        return {"name": self.name, "tokens": list(self.tokens), "model": model}

    @staticmethod
    def from_dict(value: dict) -> "Tokenizer":
        """The inverse of `to_dict`; refuses a vocabulary whose ids are not the ones of its name."""
        name, stored = value.get("name"), tuple(value.get("tokens", ()))
        if name == "sentencepiece":
            tokenizer = _from_model(base64.b64decode(value.get("model") or ""), "stored SentencePiece model")
        elif name in FIXED_VOCABULARIES:
            tokenizer = build_tokenizer(name)
        else:
            raise InputError(f"stored tokenizer is {name!r}; known: {', '.join(FIXED_VOCABULARIES)}, sentencepiece")
        if tokenizer.tokens != stored:
            sizes = f"{len(stored)} tokens, {tokenizer.vocab_size} expected"
            raise InputError(f"stored {name} vocabulary is not the one of that name ({sizes})")
        return tokenizer


def split_residues(residues: bytes, lengths: np.ndarray) -> list[str]:
    """N proteins as text, of their residues joined and the residues of each, [N]; one character a byte."""
    text, ends = residues.decode("latin-1"), np.cumsum(lengths).tolist()
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@functools.lru_cache(maxsize=4)
def _processor(model: bytes):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model)


def build_tokenizer(tokenizer_type: str = "iupac", vocab_file: str | None = None) -> Tokenizer:
    """The tokenizer of a flag value (TOKENIZER_TYPES, any case). `vocab_file`: a SentencePiece model, or for the
    fixed vocabularies a list of tokens, to be compared with the built-in one."""
    kind = {known.lower(): known for known in TOKENIZER_TYPES}.get(tokenizer_type.lower())
    if kind is None:
        raise InputError(f"--tokenizer-type {tokenizer_type}: unknown; choose one of {', '.join(TOKENIZER_TYPES)}")
    if kind == "SentencePiece":
        if not vocab_file:
            raise InputError("--tokenizer-type SentencePiece needs --vocab-file x.model (--train-tokenizer makes one)")
        return _from_model(read_bytes(vocab_file, "should be a SentencePiece model"), vocab_file)
    name = "iupac" if kind in IUPAC_TYPES else kind
    tokenizer = Tokenizer(name, FIXED_VOCABULARIES[name][0])
    if vocab_file:
        _check_vocab_file(vocab_file, tokenizer.tokens)
    return tokenizer


def read_tokens(vocab_file: str | Path, advice: str = "") -> list[str]:
    """The tokens of a vocabulary in plain text. advice: ends the InputError for another file."""
    return read_text(vocab_file, f"not a text vocabulary{advice}").split()


def _check_vocab_file(vocab_file: str, expected: Sequence[str]) -> None:
    tokens = read_tokens(vocab_file, "; a SentencePiece model needs --tokenizer-type SentencePiece")
    for number, (token, right) in enumerate(zip(tokens, expected, strict=False), start=1):
        if token != right:
            raise InputError(f"{vocab_file}, line {number}: token {token!r} where the vocabulary has {right!r}")
    if len(tokens) != len(expected):
        raise InputError(f"{vocab_file}: {len(tokens)} tokens; the vocabulary has {len(expected)}, [PAD] or <pad> to Z")


def _from_model(model: bytes, what: str) -> Tokenizer:
    try:
        if not model:
            raise RuntimeError("empty")
        processor = _processor(model)
        tokens = tuple(processor.id_to_piece(i) for i in range(processor.get_piece_size()))
    except RuntimeError as error:
        raise InputError(f"{what}: not a SentencePiece model") from error
    missing = [token for token in PRETRAIN_SPECIALS if token not in tokens]
    if missing:
        raise InputError(f"{what}: no token {missing[0]}; train one with --train-tokenizer, which adds them")
    return Tokenizer("sentencepiece", tokens, model)


def train_sentencepiece(proteins: Iterable[str], vocab_size: int, seed: int = 1234, sample: int = 20_000) -> bytes:
    """A unigram SentencePiece model of `vocab_size` tokens (specials [PAD] ... [UNK] at 0-4), as bytes.

    Trained on at most `sample` proteins drawn with `seed` (20,000 Pfam domains take 45 s of CPU). The 25 letters are
    always in, so that no residue is unknown.
    """
    import sentencepiece

    least = len(PRETRAIN_SPECIALS) + len(RESIDUES)
    if vocab_size < least:
        raise InputError(f"--vocab-size {vocab_size}: at least {least} (5 special tokens and 25 letters)")
    drop = {code: None for code in range(256) if chr(code) not in RESIDUES}
    sentences = [protein.translate(drop) for protein in _draw(proteins, sample, random.Random(seed))]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # The alphabet is a sentence too: `required_chars` alone does not bring in a letter that no protein has.
            sentence_iterator=iter([RESIDUES, *sentences]),
            model_writer=model,
            vocab_size=vocab_size,
            seed_sentencepiece_size=max(10_000, 20 * vocab_size),
            **SENTENCEPIECE,
        )
    except RuntimeError as error:  # its message opens with a C++ file name; the reason is the last sentence(s)
        raise InputError(f"--vocab-size {vocab_size}: SentencePiece: {str(error).rsplit('] ', 1)[-1]}") from error
    return model.getvalue()


def _draw(items: Iterable[str], number: int, rng: random.Random) -> list[str]:
    """At most `number` of the items, each with the same chance (reservoir sampling: one pass, any length)."""
    sample = []
    for position, item in enumerate(items):
        place = position if position < number else rng.randrange(position + 1)
        if place == len(sample):
            sample.append(item)
        elif place < number:
            sample[place] = item
    return sample


class TAPETokenizer:
    """songlab's `tape.TAPETokenizer`, the same names and ids: `<cls> residues <sep>`.

    `encode` upper-cases, and maps a letter outside the vocabulary (J) to <unk> where the original stops with KeyError;
    `convert_token_to_id` raises KeyError like the original.
    """

    def __init__(self, vocab: str = "iupac"):
        if vocab != "iupac":
            raise InputError(f"TAPETokenizer vocabulary {vocab!r}: only 'iupac' is known here")
        self.tokenizer = build_tokenizer("tape")
        self.tokens = list(TAPE_TOKENS)
        self.vocab = {token: i for i, token in enumerate(TAPE_TOKENS)}

    start_token, stop_token, mask_token = "<cls>", "<sep>", "<mask>"

    @classmethod
    def from_pretrained(cls, *args, **kwargs) -> "TAPETokenizer":
        """The one TAPE vocabulary; arguments (a directory, as with models) are accepted and not needed."""
        return cls()

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def tokenize(self, text: str) -> list[str]:
        return list(text)

    def convert_token_to_id(self, token: str) -> int:
        if token not in self.vocab:
            raise KeyError(f"Unrecognized token: {token!r}")
        return self.vocab[token]

    def convert_tokens_to_ids(self, tokens: Sequence[str]) -> list[int]:
        return [self.convert_token_to_id(token) for token in tokens]

    def convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < len(self.tokens):
            raise IndexError(f"Unrecognized index: {index!r}")
        return self.tokens[index]

    def convert_ids_to_tokens(self, indices: Sequence[int]) -> list[str]:
        return [self.convert_id_to_token(index) for index in indices]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        return "".join(tokens)

    def add_special_tokens(self, token_ids: Sequence[str]) -> list[str]:
        """`<cls> tokens <sep>`; tokens, not ids, in spite of the original's argument name."""
        return [self.start_token, *token_ids, self.stop_token]

    def encode(self, text: str | bytes) -> np.ndarray:
        """int64 [residues + 2]: `<cls> residues <sep>`."""
        ids = self.tokenizer.encode(text)
        return np.concatenate(([self.tokenizer.cls_id], ids, [self.tokenizer.sep_id])).astype(np.int64)
