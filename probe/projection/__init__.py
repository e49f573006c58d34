"""Maps of what an encoder knows, with numbers, and labels from nearest neighbours: `proteinlm project`."""

from proteinlm import late

_MODULES = {
    "annotate": "probe.projection.transfer",
    "project": "probe.projection.outputs",
}
__all__ = sorted(_MODULES)
__getattr__, __dir__ = late(__name__, _MODULES)
