"""The shard format against files packed by hand with `struct`, and every way in which a file can be wrong."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from pretrain.data.indexed import IndexedDataset, IndexedWriter
from proteinlm.errors import InputError

CODES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
SEQUENCES = [[17, 15, 26], [6], [30, 4]]


def write_by_hand(folder: Path, code: int = 8, sequences=SEQUENCES, documents=None, **changes) -> Path:
    """A shard written from the format's description alone."""
    dtype = np.dtype(CODES.get(code, np.uint16))
    lengths = changes.get("lengths", [len(sequence) for sequence in sequences])
    starts = np.cumsum([0, *map(len, sequences)])[:-1] * dtype.itemsize
    offsets = changes.get("offsets", starts.tolist())
    documents = list(range(len(sequences) + 1)) if documents is None else documents
    idx = changes.get("magic", b"MMIDIDX\x00\x00") + struct.pack("<QB", changes.get("version", 1), code)
    idx += struct.pack("<QQ", changes.get("n", len(sequences)), changes.get("d", len(documents)))
    idx += struct.pack(f"<{len(lengths)}i", *lengths) + struct.pack(f"<{len(offsets)}q", *offsets)
    idx += struct.pack(f"<{len(documents)}q", *documents)
    tokens = b"".join(np.array(sequence, dtype).tobytes() for sequence in sequences)
    prefix = folder / "hand_text_document"
    Path(f"{prefix}.idx").write_bytes(idx[: changes.get("cut_idx")] + changes.get("more_idx", b""))
    Path(f"{prefix}.bin").write_bytes(tokens[: changes.get("cut_bin")] + changes.get("more_bin", b""))
    return prefix


@pytest.mark.parametrize("code", CODES)
def test_reads_every_integer_dtype(code, tmp_path):
    shard = IndexedDataset(write_by_hand(tmp_path, code))
    assert shard.dtype == np.dtype(CODES[code]) and len(shard) == 3 and shard.num_tokens == 6
    assert [shard.read(i).tolist() for i in range(3)] == SEQUENCES
    assert shard.lengths.tolist() == [3, 1, 2] and shard.lengths.dtype == np.int32
    assert shard.offsets.tolist() == (np.array([0, 3, 4]) * shard.dtype.itemsize).tolist()
    assert shard.documents.tolist() == [0, 1, 2, 3] and shard.documents.dtype == np.int64
    assert shard.read(0, 1).tolist() == [15, 26] and shard.read(0, 1, 2).tolist() == [15]


