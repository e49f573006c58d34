"""Runs proteins through the source model and through the written result, and measures how far apart they are.

The result is read back from disk through the neighbour's own door (for `tape`: `ProteinBertModel.from_pretrained`), so
that the files are judged and not what was meant to be in them.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from converter.model import PortableModel
from converter.names import PRETRAIN_TO_TAPE_TOKENS

TOLERANCE = 1e-5  # fp32 hidden states after the final LN are of order 1; see docs/numerics.md
LETTERS = "ACDEFGHIKLMNPQRSTVWYBXZUO"


@dataclass(frozen=True)
class Difference:
    """The largest absolute differences over all proteins; `logits` is None where a side has no masked-LM head."""

    hidden: float
    logits: float | None
    proteins: int

    def __str__(self) -> str:
        logits = "" if self.logits is None else f", logits {self.logits:.3g}"
        return f"largest difference over {self.proteins} proteins: hidden states {self.hidden:.3g}{logits}"


def probe_proteins(longest: int, count: int = 8, seed: int = 0) -> list[str]:
    """Proteins of lengths 1 .. longest over every letter of the vocabulary."""
    rng = np.random.default_rng(seed)
    lengths = np.unique(np.geomspace(1, max(1, longest), count).astype(int))
    return ["".join(rng.choice(list(LETTERS), size)) for size in lengths]


@torch.no_grad()
def compare_with_tape(source: PortableModel, directory: str | Path) -> Difference:
    """`source` on `[CLS] residues [SEP]` against the TAPE directory on `<cls> residues <sep>`."""
    from tape.model import ProteinBertForMaskedLM, ProteinBertModel
    from tape.tokenizer import TAPETokenizer

    model = source.build()
    cls = ProteinBertForMaskedLM if source.has_lm_head else ProteinBertModel
    result = cls.from_pretrained(directory).eval()
    encoder = result.bert if source.has_lm_head else result
    ids = {PRETRAIN_TO_TAPE_TOKENS.get(token, token): row for row, token in enumerate(source.vocabulary)}
    tokenizer = TAPETokenizer()
    shared = [token for token in tokenizer.vocab if token in ids]
    hidden, logits = 0.0, 0.0 if source.has_lm_head else None
    proteins = probe_proteins(min(512, source.config.max_position_embeddings - 2))
    for protein in proteins:
        theirs = torch.from_numpy(np.asarray(tokenizer.encode(protein))).long()
        ours = torch.tensor([ids[tokenizer.convert_id_to_token(i)] for i in theirs.tolist()])
        bounds = torch.tensor([0, len(ours)], dtype=torch.int32)
        expected = model(ours, torch.arange(len(ours)), bounds)
        found = encoder(theirs[None])[0][0]
        hidden = max(hidden, float((expected - found).abs().max()))
        if source.has_lm_head:
            scores = model.lm_logits(expected)[:, [ids[token] for token in shared]]
            predicted = result(theirs[None])[0][0][:, [tokenizer.vocab[token] for token in shared]]
            logits = max(logits, float((scores - predicted).abs().max()))
    return Difference(hidden, logits, len(proteins))
