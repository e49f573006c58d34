"""Small heads on frozen embeddings: what an encoder knows, beside its random twin and the bare sequence.

from probe import probes

data = probes.read_columns("deeploc.csv", ("location", "membrane"))
results = probes.run("model", data, "deeploc_probe", probes.Options(heads=("fnn", "logistic"), layers="all"))
"""

from probe.probes.data import ProbeData, read_columns, read_structure
from probe.probes.experiment import Options, run

__all__ = ["Options", "ProbeData", "read_columns", "read_structure", "run"]
