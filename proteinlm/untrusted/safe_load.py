"""The one unpickler: opens torch files, pickled LMDB values and DCP's pickles without running anything hidden in them.

Admitted: tensors, numpy arrays, scalars and dtypes, plain containers, argparse.Namespace, torch dtypes, sizes and
devices; classes of `megatron.*`, `fp16.*` and `omegaconf.*` become inert `StandIn`s. Everything else is an InputError
that names it. Parameters come back as plain tensors; tensors that share a storage share it here. torch is imported only
when needed.
"""

import functools
import io
import mmap as memory_map
import os

from proteinlm.errors import InputError
from proteinlm.untrusted import pickles
from proteinlm.untrusted.pickles import Unpickler, named, require
from proteinlm.untrusted.plain_records import read_record

StandIn = pickles.StandIn


def find(module: str, name: str) -> object:
    """What `module.name` stands for here; an InputError names what is not admitted."""
    if not module.startswith("torch"):
        return pickles.find(module, name)
    from proteinlm.untrusted.torch_files import NAMES

    return NAMES.get(f"{module}.{name}") or pickles.find(module, name)


def safe_pickle_loads(data: bytes, what: str) -> object:
    """The object pickled in `data`. `what` names the value in errors ("pfam_train.lmdb key b'12'")."""
    if (record := read_record(data)) is not None:
        return record
    with named(what):
        return Unpickler(find, io.BytesIO(data), len(data)).load()


def safe_torch_load(source, *, what: str | None = None, mmap: bool = False) -> object:
    """The object that torch.save wrote to `source`: a path, a binary file, or bytes-like data.

    what: the name used in errors (default: the path). mmap: map the file's tensors instead of copying them, for reading
    a large file once; the file must not change meanwhile.
    """
    from proteinlm.untrusted.torch_files import read_torch

    is_path = isinstance(source, (str, os.PathLike))
    what = what or (source if is_path else getattr(source, "name", "torch file"))
    if is_path:
        source = map_file(source)
    elif not isinstance(source, memory_map.mmap):
        source = io.BytesIO(source.read() if hasattr(source, "read") else source)
    with named(what):
        return read_torch(source, mmap, functools.partial(Unpickler, find))


def map_file(path, offset: int = 0, length: int | None = None) -> memory_map.mmap:
    """The bytes of a file, read as they are looked at, and its position at `offset`. Writing leaves the file alone."""
    start = offset - offset % memory_map.ALLOCATIONGRANULARITY
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        end = size if length is None else offset + length
        require(size, f"{path}: the file is empty")
        require(offset < end <= size, f"{path}: truncated, {size} bytes of at least {end}")
        try:
            mapped = memory_map.mmap(file.fileno(), end - start, access=memory_map.ACCESS_COPY, offset=start)
        except OSError as error:  # it names no file
            raise InputError(f"{path}: {end - start:,} bytes cannot be mapped ({error.strerror})") from None
    mapped.seek(offset - start)
    return mapped
