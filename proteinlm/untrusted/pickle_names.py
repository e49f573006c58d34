"""What a pickle may name, and what each name makes here: the allow-list of `proteinlm.untrusted.safe_load`.

`find(module, name)` answers with an entry or raises `Refused`; `set_state(object, state)` applies a pickle's BUILD.
Arguments and states come from the file, so every maker checks theirs. torch is imported only for a torch name.
"""

from __future__ import annotations

import argparse
import functools
import re
from collections import OrderedDict
from dataclasses import dataclass, fields

import numpy as np

from proteinlm.untrusted.pickle_machine import Admitted, Refused, check_keys

STAND_IN_ROOTS = ("megatron", "fp16")
DTYPE_NAME = re.compile(r"[<>|=]?(?:[biufc]\d{1,2}|[SU]\d{0,9}|\?)")
MAX_DIMENSIONS = 64  # numpy's limit, and torch's for what it saves
DCP = "torch.distributed.checkpoint"


class StandIn:
    """An object of a class that is not loaded here: its class's name, arguments and state, as data. Does nothing."""

    def __init__(self, class_name: str, arguments: tuple = ()):
        self.class_name, self.arguments, self.state = class_name, arguments, None

    def __repr__(self) -> str:
        return f"StandIn({self.class_name})"


@dataclass(frozen=True)
class StorageType:
    """What `torch.FloatStorage` and its like mean in a file: a dtype."""

    dtype: object


def find(module: str, name: str) -> Admitted:
    """The entry for `module.name`, or Refused naming it."""
    module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
    entry = _plain_names().get((module, name))
    if entry is None and module.split(".")[0] == "torch":
        names = _checkpoint_names() if module.startswith(DCP) else _torch_names()
        entry = names.get((module, name))
    if entry is None and module.split(".")[0] in STAND_IN_ROOTS:
        full = f"{module}.{name}"
        entry = Admitted(full, lambda *arguments: StandIn(full, arguments))
    if entry is None:
        raise Refused(f"names {ascii(f'{module}.{name}')[1:-1][:200]}, which is not data; refused, nothing was run")
    return entry


@functools.lru_cache(maxsize=1)
def _plain_names() -> dict[tuple[str, str], Admitted]:
    entries = {
        ("collections", "OrderedDict"): _ordered_dict,
        ("collections", "defaultdict"): lambda factory=None: {},
        ("argparse", "Namespace"): lambda: argparse.Namespace(),
        ("copyreg", "_reconstructor"): _reconstructor,
        ("_codecs", "encode"): _encode,
        ("builtins", "getattr"): _enum_member,
        ("builtins", "set"): lambda items=(): set(_keys(items)),
        ("builtins", "frozenset"): lambda items=(): frozenset(_keys(items)),
        ("builtins", "bytearray"): _bytearray,
        ("builtins", "bytes"): lambda: b"",  # how protocols 0 to 2 write empty bytes
        ("builtins", "complex"): lambda real, imaginary: complex(_number(real), _number(imaginary)),
        ("pathlib", "PosixPath"): _path,
        ("pathlib", "PurePosixPath"): _path,
        ("pathlib", "WindowsPath"): _path,
        ("numpy", "dtype"): _dtype,
    }
    for core in ("numpy.core", "numpy._core"):
        entries[core + ".multiarray", "_reconstruct"] = _empty_array
        entries[core + ".multiarray", "scalar"] = _scalar
        entries[core + ".numeric", "_frombuffer"] = _array
    names = {key: Admitted(".".join(key), make) for key, make in entries.items()}
    for name in ("object", "dict", "list", "tuple", "int", "float", "str", "bool"):
        names["builtins", name] = Admitted(name)  # as an argument (defaultdict's factory); may not be called
    names["numpy", "ndarray"] = Admitted("numpy.ndarray")
    return names


@functools.lru_cache(maxsize=1)
def _torch_names() -> dict[tuple[str, str], Admitted]:
    import torch

    names = {
        ("torch", "Size"): Admitted("torch.Size", lambda sizes=(): torch.Size(_integers(sizes))),
        ("torch", "device"): Admitted("torch.device", _device),
        ("torch", "Tensor"): Admitted("torch.Tensor"),
        ("torch.nn.parameter", "Parameter"): Admitted("torch.nn.Parameter"),
        ("torch.serialization", "_get_layout"): Admitted("torch.layout", _layout),
        ("torch._utils", "_rebuild_tensor"): Admitted("_rebuild_tensor", _rebuild_tensor),
        ("torch._utils", "_rebuild_tensor_v2"): Admitted("_rebuild_tensor_v2", _rebuild_tensor),
        ("torch._utils", "_rebuild_tensor_v3"): Admitted("_rebuild_tensor_v3", _rebuild_tensor_v3),
        ("torch._utils", "_rebuild_parameter"): Admitted("_rebuild_parameter", _rebuild_parameter),
        ("torch._tensor", "_rebuild_from_type_v2"): Admitted("_rebuild_from_type_v2", _rebuild_from_type),
    }
    for name, value in vars(torch).items():
        if isinstance(value, torch.dtype):
            names["torch", name] = Admitted(name, value=value)
        elif isinstance(value, type) and isinstance(getattr(value, "_dtype", None), torch.dtype):
            names["torch", name] = Admitted(name, value=StorageType(value._dtype))  # torch.FloatStorage and its like
    untyped = Admitted("torch.UntypedStorage", value=StorageType(torch.uint8))
    names["torch", "UntypedStorage"] = names["torch.storage", "UntypedStorage"] = untyped
    return names


