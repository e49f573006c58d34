"""TAPE's name for embedding: a dataset and a model, and nothing to train or to score. `tape-embed` does it."""

from proteinlm.errors import InputError
from tape.datasets import EmbedDataset
from tape.models.modeling_bert import ProteinBertModel
from tape.tasks.base import Task


class Embed(Task):
    """forward gives the hidden states [B, N, h]."""

    def _refuse(self, *arguments):
        raise InputError("task embed: nothing to train or to score; tape-embed writes embeddings")

    loss = predictions = score = _refuse


TASK = Embed(
    name="embed", dataset=EmbedDataset, model=ProteinBertModel, num_labels=0, splits=(), metric="none", metrics={}
)
