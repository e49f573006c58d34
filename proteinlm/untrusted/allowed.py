"""What a pickle may name, and what each name makes here: the allow-list of `proteinlm.untrusted.safe_load`.

Arguments and states come from the file, so every maker either takes anything without harm or checks what it gets.
torch's own names are in `proteinlm/untrusted/torch_files.py`, imported only for a torch name.
"""

import argparse
import math
import re
from collections import OrderedDict
from dataclasses import dataclass, fields, is_dataclass

import numpy as np

from proteinlm.errors import InputError
from proteinlm.untrusted.pickles import Admitted, build, check_keys, require, sizes

RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}
ENCODINGS = {"latin1": "latin1", "latin-1": "latin1", "utf-8": "utf8", "utf8": "utf8", "ascii": "ascii"}
DTYPE_NAME = re.compile(r"[<>|=]?(?:[biufc]\d{1,2}|[SU]\d{0,9}|\?)")


@dataclass(eq=False)
class StandIn:
    """An object of a class that is not loaded here: its class's name, arguments and state, as data. Does nothing."""

    class_name: str
    arguments: tuple = ()
    state: object = None


def find(module: str, name: str) -> object:
    """The entry, or the value, that `module.name` stands for; an InputError names what is not admitted."""
    full, root = f"{RENAMED.get(module, module)}.{name}", module.split(".")[0]
    entry = NAMES.get(full.replace("numpy.core.", "numpy._core."))
    if root in ("megatron", "fp16"):
        entry = Admitted(full, lambda *arguments: StandIn(full, arguments))
    elif root == "torch":
        from proteinlm.untrusted.torch_files import NAMES as TORCH_NAMES

        entry = TORCH_NAMES.get(full)
    if entry is None:
        raise InputError(f"names {ascii(full)[1:-1][:200]}, which is not data; refused, nothing was run")
    return entry


def _ordered_dict(items=()) -> OrderedDict:
    require(not items, "an OrderedDict made from a list (an old Python 2 form) is not read")
    return OrderedDict()


def _dtype(name, align=False, copy=False) -> np.dtype:
    plain = DTYPE_NAME.fullmatch(name)
    require(plain, f"numpy dtype {name!a:.40} is not a plain number or text (object arrays are not admitted)")
    return np.dtype(name, False, True)  # a copy of its own, because BUILD may set its byte order


def _empty_array(kind, shape, code) -> np.ndarray:
    require(kind is NAMES["numpy.ndarray"] and shape == (0,), "a numpy array of an unknown kind")
    return np.empty(0, dtype=np.uint8)


def _array(raw, dtype, shape, order="C") -> np.ndarray:
    require(isinstance(dtype, np.dtype) and type(raw) in (bytes, bytearray), "a numpy array without a dtype or data")
    shape = sizes(shape)
    fits = dtype.itemsize and len(raw) == math.prod(shape) * dtype.itemsize
    require(fits, f"a numpy array of shape {shape} whose data does not have that size")
    return np.frombuffer(raw, dtype=dtype).reshape(shape, order="F" if order == "F" else "C").copy()


MAKERS = {
    "argparse.Namespace": lambda: argparse.Namespace(),
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": lambda factory=None: {},
    "copyreg._reconstructor": lambda kind, base, state: build(kind, () if state is None else (state,)),
    "_codecs.encode": lambda text, encoding="latin1": str.encode(text, ENCODINGS[encoding]),
    "builtins.set": lambda items=(): set(check_keys(items)),
    "builtins.frozenset": lambda items=(): frozenset(check_keys(items)),
    "builtins.bytearray": lambda value=b"", encoding="latin1": bytearray(
        value if type(value) in (bytes, bytearray) else str.encode(value, ENCODINGS[encoding])
    ),
    "builtins.bytes": lambda: b"",  # how protocols 0 to 2 write empty bytes
    "builtins.complex": complex,
    "numpy.dtype": _dtype,
    "numpy.ndarray": None,
    "numpy._core.multiarray._reconstruct": _empty_array,
    "numpy._core.multiarray.scalar": lambda dtype, raw=b"": _array(raw, dtype, (1,))[0],
    "numpy._core.numeric._frombuffer": _array,
}
MAKERS |= dict.fromkeys(
    f"builtins.{name}" for name in ("object", "dict", "list", "tuple", "int", "float", "str", "bool")
)
for _name in ("PosixPath", "PurePosixPath", "WindowsPath"):
    MAKERS[f"pathlib.{_name}"] = lambda *parts: "/".join(parts)
NAMES = {name: Admitted(name, make) for name, make in MAKERS.items()}


def set_state(target: object, state: object) -> None:
    """Give `target`, which one of the makers made, the state that the file holds for it (BUILD)."""
    if type(target) is StandIn:
        target.state = state
    elif type(target) is np.ndarray:
        _, shape, dtype, fortran, raw = state
        raw = raw.encode("latin-1") if type(raw) is str else raw  # Python 2's bytes
        _array(raw, dtype, shape)  # only to check that they agree
        target.__setstate__((1, sizes(shape), dtype, bool(fortran), raw))
    elif isinstance(target, np.dtype):
        plain = target.newbyteorder(state[1]).__reduce__()[2]  # what numpy writes: version, byte order, ..., flags
        own = state[:7] == plain[:7] and state[7:] in ((0,), (8,))
        require(own, "a numpy dtype with fields or sizes of its own is not admitted")
        target.__setstate__(state)
    elif is_dataclass(target) and hasattr(target, "__setstate__"):
        target.__setstate__(state)  # DCP's TensorProperties: from a tuple of its fields
    else:
        _set_attributes(target, state)


def _set_attributes(target: object, state: object) -> None:
    require(type(state) is dict and all(type(key) is str for key in state), "a state that is not a dict of names")
    if type(target) is OrderedDict:
        state = (
            {"_metadata": state["_metadata"]} if isinstance(state.get("_metadata"), dict) else {}
        )  # load_state_dict's
    elif is_dataclass(target):  # DCP's, which safe_dcp admits
        known = set(state) <= {field.name for field in fields(target)}
        require(known, f"{type(target).__name__} with unknown fields")
    else:
        require(type(target) is argparse.Namespace, f"state for {type(target).__name__} is not admitted")
    vars(target).update(state)
