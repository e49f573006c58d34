"""What torch.save writes: torch's part of the allow-list, and the two containers, read without torch.load, which finds
zip entries in another way than a check before it would (without regard to case, for one), runs TorchScript, tries tar,
and allocates what a legacy file claims.
"""

import io
import math
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable

import torch

from proteinlm.untrusted.pickles import Admitted, build, require, sizes


def _tensor(dtype, storage, offset, shape, stride, *rest) -> torch.Tensor:
    require(type(storage) is torch.Tensor, "a tensor without a storage")
    content, (offset,), shape, stride = storage.untyped_storage(), sizes([offset]), sizes(shape), sizes(stride)
    available, count = content.nbytes() // dtype.itemsize, math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if count else -1
    require(count <= available > last, f"a tensor of shape {shape} that does not fit its storage of {available} values")
    return torch.empty(0, dtype=dtype).set_(content, offset, shape, stride)


MAKERS = {
    "torch.Size": lambda values=(): torch.Size(sizes(values)),
    "torch.device": torch.device,
    "torch.Tensor": None,
    "torch.nn.parameter.Parameter": None,
    "torch.serialization._get_layout": lambda name: {"torch.strided": torch.strided}[name],
    "torch._utils._rebuild_tensor": lambda storage, *rest: _tensor(storage.dtype, storage, *rest),
    "torch._utils._rebuild_tensor_v2": lambda storage, *rest: _tensor(storage.dtype, storage, *rest),
    "torch._utils._rebuild_tensor_v3": lambda *arguments: _tensor(arguments[6], *arguments),
    "torch._utils._rebuild_parameter": lambda tensor, requires_grad=False, hooks=None: tensor,
    # A tensor with Python attributes, as Megatron marks its own: they are left out.
    "torch._tensor._rebuild_from_type_v2": lambda function, kind, arguments, state: build(function, arguments),
}
NAMES = {name: Admitted(name, make) for name, make in MAKERS.items()}
# A class of storages stands for its dtype, and a storage for a one-dimensional tensor over all of it.
for _name, _value in vars(torch).items():
    _dtype = getattr(_value, "_dtype", None) if isinstance(_value, type) else _value
    if isinstance(_dtype, torch.dtype):
        NAMES[f"torch.{_name}"] = _dtype
NAMES |= dict.fromkeys(("torch.UntypedStorage", "torch.storage.UntypedStorage"), torch.uint8)


def read_torch(file, mmap: bool, unpickler: Callable) -> object:
    """The object at the position of `file`, an mmap or BytesIO. unpickler(file, size, storage): `pickles.Unpickler`."""
    start, head = file.tell(), file.read(262)
    require(head, "the file is empty")
    require(head[257:] != b"ustar", "torch's tar format, from before 0.1.10, is not read; save it with a newer torch")
    zipped = head.startswith(b"PK\x03\x04")
    require(zipped or head[0] == 0x80, "not a torch.save file (neither a zip archive nor a pickle)")
    file.seek(start)
    reading = _Reading(file, mmap, unpickler)
    return reading.load_zip() if zipped else reading.load_legacy()


