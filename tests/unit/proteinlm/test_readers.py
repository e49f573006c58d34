"""One guarded reader a format: what people have is taken, what is damaged is one line with the file and the place."""

import csv
import gzip
import io
import json
import random
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from proteinlm.errors import LONGEST, InputError
from proteinlm.files import write_json
from proteinlm.untrusted import csv_files, json_files, text_files, yaml_files
from proteinlm.untrusted.array_files import H5, read_kept, read_npy, read_npz, write_kept
from proteinlm.untrusted.csv_files import read_rows
from proteinlm.untrusted.json_files import DEEPEST, read_json, read_json_lines, read_json_records
from proteinlm.untrusted.shapes import NUMBER, misfits
from proteinlm.untrusted.text_files import read_text
from proteinlm.untrusted.yaml_files import read_yaml


def line_of(read, path: Path) -> str:
    """What is wrong with a file: one line, which begins with its name."""
    with pytest.raises(InputError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) <= LONGEST + 5, text
    return text.removeprefix(str(path))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# ---- text


LINE = "é\n".encode()


@pytest.mark.parametrize("content", [LINE, b"\xef\xbb\xbf" + LINE, gzip.compress(LINE, mtime=0)])
def test_text_is_utf_8(tmp_path, content):
    assert read_text(write(tmp_path / "a", content)) == "é\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("é\n".encode("utf-16"), ": UTF-16 text; should be"),
        ("a\né\n".encode("latin-1"), ", line 2: byte 0xe9 is not UTF-8 text; should be"),
        (b"a\n\n\0", ", line 3: a NUL byte; should be"),
        (gzip.compress(b"text " * 99, mtime=0)[:-9], ": truncated gzip file"),
        (gzip.compress(b"text " * 99, mtime=0)[:-8] + bytes(8), ": broken gzip file"),
        (gzip.compress(b"text ", mtime=0) + bytes(1 << 17), ": ends in zeros, so it was not written to its end; "),
        (gzip.compress(b"text " * 9999, mtime=0), ": more than 1,000 bytes; should be"),
    ],
)
def test_what_is_no_text(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(text_files, "LARGEST", 1000)
    assert line_of(read_text, write(tmp_path / "a", content)).startswith(message)


def test_a_file_of_zeros_without_end(tmp_path):
    """A sparse file, of 64 GiB."""
    path = write(tmp_path / "a", b"text\n")
    with path.open("r+b") as file:
        file.truncate(1 << 36)
    for read in (read_text, read_json, read_json_records, read_yaml):
        assert line_of(read, path).startswith(": ends in zeros, so it was not written to its end")


def test_a_file_too_large_to_be_what_is_expected(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LARGEST", 1000)
    path = write(tmp_path / "metrics.jsonl", b'{"a": 1}\n' * 111)
    assert len(list(read_json_lines(path))) == 111
    write(path, b'{"a": 1}\n' * 112)
    assert (
        line_of(lambda path: list(read_json_lines(path)), path) == ": more than 1,000 bytes; should be a smaller file"
    )


def test_no_file_of_text(tmp_path):
    assert line_of(read_text, tmp_path) == ": a directory; should be a file"
    assert line_of(read_text, tmp_path / "absent") == ": no such file"


# ---- JSON

DEEP = b'{"a": ' + b"[" * (DEEPEST - 1) + b"]" * (DEEPEST - 1) + b"}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": not JSON (Expecting value"),
        (b'{"a": 1', ": not JSON (Expecting ',' delimiter: line 1"),
        (b"[" * 100_000, ": not JSON (brackets within brackets, too deep)"),
        (b'{"a": ' * 100_000, ": not JSON (brackets within brackets, too deep)"),
        (b'{"a": ' + b"9" * 5000 + b"}", ": not JSON (Exceeds the limit"),
        (b'{"a": {"b": [0, 1' + b"0" * 400 + b"]}}", ": key 'a.b.1': an integer of more than 64 bits"),
        (b'{"a": "\xe9"}', ", line 1: byte 0xe9 is not UTF-8 text; should be a record"),
        ('{"a": 1}'.encode("utf-16"), ": UTF-16 text"),
        (b'{"a": 1}\0', ", line 1: a NUL byte"),
        (b'{"a": 1, "b": 2, "a": 3}', ": not JSON (key 'a' is given twice)"),
        (b'{"a": {"b": "\\ud800"}}', ": key 'a.b': half a surrogate pair"),
        (b'{"a": {"\\udfff": 1}}', ": key 'a': half a surrogate pair"),
        (DEEP.replace(b"[]", b"[[]]"), f": key 'a{'.0' * 19}.' ...: more than {DEEPEST} brackets within brackets"),
        (b"[1]", ": a JSON object was expected, found list"),
        (b"null", ": a JSON object was expected, found NoneType"),
        (b'{"b": 1}', ": key 'a' is missing"),
        (b'{"a": {"x": "y"}, "c": 1}', ": key 'c' is 1; a text was expected"),
    ],
)
def test_what_is_no_record(tmp_path, content, message):
    path = write(tmp_path / "a.json", content)
    line = line_of(lambda path: read_json(path, "a record", {"a": object, "c?": str}), path)
    assert line.startswith(message) and "should be a record" in line


def test_what_is_read_can_be_written(tmp_path):
    values = b'{"a": [18446744073709551615, -1e308, "\\ud83d\\ude00", "\xc3\xa9"]}'
    for content in (DEEP, values):
        value = read_json(write(tmp_path / "a.json", b"\xef\xbb\xbf" + content))
        write_json(tmp_path / "b.json", value)
        assert repr(read_json(tmp_path / "b.json")) == repr(value)


def test_what_is_written_is_json(tmp_path):
    write_json(tmp_path / "a.json", {"a": (1.5, float("nan"), {"b": float("-inf")}), "c": np.float64("inf")})
    refused = lambda word: pytest.fail(word)  # noqa: E731
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=refused)
    assert read == {"a": [1.5, None, {"b": None}], "c": None}


