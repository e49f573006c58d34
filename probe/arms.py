"""What an encoder is compared with: its own shape with random weights, and the sequence alone.

    twin = open_encoder("model", random_seed=0)         # the same network before any pretraining
    one_hot("MKV")                                      # float32 [3, 20]
    OneHot(sequences).pooled()                          # their composition, [B, 20]

What must hold: a twin is a function of (the model's configuration, the seed).
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

import proteinlm
from probe.names import AMINO_ACIDS
from proteinlm.encoder import Encoder
from proteinlm.errors import InputError
from proteinlm.huggingface.directory import build
from proteinlm.huggingface.trunk import Trunk
from proteinlm.network.model import initialize

COLUMN = np.full(256, len(AMINO_ACIDS))  # of a letter's byte; the last one, for other letters, is cut off
COLUMN[np.frombuffer(AMINO_ACIDS.encode(), np.uint8)] = np.arange(len(AMINO_ACIDS))


def open_encoder(
    model: str, *, random_seed: int | None = None, device: str | torch.device | None = "auto", dtype="fp32"
) -> Encoder:
    """proteinlm.load; with `random_seed` every weight, the masked-LM head's too, is drawn anew as training begins.

    A network of this project begins as pretraining does (proteinlm.network.model.initialize), one of transformers as
    its class does.
    """
    encoder = proteinlm.load(model, dtype, device)
    if random_seed is None:
        return encoder
    network, source = encoder.model, f"{encoder.source} (random weights, seed {random_seed})"
    if isinstance(network, Trunk):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random_seed)
            network = build(network.model.config.to_dict(), network.table, network.lm_head is not None, source)
    else:
        initialize(network, random_seed)
    return Encoder(network, encoder.tokenizer, encoder.device, encoder.dtype, source)


def identity_of(encoder: Encoder) -> str:
    """sha256 over an encoder's configuration, precision and weights."""
    digest = hashlib.sha256(f"{encoder.config} {encoder.dtype}".encode())
    for name, value in sorted(encoder.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def one_hot(sequence: str) -> np.ndarray:
    """float32 [L, 20], columns AMINO_ACIDS; a row of zeros for another letter."""
    rows = np.eye(len(AMINO_ACIDS) + 1, len(AMINO_ACIDS), dtype=np.float32)
    return rows[COLUMN[np.frombuffer(sequence.upper().encode("latin-1", "replace"), np.uint8)]]


def composition(sequence: str) -> np.ndarray:
    """float32 [20]: how often each amino acid occurs among the residues."""
    return one_hot(sequence).mean(0)


class OneHot:
    """One-hot vectors behind the methods of probe.embeddings.Embeddings. identity: a digest of the sequences."""

    width = len(AMINO_ACIDS)

    def __init__(self, sequences: Sequence[str]):
        self.sequences = list(sequences)
        self.lengths = np.array([len(sequence) for sequence in self.sequences], np.int64)
        self.identity = hashlib.sha256("\n".join(self.sequences).encode()).hexdigest()

    def pooled(self, pooling: str = "mean", layer: int = -1) -> np.ndarray:
        """float32 [B, 20]: the compositions."""
        if pooling != "mean":
            raise InputError(f"pooling {pooling!r} of one-hot vectors: should be mean, which is the composition")
        return np.stack([composition(sequence) for sequence in self.sequences])

    def residues(self, i: int, layer: int = -1) -> np.ndarray:
        """float32 [L, 20] of protein i."""
        return one_hot(self.sequences[i])
