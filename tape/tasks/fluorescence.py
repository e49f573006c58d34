"""Fluorescence: log fluorescence of GFP mutants (Sarkisyan et al. 2016); Spearman's rho."""

from tape.datasets import FluorescenceDataset
from tape.models.modeling_bert import ProteinBertForValuePrediction
from tape.tasks.base import VALUE_METRICS, ValueTask

TASK = ValueTask(
    name="fluorescence",
    dataset=FluorescenceDataset,
    model=ProteinBertForValuePrediction,
    num_labels=1,
    splits=("test",),
    metric="spearmanr",
    metrics=VALUE_METRICS,
)
