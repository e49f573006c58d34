"""The processes that all parity tests share, and a small corpus."""

from pathlib import Path

import numpy as np
import pytest
from parity_layouts import SHAPES
from parity_ranks import Ranks

from pretrain.data.indexed import IndexedWriter
from proteinlm.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def ranks():
    """Started when first needed: `ranks.run(size, function, *arguments)`."""
    ranks = Ranks()
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> list[str]:
    """Flags that name 200 random proteins of 5 to 40 residues, a few longer than a row."""
    return random_corpus(tmp_path_factory.mktemp("parity"), "iupac")


@pytest.fixture(scope="session")
def esm_corpus(tmp_path_factory) -> list[str]:
    """Such proteins in ESM's vocabulary."""
    return random_corpus(tmp_path_factory.mktemp("parity"), "esm")


@pytest.fixture(scope="session")
def flags_of(corpus, esm_corpus):
    """The flags of a shape and its proteins."""
    return lambda shape: [*(esm_corpus if "--token-dropout" in SHAPES[shape] else corpus), *SHAPES[shape]]


def random_corpus(folder: Path, tokenizer_type: str) -> list[str]:
    prefix, rng = folder / "random_text_document", np.random.default_rng(0)
    lengths = rng.integers(5, 40, 200)
    letters = build_tokenizer(tokenizer_type).encode("ACDEFGHIKLMNPQRSTVWY")
    with IndexedWriter(prefix) as writer:
        writer.add(rng.choice(letters, lengths.sum()), lengths)
    return ["--data-path", str(prefix), "--tokenizer-type", tokenizer_type, "--save", str(folder / "run")]
