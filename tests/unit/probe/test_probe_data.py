"""Labels for probes: TAPE's secondary structure and people's tables, and the one line that a mistake gets."""

import numpy as np
import pytest
from tape_lmdb import write_lmdb

from probe.probes.data import LOCATIONS, limited, read_columns, read_structure, without_unlearned
from proteinlm.errors import InputError
from tape.own_data.data import Choice

RNG = np.random.default_rng(0)
LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
SEQUENCES = ["".join(RNG.choice(LETTERS, 30)) for _ in range(24)]


def record(number, **values):
    return {"primary": SEQUENCES[number][:6], "id": str(number), "ss3": np.array([0, 1, 2, 2, 1, 0])} | values


def write_table(path, rows, header="id,sequence,location,membrane"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(path)


def deeploc(places, locations=LOCATIONS, membranes="SMU"):
    return [
        (f"P{i}", SEQUENCES[i], locations[i % len(locations)], membranes[i % len(membranes)]) for i in places
    ]  # fmt: skip


def test_tapes_records(tmp_path):
    folder = tmp_path / "secondary_structure"
    mask = np.array([0, 1, 1, 1, 1, 0], bool)
    ss8 = np.array([0, 1, 2, 3, 4, 7])
    first = record(0, valid_mask=mask, ss8=ss8, disorder=np.array([0, 1, 1, 1, 1, 0.0]))
    write_lmdb(folder / "secondary_structure_train.lmdb", [first, record(1)])
    write_lmdb(folder / "secondary_structure_cb513.lmdb", [record(2, valid_mask=mask)])
    data = read_structure(tmp_path)
    assert {name: places.tolist() for name, places in data.splits.items()} == {"train": [0, 1], "cb513": [2]}
    assert data.per_residue and data.notices == tuple(f"{tmp_path} has no {s}" for s in ("valid", "casp12", "ts115"))
    ss3, ss8, disorder = (data.targets[name] for name in ("ss3", "ss8", "disorder"))
    assert ss3.classes == tuple("HEC") and ss8.classes == tuple("GHIBESTC") and disorder.classes == tuple("-X")
    assert [own.tolist() for own in ss3.labels] == [[-1, 1, 2, 2, 1, -1], [0, 1, 2, 2, 1, 0], [-1, 1, 2, 2, 1, -1]]
    assert [own.tolist() for own in ss8.labels] == [[-1, 1, 2, 3, 4, -1], [-1] * 6, [-1] * 6]
    assert disorder.labels[0].tolist() == [1, 0, 0, 0, 0, 1]  # of unresolved residues too


def test_labels_that_train_lacks_are_left_out(tmp_path):
    write_lmdb(tmp_path / "secondary_structure_train.lmdb", [record(0)])
    write_lmdb(tmp_path / "secondary_structure_valid.lmdb", [record(1, ss8=np.zeros(6, int))])
    data = read_structure(tmp_path)
    assert list(data.targets) == ["ss3", "ss8"]
    kept = without_unlearned(data)
    assert list(kept.targets) == ["ss3"] and kept.notices[-1] == "ss8 left out: train has no such labels"
    with pytest.raises(InputError, match="train has no labels of ss8"):
        without_unlearned(type(data)(**{**vars(data), "targets": {"ss8": data.targets["ss8"]}}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ss3": np.zeros(5, int)}, r"train.lmdb record 1: ss3 has shape \[5\], but the protein has 6 residues"),
        ({"ss8": np.zeros(7, int)}, r"record 1: ss8 has shape \[7\]"),
        ({"valid_mask": np.ones(2, bool)}, "record 1: valid_mask has shape"),
        ({"ss3": np.full(6, 3)}, "record 1: ss3 must be whole numbers of 0-2"),
        ({"disorder": np.full(6, 0.5)}, "record 1: disorder must be 1"),
        ({"ss3": None}, "record 1: no ss3"),
    ],
)
def test_a_record_that_is_wrong_is_named(tmp_path, values, message):
    write_lmdb(tmp_path / "secondary_structure_train.lmdb", [record(0), record(1, **values)])
    with pytest.raises(InputError, match=message):
        read_structure(tmp_path)


def test_deeplocs_table(tmp_path):
    train = write_table(tmp_path / "train.csv", deeploc(range(12)))
    rows = [*deeploc(range(12, 20)), ("Q", SEQUENCES[20], "Cytoplasm-Nucleus", "U"), ("R", SEQUENCES[21], "", "M")]
    valid = write_table(tmp_path / "valid.csv", rows)
    data = read_columns(train, ("location", "membrane"), tests=(valid,))
    location, membrane = data.targets.values()
    assert location.classes == LOCATIONS and membrane.classes == ("S", "M") and not data.per_residue
    assert location.labels.tolist() == [i % 10 for i in range(20)] + [-1]
    assert membrane.labels.tolist() == [(0, 1, -1)[i % 3] for i in range(20)] + [1]  # row Q has no label at all
    assert {name: len(places) for name, places in data.splits.items()} == {"train": 12, "valid": 9}
    assert data.sequences == [*SEQUENCES[:20], SEQUENCES[21]] and data.ids[-1] == "R"
    assert any("labelled U left out" in notice for notice in data.notices)
    assert data.name == f"{tmp_path.name}/train"
    few = limited(data, 3)
    assert few.splits["valid"].tolist() == [3, 4, 5] and few.sequences == limited(data, 3).sequences
    for i, sequence in enumerate(few.sequences):
        place = data.sequences.index(sequence)
        assert (place in data.splits["train"]) == (i < 3) and few.ids[i] == data.ids[place]
        assert few.targets["location"].labels[i] == location.labels[place]


def test_other_classes_keep_their_own_order_and_a_split_column_counts(tmp_path):
    rows = [(SEQUENCES[i], "ba"[i % 2], ("train", "train", "valid", "test")[i % 4]) for i in range(20)]
    table = write_table(tmp_path / "t.csv", rows, "sequence,kind,split")
    data = read_columns(table, None)
    assert data.targets["kind"].classes == ("a", "b") and data.targets["kind"].labels[:2].tolist() == [1, 0]
    assert data.splits["test"].tolist() == [3, 7, 11, 15, 19]
    divided = read_columns(table, ("kind",), Choice(split="none"))
    assert set(divided.splits) == {"train", "valid", "test"} and sum(map(len, divided.splits.values())) == 20


def test_a_letter_a_residue(tmp_path):
    rows = [(SEQUENCES[i], "EHC" * 10, "X-" * 15) for i in range(12)]
    table = write_table(tmp_path / "t.csv", rows, "sequence,states,loops")
    data = read_columns(table, ("states", "loops"), Choice(ignore=("E",)))
    assert data.per_residue and data.targets["states"].classes == tuple("HEC")
    assert data.targets["states"].labels[0][:4].tolist() == [-1, 0, 2, -1]
    assert data.targets["loops"].labels[0][:2].tolist() == [1, 0] and data.targets["loops"].classes == tuple("-X")


MISTAKES = {
    "a column": (("locatoin",), (), "no column 'locatoin'; did you mean location"),
    "numbers": (("mass",), (), "mass is regression .*tape-train learns regression"),
    "several": (("states", "location"), (), "are a class a residue, others one a protein"),
    "none": (None, (), "which column holds the labels"),
    "a name": (("location",), ("other/t.csv",), "each should have a name of its own"),
    "a class": (("location",), ("u.csv",), "u.csv, line 2, column location: 'Vesicle' is none of the run's classes"),
    "no file": (("location",), ("no.csv",), "no.csv: no such file"),
}


@pytest.mark.parametrize(("targets", "tests", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_table_that_is_wrong_is_named(tmp_path, targets, tests, message):
    rows = [(SEQUENCES[i], "EHC" * 10, LOCATIONS[i % 3], i + 0.5) for i in range(12)]
    table = write_table(tmp_path / "t.csv", rows, "sequence,states,location,mass")
    (tmp_path / "other").mkdir()
    write_table(tmp_path / "other/t.csv", rows, "sequence,states,location,mass")
    write_table(tmp_path / "u.csv", [(SEQUENCES[0], "Vesicle")], "sequence,location")
    with pytest.raises(InputError, match=message):
        read_columns(table, targets, tests=[str(tmp_path / test) for test in tests])


def test_labels_of_the_wrong_length_are_named_with_their_line(tmp_path):
    rows = [(SEQUENCES[i], ("HE" * 15)[: 30 - (i == 2)]) for i in range(12)]
    table = write_table(tmp_path / "t.csv", rows, "sequence,states")
    with pytest.raises(InputError, match=r"t.csv, line 4, column states: a label of 29 letters for 30 residues"):
        read_columns(table, ("states",), Choice(kind="per_residue"))
