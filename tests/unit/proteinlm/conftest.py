"""A small model directory, and the encoder that proteinlm.load makes of it."""

import pytest
from toy_model import write_model

import proteinlm


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="module")
def encoder(directory):
    return proteinlm.load(directory, device="cpu")
