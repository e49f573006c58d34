"""Vectors of many dimensions in two: PCA, t-SNE and UMAP, each by its library, with the settings of ProtTrans.

ProtTrans' figures are t-SNE of 3,000 iterations and perplexity 30 (5 for amino acids; Elnaggar et al. 2021). What must
hold: a map is a function of (vectors, method, settings, seed); one that a file has is not computed again.
"""

import contextlib
import hashlib
import importlib
import inspect
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probe.names import COMPOSITION, PRETRAINED, RANDOM
from proteinlm.errors import InputError
from proteinlm.progress import Progress
from tape.inference.parts import kept_array

METHODS = ("pca", "tsne", "umap")
ARMS = (PRETRAINED, RANDOM, COMPOSITION)  # that are drawn
NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
ITERATIONS = 3000
PERPLEXITY, PERPLEXITY_OF_AMINO_ACIDS = 30.0, 5.0


@dataclass(frozen=True)
class Map:
    """xy float64 [N, 2], and what is along each axis."""

    xy: np.ndarray
    axes: tuple[str, str]


def need(module: str, package: str, extra: str):
    """A module of an extra; InputError with the line that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"needs {package}: pip install 'proteinlm[{extra}]'") from None


class _Iterations(io.TextIOBase):
    """Takes what scikit-learn prints about t-SNE's iterations, and moves the progress on."""

    def __init__(self, progress: Progress):
        self.progress = progress

    def write(self, text: str) -> int:
        number = re.search(r"Iteration (\d+)", text)
        if number and int(number[1]) > self.progress.done:
            self.progress.add(int(number[1]) - self.progress.done)
        return len(text)


def pca(vectors: np.ndarray, seed: int) -> Map:
    decomposition = need("sklearn.decomposition", "scikit-learn", "probe").PCA(2, random_state=seed)
    with np.errstate(invalid="ignore"):  # vectors that are all alike have no variance
        xy = decomposition.fit_transform(vectors)
    shares = np.nan_to_num(decomposition.explained_variance_ratio_)
    return Map(xy, tuple(f"PC {i + 1} ({share:.1%} of the variance)" for i, share in enumerate(shares)))


def tsne(vectors: np.ndarray, seed: int, perplexity: float, iterations: int) -> np.ndarray:
    """float64 [N, 2], started from the first two principal components."""
    kind = need("sklearn.manifold", "scikit-learn", "probe").TSNE
    steps = "max_iter" if "max_iter" in inspect.signature(kind).parameters else "n_iter"  # before scikit-learn 1.5
    settings = {"perplexity": perplexity, "init": "pca", "random_state": seed, steps: iterations, "verbose": 2}
    with Progress("t-SNE iterations", iterations) as progress, contextlib.redirect_stdout(_Iterations(progress)):
        return kind(2, **settings).fit_transform(vectors.astype(np.float32)).astype(np.float64)


def umap(vectors: np.ndarray, seed: int) -> np.ndarray:
    """float64 [N, 2]; umap-learn's own settings (15 neighbours, min_dist .1)."""
    return need("umap", "umap-learn", "umap").UMAP(random_state=seed).fit_transform(vectors).astype(np.float64)


def check_perplexity(points: int, perplexity: float, source: str) -> None:
    if perplexity >= points:
        text = f"{points} points, not more than the perplexity {perplexity:g}"
        raise InputError(f"{source}: {text}; --perplexity should be lower, a third of the points at most")


def make_map(
    vectors: np.ndarray, method: str, seed: int, perplexity: float, iterations: int, directory: Path | None = None
) -> Map:
    """The map of vectors [N, h]. directory: where maps are kept, so that a killed run finds those it has made."""
    if method == "pca":
        return pca(vectors, seed)
    settings = {"method": method, "seed": seed}
    settings |= {"perplexity": perplexity, "iterations": iterations} if method == "tsne" else {}
    compute = (lambda: tsne(vectors, seed, perplexity, iterations)) if method == "tsne" else lambda: umap(vectors, seed)
    return Map(_once(compute, vectors, settings, directory), (f"{NAMES[method]} 1", f"{NAMES[method]} 2"))


def _once(compute, vectors: np.ndarray, settings: dict, directory: Path | None) -> np.ndarray:
    if directory is None:
        return compute()
    digest = hashlib.sha256(np.ascontiguousarray(vectors).tobytes() + json.dumps(settings).encode()).hexdigest()
    return kept_array(directory / f"map_{digest[:16]}.npz", compute)
