"""Token shards: `<prefix>.bin` (ids of all proteins, back to back) and `<prefix>.idx`, Megatron's "mmap" format.

    with IndexedWriter("out/pfam_text_document") as writer:
        writer.add(ids, lengths)                                  # as often as needed
    shard = IndexedDataset("out/pfam_text_document"); shard.read(0)

`.idx`, little-endian: b"MMIDIDX\\0\\0", u64 version 1, u8 dtype code, u64 sequences N, u64 document bounds D,
N x i32 lengths, N x i64 byte offsets, D x i64 document bounds. What must hold: a file that is not exactly this is an
InputError that says what is wrong, before anything is allocated from its numbers; nothing is left behind on an error.
"""

import contextlib
import os
import struct
from pathlib import Path

import numpy as np

from proteinlm.errors import InputError
from proteinlm.files import atomic_path

MAGIC = b"MMIDIDX\x00\x00"
OLD_MAGIC = b"TNTIDX\x00\x00"  # Megatron's "lazy" and "cached" formats
HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, document bounds
DTYPES = {
    code: np.dtype(name).newbyteorder("<")
    for code, name in ((1, "uint8"), (2, "int8"), (3, "int16"), (4, "int32"), (5, "int64"), (8, "uint16"))
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
FLOAT_CODES = {6: "float64", 7: "float32 (float64 in Megatron's first version)"}


def strip_suffix(prefix: str | Path) -> str:
    """A shard's prefix, which may be spelled with the .bin or .idx of its files."""
    text = str(prefix)
    return text[:-4] if text.endswith((".bin", ".idx")) else text


def require_shard(prefix: str | Path) -> None:
    """InputError where one of a shard's two files is not there."""
    for path in (f"{prefix}.idx", f"{prefix}.bin"):
        if not os.path.isfile(path):
            near = f"{prefix}_text_document"
            hint = f"did you mean {near}?" if os.path.isfile(f"{near}.idx") else "pretrain.preprocess makes both"
            raise InputError(f"{path}: no such file; {hint}")


class IndexedDataset:
    """A shard opened for reading. len() is the number of sequences (proteins).

    lengths int32[N] (tokens), offsets int64[N] (bytes into .bin), documents int64[D] (bounds, 0 ... N): read-only views
    of the file, not aligned in memory. Pickles as its prefix: each process maps the files for itself.
    """

    def __init__(self, prefix: str | Path):
        self.prefix = strip_suffix(prefix)
        self._open(validate=True)

    def __getstate__(self) -> dict:
        return {"prefix": self.prefix}

    def __setstate__(self, state: dict) -> None:
        self.prefix = state["prefix"]
        self._open(validate=False)  # the process that made the pickle has checked every number

    def __len__(self) -> int:
        return len(self.lengths)

    def _open(self, validate: bool) -> None:
        require_shard(self.prefix)
        idx, binary = f"{self.prefix}.idx", f"{self.prefix}.bin"
        self.dtype, num_sequences, num_bounds = _read_header(idx)
        table = np.memmap(idx, np.uint8, mode="r").view(np.ndarray)
        lengths_end = HEADER.size + 4 * num_sequences
        offsets_end = lengths_end + 8 * num_sequences
        self.lengths = table[HEADER.size : lengths_end].view("<i4")
        self.offsets = table[lengths_end:offsets_end].view("<i8")
        self.documents = table[offsets_end : offsets_end + 8 * num_bounds].view("<i8")
        self.num_tokens = os.path.getsize(binary) // self.dtype.itemsize
        if validate:
            _check_lengths(idx, binary, self.dtype, self.lengths, self.offsets)
            _check_documents(idx, self.documents, num_sequences)
        self._tokens = np.memmap(binary, self.dtype, mode="r").view(np.ndarray)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """A view of the ids start ... stop - 1 of all sequences, back to back."""
        return self._tokens[start:stop]

    def read(self, i: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """A view of the ids of sequence i, from token `start` to `stop` (default: its end)."""
        if not 0 <= i < len(self):
            raise IndexError(f"sequence {i} of {len(self)} in {self.prefix}")
        first = int(self.offsets[i]) // self.dtype.itemsize
        return self._tokens[first : first + int(self.lengths[i])][start:stop]


def _read_header(idx: str) -> tuple[np.dtype, int, int]:
    """(dtype, sequences, document bounds) of an .idx file whose size agrees with them."""
    size = os.path.getsize(idx)
    with open(idx, "rb") as file:
        head = file.read(HEADER.size)
    if head.startswith(OLD_MAGIC):
        raise InputError(f"{idx}: Megatron's lazy/cached format (TNTIDX); only its mmap format is read")
    if not head.startswith(MAGIC[: len(head)]) or not head:
        raise InputError(f"{idx}: not a token index: it begins with {head[:9]!r}, not {MAGIC!r}")
    if size < HEADER.size:
        raise InputError(f"{idx}: truncated: {size} bytes, its header alone is {HEADER.size}")
    _, version, code, num_sequences, num_bounds = HEADER.unpack(head)
    if version != 1:
        raise InputError(f"{idx}: format version {version}; only version 1 is known")
    if code in FLOAT_CODES:
        raise InputError(f"{idx}: dtype code {code} is {FLOAT_CODES[code]}; token ids are integers")
    if code not in DTYPES:
        raise InputError(f"{idx}: dtype code {code} is unknown; integers are {', '.join(map(str, sorted(DTYPES)))}")
    needed = HEADER.size + 12 * num_sequences + 8 * num_bounds  # Python integers: no overflow, nothing allocated
    if size != needed:
        fault = "truncated or not an index" if size < needed else "too long"
        raise InputError(
            f"{idx}: {fault}: its header says {num_sequences} sequences and {num_bounds} document bounds, "
            f"{needed} bytes; the file has {size}"
        )
    if num_sequences == 0:
        raise InputError(f"{idx}: holds no sequences")
    return DTYPES[code], num_sequences, num_bounds


def _check_lengths(idx: str, binary: str, dtype: np.dtype, lengths: np.ndarray, offsets: np.ndarray) -> None:
    if lengths.min() < 0:
        raise InputError(f"{idx}: sequence {int(lengths.argmin())} has the negative length {int(lengths.min())}")
    ends = np.cumsum(lengths, dtype=np.int64) * dtype.itemsize
    starts = np.concatenate((np.zeros(1, np.int64), ends[:-1]))
    wrong = np.flatnonzero(starts != offsets)
    if len(wrong):
        i = int(wrong[0])
        raise InputError(f"{idx}: sequence {i} has offset {int(offsets[i])}; the lengths before it add to {starts[i]}")
    size, needed = os.path.getsize(binary), int(ends[-1])
    if size != needed:
        fault = "truncated" if size < needed else "longer than its index"
        raise InputError(f"{binary}: {fault}: {size} bytes; {idx} ({dtype.name}) describes {needed}")
    if needed == 0:
        raise InputError(f"{binary}: holds no tokens")


def _check_documents(idx: str, documents: np.ndarray, num_sequences: int) -> None:
    if len(documents) == 0:
        raise InputError(f"{idx}: no document bounds; there must be at least 0 and {num_sequences}")
    if documents[0] != 0 or documents[-1] != num_sequences:
        ends = f"{int(documents[0])} ... {int(documents[-1])}"
        raise InputError(f"{idx}: document bounds run {ends}; they must run 0 ... {num_sequences}")
    if (documents[1:] < documents[:-1]).any():
        i = int(np.flatnonzero(documents[1:] < documents[:-1])[0]) + 1
        raise InputError(f"{idx}: document bound {i} ({int(documents[i])}) is less than the one before it")


class IndexedWriter:
    """Writes a shard, one document a sequence. Both files appear as the block ends, .idx last; none after an error."""

    def __init__(self, prefix: str | Path, dtype: np.dtype | type = np.uint8):
        self.prefix = str(prefix)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        assert self.dtype in CODES, f"token ids are integers of {sorted(map(str, CODES))}, not {self.dtype}"
        self.num_tokens = 0
        self._lengths: list[np.ndarray] = []

    def __enter__(self) -> "IndexedWriter":
        with contextlib.ExitStack() as stack:
            # Left in reverse order: .bin gets its name first, then .idx.
            self._idx_path = stack.enter_context(atomic_path(f"{self.prefix}.idx"))
            bin_path = stack.enter_context(atomic_path(f"{self.prefix}.bin"))
            self._bin = stack.enter_context(open(bin_path, "wb"))
            self._stack = stack.pop_all()
        return self

    def add(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Append sequences. ids [T]: tokens of all of them, joined; lengths [N]: tokens of each, at least 1."""
        ids, lengths = np.asarray(ids), np.asarray(lengths)
        if len(lengths) == 0:
            return
        if int(lengths.sum(dtype=np.int64)) != len(ids) or lengths.min() < 1 or lengths.max() > np.iinfo(np.int32).max:
            raise ValueError(f"lengths sum to {int(lengths.sum())} (least {lengths.min()}) for {len(ids)} ids")
        if ids.dtype != self.dtype:
            limits = np.iinfo(self.dtype)
            if ids.dtype.kind not in "iu" or ids.min() < limits.min or ids.max() > limits.max:
                raise ValueError(f"ids of {ids.dtype} in {ids.min()} ... {ids.max()} do not fit {self.dtype}")
            ids = ids.astype(self.dtype)
        self._bin.write(memoryview(np.ascontiguousarray(ids)).cast("B"))
        self.num_tokens += len(ids)
        self._lengths.append(lengths.astype("<i4"))

    def __exit__(self, kind, error, traceback) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, traceback)
            return
        with self._stack:  # closes .bin and renames both files, or removes both where something fails here
            if not self._lengths:
                raise InputError(f"{self.prefix}: no sequences to write")
            self._write_idx()
            # An old .idx must never stand beside the new .bin, nor the groups of other proteins beside either.
            for suffix in (".idx", ".groups.npy"):
                Path(f"{self.prefix}{suffix}").unlink(missing_ok=True)

    def _write_idx(self) -> None:
        lengths = np.concatenate(self._lengths)
        offsets = np.cumsum(lengths, dtype="<i8")
        offsets = (offsets - lengths) * self.dtype.itemsize
        documents = np.arange(len(lengths) + 1, dtype="<i8")
        with open(self._idx_path, "wb") as file:
            file.write(HEADER.pack(MAGIC, 1, CODES[self.dtype], len(lengths), len(documents)))
            for array in (lengths, offsets, documents):
                file.write(memoryview(array).cast("B"))
