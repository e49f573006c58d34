"""Tables as people save them: taken as they are, or refused in one line that says where and why."""

import gzip
from pathlib import Path

import pytest

from proteinlm.errors import InputError
from proteinlm.tables import is_table, read_table

PLAIN = "id,sequence,label\nP1,MKV,yes\nP2,MKLV,no\n"
CELLS = [["P1", "MKV", "yes"], ["P2", "MKLV", "no"]]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.csv", PLAIN),
        ("bom.csv", b"\xef\xbb\xbf" + PLAIN.encode()),
        ("crlf.csv", PLAIN.replace("\n", "\r\n")),
        ("no_last_line_end.csv", PLAIN.rstrip()),
        ("blank_lines.csv", PLAIN.replace("\n", "\n\n") + ",,\n"),
        ("spaces.csv", PLAIN.replace(",", " , ")),
        ("quoted.csv", 'id,"sequence",label\n"P1","MKV",yes\nP2,"MKLV","no"\n'),
        ("tabs.tsv", PLAIN.replace(",", "\t")),
        ("tabs_in_a.csv", PLAIN.replace(",", "\t")),
        ("commas_in_a.tsv", PLAIN),
        ("packed.csv.gz", gzip.compress(PLAIN.encode(), mtime=0)),
    ],
)
def test_a_table_is_its_cells(tmp_path, name, content):
    table = read_table(write(tmp_path / name, content))
    assert table.columns == ("id", "sequence", "label") and table.rows == CELLS
    assert table.column("sequence") == ["MKV", "MKLV"]


def test_lines_are_those_of_the_file(tmp_path):
    """Also after a quoted cell with a line end in it."""
    table = read_table(write(tmp_path / "a.csv", 'id,note\n\nP1,"two\nlines"\nP2,x\n'))
    assert table.lines == [3, 5] and table.rows[0] == ["P1", "two\nlines"]
    assert table.where(1, "note") == f"{tmp_path}/a.csv, line 5, column note"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no proteins in it"),
        ("id,sequence\n", "no proteins in it"),
        ("id,sequence\nP1,MKV,x\n", "line 2: 3 cells, but there are 2 columns (id, sequence)"),
        ("id,sequence,label\nP1,MKV,x\nP2,MKV\n", "line 3: 2 cells, but there are 3 columns"),
        ("id;sequence\nP1;MKV\n", "line 1: columns separated by semicolons"),
        ("id,id\nP1,MKV\n", "line 1: two columns are named 'id'"),
        (
            f"id,{'x' * 1001}\nP1,MKV\n",
            "line 1: a name with 1,001 letters ('xxxxxxxxxxxxxxxxxxxx' ...), more than 1,000",
        ),
        ('id,sequence\nP1,"MKV\nP2,MKV\n', "line 2: not CSV"),
        (f"P1,{'MKVLA' * 8}\nP2,MK\n", "names no column"),
        (PLAIN.encode("utf-16"), "UTF-16 text; save it as CSV"),
        (b"PK\x03\x04rest", "an Excel workbook"),
        ("id,sequence\nP1,MK\nP\xe9,MK\n".encode("latin-1"), "line 3: byte 0xe9 is not UTF-8"),
        ("id,sequence\nP1,M\0K\n", "line 2: a NUL byte"),
        (gzip.compress(PLAIN.encode(), mtime=0)[:-9], "truncated gzip"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, content, message):
    path = write(tmp_path / "bad.csv", content)
    with pytest.raises(InputError) as caught:
        read_table(path)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_column_names_the_nearest(tmp_path):
    table = read_table(write(tmp_path / "a.csv", PLAIN))
    with pytest.raises(InputError, match="no column 'sequnce'; did you mean sequence"):
        table.column("sequnce")
    with pytest.raises(InputError, match="no such file"):
        read_table(tmp_path / "absent.csv")


def test_fasta_headers_are_columns(tmp_path):
    text = ">P1 SET=train TARGET=Cell membrane\nMKV\nLA\n\n>P2 TARGET=Nucleus VALIDATION=True\nmkv*\n"
    table = read_table(write(tmp_path / "a.fasta", text))
    assert table.columns == ("id", "sequence", "SET", "TARGET", "VALIDATION")
    assert table.rows == [["P1", "MKVLA", "train", "Cell membrane", ""], ["P2", "mkv*", "", "Nucleus", "True"]]
    assert table.lines == [1, 5]
    for bad, message in (("MKV\n>P1\nMK\n", "line 1: text before"), (">P1\nMK\n>\nMK\n", "line 3: no name after")):
        with pytest.raises(InputError, match=message):
            read_table(write(tmp_path / "bad.fasta", bad))


def test_which_names_are_tables():
    names = ("a.csv", "b.tsv.gz", "c.fasta", "d.FA.gz", "e.xlsx", "stability", "data", "f.lmdb", "g.txt")
    assert [is_table(name) for name in names] == [True] * 5 + [False] * 4
