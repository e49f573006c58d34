"""A corpus for the tests of whole pretraining runs."""

import numpy as np
import pytest

from pretrain.data.indexed import IndexedWriter
from proteinlm.tokenizer import build_tokenizer


@pytest.fixture(scope="session")
def prefix(tmp_path_factory) -> str:
    """Proteins that repeat a random motif of three residues: text that context, and only context, explains."""
    path = str(tmp_path_factory.mktemp("data") / "motifs_text_document")
    rng = np.random.default_rng(0)
    lengths = rng.integers(9, 40, 600)
    letters = build_tokenizer().encode("ACDEFGHIKLMNPQRSTVWY")
    proteins = [np.resize(rng.choice(letters, 3), n) for n in lengths]
    with IndexedWriter(path) as writer:
        writer.add(np.concatenate(proteins), lengths)
    return path
