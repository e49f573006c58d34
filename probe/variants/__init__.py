"""Mutations scored by a masked language model, without training. The conventions are in docs/variants.md."""

from proteinlm import late

_MODULES = {
    "METHODS": "probe.variants.scoring",
    "scan": "probe.variants.scoring",
    "score": "probe.variants.scoring",
}
__all__ = sorted(_MODULES)
__getattr__, __dir__ = late(__name__, _MODULES)