def test_records_and_configurations_are_small(tmp_path, monkeypatch):
    """A gzip file of a few kilobytes can hold a list that takes all the memory there is."""
    monkeypatch.setattr(json_files, "LARGEST", 1000)
    monkeypatch.setattr(yaml_files, "LARGEST_FILE", 1000)
    path = write(tmp_path / "a", gzip.compress(b'{"a": [' + b"1," * 1000 + b"1]}"))
    for read in (read_json, read_yaml):
        assert line_of(read, path).startswith(": more than 1,000 bytes; should be ")
    assert len(read_json_records(path)["a"]) == 1001


def test_json_records_are_handed_on(tmp_path):
    assert read_json_records(write(tmp_path / "a.json", b"[[1], 2]")) == [[1], 2]
    assert line_of(read_json_records, write(tmp_path / "a.json", b"[" * 100_000)).startswith(": not JSON")


def test_a_damaged_line_harms_no_other(tmp_path):
    good = [b'{"a": 1}', b'{"b": "\xc3\xa9"}']
    bad = [b'{"a": "\xff"}', b"[1]", b"{", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b'{"a": 1, "a": 2}']
    lines = [good[0], *bad, b"", b" \0\0", good[1] + b"\r", b"\0" + good[0]]
    read = list(read_json_lines(write(tmp_path / "a.jsonl", b"\n".join(lines))))
    assert [number for number, *_ in read] == [1, *range(2, 8), 10, 11]
    assert [value for *_, value in read if value is not None] == [{"a": 1}, {"b": "é"}, {"a": 1}]


