"""The chunked readers against a slow, obvious parser on nasty and random bytes, and the inputs that must be refused."""

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tape_lmdb import put_lmdb

from proteinlm import sequences
from proteinlm.errors import InputError
from proteinlm.sequences import find_unknown, input_kind, parse_chunk, read_chunks, read_fasta

LETTERS = "ABCDEFGHIKLMNOPQRSTUVWXYZ"


def reference(data: bytes) -> tuple[list[str], Counter, Counter]:
    """(sequences, removed, unknown) of a FASTA file, one character at a time; its bytes read as latin-1."""
    text = data.decode("latin-1").removeprefix("\u00ef\u00bb\u00bf").replace("\r\n", "\n").replace("\r", "\n")
    sequences: list[str] = []
    removed, unknown = Counter(), Counter()
    for line in text.split("\n"):
        if line.startswith(">"):
            sequences.append("")
            continue
        for letter in line:
            upper = letter.upper() if letter.isascii() else letter
            if letter in "*-.":
                removed[letter] += 1
            elif letter not in " \t\v\f":
                sequences[-1] += upper
                if upper not in LETTERS:
                    unknown[upper if "!" <= upper <= "~" else f"0x{ord(upper):02x}"] += 1
    return sequences, removed, unknown


def read(path: Path, **options) -> tuple[list[str], int, Counter, Counter]:
    """(sequences, empty records, removed, unknown) as the chunked reader finds them."""
    sequences, empty, removed, unknown = [], 0, Counter(), Counter()
    for chunk in read_chunks(str(path), **options):
        proteins = parse_chunk(chunk)
        text, ends = proteins.residues.decode("latin-1"), np.cumsum(proteins.lengths).tolist()
        assert len(text) == proteins.lengths.sum() and (proteins.lengths > 0).all()
        sequences += [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        empty += proteins.empty
        removed += proteins.removed
        unknown += proteins.unknown
    return sequences, empty, removed, unknown


NASTY = {
    "plain": b">a\nMKV\n>b\nAC\n",
    "wrapped": b">a\nMK\nV\n\nAC\n>b\nD",
    "lower case, stops, gaps, spaces": b">a\nm k*v-..A\tC*\n>b x > y\n MK \n",
    "CRLF": b">a\r\nMK\r\nV\r\n>b\r\nAC\r\n",
    "CR": b">a\rMK\rV\r>b\rAC\r",
    "mixed line ends": b">a\rMK\nV\r\n\r>b\n\rAC\r\n\n>c\r\r\nD",
    "empty records": b">\n>b\n>c\n\n*-\n>d\nMK\n>e",
    "a header alone": b">a",
    "two header marks": b">>a\nMK\n>\n>b\nAC",
    "mark inside a line": b">a\nMK>V\n >AC\n>b\nD\n",
    "unknown letters": b">a\nMJK1j\xff\xc3\xa9\x00@\n",
    "leading blank lines": b"\n \n\t\n>a\nMK\n",
    "byte order mark": b"\xef\xbb\xbf>a\nMK\n",
    "no last line end": b">a\nMK",
}
SIZES = (1, 2, 3, 5, 7, 1 << 20)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NASTY)
def test_fasta_agrees_with_the_obvious_parser(name, size, tmp_path):
    path = tmp_path / "x.fasta"
    path.write_bytes(NASTY[name])
    check(path, NASTY[name], size)


def check(path: Path, data: bytes, size: int) -> None:
    expected, removed, unknown = reference(data)
    assert read(path, chunk_bytes=size) == ([s for s in expected if s], expected.count(""), removed, unknown)
    assert [sequence for _, sequence in read_fasta(str(path))] == expected


