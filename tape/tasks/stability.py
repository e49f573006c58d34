"""Stability: protease resistance of designed miniproteins (Rocklin et al. 2017); Spearman's rho."""

from tape.datasets import StabilityDataset
from tape.models.modeling_bert import ProteinBertForValuePrediction
from tape.tasks.base import VALUE_METRICS, ValueTask

TASK = ValueTask(
    name="stability",
    dataset=StabilityDataset,
    model=ProteinBertForValuePrediction,
    num_labels=1,
    splits=("test",),
    metric="spearmanr",
    metrics=VALUE_METRICS,
)
