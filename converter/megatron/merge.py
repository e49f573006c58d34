"""Merges the shards of a Megatron checkpoint one file at a time: memory for one whole model and one mapped shard.

Each tensor of a shard is used, or is named in the notes. Parts that tensor parallelism cut are copied into their place
in the whole; what every rank holds must be equal on all of them, bit for bit.
"""

import re

import torch
from torch import Tensor

from converter.megatron.files import Shard
from converter.megatron.layout import cut_dim, is_fused, to_our_rows
from converter.names import (
    MEGATRON_HEAD_EMBEDDING,
    MEGATRON_LEFT_OUT,
    MEGATRON_NAMES,
    MEGATRON_TOKEN_TYPES,
    MEGATRON_TRANSFORMERS,
)
from proteinlm.errors import InputError

TOKEN_TYPES, HEAD_EMBEDDING = "token_types", "head_embedding"  # kept aside under these names
LOCAL_LAYER = re.compile(r"layers\.(\d{1,6})\.(.+)")


def our_name(name: str) -> str | None:
    """Dotted Megatron name -> ours, layers numbered as in the file; None for what is left out deliberately."""
    if name in MEGATRON_NAMES:
        return MEGATRON_NAMES[name]
    if name.startswith(MEGATRON_LEFT_OUT):
        return None
    if name in (MEGATRON_TOKEN_TYPES, MEGATRON_HEAD_EMBEDDING):
        return TOKEN_TYPES if name == MEGATRON_TOKEN_TYPES else HEAD_EMBEDDING
    for prefix in MEGATRON_TRANSFORMERS:
        if name.startswith(prefix):
            return name.removeprefix(prefix).replace(".self_attention.", ".attention.")
    return name  # unknown: refused by name at the end


