"""A small model directory, the encoder that proteinlm.load makes of it, and Hugging Face's ESM in fp64 throughout."""

import pytest
from toy_model import write_model

import proteinlm


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="module")
def encoder(directory):
    return proteinlm.load(directory, device="cpu")


@pytest.fixture
def unrounded(monkeypatch):
    """Hugging Face's ESM without the rounding of queries and keys to fp32, which it does in fp64 too."""
    modeling_esm = pytest.importorskip("transformers.models.esm.modeling_esm")
    from transformers.models.esmc import modeling_esmc  # the same function, written without it

    monkeypatch.setattr(modeling_esm, "apply_rotary_pos_emb", modeling_esmc.apply_rotary_pos_emb)
