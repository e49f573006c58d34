"""TAPE's name for embedding: a dataset and a model, and nothing to train or to score. `tape-embed` does it."""

from collections.abc import Sequence

import torch

from proteinlm.errors import InputError
from tape.datasets import EmbedDataset
from tape.models.modeling_bert import ProteinBertModel
from tape.tasks.base import Batch, Prediction, Task


class Embed(Task):
    """forward gives the hidden states [B, N, h]."""

    def loss(self, logits: torch.Tensor, batch: Batch) -> tuple:
        raise InputError("task embed: nothing to train; tape-embed writes embeddings")

    def predictions(self, logits: torch.Tensor, batch: Batch) -> list[Prediction]:
        raise InputError("task embed: nothing to score; tape-embed writes embeddings")

    def score(self, predictions: Sequence[Prediction]) -> dict:
        raise InputError("task embed: nothing to score; tape-embed writes embeddings")


TASK = Embed(
    name="embed", dataset=EmbedDataset, model=ProteinBertModel, num_labels=0, splits=(), metric="none", metrics={}
)