class Merger:
    """Takes shards in any order; `finish()` gives the whole tensors under our names."""

    def __init__(self, tensor_parallel: int, heads: int, version: float, where: str):
        self.tensor_parallel, self.heads, self.version, self.where = tensor_parallel, heads, version, where
        self.whole: dict[tuple[int, str], Tensor] = {}  # (stage, our name with the stage's own layer number)
        self.ranks: dict[tuple[int, str], list[int]] = {}
        self.left_out: set[str] = set()

    def add(self, shard: Shard, tp: int, stages: list[int]) -> None:
        """Take one file; stages[i] is the place of its i-th chunk in the pipeline."""
        for chunk, stage in zip(shard.chunks, stages, strict=True):
            names = {}
            for theirs in list(chunk):
                tensor, ours = chunk.pop(theirs), our_name(theirs)  # popped: a used shard's memory is given back
                if ours is None:
                    self.left_out.add(theirs)
                    continue
                if ours in names:
                    raise InputError(f"{shard.path}: {theirs} and {names[ours]} are two spellings of one tensor")
                names[ours] = theirs
                self._take(ours, tensor, tp, stage, f"{shard.path}: {theirs}")

    def _take(self, name: str, tensor: Tensor, tp: int, stage: int, what: str) -> None:
        key = (stage, name)
        ranks = self.ranks.setdefault(key, [])
        ranks.append(tp)
        dim = 0 if name == HEAD_EMBEDDING else cut_dim(name)
        if is_fused(name):
            tensor = self._ordered(tensor, what)
        if dim is None:
            if key not in self.whole:
                self.whole[key] = tensor.clone(memory_format=torch.contiguous_format)
            elif not _same(self.whole[key], tensor):
                raise InputError(
                    f"{what} differs from that of tensor-parallel rank {ranks[0]}; it must be equal on all"
                )
            return
        if tensor.dim() <= dim:
            raise InputError(f"{what} has shape {tuple(tensor.shape)}; tensor parallelism cuts its dimension {dim}")
        size = tensor.shape[dim]
        if key not in self.whole:
            shape = [n * self.tensor_parallel if i == dim else n for i, n in enumerate(tensor.shape)]
            self.whole[key] = torch.zeros(shape, dtype=tensor.dtype)
        place = self.whole[key].narrow(dim, tp * size, size) if self._fits(key, tensor, dim) else None
        if place is None:
            found = f"shape {tuple(tensor.shape)} and {tensor.dtype}"
            raise InputError(f"{what} has {found}, unlike that of tensor-parallel rank {ranks[0]}")
        place.copy_(tensor)

    def _fits(self, key: tuple[int, str], tensor: Tensor, dim: int) -> bool:
        whole = self.whole[key]
        shape = [n // self.tensor_parallel if i == dim else n for i, n in enumerate(whole.shape)]
        return whole.dtype == tensor.dtype and list(tensor.shape) == shape

    def _ordered(self, tensor: Tensor, what: str) -> Tensor:
        heads, rest = divmod(self.heads, self.tensor_parallel)
        if rest:
            raise InputError(f"{what}: {self.heads} attention heads cannot lie on {self.tensor_parallel} ranks evenly")
        if tensor.dim() == 0 or tensor.shape[0] == 0 or tensor.shape[0] % (3 * heads):
            raise InputError(
                f"{what} has shape {tuple(tensor.shape)}; its rows must be a multiple of 3 x {heads} heads of a rank"
            )
        return to_our_rows(tensor, self.version, heads, tensor.shape[0] // (3 * heads))

    def finish(self) -> tuple[dict[str, Tensor], list[str]]:
        """(whole tensors under our names, notes). Layers are numbered through the stages."""
        for (stage, name), ranks in self.ranks.items():
            if ranks != list(range(self.tensor_parallel)):
                absent = sorted(set(range(self.tensor_parallel)) - set(ranks))
                raise InputError(
                    f"{self.where}: stage {stage}: {name} is not on tensor-parallel rank {', '.join(map(str, absent))}"
                )
        tensors, offset = {}, 0
        stages = sorted({stage for stage, _ in self.whole})
        for stage in stages:
            mine = {name: tensor for (place, name), tensor in self.whole.items() if place == stage}
            count = self._layers_of(mine, stage)
            for name, tensor in mine.items():
                layer = LOCAL_LAYER.fullmatch(name)
                final = f"layers.{offset + int(layer[1])}.{layer[2]}" if layer else name
                if final in tensors:
                    raise InputError(f"{self.where}: {final} is in two pipeline stages")
                tensors[final] = tensor
            offset += count
        self.whole = {}
        return self._aside(tensors)

    def _layers_of(self, tensors: dict[str, Tensor], stage: int) -> int:
        numbers = {int(layer[1]) for layer in map(LOCAL_LAYER.fullmatch, tensors) if layer}
        if numbers != set(range(len(numbers))):
            absent = min(set(range(len(numbers))) - numbers)
            raise InputError(
                f"{self.where}: pipeline stage {stage} holds layers {_few(numbers)}, but no layer {absent}"
            )
        return len(numbers)

    def _aside(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Use up the head's copy of the embedding and the token types."""
        notes = [f"{name} left out: it belongs to the next-sentence task" for name in sorted(self.left_out)]
        copy = tensors.pop(HEAD_EMBEDDING, None)
        embedding, positions = (tensors.get(f"{kind}_embeddings.weight") for kind in ("word", "position"))
        if copy is not None and (embedding is None or not _same(copy, embedding)):
            raise InputError(
                f"{self.where}: {MEGATRON_HEAD_EMBEDDING} of the last stage is not the first stage's word embedding; "
                "the files of two checkpoints are mixed"
            )
        types = tensors.pop(TOKEN_TYPES, None)
        if types is not None and positions is not None:
            tensors["position_embeddings.weight"], note = fold_token_types(types, positions, self.where)
            notes.append(note)
        return tensors, notes


def fold_token_types(types: Tensor, positions: Tensor, where: str) -> tuple[Tensor, str]:
    """Token type 0 is added at every position, so it is added to the position embedding; other types have no use."""
    if types.dim() != 2 or positions.dim() != 2 or len(types) == 0 or types.shape[1] != positions.shape[1]:
        raise InputError(f"{where}: token types have shape {tuple(types.shape)}, positions {tuple(positions.shape)}")
    rest = f"; types 1 to {len(types) - 1} left out" if len(types) > 1 and types[1:].any() else ""
    if not types[0].any():
        return positions, f"token types left out: type 0, which proteins have, is zeros{rest}"
    folded = (positions.float() + types[0].float()).to(positions.dtype)
    return folded, f"token type 0 is not zeros: it was added to every position embedding, which is the same{rest}"


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def _few(numbers: set[int]) -> str:
    listed = sorted(numbers)
    return ", ".join(map(str, listed[:8])) + (" ..." if len(listed) > 8 else "")