@pytest.mark.parametrize(
    ("value", "shape", "fault"),
    [
        ({"a": True}, {"a": int}, "key 'a' is True; a whole number was expected"),
        ({"a": 1}, {"a": bool}, "key 'a' is 1; true or false was expected"),
        ({"a": float("nan")}, {"a": NUMBER}, "key 'a' is nan; a finite number was expected"),
        ({"a": "x"}, {"a": NUMBER | None}, "key 'a' is 'x'; a finite number or null was expected"),
        ({"a": None}, {"a": str}, "key 'a' is None; a text was expected"),
        ({"a": [1, "x"]}, {"a": [int]}, "key 'a.1' is 'x'; a whole number was expected"),
        ({"a": {"b": []}}, {"a?": {"b?": dict}}, "key 'a.b' is []; an object was expected"),
        ({"a": {"b": 1, "c": 2}}, {"a": {"*": str, "b": int}}, "key 'a.c' is 2; a text was expected"),
        ({"a": ["x" * 99]}, {"a": [int]}, f"key 'a.0' is '{'x' * 36}...; a whole number was expected"),
        ([], {"a": int}, "key '' is []; an object was expected"),
    ],
)
def test_another_shape_is_named_by_its_key(value, shape, fault):
    assert list(misfits(value, shape))[:1] == [fault]


def test_what_a_shape_leaves_open():
    shape = {"a?": {"*?": [int]}, "b": NUMBER | None, "c": object}
    assert list(misfits({"b": None, "c": 1, "rest": 5}, shape)) == []
    assert list(misfits({"a": {"x": None, "y": [1]}, "b": 2.5, "c": None}, shape)) == []


# ---- YAML


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("day: 2001-99-99", ":1: day '2001-99-99' is not YAML's timestamp (month must be in 1..12)"),
        ("a: 1\nb: !!float x", ":2: b 'x' is not YAML's float (could not convert"),
        ("a: !!int x", ":1: a 'x' is not YAML's int"),
        ("a: !!bool maybe", ":1: a 'maybe' is not YAML's bool"),
        ("a: !!timestamp x", ":1: a 'x' is not YAML's timestamp"),
        ("a: 0b_", ":1: a '0b_' is not YAML's int"),
        ("a:\n  b: [1, !!float x]", ":2: b "),
        ("a: " + "9" * 5000, f":1: a '{'9' * 40}' is not YAML's int"),
        ("a: " + "[\n" * 1000, ": not YAML: brackets within brackets, too deep"),
        ('a: "\0"', ", line 1: a NUL byte"),
        ("a: \x07", ": not YAML: unacceptable character"),
        ("a: [1", ":1: not YAML: "),
        ("a: !!python/object/apply:os.system [true]", ":1: not YAML: could not determine a constructor"),
        ("a: !!binary x", ":1: not YAML: failed to decode base64"),
        ("a: 1\n---\nb: 2", ":2: not YAML: but found another document"),
        ("- 1", ": should hold lines of `key: value`, found a YAML sequence"),
        ("just words", ": should hold lines of `key: value`, found a YAML scalar"),
        ("a: 1\nb: 2\na: 3", ":3: a is given twice, first on line 1"),
        ("a:\n  b: 2\n  b: 3", ":3: b is given twice, first on line 2"),
        ("? [a]\n: 1", ":1: a key is one word, found a YAML sequence"),
        ("? {a: b}\n: 1", ":1: a key is one word, found a YAML mapping"),
        ("<<: 5\na: 1", ":1: not YAML: expected a mapping or list of mappings for merging"),
        ("a: &a [*a]", ": aliases that make more than 100,000 values, or hold themselves"),
        (
            "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 30)),
            ": aliases that make more than 100,000 values, or hold themselves",
        ),
    ],
)
def test_what_is_no_yaml(tmp_path, text, message):
    line = line_of(read_yaml, write(tmp_path / "c.yaml", text.encode()))
    assert line.startswith(message), line


