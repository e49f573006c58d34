"""A toy model directory and toy FASTA files, for the tests of tape-embed and tape-predict."""

import gzip
from pathlib import Path

import numpy as np
import torch
from toy_data import RESIDUES, TINY

from tape import ProteinBertConfig, ProteinBertModel, TAPETokenizer


def toy_proteins(count: int = 20, longest: int = 40, seed: int = 0) -> dict[str, str]:
    """Name -> residues; lengths from 1 to `longest`, in no order; one has a letter outside the vocabulary."""
    rng = np.random.default_rng(seed)
    lengths = rng.permutation(np.linspace(1, longest, count).astype(int))
    proteins = {f"sp|P{i:05d}|TOY": "".join(rng.choice(RESIDUES, n)) for i, n in enumerate(lengths)}
    proteins["odd"] = "MKJXUA"
    return proteins


def write_fasta(path: Path, proteins: dict[str, str]) -> Path:
    """One record each, a description after the name; .gz by the suffix."""
    text = "".join(f">{name} described\n{residues[:30]}\n{residues[30:]}\n" for name, residues in proteins.items())
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def toy_config(**changes) -> ProteinBertConfig:
    """Two layers, weights large enough that layers and residues differ well above rounding."""
    return ProteinBertConfig(**(TINY | {"num_hidden_layers": 2, "initializer_range": 0.3} | changes))


def write_model(directory: Path, **changes) -> ProteinBertModel:
    """A saved trunk."""
    torch.manual_seed(0)
    model = ProteinBertModel(toy_config(**changes)).eval()
    model.save_pretrained(directory)
    return model


def by_hand(model: ProteinBertModel, residues: str) -> dict[str, np.ndarray]:
    """One protein alone, through the public interface."""
    with torch.no_grad():
        sequence, pooled = model(torch.from_numpy(TAPETokenizer().encode(residues))[None])[:2]
    states = sequence[0].numpy()
    return {"pooled": pooled[0].numpy(), "avg": states.mean(0), "mean": states[1:-1].mean(0), "seq": states}