def test_random_fasta_agrees_with_the_obvious_parser(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "x.fasta"
    alphabet = np.frombuffer(b"\r\n\r\n\n\n>>> *-.\tAKMVJakjz1\xff\x0b", np.uint8)
    for _ in range(400):
        data = b">" + rng.choice(alphabet, rng.integers(0, 60)).tobytes()
        path.write_bytes(data)
        check(path, data, int(rng.choice(SIZES)))


def test_the_obvious_parser_disagrees_with_another_file(tmp_path):
    path = tmp_path / "x.fasta"
    path.write_bytes(b">a\nMK\nV\n")
    with pytest.raises(AssertionError):  # negative control: one letter
        check(path, b">a\nMK\nI\n", 1)


def test_chunks_cut_at_records_and_one_record_may_be_many_chunks_long(tmp_path):
    path = tmp_path / "x.fasta"
    path.write_bytes(b">a\n" + b"MK\n" * 1000 + b">b\nA\n" * 50)
    chunks = list(read_chunks(str(path), chunk_bytes=64))
    assert len(chunks) > 5 and len(chunks[0].text) > 3000
    assert all(chunk.text.lstrip().startswith(b">") for chunk in chunks)
    assert read(path, chunk_bytes=64)[0] == ["MK" * 1000] + ["A"] * 50


def test_gzip_of_one_and_of_several_members(tmp_path):
    data = b"".join(NASTY[name] + b"\n" for name in ("plain", "wrapped", "CRLF"))
    path = tmp_path / "x.fasta.gz"
    path.write_bytes(b"".join(gzip.compress(data[at : at + 9]) for at in range(0, len(data), 9)))
    for size in SIZES:
        check(path, data, size)
    hidden = tmp_path / "x.fasta"  # gzip is recognised by its contents
    hidden.write_bytes(gzip.compress(data))
    check(hidden, data, 7)


def test_headers_come_with_their_sequences(tmp_path):
    path = tmp_path / "x.faa"
    path.write_text(">sp|P1|NAME first\nMK*\n>\nA-C\n>second\n")
    assert list(read_fasta(str(path))) == [("sp|P1|NAME first", "MK"), ("", "AC"), ("second", "")]


@pytest.mark.parametrize(
    "data, line", [(b"MKV\n>a\nMK\n", 1), (b"\n\nMKV\n>a\n", 3), (b"\r\n*\r\n>a\n", 2), (b"MKV", 1), (b"a>b\nMK", 1)]
)
@pytest.mark.parametrize("size", SIZES)
def test_text_before_the_first_header_is_refused_with_its_line(data, line, size, tmp_path):
    path = tmp_path / "x.fasta"
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"x\.fasta, line {line}: text before the first header"):
        read(path, chunk_bytes=size)
    with pytest.raises(InputError, match=rf"line {line}"):
        list(read_fasta(str(path)))


@pytest.mark.parametrize("keep", [3, 25, -1, -9])
def test_truncated_gzip_is_refused(keep, tmp_path):
    path = tmp_path / "x.fasta.gz"
    path.write_bytes(gzip.compress(b">a\nMKV\n" * 50)[:keep])
    with pytest.raises(InputError, match=r"x\.fasta\.gz: truncated gzip"):
        read(path)


def test_broken_gzip_is_refused(tmp_path):
    path = tmp_path / "x.fasta.gz"
    good = gzip.compress(b">a\nMKV\n" * 50)
    for data, message in (
        (good[:15] + bytes([good[15] ^ 255]) + good[16:], "broken gzip"),
        (good[:-6] + b"\0\0" + good[-4:], "broken gzip"),  # checksum
        (b">a\nMKV\n", "named .gz but not a gzip file"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=message):
            read(path)


def test_find_unknown_names_the_first_letter_and_its_line(tmp_path):
    path = tmp_path / "x.fasta"
    path.write_bytes(b"\n>J\r\nMK\r\nV*-\r\n>b\rAC\n\nDjE\nJ\n")
    for size in SIZES:
        results = [find_unknown(chunk) for chunk in read_chunks(str(path), chunk_bytes=size)]
        assert next(filter(None, results)) == f"{path}, line 8: letter 'J'"


# ---- JSON lines and plain text


def test_json_lines_spaced_and_unspaced(tmp_path):
    path = tmp_path / "x.jsonl"
    lines = [{"text": "M K V"}, {"text": "mkv*"}, {"text": ""}, {"text": "M\r\nK"}, {"id": 1, "text": "J\u00e9"}]
    path.write_text(
        "\n".join(json.dumps(line) for line in lines[:3]) + "\n\n \r\n" + "\r".join(map(json.dumps, lines[3:]))
    )
    for size in SIZES:
        sequences, empty, removed, unknown = read(path, chunk_bytes=size)
        assert sequences == ["MKV", "MKV", "MK", "J\u00c3\u00a9"] and empty == 1  # é: its two UTF-8 bytes
        assert removed == {"*": 1} and unknown == {"J": 1, "0xc3": 1, "0xa9": 1}


def test_another_json_key(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"sequence": "MKV", "text": "AC"}\n')
    assert read(path, json_key="sequence")[0] == ["MKV"]


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", r"not JSON"),
        ("MKV", r"not JSON"),
        ('["MKV"]', r"a JSON list; each line must be one object"),
        ('{"seq": "MKV"}', r"key 'text' is missing \(keys: seq\); --json-key"),
        ('{"text": 3}', r"key 'text' is not a string but int"),
        ('{"text": null}', r"key 'text' is not a string but NoneType"),
        ('{"text": "\xff"}', r"not JSON"),
    ],
)
def test_wrong_json_names_file_and_line(line, message, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "MKV"}\n' * 20 + b"\n" + line.encode("latin-1") + b"\n")
    for size in SIZES:
        with pytest.raises(InputError, match=rf"x\.jsonl, line 22: {message}"):
            read(path, chunk_bytes=size)


def test_plain_text_is_one_protein_a_line(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"MKV\n\nM K V*\r\n  \nJAC")
    for size in SIZES:
        assert read(path, chunk_bytes=size) == (["MKV", "MKV", "JAC"], 0, {"*": 1}, {"J": 1})
    assert find_unknown(list(read_chunks(str(path)))[-1]) == f"{path}, line 5: letter 'J'"


