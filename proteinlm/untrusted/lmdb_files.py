"""LMDBs from elsewhere, read page by page: TAPE's records under b"0", b"1" ..., their number under b"num_examples".

    with LMDB("fluorescence_train.lmdb") as file:       # a directory with data.mdb, or a lone file
        file.record(len(file) - 1)["primary"]

LMDB's own library believes every offset in the file that it maps, so that one wrong byte can end the process by SIGBUS,
without a word. Here each is a place in bytes that were read. Layout: mdb.c of LMDB 0.9, data version 1. What must hold:
a damaged file is an InputError or a record that is missing; an open file may be used after a fork and may be pickled.
"""

import bisect
import functools
import operator
import os
import struct
import weakref
from pathlib import Path

from proteinlm.errors import InputError
from proteinlm.untrusted.safe_load import safe_pickle_loads

MAGIC, VERSION, EMPTY = 0xBEEFC0DE, 1, (1 << 64) - 1
HEADER = struct.Struct("<QHHHH")  # of a page: number, padding, kind, end of its list of offsets, end of the free space
OVERFLOW_HEADER = struct.Struct("<QHHI")  # number, padding, kind, how many pages follow one another
# Behind the header of the first two pages: magic, version, address, size of the map; of the free pages and of the data
# each page size, flags, depth, pages of three kinds, entries, root page; last page; transaction.
META = struct.Struct("<IIQQ IHHQQQQQ IHHQQQQQ QQ")
NODE = struct.Struct("<HHHH")  # size (32 bits) and flags, or child (48 bits); length of the key; behind it key and data
BRANCH, LEAF, OVERFLOW, KINDS = 1, 2, 4, 0x67
BIG = 1  # of a node: its data is the number of the page where they begin
DEEPEST = 32  # pages, as in mdb.c
COUNT = b"num_examples"


