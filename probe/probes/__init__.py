"""Small heads on frozen embeddings: what an encoder knows, beside its random twin and the bare sequence.

from probe import probes

data = probes.read_columns("deeploc.csv", ("location", "membrane"))
results = probes.run("model", data, "deeploc_probe", probes.Options(heads=("fnn", "logistic"), layers="all"))
"""

from proteinlm import late

_MODULES = {
    "Options": "probe.probes.experiment",
    "ProbeData": "probe.probes.data",
    "read_columns": "probe.probes.data",
    "read_structure": "probe.probes.data",
    "run": "probe.probes.experiment",
}
__all__ = sorted(_MODULES)
__getattr__, __dir__ = late(__name__, _MODULES)
