"""Merges the shards of a Megatron checkpoint one file at a time: memory for one whole model and one mapped shard.

Each tensor of a shard is used, or is named in the notes. Parts that tensor parallelism cut are copied into their place
in the whole; what every rank holds must be equal on all of them, bit for bit.
"""

import torch
from torch import Tensor

from converter.megatron.files import Shard
from converter.megatron.layout import cut_dim, is_fused, to_our_rows
from converter.model import same_tensor
from converter.names import LAYER, MEGATRON_HEAD_EMBEDDING, MEGATRON_LEFT_OUT, MEGATRON_PREFIX, MEGATRON_TOKEN_TYPES
from converter.vocabulary import fold_token_types
from proteinlm.errors import InputError


def our_name(name: str) -> str | None:
    """Dotted Megatron name -> ours, layers numbered as in the file; None for what is left out deliberately.

    What is unknown comes through as it is, for the check of the whole model to refuse by name.
    """
    if name.startswith(MEGATRON_LEFT_OUT):
        return None
    return MEGATRON_PREFIX.sub("", name, count=1).replace(".self_attention.", ".attention.")


class Merger:
    """Takes shards in the order of their ranks; `finish()` gives the whole tensors under our names."""

    def __init__(self, tensor_parallel: int, heads: int, version: float, where: str):
        self.tensor_parallel, self.heads, self.version, self.where = tensor_parallel, heads, version, where
        self.stages: dict[int, dict[str, Tensor]] = {}  # whole tensors, their layers numbered within the stage
        self.ranks: dict[tuple[int, str], list[int]] = {}  # which tensor-parallel ranks (stage, name) came from
        self.left_out: set[str] = set()

    def add(self, shard: Shard, tp: int, stages: list[int]) -> None:
        """Take one file; stages[i] is the place of its i-th chunk in the pipeline."""
        for chunk, stage in zip(shard.chunks, stages, strict=True):
            spellings: dict[str, str] = {}
            for spelling in list(chunk):
                tensor, name = chunk.pop(spelling), our_name(spelling)  # popped: a used shard's memory is given back
                if name is None:
                    self.left_out.add(spelling)
                    continue
                if name in spellings:
                    raise InputError(f"{shard.path}: {spelling} and {spellings[name]} are two spellings of one tensor")
                spellings[name] = spelling
                self._take(name, tensor, tp, stage, f"{shard.path}: {spelling}")

    def _take(self, name: str, tensor: Tensor, tp: int, stage: int, what: str) -> None:
        whole, ranks = self.stages.setdefault(stage, {}), self.ranks.setdefault((stage, name), [])
        ranks.append(tp)
        if is_fused(name):
            tensor = self._in_our_order(tensor, what)
        dim = cut_dim(name)
        if dim is not None:
            self._take_part(whole, name, tensor, dim, tp, what)
        elif name not in whole:
            whole[name] = tensor.clone(memory_format=torch.contiguous_format)
        elif not same_tensor(whole[name], tensor):
            raise InputError(f"{what} differs from that of tensor-parallel rank {ranks[0]}; it must be equal on all")

    def _take_part(self, whole: dict[str, Tensor], name: str, tensor: Tensor, dim: int, tp: int, what: str) -> None:
        if tensor.dim() <= dim:
            raise InputError(f"{what} has shape {tuple(tensor.shape)}; tensor parallelism cuts its dimension {dim}")
        shape, size = list(tensor.shape), tensor.shape[dim]
        shape[dim] = size * self.tensor_parallel
        if name not in whole:
            whole[name] = torch.zeros(shape, dtype=tensor.dtype)
        if whole[name].dtype != tensor.dtype or list(whole[name].shape) != shape:
            part = f"shape {tuple(tensor.shape)} and {tensor.dtype}"
            raise InputError(f"{what} has {part}, unlike that of an earlier tensor-parallel rank")
        whole[name].narrow(dim, tp * size, size).copy_(tensor)

    def _in_our_order(self, tensor: Tensor, what: str) -> Tensor:
        heads, rest = divmod(self.heads, self.tensor_parallel)
        if rest:
            raise InputError(f"{what}: {self.heads} attention heads cannot lie on {self.tensor_parallel} ranks evenly")
        if tensor.dim() == 0 or tensor.shape[0] == 0 or tensor.shape[0] % (3 * heads):
            raise InputError(f"{what} has shape {tuple(tensor.shape)}; rows must be a multiple of 3 x {heads} heads")
        return to_our_rows(tensor, self.version, heads, tensor.shape[0] // (3 * heads))

    def finish(self) -> tuple[dict[str, Tensor], list[str]]:
        """(whole tensors under our names, notes). Layers are numbered through the stages."""
        for (stage, name), ranks in self.ranks.items():
            absent = sorted({*range(self.tensor_parallel)} - {*ranks})
            if absent:
                listed = ", ".join(map(str, absent))
                raise InputError(f"{self.where}: stage {stage}: {name} is not on tensor-parallel rank {listed}")
        tensors, offset = {}, 0
        for stage in sorted(self.stages):
            count = self._count_layers(stage)
            for name, tensor in self.stages.pop(stage).items():
                layer = LAYER.fullmatch(name)
                final_name = f"layers.{offset + int(layer[1])}.{layer[2]}" if layer else name
                if final_name in tensors:
                    raise InputError(f"{self.where}: {final_name} is in two pipeline stages")
                tensors[final_name] = tensor
            offset += count
        return self._without_copies(tensors)

    def _count_layers(self, stage: int) -> int:
        numbers = {int(layer[1]) for layer in map(LAYER.fullmatch, self.stages[stage]) if layer}
        absent = {*range(len(numbers))} - numbers
        if absent:
            listed = ", ".join(map(str, sorted(numbers)[:8])) + (" ..." if len(numbers) > 8 else "")
            raise InputError(f"{self.where}: pipeline stage {stage} holds layers {listed}, but no layer {min(absent)}")
        return len(numbers)

    def _without_copies(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Use up the head's copy of the embedding and the token types."""
        notes = [f"{name} left out: it belongs to the next-sentence task" for name in sorted(self.left_out)]
        copy, types = tensors.pop(MEGATRON_HEAD_EMBEDDING, None), tensors.pop(MEGATRON_TOKEN_TYPES, None)
        if copy is not None and not same_tensor(copy, tensors.get("word_embeddings.weight")):
            raise InputError(
                f"{self.where}: {MEGATRON_HEAD_EMBEDDING} of the last stage is not the first stage's word embedding; "
                "the files of two checkpoints are mixed"
            )
        positions = tensors.get("position_embeddings.weight")
        if types is not None and positions is not None:
            tensors["position_embeddings.weight"], note = fold_token_types(types, positions, self.where)
            notes.append(note)
        return tensors, notes