def test_yaml_that_people_write(tmp_path):
    text = "# words\nlr: 1.0e-3\non: yes\nbase: &base {a: 1, b: 2}\nown:\n  <<: *base\n  b: [3, null]\n"
    options = read_yaml(write(tmp_path / "c.yaml", text.encode()))
    assert options == {"lr": 0.001, "on": True, "base": {"a": 1, "b": 2}, "own": {"a": 1, "b": [3, None]}}
    assert options.lines == {"lr": 2, "on": 3, "base": 4, "own": 5} and options["own"].lines["b"] == 7
    assert read_yaml(write(tmp_path / "c.yaml", b"# nothing\n")) == {}


# ---- CSV


def test_a_cell_may_be_as_long_as_any_protein():
    long = "A" * 200_000  # of more than csv's 131,072 letters
    assert list(read_rows("t.csv", f'id,x\r\n\n"{long}",1\n', ",")) == [(1, ["id", "x"]), (3, [long, "1"])]
    with pytest.raises(InputError, match=r"^t\.csv, line 2: not CSV \(.*16777216\)"):
        list(read_rows("t.csv", "id,x\n" + "A" * (csv_files.LONGEST + 1)))


def test_lines_are_those_of_the_csv_module():
    """io.StringIO(newline="") is what its documentation gives it."""
    rng = random.Random(0)
    signs = ["a", "\n", "\r", "\r\n", '"p\nq",', ",", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", " "]
    for text in ("".join(rng.choices(signs, k=20)) for _ in range(1000)):
        expected = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        assert [cells for _, cells in read_rows("t.csv", text)] == [own for own in expected if any(map(str.strip, own))]
        assert list(csv_files.lines_of(text)) == list(io.StringIO(text, newline=""))


def test_an_open_quote_is_named_by_its_line():
    with pytest.raises(InputError, match=r"^t\.csv, line 2: not CSV \(.*\); is a quote left open\?$"):
        list(read_rows("t.csv", 'a,b\n"x,1\n' + "y,2\n" * 50_000))


# ---- arrays


def damaged(whole: bytes) -> list[bytes]:
    return [b"", b"no array", whole[: len(whole) // 2], whole[:-1], whole[:8] + bytes(24) + whole[32:]]


def test_damaged_npz(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(1000.0), y=np.ones(3))
    assert read_npz(tmp_path / "a.npz", "y".__eq__).keys() == {"y"}
    np.savez(tmp_path / "object.npz", x=np.array([{}]))
    np.save(tmp_path / "one.npy", np.ones(3))
    whole = (tmp_path / "a.npz").read_bytes()
    middle = whole[:60] + bytes([whole[60] ^ 255]) + whole[61:]
    others = [(tmp_path / name).read_bytes() for name in ("object.npz", "one.npy")]
    for content in (*damaged(whole), middle, *others):
        assert line_of(read_npz, write(tmp_path / "b.npz", content)).endswith("; remove it, and it is made again")
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "absent.npz")


@pytest.mark.parametrize("mapped", [False, True])
def test_damaged_npy(tmp_path, mapped):
    array = np.arange(1000.0).reshape(20, 50)

    def read(path):
        return read_npy(path, (20, 50), "<f8", mapped, "preprocess again")

    np.save(tmp_path / "a.npy", array)
    assert read(tmp_path / "a.npy").sum() == 499_500
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    for content in (*damaged((tmp_path / "a.npy").read_bytes()), (tmp_path / "a.npz").read_bytes()):
        assert line_of(read, write(tmp_path / "b.npy", content)).endswith("; preprocess again")
    for other in (array[:19], array[0, 0], array.astype(">f8"), array.astype("<f4"), np.asfortranarray(array)):
        np.save(tmp_path / "b.npy", other)
        assert "float64 [20, 50] was expected" in line_of(read, tmp_path / "b.npy")


def test_kept_arrays_are_those_that_were_kept_and_no_others(tmp_path):
    """Of another name, shape, place or content: what reads them need not look."""
    arrays = {"length": np.arange(5), "mean": np.ones((5, 2), np.float32)}
    path, whole = tmp_path / "part_1.npz", {}
    write_kept(path, arrays)
    assert read_kept(path).keys() == arrays.keys() and read_kept(path, "mean".__eq__)["mean"].shape == (5, 2)
    content = path.read_bytes()
    with np.load(path) as file:
        whole = {name: file[name] for name in file.files}
    changes = ({"length": np.float64(1)}, {"mean": np.zeros((5, 2), np.float32)}, {"more": np.ones(1)})
    for others in (*({**arrays, **change} for change in changes), {"mean": arrays["mean"]}):
        np.savez(path, **others)
        assert "not those that were kept" in line_of(read_kept, path)  # no seal
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("seal", whole["seal"])
        assert "not those that were kept" in line_of(read_kept, path)
    (tmp_path / "part_2.npz").write_bytes(content)
    assert "not those that were kept" in line_of(read_kept, tmp_path / "part_2.npz")
    for broken in damaged(content):
        assert line_of(read_kept, write(path, broken)).endswith("; remove it, and it is made again")


def test_damaged_h5(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=np.arange(5000.0), compression="gzip", chunks=(100,))
    assert H5(tmp_path / "a.h5").read("x", slice(2, 4)).tolist() == [2, 3] and "y" not in H5(tmp_path / "a.h5")
    whole = bytearray((tmp_path / "a.h5").read_bytes())
    whole[len(whole) // 2 : -1000] = bytes(len(whole[len(whole) // 2 : -1000]))
    for content in (b"", b"no array", bytes(whole[: len(whole) // 2]), bytes(whole)):
        path = write(tmp_path / "b.h5", content)
        assert line_of(lambda path: H5(path).read("x"), path).endswith("; remove it, and it is made again")
    assert "damaged" in line_of(lambda path: H5(path).read("y"), tmp_path / "a.h5")


def test_kept_vectors_are_half_precision_of_one_shape(tmp_path):
    good = np.arange(8, dtype=np.float16).reshape(4, 2)
    bad = [good.astype("S8"), good[:3], good.astype(np.float32), np.where(good == 5, np.inf, good).astype(np.float16)]
    for number, values in enumerate([good, *bad, np.where(good == 0, np.nan, good).astype(np.float16)]):
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("mean", data=values)

        def read(path):
            return H5(path).read_half("mean", slice(2), (4, 2))

        if number == 0:
            assert read(path).tolist() == [[0, 1], [2, 3]]
        elif values.dtype == np.float16 and values[2, 1] == np.inf:
            read(path)  # it is in a row that nobody asked for
        else:
            assert "damaged (mean " in line_of(read, path)


def test_damaged_parquet(tmp_path):
    arrays = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    from proteinlm.untrusted.array_files import read_parquet

    parquet.write_table(arrays.table({"x": np.arange(9.0), "y": np.ones(9)}), tmp_path / "a.parquet")
    columns, _ = read_parquet(tmp_path / "a.parquet", "x".__eq__, "should be numbers")
    assert columns.keys() == {"x"} and columns["x"].sum() == 36
    whole = (tmp_path / "a.parquet").read_bytes()
    for content in (b"", b"no table", whole[:-9], whole[:4] + bytes(50) + whole[54:]):
        path = write(tmp_path / "b.parquet", content)
        assert line_of(lambda path: read_parquet(path, bool, "should be numbers"), path).endswith("; should be numbers")


# ---- all of them


def test_no_message_is_longer_than_a_line(tmp_path):
    """However large the value that it cites; begin and end stay."""
    write_json(tmp_path / "config.json", {"hidden_size": "x" * 100_000})
    from proteinlm.model_dir.config import model_config_of

    with pytest.raises(InputError) as caught:
        model_config_of(read_json(tmp_path / "config.json") | dict.fromkeys(("vocab_size", "num_hidden_layers"), 30))
    assert len(str(caught.value)) <= LONGEST + 5
    with pytest.raises(InputError) as caught:
        raise InputError(f"begin {10**4000} end")
    assert str(caught.value).startswith("begin 1000") and str(caught.value).endswith("000 end")
    assert json.dumps(str(InputError("a short one"))) == '"a short one"'