@pytest.mark.parametrize("code", CODES)
def test_writes_the_bytes_of_the_format(code, tmp_path):
    by_hand = write_by_hand(tmp_path, code)
    with IndexedWriter(tmp_path / "ours", CODES[code]) as writer:
        writer.add(np.array([17, 15, 26, 6]), np.array([3, 1]))
        writer.add(np.array([], int), np.array([], int))
        writer.add(np.array([30, 4]), np.array([2]))
    for suffix in (".idx", ".bin"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == Path(f"{by_hand}{suffix}").read_bytes()
    assert (tmp_path / "ours.idx").stat().st_mode & 0o777 == 0o644


def test_a_prefix_may_be_given_with_its_suffix(tmp_path):
    prefix = write_by_hand(tmp_path)
    assert IndexedDataset(f"{prefix}.bin").prefix == IndexedDataset(f"{prefix}.idx").prefix == str(prefix)


def test_more_document_bounds_than_sequences_are_read(tmp_path):
    shard = IndexedDataset(write_by_hand(tmp_path, documents=[0, 0, 2, 2, 3, 3]))
    assert shard.documents.tolist() == [0, 0, 2, 2, 3, 3]


def test_sequences_of_no_tokens_are_read(tmp_path):
    shard = IndexedDataset(write_by_hand(tmp_path, sequences=[[], [5], []]))
    assert [shard.read(i).tolist() for i in range(3)] == [[], [5], []]


def test_pickles_as_its_prefix_and_reads_the_same(tmp_path):
    prefix = tmp_path / "big"
    with IndexedWriter(prefix) as writer:
        writer.add(np.zeros(100_000, np.uint8), np.full(1000, 100))
    shard = IndexedDataset(prefix)
    assert len(pickle.dumps(shard)) < 1000
    assert pickle.loads(pickle.dumps(shard)).read(999).tolist() == [0] * 100


def test_reading_outside_is_an_index_error(tmp_path):
    shard = IndexedDataset(write_by_hand(tmp_path))
    for i in (-1, 3):
        with pytest.raises(IndexError, match=f"sequence {i} of 3"):
            shard.read(i)


def test_views_cannot_be_written_to(tmp_path):
    with pytest.raises(ValueError):
        IndexedDataset(write_by_hand(tmp_path)).read(0)[0] = 1


HUGE = 2**63
WRONG_FILES = {
    "float64 by name": ({"code": 6}, "dtype code 6 is float64"),
    "float32 by name": ({"code": 7}, "dtype code 7 is float32"),
    "unknown dtype": ({"code": 9}, "dtype code 9 is unknown"),
    "version": ({"version": 2}, "version 2; only version 1"),
    "lazy format": ({"magic": b"TNTIDX\x00\x00\x00"}, "lazy/cached"),
    "foreign": ({"magic": b"\x89PNG\r\n\x1a\n\x00"}, "not a token index: it begins with"),
    "empty idx": ({"cut_idx": 0}, "not a token index"),
    "half a magic": ({"cut_idx": 5}, "truncated: 5 bytes, its header alone is 34"),
    "half a header": ({"cut_idx": 30}, "truncated: 30 bytes, its header alone is 34"),
    "cut idx": ({"cut_idx": -1}, r"truncated.*102 bytes; the file has 101"),
    "long idx": ({"more_idx": b"x"}, r"too long.*102 bytes; the file has 103"),
    "too many sequences": ({"n": 4}, r"4 sequences and 4 document bounds, 114 bytes; the file has 102"),
    "absurd sequences": ({"n": HUGE}, f"{HUGE} sequences"),
    "absurd bounds": ({"d": HUGE}, f"{HUGE} document bounds"),
    "absurd by overflow": ({"n": 2**62, "d": 2**63}, "document bounds"),
    "cut bin": ({"cut_bin": -1}, r"\.bin: truncated: 11 bytes; .*idx \(uint16\) describes 12"),
    "long bin": ({"more_bin": b"xx"}, r"\.bin: longer than its index: 14 bytes"),
    "negative length": ({"lengths": [3, -1, 4]}, "sequence 1 has the negative length -1"),
    "length beyond bin": ({"lengths": [3, 1, 2**31 - 1]}, r"\.bin: truncated"),
    "foreign offsets": ({"offsets": [0, 6, 9]}, "sequence 2 has offset 9; the lengths before it add to 8"),
    "negative offset": ({"offsets": [-2, 6, 8]}, "sequence 0 has offset -2"),
    "bounds short": ({"documents": [0, 1, 2]}, r"run 0 \.\.\. 2; they must run 0 \.\.\. 3"),
    "bounds fall": ({"documents": [0, 2, 1, 3]}, r"document bound 2 \(1\) is less"),
    "no bounds": ({"documents": []}, "no document bounds"),
    "no sequences": ({"sequences": [], "documents": [0]}, "holds no sequences"),
    "no tokens": ({"sequences": [[], []]}, "holds no tokens"),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_wrong_files_are_refused_with_the_numbers(name, tmp_path):
    changes, message = WRONG_FILES[name]
    prefix = write_by_hand(tmp_path, **changes)
    with pytest.raises(InputError, match=message) as caught:
        IndexedDataset(prefix)
    assert str(prefix) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path):
    prefix = write_by_hand(tmp_path)
    with pytest.raises(InputError, match=r"hand.idx: no such file; did you mean .*hand_text_document\?"):
        IndexedDataset(tmp_path / "hand")
    Path(f"{prefix}.bin").unlink()
    with pytest.raises(InputError, match=r"hand_text_document.bin: no such file"):
        IndexedDataset(prefix)


def test_nothing_is_left_after_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), IndexedWriter(tmp_path / "x") as writer:
        writer.add(np.array([6]), np.array([1]))
        raise RuntimeError("stop")
    with pytest.raises(InputError, match="no sequences"), IndexedWriter(tmp_path / "x"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_the_old_shard_and_success_replaces_it(tmp_path):
    def write(value: int, fail: bool = False) -> None:
        with IndexedWriter(tmp_path / "x") as writer:
            writer.add(np.array([value]), np.array([1]))
            assert not fail

    write(6)
    with pytest.raises(AssertionError):
        write(7, fail=True)
    assert IndexedDataset(tmp_path / "x").read(0).tolist() == [6]
    write(8)
    assert IndexedDataset(tmp_path / "x").read(0).tolist() == [8]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.bin", "x.idx"]


@pytest.mark.parametrize(
    "ids, lengths",
    [([1, 2], [1]), ([1], [2]), ([1], [1, 0]), ([300], [1]), ([-1], [1]), ([1.5], [1])],
    ids=["more ids", "fewer ids", "empty sequence", "id too large", "negative id", "float ids"],
)
def test_the_writer_refuses_what_would_not_read_back(ids, lengths, tmp_path):
    with pytest.raises(ValueError), IndexedWriter(tmp_path / "x") as writer:
        writer.add(np.array(ids), np.array(lengths))
    assert list(tmp_path.iterdir()) == []
