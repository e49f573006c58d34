"""The one form every checkpoint passes through: a config, a vocabulary and tensors under `pretrain`'s names."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pretrain.errors import InputError
from pretrain.model import ModelConfig, ProteinBert


@dataclass(frozen=True)
class PortableModel:
    """A whole model on one CPU. `tensors` has the names of `ProteinBert.state_dict()`; the LM head may be absent."""

    config: ModelConfig
    vocabulary: tuple[str, ...]
    tensors: dict[str, Tensor]
    origin: str  # what it was read from, for messages and provenance

    @property
    def has_lm_head(self) -> bool:
        return "lm_head.dense.weight" in self.tensors

    def build(self) -> ProteinBert:
        """The model itself, in fp32 and evaluation mode. Every tensor is used; a missing or extra one is an error."""
        model = ProteinBert(self.config, lm_head=self.has_lm_head)
        self.check(model)
        model.load_state_dict({name: tensor.float() for name, tensor in self.tensors.items()})
        return model.eval()

    def check(self, model: ProteinBert) -> None:
        """Compare names and shapes with what the config asks for."""
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for name, shape in wanted.items():
            if name not in self.tensors:
                raise InputError(f"{self.origin}: tensor {name} is missing")
            found = tuple(self.tensors[name].shape)
            if found != shape:
                raise InputError(f"{self.origin}: {name} has shape {found}, its config asks for {shape}")
        for name in self.tensors:
            if name not in wanted:
                raise InputError(f"{self.origin}: tensor {name} belongs to no part of the model its config describes")

    def to_dtype(self, dtype: torch.dtype) -> "PortableModel":
        return replace(self, tensors={name: tensor.to(dtype) for name, tensor in self.tensors.items()})
