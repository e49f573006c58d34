"""Judges a written result by what is on disk: every tensor, and what proteins look like through source and result.

The result is opened twice. This project's reader gives its tensors, which must be those of the source bit for bit,
rounded to --dtype where one was asked for. The format's own software (for `tape`: `ProteinBertForMaskedLM`; for `hf`:
`transformers`) gives hidden states and logits, which must agree to TOLERANCE.

`first_step_loss` goes one step further: the loss that continued pretraining must start from.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from converter.formats import Format, ReadOptions
from converter.loaders import LoadedModel, load_own
from converter.model import PortableModel, same_tensor
from pretrain.data.blending import build_datasets
from pretrain.data.loader import PackedLoader
from proteinlm.errors import InputError
from proteinlm.loss import masked_lm_loss
from proteinlm.tokenizer import RESIDUES

TOLERANCE = 1e-5  # fp32 hidden states after the final LN are of order 1; see docs/numerics.md
LONGEST_PROBE = 512
Say = Callable[[str], None]  # prints a line, which is in the report too


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


def probes(model: PortableModel, count: int = 8, seed: int = 0) -> list[str]:
    """Proteins of many lengths over every letter, that fit the model with `[CLS]` and `[SEP]`."""
    longest = max(1, min(LONGEST_PROBE, (model.config.max_tokens or LONGEST_PROBE) - 2))
    rng = np.random.default_rng(seed)
    lengths = np.unique(np.geomspace(1, longest, count).astype(int))
    return ["".join(rng.choice(list(RESIDUES), size)) for size in lengths]


def compare(one: LoadedModel, other: LoadedModel, proteins: Sequence[str], logits: bool = True) -> Difference:
    """The two models on `[CLS] residues [SEP]`; logits over the tokens that both know."""
    shared = [token for token in one.tokens if token in other.tokens]
    columns = [[model.tokens.index(token) for token in shared] for model in (one, other)]
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


def verify(source: PortableModel, stored: PortableModel, target: Format, directory: Path, say: Say) -> bool:
    """Whether `directory` holds `stored`, the source as this target and dtype have it. Says what was seen."""
    result = target.read(directory, ReadOptions())
    expected, written = stored.all_tensors, result.all_tensors
    names = sorted({*expected, *written})
    wrong = [name for name in names if not same_tensor(expected.get(name), written.get(name))]
    if wrong:
        say(f"verification failed: {len(wrong)} of {len(expected)} tensors read back differ, first {wrong[0]}")
        return False
    say(f"verified: all {len(expected)} tensors read back are equal, bit for bit")
    if source.not_finite:
        say(f"no protein was run through it: {source.not_finite:,} numbers of its weights are NaN or infinity")
        return True
    loaded = target.load(directory, result) if target.load else load_own(result)
    if loaded is None:
        say("transformers is not installed, so the result was not run through it; this project's model is run instead")
        loaded = load_own(result)
    problem = _compare_states(source, stored, loaded, say) or _compare_tokens(source, loaded)
    if problem:
        say(f"verification failed: {problem}")
    return problem is None


def _compare_states(source: PortableModel, stored: PortableModel, loaded: LoadedModel, say: Say) -> str | None:
    """What is wrong with the states that `loaded` gives, None where they are the source's."""
    comparable = (loaded.lm_head_act or stored.config.lm_head_act) == source.config.lm_head_act
    if not comparable:
        say("logits are not compared: the target has one activation for MLP and LM head, so they differ by its form")
    proteins, rounds = probes(source), source.dtype != stored.dtype
    rounded = load_own(source.rounded_to(stored.dtype) if rounds else source)
    difference = compare(rounded, loaded, proteins, comparable)
    say(f"{difference} (through {loaded.name})")
    finite = math.isfinite(difference.scale)
    if rounds:
        rounding = compare(load_own(source), rounded, proteins)
        say(f"rounding to {str(stored.dtype).removeprefix('torch.')} itself: {rounding}")
        finite = finite or math.isfinite(rounding.scale)
    if not finite:
        say("so only the tensors are compared: with these weights the source's own outputs are NaN or infinity")
        return None
    return None if difference.small else f"that is more than {TOLERANCE:g} of the largest value {difference.scale:.3g}"


def _compare_tokens(source: PortableModel, loaded: LoadedModel) -> str | None:
    """What is wrong with the tokenizer beside the result, None where it gives what pretraining wrote."""
    for protein in probes(source) if loaded.tokenize else ():
        tokens = ["[CLS]", *protein, *(["[SEP]"] if loaded.ends_proteins else [])]
        if loaded.tokenize(protein) != [loaded.tokens.index(token) for token in tokens]:
            return "AutoTokenizer does not give the first token, one id a residue and what ends a protein"
    return None


@torch.no_grad()
def first_step_loss(
    model: PortableModel, data_path: Sequence[str], seq_length: int, rows: int, split: str, mask_prob: float, seed: int
) -> tuple[float, int]:
    """(mean masked-LM cross-entropy in nats, masked residues) of the first global batch, of `rows` rows, in `pretrain`.

    The same rows, masks and sums as `python -m pretrain --load X --finetune` with the same arguments, without dropout:
    with --hidden-dropout 0 --attention-dropout 0 the first lm_loss of that run is this number.
    """
    longest = model.config.max_tokens
    if longest is not None and seq_length > longest:
        raise InputError(f"--seq-length {seq_length}: the model has max-position-embeddings {longest}")
    train, _, _ = build_datasets(data_path, split, model.tokenizer, seq_length, mask_prob, seed)
    bert = model.build()
    loader = PackedLoader(train, 1, lambda consumed: rows, num_samples=rows)
    total, masked = 0.0, 0
    for batch in next(iter(loader)):
        logits = bert(batch.tokens, batch.position_ids, batch.cu_seqlens, batch.masked_positions)
        total += float(masked_lm_loss(logits, batch.labels))
        masked += batch.num_masked
    return total / max(1, masked), masked