@functools.lru_cache(maxsize=1)
def _checkpoint_names() -> dict[tuple[str, str], Admitted]:
    from torch.distributed.checkpoint import filesystem, metadata

    names = {}
    for kind in _metadata_classes():
        module = kind.__module__
        names[module, kind.__name__] = Admitted(kind.__name__, functools.partial(object.__new__, kind))
    encoding = metadata._MEM_FORMAT_ENCODING
    names[f"{DCP}.metadata", encoding.__name__] = Admitted(encoding.__name__, lambda number: encoding(integer(number)))
    assert (filesystem.__name__, "_StorageInfo") in names
    return names


@functools.lru_cache(maxsize=1)
def _metadata_classes() -> tuple[type, ...]:
    from torch.distributed.checkpoint import filesystem, metadata

    return (
        metadata.Metadata,
        metadata.MetadataIndex,
        metadata.TensorStorageMetadata,
        metadata.BytesStorageMetadata,
        metadata.ChunkStorageMetadata,
        metadata.TensorProperties,
        metadata.StorageMeta,
        filesystem._StorageInfo,
    )


def integer(value: object) -> int:
    if type(value) is not int or value < 0:
        raise Refused("a size that is not a whole number >= 0")
    return value


def _integers(values: object) -> tuple[int, ...]:
    if len(sequence(values)) > MAX_DIMENSIONS:
        raise Refused(f"a shape of {len(values)} dimensions, more than {MAX_DIMENSIONS}")
    return tuple(integer(value) for value in values)


def shown(value: object) -> str:
    return ascii(value)[:40] if type(value) is str else type(value).__name__


def _number(value: object) -> float:
    if type(value) not in (int, float):
        raise Refused("a number was expected")
    return value


def sequence(value: object) -> list | tuple:
    if type(value) not in (list, tuple):
        raise Refused("a list was expected")
    return value


def _keys(items: object) -> list | tuple:
    check_keys(sequence(items))
    return items


def _ordered_dict(items=()) -> OrderedDict:
    if sequence(items):
        raise Refused("an OrderedDict made from a list (an old Python 2 form) is not read")
    return OrderedDict()


def _reconstructor(kind: Admitted, base: Admitted, state: object) -> object:
    if not isinstance(kind, Admitted) or kind.make is None or state is not None:
        raise Refused("copyreg._reconstructor on something that is not admitted")
    return kind.make()


def _enum_member(kind: object, name: object) -> object:
    """A member of DCP's one enumeration by its name: the first releases of Python 3.11 pickle it as a getattr."""
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING as ENCODING

    known = isinstance(kind, Admitted) and kind.name == ENCODING.__name__
    if not known or type(name) is not str or name not in ENCODING.__members__:
        raise Refused("names builtins.getattr, which is not data; refused, nothing was run")
    return ENCODING.__members__[name]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1", "utf-8", "utf8", "ascii"):
        raise Refused("codecs.encode with something other than text and a plain encoding")
    return text.encode(encoding)


def _bytearray(value: object = b"", encoding: str = "latin1") -> bytearray:
    if type(value) is str:
        value = _encode(value, encoding)
    if type(value) not in (bytes, bytearray):
        raise Refused("a bytearray made of something other than bytes")
    return bytearray(value)


def _path(*parts: object) -> str:
    return "/".join(part for part in parts if type(part) is str)


def _dtype(name: object, align: object = False, copy: object = False) -> np.dtype:
    if type(name) is not str or not DTYPE_NAME.fullmatch(name):
        raise Refused(f"numpy dtype {shown(name)} is not a plain number or text (object arrays are not admitted)")
    return np.dtype(name, False, True)  # a copy of its own, because BUILD may set its byte order


def _check_dtype(dtype: object) -> np.dtype:
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biufcSU":
        raise Refused("a numpy array whose dtype is not a plain number or text")
    return dtype


def _empty_array(kind: Admitted, shape: object, code: object) -> np.ndarray:
    if not isinstance(kind, Admitted) or kind.name != "numpy.ndarray" or shape != (0,):
        raise Refused("a numpy array of an unknown kind")
    return np.empty(0, dtype=np.uint8)


def _scalar(dtype: object, raw: object = b"") -> np.generic:
    return _array(raw, dtype, (1,))[0]