class _Reading:
    """One file. storages: key -> one-dimensional tensor."""

    def __init__(self, file, mmap: bool, unpickler: Callable):
        self.file, self.mmap, self.unpickler, self.storages, self.claimed = file, mmap, unpickler, {}, 0
        self.content = file.getbuffer() if isinstance(file, io.BytesIO) else memoryview(file)

    def load_zip(self) -> object:
        """The zip format: `<root>/data.pkl` and one stored entry `<root>/data/<key>` a storage."""
        listed, size = zipfile.ZipFile(self.file).infolist(), len(self.content)
        self.entries = {entry.filename: entry for entry in listed}
        require(len(self.entries) == len(listed), "a zip archive with two entries of one name")
        packed = [e.filename for e in listed if e.compress_type or e.compress_size != e.file_size or e.flag_bits & 1]
        require(not packed, f"zip entry {packed[:1]} is compressed or encrypted; torch.save stores entries")
        claimed = sum(entry.file_size for entry in listed)
        require(claimed <= size, f"its zip entries claim {claimed} bytes in a file of {size}")
        roots = [name.removesuffix("data.pkl") for name in self.entries if name.split("/")[1:] == ["data.pkl"]]
        data = len(roots) == 1 and not any(name.endswith("constants.pkl") for name in self.entries)
        require(data, "a zip archive, but not one that torch.save wrote (TorchScript programs are not read)")
        self.root = roots[0]
        if self.root + "byteorder" in self.entries:
            order = bytes(self.entry("byteorder"))
            require(order == sys.byteorder.encode(), f"written on a {order[:8]!r}-endian machine; not read")
        program = bytes(self.entry("data.pkl"))
        return self.unpickler(io.BytesIO(program), len(program), lambda saved: self.storage(saved, self.map)).load()

    def entry(self, name: str) -> memoryview:
        """A zip entry's bytes, after checking its header, bounds and checksum."""
        entry, what = self.entries.get(self.root + name), f"zip entry {name!a:.60}"
        require(entry, f"{what} is missing")
        at = entry.header_offset
        start = at + 30 + sum(struct.unpack_from("<HH", self.content, at + 26))
        content = self.content[start : start + entry.file_size]
        whole = self.content[at : at + 4] == b"PK\x03\x04" and len(content) == entry.file_size
        intact = whole and (not entry.CRC or zlib.crc32(content) == entry.CRC)  # 0: written without checksums
        require(intact, f"{what} is damaged or truncated (its header, size or checksum differs)")
        return content

    def load_legacy(self) -> object:
        """The format before torch 1.6: magic, protocol, system, object, storage keys; then each storage's bytes."""

        def load(storage: Callable | None = None) -> object:
            return self.unpickler(self.file, len(self.content) - self.file.tell(), storage).load()

        require((load(), load()) == (0x1950A86A20F9469CFC6C, 1001), "a pickle, but not a torch.save file")
        require(dict.get(load(), "little_endian") is (sys.byteorder == "little"), "written in another byte order")
        result = load(lambda saved: self.storage(saved, self.allocate))
        for key in load():
            storage, count, start = self.storages.pop(key), self.file.read(8), self.file.tell()
            self.file.seek(start + storage.nbytes)
            content = self.content[start : start + storage.nbytes]
            whole = int.from_bytes(count, "little") == len(storage) and len(content) == storage.nbytes
            require(whole, f"storage {key!a:.60} is of another size than it claims, or cut short")
            storage.view(torch.uint8).numpy()[:] = content
        return require(not self.storages, f"{len(self.storages)} of its storages are missing", result)

    def storage(self, saved_id: object, new: Callable) -> torch.Tensor:
        """The storage that a pickle names by ("storage", dtype, key, location, count, view); a new one by new(...)."""
        tag, dtype, key, _, count, *view = saved_id
        known = tag in ("storage", b"storage") and type(dtype) is torch.dtype and type(key) is str and not any(view)
        require(known, "a reference to something other than a whole storage of a known type")
        size = math.prod(sizes([count])) * dtype.itemsize
        if key not in self.storages:
            self.storages[key] = new(key, size, dtype.itemsize).view(dtype)
        actual = self.storages[key].nbytes
        require(size == actual, f"storage {key!a:.60} has {actual} bytes, not the {size} it claims")
        return self.storages[key].view(dtype)

    def map(self, key: str, size: int, alignment: int) -> torch.Tensor:
        content = self.entry(f"data/{key}")
        raw = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
        return raw if self.mmap and raw.data_ptr() % alignment == 0 else raw.clone()

    def allocate(self, key: str, size: int, alignment: int) -> torch.Tensor:
        self.claimed += size
        fits = self.claimed <= len(self.content) - self.file.tell()
        require(fits, f"its storages claim {self.claimed} bytes in a file of {len(self.content)}")
        return torch.empty(size, dtype=torch.uint8)
