"""Judges a written result by what is on disk: every tensor, and what proteins look like through source and result.

The result is opened twice. This project's reader gives its tensors, which must be those of the source bit for bit,
rounded to --dtype where one was asked for. The neighbour's own door (for `tape`: `ProteinBertForMaskedLM`; for `hf`:
`transformers`) gives hidden states and logits, which must agree to TOLERANCE.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from converter.doors import Door, hf_door, hf_tokenizer_agrees, own_door, tape_door
from converter.model import PortableModel

TOLERANCE = 1e-5  # fp32 hidden states after the final LN are of order 1; see docs/numerics.md
LETTERS = "ACDEFGHIKLMNPQRSTVWYBXZUO"


@dataclass(frozen=True)
class Difference:
    """The largest absolute differences over all proteins; `logits` is None where they were not compared."""

    hidden: float
    logits: float | None
    proteins: int
    scale: float = 1.0  # the largest hidden state or logit, at least 1

    @property
    def small(self) -> bool:
        return max(self.hidden, self.logits or 0.0) <= TOLERANCE * self.scale  # False for NaN

    def __str__(self) -> str:
        logits = "" if self.logits is None else f", logits {self.logits:.3g}"
        return f"largest difference over {self.proteins} proteins: hidden states {self.hidden:.3g}{logits}"


def probe_proteins(longest: int, count: int = 8, seed: int = 0) -> list[str]:
    """Proteins of lengths 1 .. longest over every letter of the vocabulary."""
    rng = np.random.default_rng(seed)
    lengths = np.unique(np.geomspace(1, max(1, longest), count).astype(int))
    return ["".join(rng.choice(list(LETTERS), size)) for size in lengths]


def probes(model: PortableModel) -> list[str]:
    """Proteins that fit the model with `[CLS]` and `[SEP]`."""
    return probe_proteins(min(512, model.config.max_position_embeddings - 2))


def compare(one: Door, other: Door, proteins: list[str], logits: bool = True) -> Difference:
    """The two models on `[CLS] residues [SEP]`; logits over the tokens that both know."""
    shared = [token for token in one.tokens if token in other.tokens]
    columns = [[door.tokens.index(token) for token in shared] for door in (one, other)]
    hidden, worst, scale = 0.0, None, 1.0
    for protein in proteins:
        tokens = ["[CLS]", *protein, "[SEP]"]
        (a, a_logits), (b, b_logits) = one(tokens), other(tokens)
        hidden, scale = _larger(hidden, a - b), _larger(scale, a)
        if logits and a_logits is not None and b_logits is not None:
            a_logits, b_logits = a_logits[:, columns[0]], b_logits[:, columns[1]]
            worst, scale = _larger(worst or 0.0, a_logits - b_logits), _larger(scale, a_logits)
    return Difference(hidden, worst, len(proteins), scale)


def _larger(so_far: float, values: torch.Tensor) -> float:
    """max that keeps NaN."""
    return float(torch.maximum(torch.tensor(so_far), values.abs().max()))


def different_tensors(expected: PortableModel, found: PortableModel) -> list[str]:
    """Names of tensors that are not the same bits."""
    names = sorted({*expected.tensors, *found.tensors})
    return [
        name
        for name in names
        if name not in expected.tensors
        or name not in found.tensors
        or expected.tensors[name].dtype != found.tensors[name].dtype
        or not torch.equal(expected.tensors[name], found.tensors[name])
    ]


def verify(
    source: PortableModel,
    stored: PortableModel,
    kind: str,
    directory: Path,
    read_back: Callable[[Path], PortableModel],
    say: Callable[[str], None],
) -> bool:
    """Whether `directory` holds `stored`, the source as this target and dtype have it. Says what was seen."""
    found = read_back(directory)
    wrong = different_tensors(stored, found)
    if wrong:
        say(f"verification failed: {len(wrong)} of {len(stored.tensors)} tensors read back differ, first {wrong[0]}")
        return False
    say(f"verified: all {len(stored.tensors)} tensors read back are equal, bit for bit")
    proteins, door = probes(source), _door(kind, directory, found)
    if door is None:
        say("transformers is not installed, so the result was not run through it; this project's model is run instead")
        door = own_door(found)
    comparable = kind != "hf" or door.name != "transformers" or source.config.hidden_act == source.config.lm_head_act
    if kind == "megatron" and found.config.lm_head_act != source.config.lm_head_act:
        comparable = False
    if not comparable:
        say("logits are not compared: the target has one activation for MLP and LM head, so they differ by its form")
    rounded = own_door(_rounded(source, stored))
    difference = compare(rounded, door, proteins, comparable and source.has_lm_head)
    say(f"{difference} (through {door.name})")
    if source.dtype != stored.dtype:
        told = compare(own_door(source), rounded, proteins)
        say(f"rounding to {str(stored.dtype).removeprefix('torch.')} itself: {told}")
    if not difference.small:
        say(f"verification failed: that is more than {TOLERANCE:g} of the largest value {difference.scale:.3g}")
        return False
    if kind == "hf" and door.name == "transformers" and not hf_tokenizer_agrees(directory, proteins, found.vocabulary):
        say("verification failed: AutoTokenizer does not give [CLS] and one id a residue")
        return False
    return True


def _rounded(source: PortableModel, stored: PortableModel) -> PortableModel:
    return source if source.dtype == stored.dtype else source.as_stored_in(stored.dtype)


def _door(kind: str, directory: Path, found: PortableModel) -> Door | None:
    if kind == "tape":
        return tape_door(directory, found.has_lm_head)
    if kind == "hf":
        return hf_door(directory, found.has_lm_head)
    return own_door(found)