def _array(raw: object, dtype: object, shape: object, order: str = "C") -> np.ndarray:
    dtype, shape = _check_dtype(dtype), _integers(shape)
    count = int(np.prod(shape, dtype=object))
    if type(raw) not in (bytes, bytearray) or len(raw) != count * dtype.itemsize or dtype.itemsize == 0:
        raise Refused(f"a numpy array of shape {shape} whose data does not have that size")
    return np.frombuffer(raw, dtype=dtype).reshape(shape, order="F" if order == "F" else "C").copy()


def _device(kind: object, index: object = None):
    import torch

    if type(kind) is not str or type(index) not in (int, type(None)):
        raise Refused("a torch.device that is not a name and a number")
    return torch.device(kind) if index is None else torch.device(kind, index)


def _layout(name: object):
    import torch

    if name != "torch.strided":
        raise Refused(f"tensors of layout {shown(name)} are not read")
    return torch.strided


@dataclass(frozen=True, eq=False)
class Storage:
    """A storage of a torch file: its dtype and its bytes as a one-dimensional uint8 tensor."""

    dtype: object
    raw: object


def _rebuild_tensor(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None, *, dtype=None):
    import torch

    if not isinstance(storage, Storage):
        raise Refused("a tensor without a storage")
    dtype = dtype or storage.dtype
    offset, size, stride = integer(offset), _integers(size), _integers(stride)
    available = storage.raw.numel() // dtype.itemsize
    count = int(np.prod(size, dtype=object))
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else 0
    if count > available or (count and last >= available):
        raise Refused(f"a tensor of shape {size} that does not fit its storage of {available} values")
    return torch.empty(0, dtype=dtype).set_(storage.raw.untyped_storage(), offset, size, stride)


def _rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None):
    import torch

    if not isinstance(dtype, torch.dtype):
        raise Refused("a tensor without a dtype")
    return _rebuild_tensor(storage, offset, size, stride, dtype=dtype)


def _rebuild_parameter(data, requires_grad=False, hooks=None):
    import torch

    if not isinstance(data, torch.Tensor):
        raise Refused("a parameter that is not a tensor")
    return data


def _rebuild_from_type(function, kind, arguments, state):
    """A tensor with Python attributes (Megatron marks its own so): the tensor; the attributes are left out."""
    if not isinstance(function, Admitted) or not function.name.startswith("_rebuild_tensor"):
        raise Refused("a tensor made by something that is not admitted")
    return function.make(*sequence(arguments))


def set_state(target: object, state: object) -> None:
    """Give `target`, which one of the makers made, the state that the file holds for it."""
    if type(target) is StandIn:
        target.state = state
    elif type(target) is argparse.Namespace:
        vars(target).update(_attributes(state))
    elif type(target) is OrderedDict:
        metadata = _attributes(state).get("_metadata")
        if isinstance(metadata, dict):  # module versions, which load_state_dict reads
            target._metadata = metadata
    elif isinstance(target, np.dtype):
        _set_dtype_state(target, state)
    elif type(target) is np.ndarray:
        _set_array_state(target, state)
    elif type(target).__module__.startswith(DCP):
        _set_metadata_state(target, state)
    else:
        raise Refused(f"state for {type(target).__name__} is not admitted")


def _attributes(state: object) -> dict[str, object]:
    if type(state) is not dict or not all(type(key) is str for key in state):
        raise Refused("an object's state that is not a dict of names")
    return state


def _set_dtype_state(target: np.dtype, state: object) -> None:
    version, order, *rest = sequence(state)
    _check_dtype(target)
    own_size = (None, None, None, target.itemsize, target.alignment)
    if (
        version not in (3, 4)
        or order not in ("<", ">", "=", "|")
        or tuple(rest[:5]) not in [(None, None, None, -1, -1), own_size]
        or rest[5:6] not in ([0], [8])  # flags: 8 = needs initialisation (text); others mean Python objects
    ):
        raise Refused("a numpy dtype with fields or sizes of its own is not admitted")
    target.__setstate__((3, order, *rest[:6]))


def _set_array_state(target: np.ndarray, state: object) -> None:
    _, shape, dtype, fortran, raw = sequence(state)
    if type(raw) is str:
        raw = raw.encode("latin-1")  # Python 2's bytes
    _array(raw, dtype, shape)  # only to check that they agree
    target.__setstate__((1, tuple(shape), dtype, bool(fortran), raw))


def _set_metadata_state(target: object, state: object) -> None:
    kind = type(target)
    if kind not in _metadata_classes():
        raise Refused(f"state for {kind.__name__} is not admitted")
    names = [field.name for field in fields(kind)]
    if kind.__name__ == "TensorProperties":
        if len(sequence(state)) != len(names):
            raise Refused("tensor properties of an unknown form")
        kind.__setstate__(target, state)
        return
    if not set(_attributes(state)) <= set(names):
        raise Refused(f"{kind.__name__} with unknown fields")
    vars(target).update(state)
