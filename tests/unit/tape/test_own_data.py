"""A table of one's own: what its columns and labels are taken for, how it is divided, what is refused and where."""

from pathlib import Path

import numpy as np
import pytest
from toy_table import LABELS, RESIDUES, toy_sequences, write_rows, write_table

from proteinlm.errors import InputError
from tape.own_data.data import Choice, OwnData
from tape.own_data.kinds import KINDS
from tape.own_data.read import read_own_data

A, B, D = "MKVLAWQ", "MKLVAWE", "MTRSAWQ"  # three proteins of seven residues


def read(path: Path, **choice) -> OwnData:
    return read_own_data(str(path), Choice(**choice))


def table(tmp_path: Path, text: str, name: str = "my.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def targets(data: OwnData) -> list:
    return [np.asarray(protein.target).tolist() for protein in data.proteins]


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_is_seen_and_the_copy_is_the_table(tmp_path, kind):
    data = read(write_table(tmp_path / "my.csv", kind))
    assert data.kind == kind and data.name == "my" and len(data.proteins) == 40
    assert any(f"kind: {kind}" in line and "--kind says otherwise" in line for line in data.describe())
    data = data.divided()
    data.save(tmp_path)
    copy = OwnData.load(tmp_path)
    assert (copy.kind, copy.classes, copy.columns, copy.mean, copy.std) == (
        data.kind, data.classes, data.columns, data.mean, data.std
    )  # fmt: skip
    assert targets(copy) == targets(data)
    assert [(p.id, p.sequence, p.split, p.line) for p in copy.proteins] == [
        (p.id, p.sequence, p.split, p.line) for p in data.proteins
    ]
    assert copy.division == data.division and copy.changed() == ""
    (tmp_path / "my.csv").write_text("something else")
    assert "my.csv has changed since" in copy.changed()


@pytest.mark.parametrize(
    ("labels", "kind", "classes"),
    [
        (["1.5", "2", "-3e2"], "regression", ()),
        (["0", "1", "1", "0", "1", "0"], "classification", ("0", "1")),
        (["10", "9", "2", "10", "9", "2", "2", "2", "2"], "classification", ("2", "9", "10")),
        (["37", "38", "39", "40"], "regression", ()),
        (["a", "b", "NA", ""], "classification", ("a", "b")),
        (["Nucleus", "Golgi, cis", "Nucleus"], "classification", ("Golgi, cis", "Nucleus")),
        (["a;b", "b", "a"], "multilabel", ("a", "b")),
        (["a|c", "c", "a", "b, x|c"], "multilabel", ("a", "b, x", "c")),
        (["hhhhccc", "ccccccc", "chchchc"], "per_residue", ("c", "h")),
    ],
)
def test_kinds_and_classes_by_hand(tmp_path, labels, kind, classes):
    sequences = [A, B, D, *(A[:-1] + letter for letter in RESIDUES[:9])]
    rows = [(f"P{i}", sequence, label) for i, (sequence, label) in enumerate(zip(sequences, labels, strict=False))]
    data = read(write_rows(tmp_path / "my.csv", rows))
    assert (data.kind, data.classes) == (kind, classes)


def test_labels_by_hand(tmp_path):
    several = table(tmp_path, f"seq,nucleus,membrane\n{A},1,0\n{B},,true\n{D},0,no\n")
    data = read(several, target=("nucleus", "membrane"))
    assert targets(data) == [[1, 0], [-1, 1], [0, 0]] and data.classes == ("nucleus", "membrane")
    assert [p.id for p in data.proteins] == ["line2", "line3", "line4"]
    cells = table(tmp_path, f"seq,label\n{A},b; a\n{B},b\n{D},a\n")
    assert targets(read(cells)) == [[1, 1], [0, 1], [1, 0]]
    residues = table(tmp_path, f"seq,label\n{A},hhh-cXc\n{B},-------\n")
    data = read(residues, ignore=("-", "X"))
    assert data.classes == ("c", "h") and targets(data) == [[1, 1, 1, -1, 0, -1, 0], [-1] * 7]


def test_columns_are_found_by_name_or_named(tmp_path):
    path = table(tmp_path, f"Entry,AA_seq,length,Location,membrane\nP1,{A},7,x,y\nP2,{B},7,y,x\n")
    with pytest.raises(InputError, match="--target says it; there are length, Location, membrane"):
        read(path)
    data = read(path, target=("Location",))
    assert data.columns.describe() == "columns: sequence AA_seq, target Location, id Entry, split none"
    assert data.name == "my_Location"
    with pytest.raises(InputError, match="no column 'location'; did you mean Location"):
        read(path, target=("location",))
    with pytest.raises(InputError, match="which column holds the sequences"):
        read(table(tmp_path, f"a,b\n{A},x\n"))


def test_fasta_with_labels_in_its_headers(tmp_path):
    text = f">P1 TARGET=Cell membrane SET=train\n{A}\n>P2 TARGET=Nucleus SET=train VALIDATION=True\n{B}\n"
    data = read(table(tmp_path, text + f">P3 TARGET=Nucleus SET=test\n{D}\n>P4 TARGET=x SET=pred\n{D}\n", "my.fasta"))
    assert [p.split for p in data.proteins] == ["train", "valid", "test"]
    assert data.classes == ("Cell membrane", "Nucleus") and "1 proteins of split pred left out" in data.notices


def test_fasta_of_labels_a_residue(tmp_path):
    sequences = table(tmp_path, f">P1\n{A}\n>P2\n{B}\n", "seq.fasta")
    labels = table(tmp_path, ">P2 SET=test\nCCCCCCH\n>P1 SET=train MASK=1111110\nHHHCCCC\n", "lab.fasta")
    data = read(sequences, labels=str(labels))
    assert data.kind == "per_residue" and data.classes == ("C", "H")
    assert targets(data) == [[1, 1, 1, 0, 0, 0, -1], [0, 0, 0, 0, 0, 0, 1]]
    assert [p.split for p in data.proteins] == ["train", "test"]
    with pytest.raises(InputError, match="no labels for P3"):
        read(table(tmp_path, f">P3\n{A}\n", "other.fasta"), labels=str(labels))


HEAD = "id,sequence,target\n"


@pytest.mark.parametrize(
    ("text", "choice", "message"),
    [
        (f"P1,{A},x\nP1,{B},y\n", {}, "line 3: P1 is on line 2 too, with other sequences"),
        (f"P1,{A},x\nP1,{A},y\n", {}, "line 3: P1 is on line 2 too, with other labels"),
        (f"P1,{A},x\nP2,,y\n", {}, "line 3, column sequence: no residues"),
        (f"P1,{A},x\nP2,MK1V,y\n", {}, "line 3, column sequence: '1' is no residue"),
        (f"P1,{A},x\n,{B},y\n", {}, "line 3, column id: empty"),
        (f"P1,{A},1.5\nP2,{B},2\nP3,{D},high\n", {}, "column target: 2 labels are numbers but 'high' is none"),
        (f"P1,{A},1.5\nP2,{B},high\n", {"kind": "regression"}, "line 3, column target: 'high' is not a finite number"),
        (f'P1,{A},"1,5"\nP2,{B},2\n', {"kind": "regression"}, "a decimal point is needed"),
        (f"P1,{A},inf\nP2,{B},2\n", {"kind": "regression"}, "'inf' is not a finite number"),
        (f"P1,{A},hhhhhh\nP2,{B},ccccccc\n", {"kind": "per_residue"}, "a label of 6 letters for 7 residues"),
        (f"P1,{A},x\nP2,{B},x\n", {}, "column target: one class only (x)"),
        (f"P1,{A},x\nP2,{B},{'y' * 1001}\n", {}, "column target: a name with 1,001 letters"),
        (f"P1,{A},x\n{'P' * 1001},{B},y\n", {}, "line 3, column id: a name with 1,001 letters"),
        (f"P1,{A},\nP2,{B},NA\n", {}, "none of its 2 proteins has a label in target"),
        ("".join(f"P{i},{A},text {i}\n" for i in range(12)), {}, "12 different texts among 12 proteins fit no kind"),
        (f"P1,{A},x\nP2,{B},y\n", {"target": ("sequence",)}, "is the column of the sequences"),
        (f"P1,{A},2\nP2,{B},1\n", {"target": ("target", "id")}, "column target: '2' should be 1 or 0"),
        (f"P1,{A},x\nP2,{B},y\n", {"split": "id", "id": "none"}, "column id: 'P1' is no split; should be"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, text, choice, message):
    with pytest.raises(InputError) as caught:
        read(table(tmp_path, HEAD + text), **choice)
    assert message in str(caught.value) and "my.csv" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "notice"),
    [
        (f"P1,{A},x\nP2,{B},\nP3,{D},y\n", "1 proteins without a label left out"),
        (f"P1,{A},x\nP2,{B},U\nP3,{D},y\n", "1 proteins labelled U left out (--ignore)"),
        (f"P1,{A},x\nP1,{A},x\nP3,{D},y\n", "1 rows that repeat an earlier one left out"),
        (f"P1,{A},x\nP2,{A},x\nP3,{D},y\n", "1 proteins with a sequence that an earlier one has (kept)"),
        (f"P1,{A},x\nP2,{A},y\nP3,{D},y\n", "1 sequences with several different labels (kept)"),
        (f"P1,MKJ,x\nP3,{D},y\n", "1 sequences with J, which is read as unknown"),
        ("P1,ACGTAC,x\nP3,ACGT,y\n", "are they nucleotides?"),
    ],
)
def test_what_is_left_out_is_counted(tmp_path, text, notice):
    data = read(table(tmp_path, HEAD + text), ignore=("U",))
    assert any(notice in line for line in data.notices)
    assert any(f"notice: {line}" in data.describe() for line in data.notices)


def relative(sequence: str) -> str:
    """The same protein with one residue changed."""
    return sequence[:9] + ("W" if sequence[9] != "W" else "Y") + sequence[10:]


def test_proteins_of_one_family_are_never_divided(tmp_path):
    """Without a column: by cluster. Each protein has a near twin, and twins stay together."""
    sequences = toy_sequences(40, longest=60)
    rows = [(f"P{i}{s}", make(q), LABELS["regression"](q)) for i, q in enumerate(sequences)
            for s, make in (("a", str), ("b", relative))]  # fmt: skip
    data = read(write_rows(tmp_path / "my.csv", rows)).divided()
    split = {p.id: p.split for p in data.proteins}
    assert all(split[f"P{i}a"] == split[f"P{i}b"] for i in range(40))
    assert set(split.values()) == {"train", "valid", "test"}
    assert [counts["relative_in_train"] for counts in data.division["leak"].values()] == [0, 0]
    train = [p.target for p in data.proteins if p.split == "train"]
    assert (data.mean, data.std) == pytest.approx((np.mean(train), np.std(train)))


def test_a_leak_through_the_users_column_is_counted(tmp_path):
    """Two planted in test, one a near relative and one the same; and none (the control) where nothing was planted."""
    *sequences, last = toy_sequences(31, longest=60)
    rows = [(f"P{i}", s, i * 1.5, "train") for i, s in enumerate(sequences)]
    columns = ("id", "sequence", "target", "Split")
    planted = [("R", relative(sequences[3]), 1.5, "TEST"), ("S", sequences[4], 2, "test"), ("N", last, 3, "test")]
    data = read(write_rows(tmp_path / "my.csv", rows + planted, columns)).divided()
    assert data.division["leak"]["test"] == {"proteins": 3, "relative_in_train": 2, "identical_in_train": 1}
    assert any("2 of 3 test proteins have a relative in train" in line for line in data.describe())
    assert any(line.startswith("valid: held out 3 of 30 proteins") for line in data.describe())
    control = read(write_rows(tmp_path / "clean.csv", rows + planted[2:], columns)).divided()
    assert control.division["leak"]["test"] == {"proteins": 1, "relative_in_train": 0, "identical_in_train": 0}


def test_division_that_cannot_be(tmp_path):
    rows = [(f"P{i}", s, i * 1.5) for i, s in enumerate(toy_sequences(9))]
    with pytest.raises(InputError, match=r"my\.csv: 9 proteins are too few"):
        read(write_rows(tmp_path / "my.csv", rows)).divided()
    split = [(*row, "test") for row in rows]
    with pytest.raises(InputError, match="no protein in train"):
        read(write_rows(tmp_path / "my.csv", split, ("id", "sequence", "target", "set"))).divided()
    same = [(f"P{i}", s, 4.5) for i, s in enumerate(toy_sequences(20))]
    with pytest.raises(InputError, match=r"every target in train is 4\.5"):
        read(write_rows(tmp_path / "my.csv", same), kind="regression").divided()


def test_a_class_of_test_alone_is_named(tmp_path):
    rows = [(f"P{i}", s, "xy"[i % 2], "train") for i, s in enumerate(toy_sequences(20))]
    rows += [("Q", "MKVLAWQKLM", "z", "test")]
    data = read(write_rows(tmp_path / "my.csv", rows, ("id", "sequence", "target", "split"))).divided()
    assert any("class 'z': no protein in train but 1 in test" in notice for notice in data.notices)
    assert data.division["classes"]["z"] == {"train": 0, "valid": 0, "test": 1}
