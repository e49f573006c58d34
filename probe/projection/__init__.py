"""Maps of what an encoder knows, with numbers, and labels from nearest neighbours: `proteinlm project`."""

from probe.projection.outputs import project
from probe.projection.transfer import annotate

__all__ = ["annotate", "project"]
