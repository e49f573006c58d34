"""Mutations scored by a masked language model, without training. The conventions are in docs/variants.md."""

from probe.variants.scoring import METHODS, scan, score

__all__ = ["METHODS", "scan", "score"]