class LMDB:
    """The keys and values of one file, and its records as TAPE has them."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._name = str(path)
        file = self.path / "data.mdb" if self.path.is_dir() else self.path
        if not file.is_file():
            raise InputError(f"{path}: {'a directory without data.mdb' if self.path.is_dir() else 'no such file'}")
        self._file = os.open(file, os.O_RDONLY)
        self._close = weakref.finalize(self, os.close, self._file)
        self._nodes = functools.lru_cache(256)(self._read_nodes)
        self._leaf: dict[bytes, int] = {}  # the last page of data: records in order are mostly beside each other
        self._block = b""
        self._size = 4096  # of a page, until the first header says it
        size = os.fstat(self._file).st_size
        first, second = self._read_header(0), self._read_header(1)
        _, self._last, flags, entries, self._root = second if second[0] > first[0] else first
        self.entries = min(entries, size // NODE.size)  # a damaged number is no reason to make room for that many
        if size < (self._last + 1) * self._size:
            raise InputError(f"{path}: truncated: {size} bytes of {(self._last + 1) * self._size}")
        if flags:
            raise InputError(f"{path}: an LMDB of other keys than plain bytes (flags {flags}), which TAPE's are")

    def __enter__(self) -> "LMDB":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._file = -1  # another file may get its number

    def __reduce__(self) -> tuple:
        return LMDB, (self.path,)

    def _read_header(self, number: int) -> tuple[int, int, int, int, int]:
        """(transaction, last page, flags, entries, root page) of one of the two; the later transaction's holds."""
        block = os.pread(self._file, META.size, number * self._size + HEADER.size)
        if len(block) < META.size or (fields := META.unpack(block))[0] != MAGIC:
            raise InputError(f"{self.path}: not a readable LMDB (its header {number + 1} is none)")
        version, page, flags, entries, root, last, transaction = fields[1], fields[4], *fields[13:14], *fields[18:]
        if version != VERSION:
            raise InputError(f"{self.path}: an LMDB of data version {version}; version {VERSION} can be read")
        if not 256 <= page <= 1 << 16 or page & (page - 1):
            raise self._damaged(f"pages of {page} bytes")
        self._size = page
        return transaction, last, flags, entries, root

    def _damaged(self, what: str) -> InputError:
        return InputError(f"{self.path}: the LMDB is damaged ({what})")

    # ---- keys and values

    def get(self, key: bytes) -> bytes | None:
        """The value of a key; None where there is no such key."""
        try:
            offset = self._leaf.get(key)
            if offset is None:
                self._leaf, self._block = self._find_leaf(key)
                offset = self._leaf.get(key)
            return None if offset is None else self._value(self._block, offset)
        except (struct.error, IndexError):
            raise self._damaged(f"on the way to key {key[:40]!r}") from None

    def _find_leaf(self, key: bytes) -> tuple[dict[bytes, int], bytes]:
        """(the offset of each key, bytes) of the page that has `key`, if there is one."""
        number = self._root
        for _ in range(DEEPEST if number != EMPTY else 0):
            kind, block, keys, offsets = self._nodes(number)
            if kind == LEAF:
                return dict(zip(keys, offsets, strict=True)), block
            low, middle, high, _ = NODE.unpack_from(block, offsets[bisect.bisect_right(keys, key, 1) - 1])
            number = low | middle << 16 | high << 32
        if number != EMPTY:
            raise self._damaged(f"more than {DEEPEST} pages deep")
        return {}, b""

    def _read_nodes(self, number: int) -> tuple[int, bytes, list[bytes], tuple[int, ...]]:
        """(kind, bytes, keys, offset of each node) of a page; the first key of a branch is empty."""
        block = self._read(number, 0, self._size)
        own, _, kind, end, _ = HEADER.unpack_from(block)
        if own != number or kind & KINDS not in (BRANCH, LEAF):
            raise self._damaged(f"page {number} is none")
        offsets = struct.unpack_from(f"<{(end - HEADER.size) // 2}H", block, HEADER.size)
        keys = [block[o + 8 : o + 8 + (block[o + 6] | block[o + 7] << 8)] for o in offsets]
        return kind & KINDS, block, keys, offsets

    def _value(self, block: bytes, offset: int) -> bytes:
        low, high, flags, length = NODE.unpack_from(block, offset)
        begin, size = offset + NODE.size + length, low | high << 16
        if flags & ~BIG:
            raise self._damaged("several values of one key")
        value = block[begin : begin + size]
        if flags & BIG:
            (number,) = struct.unpack_from("<Q", block, begin)
            own, _, kind, pages = OVERFLOW_HEADER.unpack(self._read(number, 0, HEADER.size))
            if own != number or not kind & OVERFLOW or number + pages > self._last + 1:
                raise self._damaged(f"page {number} is none")
            value = self._read(number, HEADER.size, min(size, pages * self._size))
        if len(value) < size:
            raise self._damaged(f"a value of {size:,} bytes is cut short")
        return value

    def _read(self, page: int, begin: int, size: int) -> bytes:
        if not 2 <= page <= self._last:
            raise self._damaged(f"page {page} of {self._last + 1}")
        return os.pread(self._file, size, page * self._size + begin)

    # ---- TAPE's records

    def __len__(self) -> int:
        """How many records there are, by the key num_examples."""
        value = self.get(COUNT)
        if value is None:
            raise InputError(f"{self.path}: no key num_examples; a TAPE LMDB has the number of its records there")
        stored = safe_pickle_loads(value, f"{self.path} key num_examples")
        try:
            count = -1 if isinstance(stored, bool) else operator.index(stored)
        except TypeError:
            count = -1
        if count < 0:
            raise InputError(f"{self.path}: num_examples is {stored!r}, a whole number of records was expected")
        if count >= self.entries:
            raise InputError(f"{self.path} record {self.entries - 1}: missing, though num_examples says {count}")
        if self.get(str(count).encode()) is not None:
            raise InputError(f"{self.path}: num_examples is {count}, but there is a record {count} too")
        return count

    def record(self, index: int) -> object:
        """Record `index`, unpickled."""
        value = self.get(str(index).encode())
        if value is None:
            raise InputError(f"{self.path} record {index}: missing, though num_examples says {len(self)}")
        return safe_pickle_loads(value, f"{self._name} record {index}")
