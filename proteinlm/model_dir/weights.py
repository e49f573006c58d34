"""Weights in files, written and read one tensor at a time, so that a conversion needs one model's memory and no more.

    write_weights(directory, model.state_dict())       model.safetensors
    weights = WeightFiles(directory)                    its tensors by name, one file or several

What must hold: a file appears whole or not at all; one from elsewhere is read by safetensors or the safe reader.
"""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from proteinlm.errors import InputError
from proteinlm.files import atomic_path
from proteinlm.model_dir.find import SAFE_NAME, TORCH_NAME
from proteinlm.untrusted.json_files import read_json
from proteinlm.untrusted.safe_load import safe_torch_load
from proteinlm.untrusted.safetensors_files import open_safetensors

Translate = Callable[[str, Tensor], Mapping[str, Tensor]]
DTYPE_NAMES = {  # in the order in which a file has them, the widest first
    **{torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32"},
    **{torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8", torch.bool: "BOOL"},
}


def stored_dtype(name: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """What a tensor becomes where a file is rounded to `dtype` (None: its own).

    Inverse frequencies stay: a position times one is an angle, which bf16's error of 1 in 500 would turn by radians.
    """
    return tensor.dtype if dtype is None or name.endswith("inv_freq") else dtype


def write_weights(
    directory: Path,
    tensors: Mapping[str, Tensor],
    translate: Translate = lambda name, tensor: {name: tensor},
    dtype: torch.dtype | None = None,
    torch_file: bool = False,
) -> None:
    """model.safetensors, and pytorch_model.bin if `torch_file`: what `translate` makes of each tensor.

    dtype: what to round to, as `stored_dtype` says (None: each tensor's own).
    """
    with atomic_path(directory / SAFE_NAME) as temporary:
        _write_safetensors(temporary, tensors, translate, dtype)
    if torch_file:  # for software that reads nothing else; needs memory for a second model
        state: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            parts = translate(name, tensor.detach().cpu().to(stored_dtype(name, tensor, dtype)))
            state |= {key: part.clone(memory_format=torch.contiguous_format) for key, part in parts.items()}
        with atomic_path(directory / TORCH_NAME) as temporary:
            torch.save(state, temporary)


def _write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], translate: Translate, dtype: torch.dtype | None
) -> None:
    """Shapes are worked out first on meta tensors, for the file begins with a table of all of them.

    Byte for byte what the safetensors library writes (tests).
    """
    parts: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        like = torch.empty_like(tensor, device="meta", dtype=stored_dtype(name, tensor, dtype))
        for key, part in translate(name, like).items():
            assert key not in parts, key
            parts[key] = part
    order, table, end = list(DTYPE_NAMES), {"__metadata__": {"format": "pt"}}, 0
    for key, part in sorted(parts.items(), key=lambda item: (order.index(item[1].dtype), item[0])):
        size = part.numel() * part.element_size()
        entry = {"dtype": DTYPE_NAMES[part.dtype], "shape": list(part.shape), "data_offsets": [end, end + size]}
        table[key], end = entry, end + size
    head = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name, tensor in tensors.items():
            for key, part in translate(name, tensor.detach().cpu().to(stored_dtype(name, tensor, dtype))).items():
                file.seek(8 + len(head) + table[key]["data_offsets"][0])
                file.write(memoryview(part.contiguous().reshape(-1).view(torch.uint8).numpy()))


class WeightFiles:
    """The tensors of a directory by name: safetensors where there are any, else pytorch_model.bin; one file or more."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.files: dict[str, Path] = {}  # tensor's name -> the file it is in
        self._open: dict[Path, Callable[[str], Tensor]] = {}
        for name in (SAFE_NAME, TORCH_NAME):
            self.path, index = directory / name, directory / f"{name}.index.json"
            if self.path.is_file():
                self.files = dict.fromkeys(self._names(self.path), self.path)
                return
            if index.is_file():
                self.path = index
                self._read_index(index)
                return
        if directory.is_file():
            raise InputError(f"{directory}: a file of a model directory; give the directory, {directory.parent}")
        raise InputError(f"{directory}: neither {SAFE_NAME} nor {TORCH_NAME} is there")

    def get(self, name: str) -> Tensor:
        path = self.files[name]
        try:
            return self._open[path](name)
        except Exception as error:  # safetensors' own kinds of error differ from version to version
            raise InputError(f"{path}: {name} cannot be read ({str(error)[:120]})") from None

    def get_all(self) -> dict[str, Tensor]:
        return {name: self.get(name) for name in self.files}

    def _read_index(self, index: Path) -> None:
        places = read_json(index, "an index (tensor -> file)", {"weight_map": {"*": str}})["weight_map"]
        for file in sorted(set(places.values())):
            path = self.directory / file
            if Path(file).name != file or not path.is_file():
                raise InputError(f"{index}: names {ascii(file)[:80]}, which is not a file beside it")
            names = set(self._names(path))
            for name in names:
                if name in self.files:
                    raise InputError(f"{path}: {name} is in {self.files[name].name} too")
                self.files[name] = path
            absent = next((name for name, place in places.items() if place == file and name not in names), None)
            if absent is not None:
                raise InputError(f"{index}: {absent[:80]} should be in {file}, and is not")

    def _names(self, path: Path) -> list[str]:
        if path.suffix == ".safetensors":
            names, self._open[path] = open_safetensors(path)
            return names
        content = safe_torch_load(path, mmap=True)
        good = isinstance(content, Mapping) and all(isinstance(name, str) for name in content)
        if not good or not all(isinstance(value, Tensor) for value in content.values()):
            raise InputError(f"{path}: a state dict (name -> tensor) was expected")
        self._open[path] = content.__getitem__
        return list(content)
