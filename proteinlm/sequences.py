"""Files of proteins -> residues, about a megabyte at a time: FASTA, JSON lines, plain text (each also .gz), TAPE LMDB.

    for chunk in read_chunks("pfam.fasta.gz"):
        proteins = parse_chunk(chunk)         # residues of ~4,000 proteins joined, and the length of each
    for header, sequence in read_fasta("a.fasta"): ...

`read_chunks` is cheap (it finds record boundaries), `parse_chunk` does the work and may run in another process.
What must hold: every kind of file goes through `_proteins`, the one place that says what a residue is: letters are
upper-cased; white space, the stop `*` and the gaps `-` and `.` are removed; all other bytes are kept and become [UNK]
later. Line ends may be LF, CRLF or CR. Records left empty are skipped and counted.
"""

import gzip
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from proteinlm.errors import InputError
from proteinlm.tokenizer import RESIDUES
from proteinlm.untrusted.json_files import decode_json
from proteinlm.untrusted.lmdb_files import LMDB
from proteinlm.untrusted.text_files import unzipped

# 1 MiB: a chunk and its copies stay in the processor's cache; 16 MiB takes half as long again.
CHUNK_BYTES = 1 << 20
LONGEST = 1 << 28  # bytes of a record, which is in memory as a whole
SPACE = b"\n\t\v\f "
REMOVED = SPACE + b"*-."
KNOWN = RESIDUES.encode() + RESIDUES.lower().encode()
UPPER = bytes(range(256)).upper()
# Line ends are "\n" by the time this is used, so "\r" is free to mark where each protein begins.
RECORD = b"\r"
HEADER = re.compile(rb"\n>.*")
SUFFIXES = {
    **dict.fromkeys((".fasta", ".fa", ".faa", ".fas", ".fsa", ".pep"), "fasta"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    ".lmdb": "lmdb",
}
TEXT_SUFFIXES = (".txt", ".seq", "")
OTHER_FORMATS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip", b"(\xb5/\xfd": "zstd", b"MMIDIDX": "an .idx"}


@dataclass(frozen=True)
class Chunk:
    """A piece of one file that begins and ends at record boundaries."""

    path: str
    kind: str  # fasta | jsonl | text (a protein a line) | lmdb (TAPE's)
    text: bytes = b""  # line ends normalised; empty for LMDB
    offset: int = 0  # of `text` in the normalised file
    json_key: str = "text"
    records: tuple[int, int] = (0, 0)  # LMDB: from, to


@dataclass(frozen=True)
class Proteins:
    """N proteins: their residues joined, and what was met on the way."""

    residues: bytes  # upper case, unknown letters still in place; by `parse_chunk`'s table, ids
    lengths: np.ndarray  # int32 [N], each > 0
    empty: int  # records without a residue
    removed: Counter  # "*", "-", "." -> how many were taken out
    unknown: Counter  # letter (or "0x1f") -> how many are not in the vocabulary
    headers: tuple[str, ...] = ()  # of FASTA, without ">", where they were asked for


def _proteins(marked: bytes, path: str, table: bytes, headers: Sequence[bytes] = ()) -> Proteins:
    """`marked`: RECORD + body, for every record; what is a residue is decided here. headers: of every record, or ()."""
    joined, mark = marked.translate(table, REMOVED), table[ord(RECORD)]
    starts = np.flatnonzero(np.frombuffer(joined, np.uint8) == mark)
    lengths = np.diff(starts, append=len(joined)) - 1
    if len(lengths) and lengths.max() > np.iinfo(np.int32).max:
        raise InputError(f"{path}: a record of {lengths.max()} residues, more than 2147483647; is this a protein?")
    odd = Counter(marked.translate(UPPER, KNOWN + SPACE + RECORD))
    removed = Counter({sign: odd.pop(ord(sign)) for sign in "*-." if ord(sign) in odd})
    unknown = Counter({_letter(code): count for code, count in odd.items()})
    empty = lengths == 0
    residues = joined.replace(bytes([mark]), b"")
    names = tuple(headers[i][2:].decode("utf-8", "replace") for i in np.flatnonzero(~empty)) if headers else ()
    return Proteins(residues, lengths[~empty].astype(np.int32), int(empty.sum()), removed, unknown, names)


def residues_of(text: str) -> str:
    """The residues in a cell of a table, by the same rule; what is no letter of latin-1 becomes "?"."""
    return text.encode("latin-1", "replace").translate(UPPER, REMOVED).decode("latin-1")


def _letter(code: int) -> str:
    return chr(code) if 32 < code < 127 else f"0x{code:02x}"


def input_kind(path: str) -> str:
    """The kind of a file, from its name (.gz aside), else its first character; InputError where neither says."""
    if os.path.isdir(path):
        if os.path.isfile(os.path.join(path, "data.mdb")):
            return "lmdb"
        raise InputError(f"{path}: a directory without data.mdb; give files, or TAPE .lmdb directories")
    suffix = os.path.splitext(path.removesuffix(".gz"))[1].lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    first = next(_blocks(path, CHUNK_BYTES), b"")
    start = first.lstrip()[:8]
    other = next((name for magic, name in OTHER_FORMATS.items() if start.startswith(magic)), None)
    if other:
        raise InputError(f"{path}: {other} file; give FASTA or JSON lines (also as .gz), or a TAPE .lmdb directory")
    if start[:1] in (b">", b""):
        return "fasta"
    if start[:1] in (b"{", b"["):
        return "jsonl"
    if suffix in TEXT_SUFFIXES and start[:1].isalpha():
        return "text"
    raise InputError(f"{path}: cannot tell what it is; name it .fasta, .jsonl or .txt (one protein a line), or .lmdb")


def read_chunks(path: str, json_key: str = "text", chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """The chunks of one input, in order. Chunk ends depend on `chunk_bytes`; the proteins do not."""
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file")
    kind = input_kind(path)
    if kind == "lmdb":
        with LMDB(path) as file:
            count, step = len(file), 2048
        yield from (Chunk(path, kind, records=(i, min(i + step, count))) for i in range(0, count, step))
        return
    offset = 0
    for text in _cut(path, _blocks(path, chunk_bytes), b"\n>" if kind == "fasta" else b"\n"):
        yield Chunk(path, kind, text, offset, json_key)
        offset += len(text)


def _blocks(path: str, size: int) -> Iterator[bytes]:
    """The file's bytes, decompressed, with line ends made "\\n" and a byte order mark dropped.

    Only the last block may end in a line end, so that neither CRLF nor "\\n>" is ever cut in two.
    """
    first = True
    try:
        with unzipped(path) as stream:
            if path.endswith(".gz") and not isinstance(stream, gzip.GzipFile) and stream.peek(1):
                raise InputError(f"{path}: named .gz but not a gzip file")
            while block := stream.read(max(size, 3)):
                while block.endswith((b"\r", b"\n")) and (more := stream.read(1)):
                    block += more
                if b"\r" in block:
                    block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
                yield block.removeprefix(b"\xef\xbb\xbf") if first else block
                first = False
    except OSError as error:
        raise InputError(f"{path}: cannot read: {error.strerror or error}") from error


def _cut(path: str, blocks: Iterator[bytes], boundary: bytes) -> Iterator[bytes]:
    """Join blocks and cut them again just before a boundary (the last one in a block): whole records each."""
    parts, size = [], 0
    for block in blocks:
        cut = block.rfind(boundary)
        if cut < 0:
            parts.append(block)
            size += len(block)
            if size > LONGEST:
                raise InputError(f"{path}: a record of more than {LONGEST:,} bytes; is this a protein?")
            continue
        if text := b"".join([*parts, memoryview(block)[:cut]]):
            yield text
        parts, size = [block[cut:]], len(block) - cut
    if text := b"".join(parts):
        yield text


def _line_at(path: str, offset: int) -> int:
    """The number of the line that byte `offset` (of the normalised file) is on; reads the file again, for errors."""
    line = 1
    for block in _blocks(path, CHUNK_BYTES):
        line += block[:offset].count(b"\n")
        offset -= len(block)
        if offset <= 0:
            break
    return line


def id_table(table: np.ndarray) -> bytes:
    """A vocabulary's table, byte -> id, for `parse_chunk`: 255, the id of nothing, is left for RECORD."""
    assert table.shape == (256,) and table.max() < 255, (table.shape, table.max())
    ids = bytearray(table.astype(np.uint8))
    ids[ord(RECORD)] = 255
    return bytes(ids)


def parse_chunk(chunk: Chunk, table: bytes = UPPER, headers: bool = False) -> Proteins:
    """The proteins of a chunk. Errors name the file and the line (LMDB: the record).

    table: what every byte becomes in `residues`: its upper case, or (`id_table`) its id, a pass over the text less.
    headers: with their FASTA headers.
    """
    if chunk.kind == "fasta":
        return _proteins(_mark_fasta(chunk), chunk.path, table, HEADER.findall(b"\n" + chunk.text) if headers else ())
    marked = b"".join(RECORD + text.replace(RECORD, b" ") for _, text in _texts(chunk))
    return _proteins(marked, chunk.path, table)


def _mark_fasta(chunk: Chunk) -> bytes:
    # The first line has no line end before it; every later chunk begins with "\n>".
    marked = HEADER.sub(RECORD, chunk.text if chunk.text.startswith(b"\n>") else b"\n" + chunk.text)
    if not marked.startswith(RECORD) and (before := marked.partition(RECORD)[0]).strip():
        line = before[: len(before) - len(before.lstrip())].count(b"\n")
        raise InputError(f"{chunk.path}, line {line}: text before the first header line ('>name')")
    return marked


def _texts(chunk: Chunk) -> Iterator[tuple[int, bytes]]:
    """(its place, for `_place`; its bytes) of every record that is not FASTA."""
    if chunk.kind == "lmdb":
        yield from _lmdb_texts(chunk)
        return
    for number, line in enumerate(chunk.text.split(b"\n")):
        if line and not line.isspace():
            yield number, line if chunk.kind == "text" else _json_text(chunk, number, line)


def _place(chunk: Chunk, number: int) -> str:
    """ "file, line 7" for the line `number` lines after the one the chunk begins on, or "file, record 7"."""
    if chunk.kind == "lmdb":
        return f"{chunk.path}, record {number}"
    return f"{chunk.path}, line {_line_at(chunk.path, chunk.offset) + number}"


def _json_text(chunk: Chunk, number: int, line: bytes) -> bytes:
    def fail(fault: str) -> InputError:
        return InputError(f"{_place(chunk, number)}: {fault}")

    try:
        record = decode_json(line)
    except ValueError as error:
        raise fail(f"not JSON ({error}); each line must be one object") from None
    if not isinstance(record, dict):
        raise fail(f"a JSON {type(record).__name__}; each line must be one object")
    text = record.get(chunk.json_key)
    if not isinstance(text, str):
        keys = ", ".join(list(record)[:8]) or "none"
        fault = f"is missing (keys: {keys})"
        if chunk.json_key in record:
            fault = f"is not a string but {type(text).__name__}"
        raise fail(f"key {chunk.json_key!r} {fault}; --json-key names the one that holds the residues")
    return text.encode("utf-8", "surrogatepass")


def _lmdb_texts(chunk: Chunk) -> Iterator[tuple[int, bytes]]:
    with LMDB(chunk.path) as file:
        for i in range(*chunk.records):
            record = file.record(i)
            primary = record.get("primary") if isinstance(record, dict) else None
            if not isinstance(primary, str):
                raise InputError(f"{_place(chunk, i)}: no 'primary' string of residues")
            yield i, primary.encode("utf-8", "surrogatepass")


def find_unknown(chunk: Chunk) -> str | None:
    """ "file, line N: letter 'J'" for the first letter of a chunk outside the vocabulary; slow, for error messages."""
    if chunk.kind == "fasta":
        texts = ((i, line) for i, line in enumerate(chunk.text.split(b"\n")) if not line.startswith(b">"))
    else:
        texts = _texts(chunk)
    for number, text in texts:
        odd = text.translate(UPPER, KNOWN + REMOVED + RECORD)
        if odd:
            return f"{_place(chunk, number)}: letter {_letter(odd[0])!r}"
    return None


def read_fasta(path: str) -> Iterator[tuple[str, str]]:
    """(header without '>', residues) of every record of a FASTA file (or .gz), empty ones too; unknown letters stay."""
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file")
    offset = 0
    for text in _cut(path, _blocks(path, CHUNK_BYTES), b"\n>"):
        _mark_fasta(Chunk(path, "fasta", text, offset))  # refuses text before the first header
        offset += len(text)
        for record in (b"\n" + text).split(b"\n>")[1:]:
            header, _, body = record.partition(b"\n")
            yield header.decode("utf-8", "replace").strip(), body.translate(UPPER, REMOVED).decode("latin-1")
