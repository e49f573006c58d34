"""The regression that makes contacts of attention maps, as ESM's models carry it beside their weights."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class ContactRegression:
    """A logistic regression over the L * H attention maps of a model, layer by layer, each layer's heads in order."""

    weight: Tensor  # [1, L * H]
    bias: Tensor  # [1]
