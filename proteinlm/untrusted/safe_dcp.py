"""PyTorch's distributed checkpoint (DCP) read without its pickles being run, and without trusting its numbers.

DCP keeps a pickled directory (`.metadata`) and one torch.save archive a tensor or object inside its shard files. Here
the directory, the objects and the tensors all go through `proteinlm.untrusted.safe_load`. Shapes, offsets and lengths
are checked against each other and the files before any memory is allocated for them.
"""

import math
import mmap
import os
from pathlib import Path

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner
from torch.futures import Future

from proteinlm.errors import InputError
from proteinlm.untrusted.safe_load import safe_pickle_loads, safe_torch_load


class SafeReader(FileSystemReader):
    """DCP's file reader over `safe_load`. Every fault is an InputError that names the file."""

    def read_metadata(self, *args, **kwargs) -> Metadata:
        path = Path(self._get_metadata_path(kwargs.get("rank")))
        if not path.is_file():
            raise InputError(f"{path}: missing; the directory is not a complete checkpoint")
        metadata = safe_pickle_loads(path.read_bytes(), str(path))
        check_metadata(metadata, path)
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        shards: dict[str, memoryview] = {}
        for item in plan.items:
            info = self.storage_data.get(item.storage_index)
            path = Path(self.path) / info.relative_path if info else Path(self.path)
            if info is None:
                raise InputError(f"{path}: .metadata does not say where {item.storage_index.fqn} is")
            if info.relative_path not in shards:
                shards[info.relative_path] = _map_shard(path)
            stored = shards[info.relative_path][info.offset : info.offset + info.length]
            what = f"{path}: {item.storage_index.fqn}"
            if len(stored) != info.length:
                raise InputError(
                    f"{what} should end at byte {info.offset + info.length}, but the file is shorter: truncated"
                )
            if item.type == LoadItemType.BYTE_IO:
                planner.load_bytes(item, stored, what)
            else:
                _copy_tensor(item, planner, stored, what)
        done: Future[None] = Future()
        done.set_result(None)
        return done


class SafePlanner(DefaultLoadPlanner):
    """DCP's load planner whose byte entries are read by `safe_load`."""

    def load_bytes(self, read_item, value, what: str = "a byte entry") -> None:
        loaded = safe_torch_load(value, what=what)
        name = read_item.dest_index.fqn
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[name], loaded)
        else:
            self.state_dict[name] = loaded


def _map_shard(path: Path) -> memoryview:
    if not path.is_file():
        raise InputError(f"{path}: this shard of the checkpoint is missing")
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def _copy_tensor(item, planner: LoadPlanner, stored: memoryview, what: str) -> None:
    tensor = safe_torch_load(stored, what=what, mmap=True)
    if not isinstance(tensor, torch.Tensor) or tensor.dim() != len(item.lengths):
        raise InputError(f"{what} is not the tensor that .metadata describes")
    ends = (offset + length for offset, length in zip(item.storage_offsets, item.lengths, strict=True))
    if any(end > size for end, size in zip(ends, tensor.shape, strict=True)):
        raise InputError(f"{what} has shape {tuple(tensor.shape)}, smaller than .metadata says")
    target = planner.resolve_tensor(item).detach()
    target.copy_(narrow_tensor_by_index(tensor, item.storage_offsets, item.lengths))
    planner.commit_tensor(item, target)


def check_metadata(metadata: object, path: Path) -> None:
    """Raise InputError unless `metadata` is a consistent directory: names, shapes, chunks, places in files."""
    if not isinstance(metadata, Metadata) or not _is_dict(metadata, "state_dict_metadata", str):
        raise InputError(f"{path}: not the directory of a distributed checkpoint")
    if not _is_dict(metadata, "storage_data", MetadataIndex):
        raise InputError(f"{path}: the directory says nothing about where its entries are")
    for index, info in metadata.storage_data.items():
        _check_place(index, info, path)
    for name, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            _check_tensor(name, entry, metadata.storage_data, path)
        elif not isinstance(entry, BytesStorageMetadata):
            raise InputError(f"{path}: {name} is neither a tensor nor bytes")


def _is_dict(metadata: Metadata, field: str, key_type: type) -> bool:
    value = getattr(metadata, field, None)
    return isinstance(value, dict) and all(isinstance(key, key_type) for key in value)


def _check_place(index: MetadataIndex, info: object, path: Path) -> None:
    file = getattr(info, "relative_path", None)
    numbers = (getattr(info, "offset", None), getattr(info, "length", None))
    plain = isinstance(file, str) and file not in ("", ".", "..") and not set(file) & set("/\\\0")
    if not isinstance(info, _StorageInfo) or not plain or not all(type(n) is int and n >= 0 for n in numbers):
        raise InputError(f"{path}: {getattr(index, 'fqn', '?')} lies at an impossible place {ascii(file)[:60]}")
    if getattr(info, "transform_descriptors", None):
        raise InputError(f"{path}: {index.fqn} was stored through a stream transform, which is not read")


def _check_tensor(name: str, entry: TensorStorageMetadata, places: dict, path: Path) -> None:
    dtype, size, chunks = getattr(entry.properties, "dtype", None), entry.size, entry.chunks
    if not isinstance(dtype, torch.dtype) or not _is_size(size) or not isinstance(chunks, list):
        raise InputError(f"{path}: {name} has no readable shape and dtype")
    covered = 0
    for chunk in chunks:
        good = isinstance(chunk, ChunkStorageMetadata) and _is_size(chunk.offsets) and _is_size(chunk.sizes)
        if not good or not len(chunk.offsets) == len(chunk.sizes) == len(size):
            raise InputError(f"{path}: {name} has a chunk of another rank than its shape {tuple(size)}")
        if any(o + n > whole for o, n, whole in zip(chunk.offsets, chunk.sizes, size, strict=True)):
            raise InputError(f"{path}: {name} has a chunk outside its shape {tuple(size)}")
        place = places.get(MetadataIndex(name, chunk.offsets))
        needed = math.prod(chunk.sizes) * dtype.itemsize
        if place is None or place.length < needed:
            raise InputError(
                f"{path}: {name} {tuple(chunk.sizes)} needs {needed} bytes, more than the directory gives it"
            )
        covered += math.prod(chunk.sizes)
    if covered != math.prod(size):
        raise InputError(f"{path}: {name} has {covered} values in its chunks and {math.prod(size)} in its shape")


def _is_size(value: object) -> bool:
    return isinstance(value, torch.Size)  # safe_load admits only whole numbers >= 0 in it
