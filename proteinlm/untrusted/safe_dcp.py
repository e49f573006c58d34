"""PyTorch's distributed checkpoint (DCP) read without its pickles being run, and without trusting its numbers.

DCP keeps a pickled directory (`.metadata`), and in its shard files one torch.save archive a tensor or object. Shapes,
offsets and lengths are checked against each other and the files before memory is allocated for them.
"""

import functools
import io
import math
from operator import add, le
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import metadata as kinds

from proteinlm.untrusted.pickles import Admitted, Unpickler, named, require
from proteinlm.untrusted.safe_load import find, map_file, safe_torch_load
from proteinlm.untrusted.text_files import read_bytes

ENCODING = kinds._MEM_FORMAT_ENCODING
CLASSES = [kinds.Metadata, kinds.MetadataIndex, kinds.TensorStorageMetadata, kinds.BytesStorageMetadata]
CLASSES += [kinds.ChunkStorageMetadata, kinds.TensorProperties, kinds.StorageMeta, dcp.filesystem._StorageInfo]
MAKERS = {kind: functools.partial(object.__new__, kind) for kind in CLASSES}
MAKERS[ENCODING] = lambda number: ENCODING(number)  # alone: an enumeration called with more makes another class
ENTRIES = {kind: Admitted(kind.__name__, make) for kind, make in MAKERS.items()}
NAMES = {f"{kind.__module__}.{kind.__name__}": entry for kind, entry in ENTRIES.items()}


def find_dcp(module: str, name: str) -> object:
    """The allow-list with DCP's metadata added."""
    return NAMES.get(f"{module}.{name}") or find(module, name)


def _member(kind: object, name: object) -> object:
    """A member of DCP's one enumeration by its name: Python 3.11.0 to 3.11.3 pickle it as a getattr."""
    known = kind is ENTRIES[ENCODING] and type(name) is str and name in ENCODING.__members__
    require(known, "names builtins.getattr, which is not data; refused, nothing was run")
    return ENCODING[name]


NAMES |= dict.fromkeys(("builtins.getattr", "__builtin__.getattr"), Admitted("getattr", _member))


class SafeReader(dcp.FileSystemReader):
    """DCP's file reader over `safe_load`. Every fault is an InputError that names the file."""

    def read_metadata(self, *args, **kwargs) -> kinds.Metadata:
        path = Path(self._get_metadata_path(kwargs.get("rank")))
        require(path.is_file(), f"{path}: missing; the directory is not a complete checkpoint")
        data = read_bytes(path)
        with named(path):
            metadata = Unpickler(find_dcp, io.BytesIO(data), len(data)).load()
            check_metadata(metadata)
        metadata.storage_meta = kinds.StorageMeta(load_id=self.load_id)
        return metadata

    def read_data(self, plan: dcp.LoadPlan, planner: dcp.LoadPlanner) -> torch.futures.Future:
        for item in plan.items:
            info = self.storage_data.get(item.storage_index)
            path = Path(self.path) / getattr(info, "relative_path", "")
            what = f"{path}: {item.storage_index.fqn}"
            require(info, f"{what}: .metadata does not say where it is")
            require(path.is_file(), f"{what}: this shard of the checkpoint is missing")
            content = map_file(path, info.offset, info.length)
            if item.type == dcp.planner.LoadItemType.BYTE_IO:
                planner.load_bytes(item, content, what)
            else:
                part = _part(safe_torch_load(content, what=what, mmap=True), item, what)
                planner.commit_tensor(item, planner.resolve_tensor(item).detach().copy_(part))
        return torch.futures.collect_all([])  # which is done


class SafePlanner(dcp.DefaultLoadPlanner):
    """DCP's load planner whose byte entries are read by `safe_load`."""

    def load_bytes(self, read_item, value, what: str = "a byte entry") -> None:
        loaded, name = safe_torch_load(value, what=what), read_item.dest_index.fqn
        if self.flatten_state_dict:
            dcp._nested_dict.set_element(self.original_state_dict, self.mappings[name], loaded)
        else:
            self.state_dict[name] = loaded


def _part(tensor: object, item, what: str) -> torch.Tensor:
    require(isinstance(tensor, torch.Tensor) and tensor.dim() == len(item.lengths), f"{what} is another kind of tensor")
    ends = list(map(add, item.storage_offsets, item.lengths))
    require(all(map(le, ends, tensor.shape)), f"{what} has shape {tuple(tensor.shape)}, smaller than .metadata says")
    return tensor[tuple(map(slice, item.storage_offsets, ends))]


def check_metadata(metadata: object) -> None:
    """Raise InputError unless `metadata` is a consistent directory: names, shapes, chunks, places in files."""
    require(isinstance(metadata, kinds.Metadata), "not the directory of a distributed checkpoint")
    entries, places = metadata.state_dict_metadata, metadata.storage_data
    for index, info in places.items():
        require(isinstance(index, kinds.MetadataIndex) and type(index.fqn) is str, "a place of an entry without a name")
        file, transforms = info.relative_path, getattr(info, "transform_descriptors", None)
        plain = type(info) is dcp.filesystem._StorageInfo and type(file) is str and file not in ("", ".", "..")
        plain = plain and not set(file) & set("/\\\0") and type(info.offset) is type(info.length) is int
        require(plain and min(info.offset, info.length) >= 0, f"{index.fqn} lies at an impossible place")
        require(not transforms, f"{index.fqn} was stored through a stream transform, which is not read")
    for name, entry in entries.items():
        require(type(name) is str, "an entry without a name")
        if not isinstance(entry, kinds.BytesStorageMetadata):
            _check_tensor(name, entry, places)


def _check_tensor(name: str, entry: object, places: dict) -> None:
    require(isinstance(entry, kinds.TensorStorageMetadata), f"{name} is neither a tensor nor bytes")
    shape, dtype, covered = entry.size, entry.properties.dtype, 0
    require(isinstance(dtype, torch.dtype) and isinstance(shape, torch.Size), f"{name} has no readable shape and dtype")
    for chunk in entry.chunks:
        bounds = (chunk.offsets, chunk.sizes)  # torch.Size: whole numbers >= 0
        inside = all(isinstance(bound, torch.Size) and len(bound) == len(shape) for bound in bounds)
        inside = inside and all(map(le, map(add, *bounds), shape))
        require(inside, f"{name} has a chunk outside its shape {tuple(shape)}")
        place, count = places.get(kinds.MetadataIndex(name, chunk.offsets)), math.prod(chunk.sizes)
        fits = place is not None and place.length >= count * dtype.itemsize
        require(fits, f"{name} {tuple(chunk.sizes)} needs more bytes than the directory gives it")
        covered += count
    require(covered == math.prod(shape), f"{name} has {covered} values in its chunks, not those of {tuple(shape)}")
