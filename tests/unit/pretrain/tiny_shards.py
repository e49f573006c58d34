"""What the tests of rows and of the loader share: small shards, and looking into rows and batches."""

from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from pretrain.data.dataset import PackedDataset
from pretrain.data.indexed import IndexedDataset, IndexedWriter
from proteinlm.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer("iupac")
CLS, PAD, MASK = TOKENIZER.cls_id, TOKENIZER.pad_id, TOKENIZER.mask_id


def write(prefix: Path, proteins: list[np.ndarray], dtype=np.uint8) -> str:
    with IndexedWriter(prefix, dtype) as writer:
        writer.add(np.concatenate(proteins), np.array([len(protein) for protein in proteins]))
    return str(prefix)


def random_proteins(count: int, seed: int, shortest: int = 5, longest: int = 60) -> list[np.ndarray]:
    """Proteins of residues that no two share: each begins with its number in base 20."""
    rng = np.random.default_rng(seed)
    letters = TOKENIZER.encode("ACDEFGHIKLMNPQRSTVWY")
    proteins = [rng.choice(letters, rng.integers(shortest, longest)) for _ in range(count)]
    for number, protein in enumerate(proteins):
        protein[:4] = letters[[number // 20**place % 20 for place in range(4)]]
    return proteins


def dataset(prefix: str, seq_length: int = 64, seed: int = 1, train: bool = True, **options) -> PackedDataset:
    indexed = IndexedDataset(prefix)
    return PackedDataset(indexed, (0, len(indexed)), TOKENIZER, seq_length, options.get("mask_prob", 0.15), seed, train)


def original(row) -> np.ndarray:
    """A row before masking."""
    tokens = row.tokens.copy()
    tokens[row.masked_positions] = row.labels
    return tokens


def proteins_of(row) -> list[tuple[int, ...]]:
    """The residues of every protein of a row, found through its segments."""
    tokens, bounds = original(row), [*row.segment_starts.tolist(), len(row.tokens)]
    pieces = [tokens[a:b] for a, b in pairwise(bounds)][: row.num_proteins]
    assert all(piece[0] == CLS and (piece[1:] != CLS).all() for piece in pieces)
    return [tuple(piece[1:].tolist()) for piece in pieces]


def same(a, b) -> bool:
    return all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in ((getattr(a, field.name), getattr(b, field.name)) for field in fields(a))
    )


def merge(batches) -> dict:
    """Batches as one: what a global batch contains, whatever it was cut into."""
    sizes = [batch.tokens.numel() for batch in batches]
    offsets = np.cumsum([0, *sizes])[:-1].tolist()
    result = {name: torch.cat([getattr(b, name) for b in batches]) for name in ("tokens", "position_ids", "labels")}
    result["masked"] = torch.cat([b.masked_positions + o for b, o in zip(batches, offsets, strict=True)])
    result["bounds"] = torch.cat([b.cu_seqlens[:-1] + o for b, o in zip(batches, offsets, strict=True)])
    for name in ("num_masked", "num_real_tokens", "num_proteins", "sum_squared_lengths"):
        result[name] = torch.tensor(sum(getattr(batch, name) for batch in batches))
    return result


def same_content(a, b) -> bool:
    a, b = merge(a), merge(b)
    return all(torch.equal(a[key], b[key]) for key in a)
