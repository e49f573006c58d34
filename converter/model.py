"""The one form every checkpoint passes through: a config, a vocabulary and tensors under `pretrain`'s names.

What must hold of a `PortableModel` that a reader hands out (`checked`): every tensor that its config asks for is there
with that shape, no other is, all are finite floating-point numbers, and the padding rows of the vocabulary are zeros.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from proteinlm.errors import InputError
from proteinlm.model import ModelConfig, ProteinBert, initialize
from proteinlm.tokenizer import Tokenizer

# The tensors whose first dimension is the (padded) vocabulary.
VOCABULARY_TENSORS = ("word_embeddings.weight", "lm_head.bias")
HEAD_SEED = 1234  # of a masked-LM head made where the source has none
LARGEST_NUMBER = 2**31  # of any size in a config; more cannot be meant


@dataclass(frozen=True)
class PortableModel:
    """A whole model on one CPU. `tensors` has the names of `ProteinBert.state_dict()`; the LM head may be absent."""

    config: ModelConfig
    tokenizer: Tokenizer
    tensors: dict[str, Tensor]
    origin: str  # what it was read from, for messages and provenance
    notes: tuple[str, ...] = ()  # what was left out, changed or assumed while reading, one sentence each
    counters: Mapping[str, int] = field(default_factory=dict)  # iteration, consumed_train_samples, ... if known

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return self.tokenizer.tokens

    @property
    def has_lm_head(self) -> bool:
        return any(name.startswith("lm_head.") for name in self.tensors)

    @property
    def dtype(self) -> torch.dtype:
        """That of the largest matrix: the one the model was stored in."""
        return max(self.tensors.values(), key=Tensor.numel).dtype

    def build(self) -> ProteinBert:
        """The model itself, in fp32 and evaluation mode."""
        model = ProteinBert(self.config, lm_head=self.has_lm_head)
        model.load_state_dict(self.tensors)  # copies into fp32 parameters
        return model.eval()

    def noted(self, *notes: str) -> "PortableModel":
        return replace(self, notes=(*self.notes, *notes))

    def as_stored_in(self, dtype: torch.dtype | None) -> "PortableModel":
        """The same model after rounding to `dtype` (None: as it is)."""
        if dtype is None:
            return self
        return replace(self, tensors={name: tensor.to(dtype) for name, tensor in self.tensors.items()})

    def checked(self) -> "PortableModel":
        """Self, after comparing names, shapes and numbers with what the config asks for."""
        for name, shape in expected_shapes(self.config, self.has_lm_head):
            if name not in self.tensors:
                raise InputError(f"{self.origin}: tensor {name} is missing")
            found = tuple(self.tensors[name].shape)
            if found != shape:
                raise InputError(f"{self.origin}: {name} has shape {found}, its config asks for {shape}")
        wanted = {name for name, _ in expected_shapes(self.config, self.has_lm_head)}
        for name, tensor in self.tensors.items():
            if name not in wanted:
                raise InputError(f"{self.origin}: tensor {name} belongs to no part of the model its config describes")
            check_numbers(tensor, name, self.origin)
        return self


def expected_shapes(config: ModelConfig, lm_head: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor of `ProteinBert(config, lm_head)`, in its order; nothing is allocated."""
    h, ffn, rows = config.hidden_size, config.ffn_hidden_size, config.padded_vocab_size
    yield "word_embeddings.weight", (rows, h)
    yield "position_embeddings.weight", (config.max_position_embeddings, h)
    parts = [
        ("input_layernorm", h, None),
        ("attention.query_key_value", 3 * h, h),
        ("attention.dense", h, h),
        ("post_attention_layernorm", h, None),
        ("mlp.dense_h_to_4h", ffn, h),
        ("mlp.dense_4h_to_h", h, ffn),
    ]
    for layer in range(config.num_layers):
        for part, out, into in parts:
            yield f"layers.{layer}.{part}.weight", (out,) if into is None else (out, into)
            yield f"layers.{layer}.{part}.bias", (out,)
    if config.final_layernorm:
        yield "final_layernorm.weight", (h,)
        yield "final_layernorm.bias", (h,)
    if lm_head:
        yield "lm_head.bias", (rows,)
        yield "lm_head.dense.weight", (h, h)
        yield "lm_head.dense.bias", (h,)
        yield "lm_head.layernorm.weight", (h,)
        yield "lm_head.layernorm.bias", (h,)


def check_numbers(tensor: Tensor, name: str, where: str) -> None:
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise InputError(
            f"{where}: {name} holds {str(tensor.dtype).removeprefix('torch.')}, not floating-point numbers"
        )
    if not torch.isfinite(tensor).all():
        raise InputError(f"{where}: {name} holds NaN or infinity: the run diverged or the file is damaged")


def make_config(values: Mapping[str, object], where: str) -> ModelConfig:
    """ModelConfig of values that came from a file: types and ranges are checked before anything is made of them."""
    known = {f.name: f.type for f in fields(ModelConfig)}
    for name, value in values.items():
        if name not in known:
            raise InputError(f"{where}: {name} is not a field of a model's configuration")
        kind = known[name]
        if kind is bool:
            good = type(value) is bool
        elif kind is str:
            good = type(value) is str
        elif kind is float:
            good = type(value) in (int, float) and math.isfinite(value) and value >= 0
        else:
            good = type(value) is int and 0 < value < LARGEST_NUMBER
            good = good or (name == "ffn_hidden_size" and value is None)
        if not good:
            raise InputError(f"{where}: {name} is {ascii(value)[:60]}, which cannot be")
    for name in ("hidden_dropout", "attention_dropout"):
        if values.get(name, 0) >= 1:
            raise InputError(f"{where}: {name} is {values[name]}; it must be below 1")
    try:
        return ModelConfig(**values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from None


def with_lm_head(model: PortableModel) -> PortableModel:
    """The model, with a fresh masked-LM head where it has none (said in the notes), for formats that need one."""
    if model.has_lm_head:
        return model
    small = replace(model.config, num_layers=1, ffn_hidden_size=1, max_position_embeddings=1)
    fresh = ProteinBert(small)
    initialize(fresh, HEAD_SEED)
    head = {name: value for name, value in fresh.state_dict().items() if name.startswith("lm_head.")}
    tensors = model.tensors | {name: value.to(model.dtype) for name, value in head.items()}
    note = f"the source has no masked-LM head: a fresh one was made (seed {HEAD_SEED}), so logits start untrained"
    return replace(model, tensors=tensors).noted(note)