@pytest.mark.parametrize(("name", "text"), [("x.fasta", ">a\nMK\n>b\n{}"), ("x.txt", "MK\n{}"), ("x.jsonl", "{}")])
def test_a_record_without_end_is_refused(name, text, tmp_path, monkeypatch):
    """Before the whole of it is in memory."""
    monkeypatch.setattr(sequences, "LONGEST", 2 << 20)
    (tmp_path / name).write_text(text.replace("{}", "M" * (4 << 20)))
    with pytest.raises(InputError, match=rf"{name}: a record of more than 2,097,152 bytes; is this a protein\?$"):
        list(read_chunks(str(tmp_path / name)))
    (tmp_path / name).write_text(text.replace("{}", "M" * (1 << 20)))
    assert sum(len(chunk.text) for chunk in read_chunks(str(tmp_path / name))) >= 1 << 20


# ---- which kind of file


@pytest.mark.parametrize(
    "name, data, kind",
    [
        ("x.fa", b"", "fasta"),
        ("x.FASTA.gz", gzip.compress(b">a\n", mtime=0), "fasta"),
        ("x.jsonl", b"", "jsonl"),
        ("x.dat", b"\n >a\nMK", "fasta"),
        ("x.dat.gz", gzip.compress(b'{"text": ""}', mtime=0), "jsonl"),
        ("x.txt", b">a\nMK\n", "fasta"),
        ("x.txt", b"MK\n", "text"),
        ("x", b"MK\n", "text"),
    ],
)
def test_kind_by_name_then_by_content(name, data, kind, tmp_path):
    (tmp_path / name).write_bytes(data)
    assert input_kind(str(tmp_path / name)) == kind


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("x.csv", b"id,sequence\n", r"cannot tell what it is"),
        ("x.txt", b"%PDF-1.4", "cannot tell what it is"),
        ("x.bz2", b"BZh91AY", "bzip2 file"),
        ("x.idx", b"MMIDIDX\0\0", "an .idx file"),
    ],
)
def test_foreign_files_are_refused(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)


def test_missing_files_and_plain_directories_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"absent\.fasta: no such file"):
        read(tmp_path / "absent.fasta")
    with pytest.raises(InputError, match=r"absent\.fasta: no such file"):
        list(read_fasta(str(tmp_path / "absent.fasta")))
    with pytest.raises(InputError, match=r"directory without data\.mdb"):
        read(tmp_path)
    (tmp_path / "x.fasta").mkdir()
    with pytest.raises(InputError, match=r"directory without data\.mdb"):
        read(tmp_path / "x.fasta")


# ---- TAPE LMDB


def records(proteins: list) -> dict[bytes, object]:
    return {b"num_examples": len(proteins)} | {
        str(i).encode(): {"primary": p, "protein_length": len(p), "clan": 1, "family": np.int64(2), "id": b"7"}
        for i, p in enumerate(proteins)
    }


def test_lmdb_in_its_own_order(tmp_path):
    proteins = [f"{'MKV' * (i % 5)}A" for i in range(3000)]
    path = put_lmdb(tmp_path / "pfam_train.lmdb", records(proteins))
    assert read(path)[0] == proteins
    assert [chunk.records for chunk in read_chunks(str(path))] == [(0, 2048), (2048, 3000)]
    renamed = tmp_path / "single.lmdb"  # an LMDB may also be a lone file
    renamed.write_bytes((path / "data.mdb").read_bytes())
    assert read(renamed)[0] == proteins


def test_lmdb_unknown_letters_are_counted_and_found(tmp_path):
    path = put_lmdb(tmp_path / "x.lmdb", records(["MKV", "m j", ""]))
    assert read(path) == (["MKV", "MJ"], 1, {}, {"J": 1})
    assert find_unknown(next(read_chunks(str(path)))) == f"{path}, record 1: letter 'J'"


@pytest.mark.parametrize(
    "change, message",
    [
        ({b"num_examples": None}, "no key num_examples"),
        ({b"num_examples": "two"}, "num_examples is 'two'"),
        ({b"num_examples": 3}, "record 2: missing"),
        ({b"1": {"sequence": "MK"}}, "record 1: no 'primary' string"),
        ({b"1": ["MK"]}, "record 1: no 'primary' string"),
        ({b"1": b"not a pickle"}, "record 1"),
        ({b"1": b"cposix\nsystem\n(S'true'\ntR."}, "record 1.*posix"),
    ],
)
def test_wrong_lmdbs_are_refused(change, message, tmp_path):
    values = {k: v for k, v in (records(["MK", "AC"]) | change).items() if v is not None}
    with pytest.raises(InputError, match=message) as caught:
        read(put_lmdb(tmp_path / "x.lmdb", values))
    assert str(tmp_path / "x.lmdb") in str(caught.value)


def test_truncated_and_foreign_lmdbs_are_refused(tmp_path):
    path = put_lmdb(tmp_path / "x.lmdb", records(["MKVAC" * 100] * 200))
    data = (path / "data.mdb").read_bytes()
    (path / "data.mdb").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="truncated"):
        read(path)
    (path / "data.mdb").write_bytes(b"x" * 10_000)
    with pytest.raises(InputError, match="not a readable LMDB"):
        read(path)
