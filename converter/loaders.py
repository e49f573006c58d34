"""Loaders: a model opened from disk as its format's users open it, as a function from tokens to states.

run = load_tape(directory, model)
hidden, logits = run(["[CLS]", "M", "K", "[SEP]"])      # [T, h], and [T, V] in the order of run.tokens or None
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from converter.model import PortableModel
from proteinlm.errors import InputError
from proteinlm.huggingface.directory import quietly
from proteinlm.model_dir.vocabulary import canonical
from proteinlm.tokenizer import TAPE_TOKENS

PROBLEMS = ("missing_keys", "unexpected_keys", "mismatched_keys")  # of transformers' loading report


@dataclass(frozen=True)
class LoadedModel:
    """A model behind one function of token ids; `tokens` are its vocabulary in the pretraining spelling."""

    name: str
    tokens: list[str]
    states: Callable[[Tensor], tuple[Tensor, Tensor | None]]  # ids [T] -> hidden [T, h], logits [T, rows] or None
    lm_head_act: str | None = None  # what its LM head computes, where that is not the model's own lm_head_act
    tokenize: Callable[[str], list[int]] | None = None  # the format's own tokenizer, on a plain sequence
    ends_proteins: bool = False  # whether that puts the token of [SEP]'s role after the residues

    @torch.no_grad()
    def __call__(self, tokens: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        hidden, logits = self.states(torch.tensor([self.tokens.index(token) for token in tokens]))
        return hidden.float(), None if logits is None else logits.float()[:, : len(self.tokens)]


def load_own(model: PortableModel) -> LoadedModel:
    """This project's pretraining model."""
    bert = model.build()

    def states(ids: Tensor) -> tuple[Tensor, Tensor | None]:
        bounds = torch.tensor([0, len(ids)], dtype=torch.int32)
        hidden = bert(ids, torch.arange(len(ids)), bounds)
        return hidden, bert.lm_logits(hidden) if model.has_lm_head else None

    return LoadedModel("pretrain", canonical(model.tokenizer.tokens), states)


def load_tape(directory: Path, model: PortableModel) -> LoadedModel:
    """`tape`'s classes, as `tape-train --from_pretrained` opens them."""
    from tape.models.modeling_bert import ProteinBertForMaskedLM, ProteinBertModel

    kind = ProteinBertForMaskedLM if model.has_lm_head else ProteinBertModel
    notes = logging.getLogger("tape")
    level = notes.level
    notes.setLevel(logging.CRITICAL)  # they would name a directory that has no name yet
    try:
        bert = kind.from_pretrained(directory).eval()
    finally:
        notes.setLevel(level)
    encoder = bert.bert if model.has_lm_head else bert

    def states(ids: Tensor) -> tuple[Tensor, Tensor | None]:
        return encoder(ids[None])[0][0], bert(ids[None])[0][0] if model.has_lm_head else None

    return LoadedModel("tape", canonical(TAPE_TOKENS), states)


def load_transformers(directory: Path, model: PortableModel, family: str, tokens: Sequence[str]) -> LoadedModel | None:
    """The classes of `transformers` whose names begin with `family`; None where that library is not installed.

    Its loading report must be empty. tokens: the vocabulary in the order of the directory's ids.
    """
    try:
        import transformers
    except ImportError:
        return None
    kind = getattr(transformers, f"{family}{'ForMaskedLM' if model.has_lm_head else 'Model'}")
    with quietly():
        bert, report = kind.from_pretrained(directory, output_loading_info=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    wrong = [f"{problem} {name}" for problem in PROBLEMS for name in sorted(map(str, report.get(problem, ())))]
    # The encoder alone is built with a pooler there, which no masked language model has.
    wrong = [text for text in wrong if "pooler" not in text]
    if wrong:
        raise InputError(f"{directory}: transformers loads it with {wrong[0]}")
    bert = bert.float().eval()

    def states(ids: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden = bert.base_model(ids[None]).last_hidden_state[0]
        return hidden, bert(ids[None]).logits[0] if model.has_lm_head else None

    def tokenize(protein: str) -> list[int]:
        return list(tokenizer(protein)["input_ids"])

    act, ends = model.config.hidden_act, model.tokenizer.ends_proteins
    return LoadedModel("transformers", canonical(tokens), states, act, tokenize, ends)
