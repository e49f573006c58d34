"""Files of weights, written and read one tensor at a time, so that a conversion needs one model's memory and no more.

`write_weights(directory, tensors, translate)` writes what `translate(name, tensor)` makes of each tensor. Shapes are
worked out first on meta tensors, for a safetensors file begins with a table of all of them.
"""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from proteinlm.errors import InputError
from proteinlm.model_dir.files import CONFIG_NAME, SAFE_NAME, TORCH_NAME
from proteinlm.untrusted.safe_load import safe_torch_load

Translate = Callable[[str, Tensor], Mapping[str, Tensor]]
DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def write_weights(
    directory: Path,
    tensors: Mapping[str, Tensor],
    translate: Translate,
    dtype: torch.dtype | None = None,
    torch_file: bool = False,
) -> None:
    """model.safetensors, and pytorch_model.bin if `torch_file`: what `translate` makes of each tensor.

    dtype: what to round to (None: each tensor's own).
    """
    _write_safetensors(directory / SAFE_NAME, tensors, translate, dtype)
    if torch_file:  # for neighbours that read nothing else; needs memory for a second model
        state: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            parts = translate(name, tensor.to(dtype or tensor.dtype))
            state |= {key: part.clone(memory_format=torch.contiguous_format) for key, part in parts.items()}
        torch.save(state, directory / TORCH_NAME)


def _write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], translate: Translate, dtype: torch.dtype | None
) -> None:
    table, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        shapes = translate(name, torch.empty_like(tensor, device="meta", dtype=dtype or tensor.dtype))
        for key, part in shapes.items():
            assert key not in table, key
            size = part.numel() * part.element_size()
            entry = {"dtype": DTYPE_NAMES[part.dtype], "shape": list(part.shape), "data_offsets": [end, end + size]}
            table[key], end = entry, end + size
    head = json.dumps(table).encode("utf-8")
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name, tensor in tensors.items():
            for part in translate(name, tensor.to(dtype or tensor.dtype)).values():
                file.write(memoryview(part.contiguous().reshape(-1).view(torch.uint8).numpy()))


class WeightFiles:
    """The tensors of a directory by name: safetensors where there are any, else pytorch_model.bin; one file or more."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.files: dict[str, Path] = {}  # tensor's name -> the file it is in
        self._open: dict[Path, Callable[[str], Tensor]] = {}
        for stem in (SAFE_NAME, TORCH_NAME):
            whole, index = directory / stem, directory / f"{stem}.index.json"
            if whole.is_file():
                self.files = dict.fromkeys(self._names(whole), whole)
                return
            if index.is_file():
                self._read_index(index)
                return
        raise InputError(f"{directory}: neither {SAFE_NAME} nor {TORCH_NAME} is there")

    def get(self, name: str) -> Tensor:
        path = self.files[name]
        try:
            return self._open[path](name)
        except Exception as error:  # safetensors' own kinds of error differ from version to version
            raise InputError(f"{path}: {name} cannot be read ({str(error)[:120]})") from None

    def _read_index(self, index: Path) -> None:
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise InputError(f"{index}: weight_map (tensor -> file) was expected")
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
            from safetensors import safe_open

            try:
                file = safe_open(str(path), framework="pt")
                names = list(file.keys())
            except Exception as error:
                raise InputError(f"{path}: not a whole safetensors file ({str(error)[:120]})") from None
            self._open[path] = file.get_tensor
            return names
        content = safe_torch_load(path, mmap=True)
        good = isinstance(content, Mapping) and all(isinstance(name, str) for name in content)
        if not good or not all(isinstance(value, Tensor) for value in content.values()):
            raise InputError(f"{path}: a state dict (name -> tensor) was expected")
        self._open[path] = content.__getitem__
        return list(content)


def read_json(path: Path) -> dict:
    """A JSON object from a file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({str(error)[:100]})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: a JSON object was expected, found {type(value).__name__}")
    return value


def read_model_config(directory: Path) -> dict | None:
    """config.json of a model directory; None where there is none."""
    path = directory / CONFIG_NAME
    return read_json(path) if path.is_file() else None
