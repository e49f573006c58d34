"""The neighbours' own doors: a model opened from disk as its users open it, as a function from tokens to states.

run = tape_door(directory)
hidden, logits = run(["[CLS]", "M", "K", "[SEP]"])      # [T, h], and [T, V] in the order of run.tokens or None
"""

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from converter.huggingface import tokenizer as hf_tokenizer
from converter.model import PortableModel
from converter.vocabulary import canonical
from proteinlm.errors import InputError
from proteinlm.tokenizer import TAPE_TOKENS


@dataclass(frozen=True)
class Door:
    """A model behind one function of token ids; `tokens` are its vocabulary in the pretraining spelling."""

    name: str
    tokens: list[str]
    states: Callable[[Tensor], tuple[Tensor, Tensor | None]]  # ids [T] -> hidden [T, h], logits [T, rows] or None

    @torch.no_grad()
    def __call__(self, tokens: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        hidden, logits = self.states(torch.tensor([self.tokens.index(token) for token in tokens]))
        return hidden.float(), None if logits is None else logits.float()[:, : len(self.tokens)]


def own_door(model: PortableModel) -> Door:
    """This project's pretraining model."""
    bert = model.build()

    def states(ids: Tensor) -> tuple[Tensor, Tensor | None]:
        bounds = torch.tensor([0, len(ids)], dtype=torch.int32)
        hidden = bert(ids, torch.arange(len(ids)), bounds)
        return hidden, bert.lm_logits(hidden) if model.has_lm_head else None

    return Door("pretrain", canonical(model.vocabulary), states)


def tape_door(directory: Path, has_lm_head: bool) -> Door:
    """`tape`'s classes, as `tape-train --from_pretrained` opens them."""
    from tape.models.modeling_bert import ProteinBertForMaskedLM, ProteinBertModel

    kind = ProteinBertForMaskedLM if has_lm_head else ProteinBertModel
    model = kind.from_pretrained(directory).eval()

    def states(ids: Tensor) -> tuple[Tensor, Tensor | None]:
        encoder = model.bert if has_lm_head else model
        return encoder(ids[None])[0][0], model(ids[None])[0][0] if has_lm_head else None

    return Door("tape", canonical(TAPE_TOKENS), states)


def hf_door(directory: Path, has_lm_head: bool) -> Door | None:
    """`transformers`' class; None where that library is not installed. Its loading report must be empty."""
    try:
        from transformers import MegatronBertForMaskedLM, MegatronBertModel
    except ImportError:
        return None
    kind = MegatronBertForMaskedLM if has_lm_head else MegatronBertModel
    with _quiet():
        model, report = kind.from_pretrained(directory, output_loading_info=True)
    wrong = [f"{what} {sorted(map(str, names))[0]}" for what, names in report.items() if names and what in WORRIES]
    # The encoder alone is built with a pooler there, which no masked language model has.
    wrong = [text for text in wrong if "pooler" not in text]
    if wrong:
        raise InputError(f"{directory}: transformers loads it with {wrong[0]}")
    model = model.float().eval()

    def states(ids: Tensor) -> tuple[Tensor, Tensor | None]:
        encoder = model.bert if has_lm_head else model
        hidden = encoder(ids[None]).last_hidden_state[0]
        return hidden, model(ids[None]).logits[0] if has_lm_head else None

    return Door("transformers", canonical(hf_tokenizer.read(directory) or []), states)


WORRIES = ("missing_keys", "unexpected_keys", "mismatched_keys")


def hf_tokenizer_agrees(directory: Path, proteins: Sequence[str], tokens: Sequence[str]) -> bool:
    """Whether AutoTokenizer turns plain sequences into [CLS] and one id a residue."""
    from transformers import AutoTokenizer

    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(directory)
    expected = [[tokens.index("[CLS]"), *(tokens.index(letter) for letter in protein)] for protein in proteins]
    return [list(tokenizer(protein)["input_ids"]) for protein in proteins] == expected


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars and loading reports; what matters of them is judged by the caller."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
