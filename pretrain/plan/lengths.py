"""How long proteins are, which decides what attention costs: from a run's shards, or as protein corpora have them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.data.indexed import IndexedDataset
from pretrain.data.sources import parse_data_path

# Percentiles of the lengths in residues of 404,970 Pfam domains, UniRef90 and Swiss-Prot proteins (docs/results.md).
PERCENTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)
RESIDUES = (20, 24, 49, 56, 91, 155, 292, 392, 463, 933, 1022)
PACKED = 0.99  # of a row's tokens are of proteins where whole proteins fill rows by best fit


@dataclass(frozen=True)
class Lengths:
    """Of a packed row of s tokens: how many are of proteins, and the sum over these of their squared lengths."""

    real_tokens: float
    squares: float
    source: str


def lengths_of_rows(seq_length: int, data_path: Sequence[str] = ()) -> Lengths:
    """Whole proteins with [CLS], longer ones cropped."""
    if data_path:
        sources = parse_data_path(tuple(data_path))
        parts = [np.asarray(IndexedDataset(source.prefix).lengths, float) for source in sources]
        shares = np.concatenate([np.full(len(p), s.weight / len(p)) for p, s in zip(parts, sources, strict=True)])
        tokens, source = np.concatenate(parts) + 1, ", ".join(source.prefix for source in sources)
    else:
        tokens, shares = np.interp(np.linspace(0, 100, 10_001), PERCENTILES, RESIDUES) + 1, np.full(10_001, 1e-4)
        source = "lengths as protein corpora have them"
    tokens = np.minimum(tokens, seq_length)
    real = PACKED * seq_length
    return Lengths(real, real * float((shares * tokens**2).sum() / (shares * tokens).sum()), source)
