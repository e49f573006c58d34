"""LMDBs read page by page: the library's own reading is the reference; no damage ends the process."""

import pickle
import random
import struct
from pathlib import Path

import lmdb
import pytest
from tape_lmdb import put_lmdb, write_lmdb

from proteinlm.errors import InputError
from proteinlm.untrusted.lmdb_files import LMDB


def entries(path: Path) -> dict[bytes, bytes]:
    """As LMDB's library reads them."""
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return {key: bytes(value) for key, value in transaction.cursor()}


def values_of(kind: str) -> dict[bytes, bytes]:
    rng = random.Random(kind)
    if kind == "empty":
        return {}
    if kind == "deep":  # keys so long that a page holds few
        return {rng.randbytes(rng.randrange(300, 500)): b"x" for _ in range(300)}
    sizes = {"one": [9], "small": range(600), "records": [200] * 3000, "large": [*range(1500, 9000, 500), 1 << 20]}
    return {str(i).encode(): rng.randbytes(size) for i, size in enumerate(sizes[kind])}


@pytest.mark.parametrize("kind", ["empty", "one", "small", "records", "large", "deep"])
def test_the_same_as_the_library(tmp_path, kind):
    path, values = tmp_path / "x.lmdb", values_of(kind)
    put_lmdb(path, values)
    with lmdb.open(str(path), map_size=1 << 24) as environment:  # more transactions, free pages, other roots
        for start in range(3 if values else 0):
            with environment.begin(write=True) as transaction:
                for key in list(values)[start::9]:
                    transaction.delete(key)
                transaction.put(b"added", b"y" * 5000)
    expected = entries(path)
    with LMDB(path) as file:
        assert {key: file.get(key) for key in expected} == expected and len(expected) == file.entries
        absent = [b"", b"\xff", *values, *(key + b"0" for key in expected), *(key[:-1] for key in expected)]
        assert all(file.get(key) is None for key in absent if key not in expected)
        with lmdb.open(str(path), readonly=True, lock=False) as environment:
            depth = environment.stat()["depth"]
    assert depth >= {"deep": 3, "records": 2, "small": 2}.get(kind, 0)


def test_an_open_file_travels_and_closes(tmp_path):
    file = LMDB(write_lmdb(tmp_path / "x.lmdb", [{"primary": "MKV"}, {"primary": "MA"}], subdir=False))
    copy = pickle.loads(pickle.dumps(file))
    assert len(copy) == 2 and copy.record(1) == {"primary": "MA"}
    with file:
        assert file.record(0) == {"primary": "MKV"}
    assert copy.record(0) == {"primary": "MKV"}


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (10**12, "record 2: missing, though num_examples says 1000000000000"),
        (2**70, f"record 2: missing, though num_examples says {2**70}"),
        (3, "record 2: missing, though num_examples says 3"),
        (1, "num_examples is 1, but there is a record 1 too"),
        (-1, "num_examples is -1, a whole number"),
        (True, "num_examples is True, a whole number"),
        (2.0, "num_examples is 2.0, a whole number"),
        (float("nan"), "num_examples is nan, a whole number"),
        ([2], r"num_examples is \[2\], a whole number"),
        (b"I" + b"9" * 5000 + b"\n.", "key num_examples: damaged"),
        (None, "no key num_examples"),
    ],
)
def test_a_number_of_records_that_is_none(tmp_path, count, message):
    path = write_lmdb(tmp_path / "x.lmdb", [{"primary": "MKV"}] * 2, count=False)
    put_lmdb(path, {} if count is None else {b"num_examples": count})
    with pytest.raises(InputError, match=message) as caught:
        len(LMDB(path))
    assert str(path) in str(caught.value)


def test_truncated_at_any_byte(tmp_path):
    path = write_lmdb(tmp_path / "x.lmdb", [{"primary": "MKV" * 999}] * 9)
    whole = (path / "data.mdb").read_bytes()
    for size in (*range(0, 300, 20), *range(300, len(whole), 1000), len(whole) - 1):
        (path / "data.mdb").write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"x\.lmdb: (not a readable LMDB|truncated: \d+ bytes of \d+)"):
            LMDB(path)


def damage(data: bytearray, rng: random.Random) -> None:
    """Bits, the headers of pages and their lists of offsets, zeros, pages in another's place."""
    pages = len(data) // 4096
    place = rng.randrange(pages) * 4096
    match rng.randrange(4):
        case 0:
            for _ in range(rng.choice((1, 3, 30))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            data[place + rng.randrange(160)] = rng.choice((0, 255, rng.randrange(256)))
        case 2:
            data[place + rng.randrange(64) :][: rng.choice((8, 512))] = b""
            data[place : place + 8] = bytes(8)
        case _:
            other = rng.randrange(pages) * 4096
            data[place : place + 4096], data[other : other + 4096] = (
                data[other : other + 4096],
                data[place : place + 4096],
            )


def test_damage_is_an_input_error(tmp_path):
    """The library ends the process with SIGBUS at about one in a hundred of these."""
    path = write_lmdb(tmp_path / "x.lmdb", [{"primary": "MKV" * (i % 7 * 300 + 9), "number": i} for i in range(60)])
    whole, rng, refused = (path / "data.mdb").read_bytes(), random.Random(0), 0
    for _ in range(150):
        data = bytearray(whole)
        damage(data, rng)
        (path / "data.mdb").write_bytes(data)
        try:
            with LMDB(path) as file:
                for index in range(len(file)):
                    file.record(index)
        except InputError as error:
            refused += 1
            assert str(path) in str(error)
    assert 50 < refused < 150


def test_a_byte_that_ends_the_librarys_process(tmp_path):
    """An offset beyond its page, on the last page of the file: the library looks behind the file."""
    path = write_lmdb(tmp_path / "x.lmdb", [{"primary": "MKV"}])
    data = bytearray((path / "data.mdb").read_bytes())
    struct.pack_into("<H", data, len(data) - 4096 + 16, 0xFFF0)
    (path / "data.mdb").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.lmdb: the LMDB is damaged"):
        LMDB(path).record(0)


def test_other_databases(tmp_path):
    path = write_lmdb(tmp_path / "x.lmdb", [{"primary": "MKV"}])
    whole = (path / "data.mdb").read_bytes()
    for place, value, message in (
        (16 + 4, 2, "an LMDB of data version 2"),
        (16 + 24, 5000, r"damaged \(pages of 5000 bytes\)"),
        (4096 + 16 + 24 + 48 + 4, 8, r"of other keys than plain bytes \(flags 8\)"),
    ):
        data = bytearray(whole)
        struct.pack_into("<I" if value > 255 else "<B", data, place, value)
        (path / "data.mdb").write_bytes(data)
        with pytest.raises(InputError, match=message):
            LMDB(path)
    with pytest.raises(InputError, match=r"a directory without data\.mdb"):
        LMDB(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        LMDB(tmp_path / "absent.lmdb")
