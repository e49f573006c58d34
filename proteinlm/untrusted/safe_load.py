"""The one unpickler: opens torch files, pickled LMDB values and DCP's pickles without running anything hidden in them.

    safe_torch_load(path)             a torch.save file, zip or legacy format -> tensors on the CPU in their containers
    safe_pickle_loads(value, what)    a pickle held in memory (LMDB values, DCP's .metadata)

Admitted: tensors, numpy arrays, scalars and dtypes, plain containers, argparse.Namespace, torch dtypes, sizes and
devices, DCP's metadata classes; classes of `megatron.*` and `fp16.*` become inert `StandIn`s. Everything else is an
InputError that names it. Parameters come back as plain tensors; tensors that share a storage in the file share it here.
The list is in `proteinlm/untrusted/pickle_names.py`, the reader in `proteinlm/untrusted/pickle_machine.py`.

Sizes are checked before anything is allocated: zip entries must be stored, not compressed (torch.save never does),
their sizes must fit the file, and a tensor may not be larger than its storage. torch is imported only when a file needs
it, so that preprocessing, which reads LMDB values, never pays for it.
"""

from __future__ import annotations

import io
import mmap as memory_map
import os
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np

from proteinlm.errors import InputError
from proteinlm.untrusted.pickle_machine import MALFORMED, PickleMachine, Refused
from proteinlm.untrusted.pickle_names import StandIn, Storage, StorageType, find, integer, sequence, set_state, shown

__all__ = ["StandIn", "safe_pickle_loads", "safe_torch_load"]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001


def safe_pickle_loads(data: bytes, what: str) -> object:
    """The object pickled in `data`. `what` names the value in errors ("pfam_train.lmdb key b'12'")."""
    try:
        return PickleMachine(bytes(data), find, set_state).load()
    except Refused as refusal:
        raise InputError(f"{what}: {refusal}") from None


def safe_torch_load(source, *, what: str | None = None, mmap: bool = False) -> object:
    """The object that torch.save wrote to `source`: a path, a binary file, or bytes-like data.

    what: the name used in errors (default: the path). mmap: map the file's tensors instead of copying them, for reading
    a large file once; the file must not change meanwhile.
    """
    what = what or (str(source) if isinstance(source, (str, os.PathLike)) else getattr(source, "name", "torch file"))
    try:
        return _load_buffer(_buffer(source), mmap)
    except Refused as refusal:
        raise InputError(f"{what}: {refusal}") from None
    except MALFORMED as error:
        raise InputError(f"{what}: not a readable torch file ({type(error).__name__}: {str(error)[:200]})") from None


