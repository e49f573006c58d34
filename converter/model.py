"""The one form every checkpoint passes through: a config, a vocabulary and tensors under `ProteinBert`'s names.

What must hold of a `PortableModel` that a reader returns (`checked`): every tensor that its config asks for is there
with that shape, no other is, all are floating-point numbers, and the padding rows of the vocabulary are zeros.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from proteinlm.errors import InputError
from proteinlm.model_dir.config import (
    CONFIG_KEYS,
    FLAG,
    MODEL_DEFAULTS,
    OPTIONAL_KEYS,
    RULES,
    SIZE,
    SIZE_OR_NONE,
    check_values,
)
from proteinlm.model_dir.contact_head import contact_tensors, expected_contacts
from proteinlm.model_dir.files import ModelFiles, check_tensors, count_not_finite, same
from proteinlm.model_dir.names import tensors_without_memory
from proteinlm.model_dir.weights import stored_dtype
from proteinlm.network.config import ModelConfig
from proteinlm.network.contacts import ContactRegression
from proteinlm.network.model import ProteinBert, initialize
from proteinlm.tokenizer import Tokenizer

HEAD_SEED = 1234  # of a masked-LM head made where the source has none
# What a field of ModelConfig may be.
FIELD_RULES = {field: RULES[key] for field, key in CONFIG_KEYS.items()}
FIELD_RULES |= {"make_vocab_size_divisible_by": SIZE, "share_layers": FLAG, "embedding_size": SIZE_OR_NONE}


@dataclass(frozen=True)
class PortableModel:
    """A whole model on one CPU. `tensors` has the names of `ProteinBert.state_dict()`; the LM head may be absent."""

    config: ModelConfig
    tokenizer: Tokenizer
    tensors: dict[str, Tensor]
    origin: str  # what it was read from, for messages and provenance
    notes: tuple[str, ...] = ()  # what was left out, changed or assumed while reading, one sentence each
    counters: Mapping[str, int] = field(default_factory=dict)  # iteration, consumed_train_samples, ... if known
    contact_head: ContactRegression | None = None
    not_finite: int = 0  # numbers among the tensors that are NaN or infinity

    @property
    def has_lm_head(self) -> bool:
        return any(name.startswith("lm_head.") for name in self.tensors)

    @property
    def all_tensors(self) -> dict[str, Tensor]:
        """Those of the network, and of the contact regression where there is one."""
        return self.tensors | contact_tensors(self.contact_head)

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

    def with_config(self, **changes: object) -> "PortableModel":
        return replace(self, config=replace(self.config, **changes))

    def rounded_to(self, dtype: torch.dtype | None) -> "PortableModel":
        """The same model after rounding to `dtype` (None: as it is)."""
        tensors = {name: tensor.to(stored_dtype(name, tensor, dtype)) for name, tensor in self.tensors.items()}
        return replace(self, tensors=tensors, contact_head=rounded_contacts(self.contact_head, dtype))

    def checked(self, not_finite: Mapping[str, int] | None = None, source: str | Path = "") -> "PortableModel":
        """Self, after comparing names and shapes with what the config asks for; numbers that are none are noted.

        not_finite: how many each tensor holds, where its reader has counted them; source: in which file.
        """
        if self.config.num_layers > len(self.tensors):  # before anything is made for each that a config claims
            layers = self.config.num_layers
            raise InputError(f"{self.origin}: {len(self.tensors)} tensors cannot be the {layers} layers of its config")
        tensors, expected = self.all_tensors, tensors_without_memory(self.config, self.has_lm_head)
        expected |= expected_contacts(tensors, self.config)
        check_tensors(tensors, expected, self.origin, who_needs="config gives")
        for name, tensor in tensors.items():
            if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
                kind = str(tensor.dtype).removeprefix("torch.")
                raise InputError(f"{self.origin}: {name} holds {kind}, not floating-point numbers")
        not_finite = count_not_finite(tensors) if not_finite is None else not_finite
        return self._counted(not_finite, source or self.origin) if not_finite else self

    def _counted(self, not_finite: Mapping[str, int], source: str | Path) -> "PortableModel":
        count, first = sum(not_finite.values()), next(iter(not_finite))
        what = f"{count:,} numbers of {len(not_finite)} tensors are NaN or infinity"
        fault = f"{what}, first in {first}: a diverged run or a damaged file; kept as they are"
        return replace(self, not_finite=count).noted(f"{source}: {fault}")


def without_sharing(model: PortableModel) -> PortableModel:
    """The same network with a whole word embedding and layers of their own, which every format can say."""
    tensors = dict(model.tensors)
    if model.config.embedding_size is not None:
        factor, projection = (tensors.pop(f"word_embeddings.{name}") for name in ("factor", "projection"))
        tensors["word_embeddings.weight"] = factor @ projection
        model = model.noted(f"the word embedding is written whole, without its factors of {factor.shape[1]}")
    if model.config.share_layers:
        model = model.noted("the weights that all layers share are written once for each layer")
    return replace(model, tensors=tensors).with_config(share_layers=False, embedding_size=None)


def rounded_contacts(head: ContactRegression | None, dtype: torch.dtype | None) -> ContactRegression | None:
    return head if head is None or dtype is None else ContactRegression(head.weight.to(dtype), head.bias.to(dtype))


def portable(files: ModelFiles, origin: str) -> PortableModel:
    """What one of proteinlm's readers made of a path, checked."""
    model = PortableModel(files.config, files.tokenizer, files.state, origin, files.notes)
    return replace(model, contact_head=files.contact_head).checked(files.not_finite, files.source)


