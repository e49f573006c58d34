"""The processes that all parity tests share, and a small corpus."""

from pathlib import Path

import numpy as np
import pytest
from parity_ranks import Ranks

from pretrain.data.indexed import IndexedWriter
from proteinlm.tokenizer import build_tokenizer


@pytest.fixture(scope="session")
def ranks():
    """Start them once: `ranks.run(size, function, *arguments)`."""
    ranks = Ranks()
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> list[str]:
    """Flags that name 200 random proteins of 5 to 40 residues, a few longer than a row."""
    prefix: Path = tmp_path_factory.mktemp("parity") / "random_text_document"
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 40, 200)
    letters = build_tokenizer().encode("ACDEFGHIKLMNPQRSTVWY")
    with IndexedWriter(prefix) as writer:
        writer.add(rng.choice(letters, lengths.sum()), lengths)
    return ["--data-path", str(prefix), "--save", str(prefix.parent / "run")]