def _buffer(source) -> memoryview:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return memoryview(source)
    if hasattr(source, "read"):
        return memoryview(source.read())
    with open(Path(source), "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise Refused("the file is empty")
        return memoryview(memory_map.mmap(file.fileno(), 0, access=memory_map.ACCESS_COPY))


def _load_buffer(buffer: memoryview, mmap: bool) -> object:
    head = bytes(buffer[:4])
    if head == b"PK\x03\x04":
        return _ZipFile(buffer, mmap).load()
    if bytes(buffer[257:262]) == b"ustar":
        raise Refused("the tar format of torch before 0.1.10 is not read; save it again with a newer torch")
    if head[:1] != b"\x80":
        raise Refused("not a torch.save file (neither a zip archive nor a pickle)")
    return _LegacyFile(buffer).load()


class _Window(io.RawIOBase):
    """A readable, seekable file over a buffer, so that zipfile reads the directory without a copy of the contents."""

    def __init__(self, buffer: memoryview):
        self.buffer, self.position = buffer, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = max(0, offset + (0, self.position, len(self.buffer))[whence])
        return self.position

    def tell(self) -> int:
        return self.position

    def read(self, count: int = -1) -> bytes:
        end = len(self.buffer) if count is None or count < 0 else self.position + count
        chunk = bytes(self.buffer[self.position : end])
        self.position += len(chunk)
        return chunk


class _ZipFile:
    """torch.save's zip format: `<name>/data.pkl` and one stored entry `<name>/data/<key>` a storage."""

    def __init__(self, buffer: memoryview, mmap: bool):
        self.buffer, self.mmap, self.storages = buffer, mmap, {}
        self.entries = self._directory()
        roots = [
            name[: -len("data.pkl")] for name in self.entries if name.endswith("data.pkl") and name.count("/") == 1
        ]
        if len(roots) != 1 or any(name.endswith("constants.pkl") for name in self.entries):
            raise Refused("a zip archive, but not one that torch.save wrote (TorchScript programs are not read)")
        self.root = roots[0]

    def _directory(self) -> dict[str, zipfile.ZipInfo]:
        try:
            listed = zipfile.ZipFile(_Window(self.buffer)).infolist()
        except (zipfile.BadZipFile, NotImplementedError, *MALFORMED) as error:
            raise Refused(f"a damaged or truncated zip archive ({str(error)[:100]})") from None
        entries = {entry.filename: entry for entry in listed}
        if len(entries) != len(listed):
            raise Refused("a zip archive with two entries of one name")
        packed = next((e for e in listed if e.compress_type or e.compress_size != e.file_size or e.flag_bits & 1), None)
        if packed:
            raise Refused(
                f"zip entry {ascii(packed.filename)[:80]} is compressed or encrypted; torch.save stores entries"
            )
        total = sum(entry.file_size for entry in listed)
        if total > len(self.buffer):
            raise Refused(f"its zip entries claim {total} bytes in a file of {len(self.buffer)}")
        return entries

    def read(self, name: str) -> tuple[int, int]:
        """(start, stop) of an entry's bytes in the buffer, after checking its header, bounds and checksum."""
        entry = self.entries.get(self.root + name)
        if entry is None:
            raise Refused(f"zip entry {ascii(name)[:80]} is missing")
        at = entry.header_offset
        header = bytes(self.buffer[at : at + 30])
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise Refused(f"zip entry {ascii(name)[:80]} has no header where the directory says")
        start = at + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        stop = start + entry.file_size
        if stop > len(self.buffer):
            raise Refused(f"zip entry {ascii(name)[:80]} ends beyond the file: truncated")
        if entry.CRC and zlib.crc32(self.buffer[start:stop]) != entry.CRC:  # 0: written without checksums
            raise Refused(f"zip entry {ascii(name)[:80]} is damaged (its checksum differs)")
        return start, stop

    def load(self) -> object:
        if self.root + "byteorder" in self.entries:
            start, stop = self.read("byteorder")
            if bytes(self.buffer[start:stop]) != sys.byteorder.encode():
                raise Refused(
                    f"written on a {bytes(self.buffer[start : min(stop, start + 8)])!r}-endian machine; not read"
                )
        start, stop = self.read("data.pkl")
        return PickleMachine(bytes(self.buffer[start:stop]), find, set_state, self.storage).load()

    def storage(self, saved_id: object) -> Storage:
        import torch

        kind, key, count = _storage_id(saved_id, 5)
        if key not in self.storages:
            start, stop = self.read(f"data/{key}")
            part = self.buffer[start:stop]
            mapped = self.mmap and len(part) and start % kind.dtype.itemsize == 0 and not part.readonly
            self.storages[key] = torch.frombuffer(part, dtype=torch.uint8) if mapped else _copied(part)
        raw = self.storages[key]
        if count * kind.dtype.itemsize != raw.numel():
            raise Refused(
                f"storage {key[:40]} has {raw.numel()} bytes, not the {count * kind.dtype.itemsize} it claims"
            )
        return Storage(kind.dtype, raw)


def _copied(part: memoryview):
    """The bytes of `part` as a uint8 tensor of its own."""
    import torch

    raw = torch.empty(len(part), dtype=torch.uint8)
    raw.numpy()[:] = np.frombuffer(part, dtype=np.uint8)
    return raw


def _storage_id(saved_id: object, length: int) -> tuple[StorageType, str, int]:
    if type(saved_id) is not tuple or len(saved_id) != length or saved_id[0] not in ("storage", b"storage"):
        raise Refused("a reference to something other than a storage")
    _, kind, key, _, count = saved_id[:5]
    if not isinstance(kind, StorageType) or type(key) is not str:
        raise Refused("a storage of an unknown type")
    return kind, key, integer(count)


class _LegacyFile:
    """The format before torch 1.6: magic, protocol, system, object, storage keys; then each storage's bytes."""

    def __init__(self, buffer: memoryview):
        self.buffer, self.position, self.storages = buffer, 0, {}
        self.data = buffer.obj if isinstance(buffer.obj, memory_map.mmap) else bytes(buffer)
        self.claimed = 0

    def next(self, persistent=None) -> object:
        machine = PickleMachine(self.data, find, set_state, persistent, self.position)
        result = machine.load()
        self.position = machine.position
        return result

    def load(self) -> object:
        if self.next() != LEGACY_MAGIC or self.next() != LEGACY_PROTOCOL:
            raise Refused("a pickle, but not a torch.save file")
        system = self.next()
        if not isinstance(system, dict) or system.get("little_endian") is not (sys.byteorder == "little"):
            raise Refused("written on a machine of another byte order; not read")
        result = self.next(self.storage)
        for key in sequence(self.next()):
            self._fill(key)
        if self.storages:
            raise Refused(f"storage {next(iter(self.storages))[:40]} is missing")
        return result

    def storage(self, saved_id: object) -> Storage:
        import torch

        kind, key, count = _storage_id(saved_id, 6)
        if saved_id[5] is not None:
            raise Refused("storages that are views of others (torch before 0.4) are not read")
        if key not in self.storages:
            self.claimed += count * kind.dtype.itemsize
            if self.claimed > len(self.data) - self.position:
                raise Refused(f"its storages claim {self.claimed} bytes in a file of {len(self.data)}")
            self.storages[key] = Storage(kind.dtype, torch.empty(count * kind.dtype.itemsize, dtype=torch.uint8))
        return self.storages[key]

    def _fill(self, key: object) -> None:
        storage = self.storages.pop(key, None) if type(key) is str else None
        start = self.position + 8
        count = int.from_bytes(self.buffer[self.position : start], "little")
        size = storage.raw.numel() if storage else -1
        if storage is None or count * storage.dtype.itemsize != size or start + size > len(self.buffer):
            raise Refused(f"storage {shown(key)} is unknown, of another size, or cut short")
        storage.raw.numpy()[:] = np.frombuffer(self.buffer[start : start + size], dtype=np.uint8)
        self.position = start + size