def same_tensor(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether both are there with the same dtype, shape and bits."""
    return one is not None and other is not None and same(one, other)


def make_config(values: Mapping[str, object], where: str) -> ModelConfig:
    """ModelConfig of values that came from a file: types and ranges are checked before anything is made of them."""
    unknown = next((name for name in values if name not in FIELD_RULES), None)
    if unknown is not None:
        raise InputError(f"{where}: {unknown} is not a field of a model's configuration")
    check_values(values, values, where, FIELD_RULES)
    try:
        return ModelConfig(**values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from None


# What makes another network than Megatron's BERT, and the value with which it is that one.
PLAIN = {key: MODEL_DEFAULTS[key] for key in OPTIONAL_KEYS if key not in ("rotary_base", "mask_token_id")}


def require_options(model: PortableModel, only: Mapping[str, object], who: str) -> None:
    """InputError for a model whose configuration differs from `only`. who: "Megatron's BERT", which cannot say it."""
    for name, value in only.items():
        if getattr(model.config, name) != value:
            raise InputError(f"{model.origin}: {name} {getattr(model.config, name)}; {who} has {name} {value} only")


def without_contact_head(model: PortableModel, who: str) -> PortableModel:
    """The model without its contact regression, for formats that have no place for it."""
    if model.contact_head is None:
        return model
    return replace(model, contact_head=None).noted(f"the contact regression is left out: {who} has no place for it")


def require_final_layernorm(model: PortableModel, who: str) -> None:
    """InputError for a model without that norm. who: "pretraining always has", for whatever always applies it."""
    if not model.config.final_layernorm:
        raise InputError(
            f"{model.origin}: final_layernorm is false, and {who} that norm; remove the key from config.json to "
            "convert the model with it"
        )


def with_lm_head(model: PortableModel) -> PortableModel:
    """The model, with a fresh masked-LM head where it has none (a note says so), for formats that need one."""
    if model.has_lm_head:
        return model
    fresh = ProteinBert(replace(model.config, num_layers=1, ffn_hidden_size=1, max_position_embeddings=1))
    initialize(fresh, HEAD_SEED)
    head = {name: value for name, value in fresh.state_dict().items() if name.startswith("lm_head.")}
    tensors = model.tensors | {name: value.to(model.dtype) for name, value in head.items()}
    note = f"the source has no masked-LM head: a fresh one was made (seed {HEAD_SEED}), so logits start untrained"
    return replace(model, tensors=tensors).noted(note)
