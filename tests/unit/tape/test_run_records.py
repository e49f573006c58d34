"""The records of a run, damaged or of another shape: each command says in one line which file and which key."""

import json
from pathlib import Path

import pytest
from toy_table import write_table

from proteinlm import errors
from proteinlm.errors import InputError
from tape import evaluate, predict, table
from tape.own_data.data import Choice, OwnData
from tape.own_data.read import read_own_data
from tape.runs.plan import read_preset
from tape.runs.results import read_run

DEEP = "[" * 100_000


def said(capsys, main, *words: object) -> str:
    """The line of a command that refuses."""
    capsys.readouterr()
    assert errors.run(main, list(map(str, words))) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0].removeprefix("error: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"args": 5}', "key 'args' is 5; an object was expected"),
        ('{"args": {"task": ["stability"]}}', "key 'args.task' is ['stability']; a text was expected"),
        ('{"args": {"max_length": "long"}}', "key 'args.max_length' is 'long'; a whole number was expected"),
        ('{"args": {"a": "\\ud800"}}', "key 'args.a': half a surrogate pair, which is no text"),
        ('{"args": null}', "key 'args' is None; an object was expected"),
        ('{"best_step": 3}', "key 'args' is missing"),
        ('{"args": {"plugin": 5}}', "key 'args.plugin' is 5; a list was expected"),
        ('{"args": {"plugin": [true]}}', "key 'args.plugin.0' is True; a text was expected"),
        ('{"args": {"time_or_name": 1}}', "key 'args.time_or_name' is 1; a text was expected"),
        ('{"args": {}, "validation": {"train": "9"}}', "key 'validation.train' is '9'; a whole number was expected"),
        ('{"args": {}, "best": "high"}', "key 'best' is 'high'; a finite number was expected"),
        (DEEP, "not JSON (brackets within brackets, too deep)"),
        ('{"args": {}, "args": {}}', "not JSON (key 'args' is given twice)"),
    ],
)
def test_args_json(tmp_path, capsys, content, message):
    for name in ("args.json", "config.json"):
        (tmp_path / name).write_text(content if name == "args.json" else "{}")
    (tmp_path / "a.fasta").write_text(">a\nMKV\n")
    line = f"{tmp_path}/args.json: {message}; should be what tape-train wrote"
    assert said(capsys, evaluate.main, "transformer", "stability", tmp_path, "--device", "cpu") == line
    assert said(capsys, predict.main, tmp_path, tmp_path / "a.fasta", tmp_path / "out.tsv", "--device", "cpu") == line
    with pytest.raises(InputError):
        read_run(tmp_path)


def test_args_json_that_is_no_file(tmp_path):
    (tmp_path / "args.json").mkdir()
    with pytest.raises(InputError, match=r"args\.json: a directory; should be a file"):
        read_run(tmp_path)


RESULT = {"task": "stability", "split": "test", "metric": "spearmanr", "value": 0.7, "n_examples": 9, "seed": 0}
RESULT |= {"head": "tape", "checkpoint": {"weights_sha256": "f", "from_pretrained": None}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": [0.7]}, "key 'value' is [0.7]; a finite number or null was expected"),
        ({"metric": None}, "key 'metric' is None; a text was expected"),
        ({"checkpoint": ["x"]}, "key 'checkpoint' is ['x']; an object was expected"),
        ({"checkpoint": {"from_pretrained": {}}}, "key 'checkpoint.from_pretrained.weights_sha256' is missing"),
        ({"interval": {"low": "x", "high": 1}}, "key 'interval.low' is 'x'; a finite number or null was expected"),
        (
            {"truncated": {"proteins_cropped": "9"}},
            "key 'truncated.proteins_cropped' is '9'; a whole number was expected",
        ),
        ({"head": ["tape"]}, "key 'head' is ['tape']; "),
        ({"args": 5}, "key 'args' is 5; an object was expected"),
    ],
)
def test_a_result_of_another_shape(tmp_path, capsys, change, message):
    path = tmp_path / "stability-test.json"
    path.write_text(json.dumps(RESULT | change))
    line = said(capsys, table.main, tmp_path)
    assert line.startswith(f"{path}: {message}") and line.endswith("; should be a result that tape-eval wrote")


def test_a_result_too_deep(tmp_path, capsys):
    (tmp_path / "stability-test.json").write_text(DEEP)
    (tmp_path / "other-file.json").write_text(DEEP)  # is none of tape-eval's
    assert "stability-test.json: not JSON (brackets" in said(capsys, table.main, tmp_path)


