"""Text from elsewhere: UTF-8, with or without a byte order mark, gzipped or not.

What must hold: a file that is something else is an InputError that names it and says what would be right; no more than
LARGEST bytes are read, however far a gzip file would expand.
"""

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from proteinlm.errors import InputError

ZEROS = 1 << 16  # bytes
LARGEST, BLOCK = 1 << 30, 1 << 20  # bytes; a table or a list of records in memory needs several times as much
GZIP = b"\x1f\x8b"
BAD_STARTS = {
    b"PK\x03\x04": "an Excel workbook (or another zip)",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}


@contextlib.contextmanager
def unzipped(path: str | Path) -> Iterator[BinaryIO]:
    """A file's bytes, of a gzip file what it holds; InputError where that is broken."""
    try:
        with open(path, "rb") as raw:
            _refuse_zeros(raw, path)
            yield gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == GZIP else raw
    except EOFError:
        raise InputError(f"{path}: truncated gzip file") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: broken gzip file ({error})") from None


def _refuse_zeros(raw: BinaryIO, path: str | Path) -> None:
    """InputError for a file that ends in a block of zeros: its disk was full, or nobody wrote the end; gzip would read
    zeros without end. (A tape's padding is shorter.)"""
    if raw.seekable() and raw.seek(0, 2) > ZEROS:
        raw.seek(-ZEROS, 2)
        if not raw.read(ZEROS).strip(b"\0"):
            raise InputError(f"{path}: ends in zeros, so it was not written to its end; should be copied or made again")
    if raw.seekable():
        raw.seek(0)


def read_text(path: str | Path, advice: str = "should be UTF-8 text", largest: int | None = None) -> str:
    """The whole file. advice: ends the InputError for what is no text; largest: bytes that may be read."""
    if not Path(path).exists() or Path(path).is_dir():
        raise InputError(f"{path}: {'a directory; should be a file' if Path(path).is_dir() else 'no such file'}")
    with unzipped(path) as file:
        return _decoded(_read(file, path, advice, largest or LARGEST, until=b"\0"), path, advice)


def read_bytes(path: str | Path, advice: str = "should be a smaller file") -> bytes:
    """The whole file, as it is. InputError where it is too large to be what its reader expects."""
    with open(path, "rb") as file:
        return bytes(_read(file, path, advice, LARGEST))


def _read(file: BinaryIO, path: str | Path, advice: str, largest: int, until: bytes | None = None) -> bytearray:
    """All there is, or no more than a block behind `until`: a sparse file has zeros without end."""
    data = bytearray()
    while block := file.read(BLOCK):
        data += block
        if len(data) > largest:
            raise InputError(f"{path}: more than {largest:,} bytes; {advice}")
        if until is not None and until in block:
            break
    return data


def _decoded(data: bytes | bytearray, path: str | Path, advice: str) -> str:
    for start, name in BAD_STARTS.items():
        if data.startswith(start):
            raise InputError(f"{path}: {name}; {advice}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8 text; {advice}") from None
    if "\0" in text:
        raise InputError(f"{path}, line {text[: text.index(chr(0))].count(chr(10)) + 1}: a NUL byte; {advice}")
    return text
