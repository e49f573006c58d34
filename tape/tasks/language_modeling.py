"""Language modelling on Pfam in TAPE's form (the LSTM's pretraining): every token guessed from the others on its sides.

`perplexity` and `accuracy` are taken over residues alone; the loss, as TAPE's, over <cls> and <sep> too.
"""

import torch

from tape import metrics
from tape.datasets import LanguageModelingDataset
from tape.tasks.base import Batch, Prediction
from tape.tasks.masked_language_modeling import LM_METRICS, MaskedLanguageModeling


class LanguageModeling(MaskedLanguageModeling):
    """Cross-entropy over every token; the model does the shifting."""

    def predictions(self, logits: torch.Tensor, batch: Batch) -> list[Prediction]:
        targets = batch["targets"].clone()
        targets[:, 0] = metrics.IGNORE
        targets[torch.arange(len(targets)), batch["input_mask"].long().sum(1) - 1] = metrics.IGNORE
        names = {key: batch[key] for key in ("ids", "protein_length")}
        return super().predictions(logits, names | {"targets": targets})


TASK = LanguageModeling(
    name="language_modeling",
    dataset=LanguageModelingDataset,
    model=None,  # no class of `transformer`: a bidirectional encoder sees the token it guesses
    num_labels=0,
    splits=("holdout",),
    metric="perplexity",
    metrics=LM_METRICS,
    higher_is_better=False,
)