def test_a_plugins_run_has_no_head(tmp_path, capsys):
    """null beside a name: lines are put in order all the same."""
    for number, head in enumerate((None, "tape")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "stability-test.json").write_text(json.dumps(RESULT | {"head": head}))
    assert errors.run(table.main, [str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("all: {seeds: 5}", "key 'all.seeds' is 5; a list was expected"),
        ("stability: {max_length: long}", "key 'stability.max_length' is 'long'; a whole number was expected"),
        ("arms: {onehot: [1]}", "key 'arms.onehot' is [1]; an object was expected"),
        ("all: {learning_rate: 2001-99-99}", ":1: learning_rate '2001-99-99' is not YAML's timestamp"),
    ],
)
def test_a_preset_of_another_shape(tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        read_preset(str(tmp_path / "p.yaml"))
    assert str(caught.value).startswith(str(tmp_path / "p.yaml")) and message in str(caught.value)


# ---- one's own data


@pytest.fixture
def own(tmp_path) -> Path:
    """The copy that a run keeps of a table."""
    data = read_own_data(str(write_table(tmp_path / "my.csv", "regression")), Choice()).divided()
    data.save(tmp_path)
    assert len(OwnData.load(tmp_path).proteins) == 40
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "x"}, "key 'kind' is 'x'; should be one of regression"),
        ({"std": None}, "key 'std' is None; a finite number was expected"),
        ({"mean": "0"}, "key 'mean' is '0'; a finite number was expected"),
        ({"sha256": ["x"]}, "key 'sha256' is ['x']; an object was expected"),
        ({"table": None}, "key 'table' is None; a text was expected"),
        (
            {"columns": {"sequence": "s", "target": "t", "id": None, "split": None}},
            "key 'columns.target' is 't'; a list",
        ),
        (
            {"columns": {"sequence": "s", "target": ["t", "t"], "id": None, "split": None}},
            "key 'columns.target' is ['t', 't']; should be columns that differ",
        ),
        ({"division": "x"}, "key 'division' is 'x'; an object was expected"),
        ({"division": {"leak": {"test": {"proteins": 4}}}}, "key 'division.leak.test.relative_in_train' is missing"),
        ({"proteins": 41}, "40 proteins, data.json says 41"),
    ],
)
def test_data_json(own, change, message):
    content = json.loads((own / "data.json").read_text()) | change
    (own / "data.json").write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        OwnData.load(own)
    assert str(caught.value).startswith(f"{own}/data.") and message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-9] + b"\xff" + text[-9:], ", line 41: byte 0xff is not UTF-8 text"),
        (lambda text: text[:-9] + b"\0" + text[-9:], ", line 41: a NUL byte"),
        (lambda text: text + b"x,MK,1.0,test,1\n", ": 41 proteins, data.json says 40"),
        (lambda text: text[text.index(b"\n") + 1 :], ": 39 proteins, data.json says 40"),
        (lambda text: text[: text.rindex(b"\n", 0, -1) + 1], ": 39 proteins, data.json says 40"),
        (lambda text: text[:-20], ", line 41: not the run's copy of its data"),
        (lambda text: text + b"x,MK,nan,test,1\n", ", line 42: not the run's copy of its data"),
        (lambda text: text + b'"', ", line 42: not CSV"),
    ],
)
def test_data_csv(own, change, message):
    path = own / "data.csv"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError) as caught:
        OwnData.load(own)
    assert str(caught.value).startswith(f"{path}{message}")


def test_a_protein_of_any_length_comes_back(tmp_path):
    """csv's own limit is 131,072 letters a cell."""
    lines = [f">P{i} TARGET={i}.5 SET={('train', 'valid', 'test')[i % 3]}\n{'MKVLA' * (i + 3)}" for i in range(12)]
    (tmp_path / "my.fasta").write_text("\n".join([*lines, f">long TARGET=1.5 SET=train\n{'MKVLA' * 30_000}"]))
    data = read_own_data(str(tmp_path / "my.fasta"), Choice()).divided()
    data.save(tmp_path)
    assert [p.sequence for p in OwnData.load(tmp_path).proteins] == [p.sequence for p in data.proteins]


@pytest.mark.parametrize(
    ("label", "message"),
    [("1e300", "'1e300' is too large a number to learn"), ("inf", "'inf' is none"), ("-nan", "'-nan' is none")],
)
def test_a_label_that_is_no_number(tmp_path, label, message):
    rows = "".join(f"P{i},{'MKVLA' * (i + 3)},{label if i == 3 else f'{i}.5'}\n" for i in range(12))
    (tmp_path / "my.csv").write_text(f"id,sequence,label\n{rows}")
    with pytest.raises(InputError, match=message):
        read_own_data(str(tmp_path / "my.csv"), Choice())
