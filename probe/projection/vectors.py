"""The vectors that are drawn: of proteins (pooled, embedded once) and of the amino acids (the input embedding's rows).

What must hold: every arm has the same points in the same order; a vector that is not finite stops the work by name.
"""

from pathlib import Path

import numpy as np
import torch

from probe.arms import OneHot, open_encoder
from probe.embeddings import embed_once
from probe.names import AMINO_ACIDS, METRICS, RANDOM
from probe.projection.points import Points
from proteinlm.encoder import Encoder, make_stream
from proteinlm.errors import InputError
from proteinlm.huggingface.trunk import Trunk


def open_arm(model: str, arm: str, random_seed: int, device: str = "auto", dtype: str = "fp32") -> Encoder:
    """The model, or its twin with random weights."""
    return open_encoder(model, random_seed=random_seed if arm == RANDOM else None, device=device, dtype=dtype)


def input_embeddings(encoder: Encoder) -> np.ndarray:
    """float32 [20, h]: the rows of the word embedding for AMINO_ACIDS (of ALBERT's: its smaller h)."""
    tokens = torch.from_numpy(make_stream([AMINO_ACIDS], encoder.tokenizer).tokens[1:-1])
    network = encoder.model
    if isinstance(network, Trunk):
        tokens = torch.tensor(network.table.ids)[tokens]
        weight = network.model.get_input_embeddings().weight
    else:
        weight = network.word_embeddings.weight
    return weight.detach()[tokens.to(weight.device)].float().cpu().numpy()


def protein_vectors(
    encoder: Encoder,
    points: Points,
    directory: str | Path,
    *,
    pooling: str = "mean",
    layer: int = -1,
    max_length: int | None = None,
    too_long: str = "error",
) -> np.ndarray:
    """float32 [N, h], from the files of `directory` where they are there."""
    embeddings = embed_once(
        encoder, points.sequences, directory, layers=(layer,), max_length=max_length, too_long=too_long,
        where=points.where,
    )  # fmt: skip
    return check_finite(embeddings.pooled(pooling, layer), points, encoder.source)


def check_finite(vectors: np.ndarray, points: Points, source: str) -> np.ndarray:
    """The vectors [N, h]; InputError where one has a NaN or an infinity."""
    bad = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(bad):
        text = f"the vector of {source} is not finite ({len(bad):,} of {len(points):,} such)"
        raise InputError(f"{points.where[bad[0]]}: {text}; should be numbers: are the weights?")
    return vectors


def with_metric(vectors: np.ndarray, metric: str) -> np.ndarray:
    """float64 [N, h] whose Euclidean distances are those of `metric`; of cosine: sqrt(2 - 2 cos)."""
    if metric not in METRICS:
        raise InputError(f"metric {metric!r}: should be one of {', '.join(METRICS)}")
    vectors = np.asarray(vectors, np.float64)
    if metric == "euclidean":
        return vectors
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)


def compositions(points: Points) -> np.ndarray:
    """float32 [N, 20]."""
    return OneHot(points.sequences).pooled()
