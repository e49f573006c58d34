"""The page of scripts/reproduce_prottrans.sh, made of results written by hand; TAPE's fluorescence as an assay."""

import copy
import csv
import json

import numpy as np
import pytest
from browser import click_through
from tape_lmdb import write_lmdb

from probe.tables import __main__ as command
from probe.tables import fluorescence
from probe.tables.page import overview, show, verdict
from probe.tables.published import PUBLISHED
from probe.tables.rows import SECTIONS, STEPS, Row, collect
from tape.metrics import BANDS, DIVISORS, precision_name


def around(value, spread=0.01):
    return {"value": value, "low": value - spread, "high": value + spread, "resamples": 9}


def probe_row(target, arm, value, gap=None, head="cnn", split="valid"):
    names = ("accuracy", "balanced_accuracy", "mcc", "f1_macro")
    row = {"target": target, "split": split, "head": head, "arm": arm, "proteins": 1200, "labels": 9}
    encoder = arm in ("pretrained", "random")
    row |= {"pooling": "mean" if head == "fnn" else None, "layer": 5 if encoder else None}
    row["metrics"] = {name: around(value + place / 100) for place, name in enumerate(names)}
    return row | ({} if gap is None else {"minus_random": {name: around(gap) for name in names}})


def probe_of(data, rows, classes):
    options = {"seeds": [0, 1], "random_seed": 7}
    settings = {"model": "models/m", "data": data, "splits": {"train": 8000, "valid": 1200}, "options": options}
    return {"settings": settings | {"classes": classes}, "rows": rows}


def space(purity, silhouette):
    chance = {"mean": 0.2, "low": 0.19, "high": 0.21, "shuffles": 9}
    own = {"purity": around(purity) | {"k": 10, "points": 900, "chance": chance}}
    return own | {"silhouette": {"value": None, "points": 900} if silhouette is None else around(silhouette) | {
        "points": 900, "chance": chance}}  # fmt: skip


NAMES = [precision_name(divisor, band) for band in BANDS for divisor in DIVISORS]
RESULTS = {
    "secondary_structure/results.json": probe_of(
        "secondary_structure",
        [
            *(probe_row("ss3", arm, value, gap) for arm, value, gap in
              (("pretrained", 0.6444, 0.05), ("random", 0.5944, None), ("one_hot", 0.65, None))),
            probe_row("disorder", "pretrained", 0.3, 0.0), probe_row("disorder", "random", 0.3),
        ],
        {"ss3": ["H", "E", "C"], "disorder": ["-", "X"]},
    ),
    "deeploc/results.json": probe_of(
        "deeploc",
        [probe_row("location", "pretrained", 0.5, -0.02, "fnn"), probe_row("location", "random", 0.52, None, "fnn"),
         probe_row("location", "composition", 0.4, None, "fnn")],
        {"location": [*"ABCDEFGHIJ"]},
    ),
    "scope_map.json": {
        "model": "models/m", "data": "scope35.csv", "points": 1000, "random_seed": 7, "metric": "euclidean",
        "neighbors": 10, "relatives_excluded": True,
        "columns": {
            "class": {"points": 900, "classes": {"a": 450, "b": 450}, "pretrained": space(0.5, 0.1),
                      "random": space(0.4, None), "composition": space(0.45, 0.05),
                      "purity_minus_random": around(0.1)},
            "length": {"points": 1000, "missing": 0},
        },
    },
    "contacts.json": {
        "model": "models/m", "random_seed": 7, "test": ["proteinnet_test.lmdb", 40, 9999, None], "test_chains": 40,
        "contact": "C-alpha atoms within 8 A", "seeds": [0, 1, 2], "proteins": 20,
        "arms": {arm: {name: around(value) for name in NAMES} for arm, value in
                 (("pretrained", 0.051), ("random", 0.04), ("separation", 0.07), ("residue_pairs", 0.02))},
        "differences": {"minus_random": {name: around(0.011) for name in NAMES}},
    },
    "contacts.heads.json": {
        "model": "models/m", "data": "proteinnet_test.lmdb", "arms": {
            "pretrained": {"chains": 40, "threshold": 0.3, "background": 0.013,
                           "share": [[None, 0.25]], "weighted_share": [[0.02, 0.06]]},
            "random": {"share": [[None, None]], "weighted_share": [[0.015, 0.014]]}},
    },
    "variants/blat.json": {
        "data": "blat.csv", "wild_type": "BLAT", "mutants": 4996, "score": "masked-marginals", "random_seed": 7,
        "models": {"m": "models/m"},
        "metrics": {column: {name: around(value) for name in ("spearman", "ndcg", "top_recall")} for column, value in
                    (("m", 0.07), ("random", 0.069), ("blosum62", 0.347))},
        "minus_random": {"m": {name: around(0.001) for name in ("spearman", "ndcg", "top_recall")}},
    },
}  # fmt: skip


def write(folder, results):
    for name, content in results.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.fixture
def output(tmp_path):
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps/contacts.txt").write_text("python -m probe contacts models/m <b>\n123 4\n")
    return write(tmp_path, RESULTS)


def lines_of(text, start):
    return [line for line in text.splitlines() if line.startswith(start)]


def test_every_section_with_its_numbers(output):
    assert command.cli([str(output)]) == 0
    page = (output / "prottrans.md").read_text()
    assert [line[3:] for line in lines_of(page, "## ")] == [*SECTIONS.values(), "Commands"]
    assert lines_of(page, "| valid, cnn | Q3") == [
        "| valid, cnn | Q3, % | 1,200 | 64.4 [63.4, 65.4] | 59.4 [58.4, 60.4] | +5.0 [+4.0, +6.0] | 65.0 [64.0, 66.0] |"
    ]
    assert lines_of(page, "| valid, cnn | disorder") == [
        "| valid, cnn | disorder, MCC | 1,200 | 0.320 [0.310, 0.330] | 0.320 [0.310, 0.330] | "
        "+0.000 [-0.010, +0.010] | - |"
    ]
    assert [line.split(" | ")[1] for line in lines_of(page, "| valid, fnn")] == [
        "location Q10, %", "location balanced accuracy, %", "location MCC"]  # fmt: skip
    assert lines_of(page, "| scope, class") == [
        "| scope, class | 10-NN purity, % | 900 | 50.0 [49.0, 51.0] | 40.0 [39.0, 41.0] | +10.0 [+9.0, +11.0] | "
        "45.0 [44.0, 46.0] | 20.0 [19.0, 21.0] |",
        "| scope, class | silhouette | 900 | 0.100 [0.090, 0.110] | not defined | - | 0.050 [0.040, 0.060] | "
        "0.200 [0.190, 0.210] |",
    ]
    assert len(lines_of(page, "| long, 24 and more apart")) == 3 and "| short, 6-11 apart | P@L/5, % | 40 |" in page
    assert (
        "| pretrained | 1 | 2 | 6.0 | 25.0 |\n| pretrained | 1 | 1 | 2.0 | too few |\n| random, best head | 1 | 1 | 1.5"
        in page
    )
    assert "| blat | Spearman's rho | 4,996 | 0.070 [0.060, 0.080] | 0.069 [0.059, 0.079] | +0.001 [-0.009" in page
    assert "proteins: train 8,000, valid 1,200; means over seeds 0 1 of the head; random weights of seed 7" in page
    report = json.loads((output / "prottrans.json").read_text())
    first = report["rows"][0]
    assert first["pretrained"] == {"value": 0.6444, "low": 0.6344, "high": pytest.approx(0.6544)}
    assert len(report["rows"]) == 2 + 3 + 2 + 12 + 3 and report["model"] == "models/m" and not report["not_run"]


def test_what_pretraining_does_not_show_is_said(output):
    command.cli([str(output)])
    page = (output / "prottrans.md").read_text()
    assert "Better than random weights in 1 of 2 differences.\nNo difference shown: valid, cnn, disorder, MCC." in page
    assert "At least as good without pretraining: one-hot (valid, cnn, Q3)." in page
    assert "Better than random weights in 0 of 3 differences.\nWorse than random weights: everywhere." in page
    assert "At least as good without pretraining: BLOSUM62 (everywhere)." in page


def test_a_published_number_has_its_source_and_its_reasons(output):
    command.cli([str(output)])
    text, html = ((output / f"prottrans.{kind}").read_text() for kind in ("md", "html"))
    for table in PUBLISHED:
        assert table.section in SECTIONS and table.source and table.why and table.rows
        assert {len(row) for row in table.rows} == {len(table.header)}, table.title
        place = text.index(f"### Published: {table.title}")
        assert f"Source: {table.source}. How it differs: {'; '.join(table.why)}." in text[place:]
        assert text.index(f"| {table.rows[0][0]} | {table.rows[0][1]}", place) > place
    assert html.count("<summary>Published:") == len(PUBLISHED) and "&lt;b&gt;" in html and "<b>" not in html
    assert "src=" not in html and "href=" not in html.replace('href="data:,"', "")


def test_what_is_absent_is_said(tmp_path):
    write(tmp_path, {"variants/blat.json": RESULTS["variants/blat.json"]})
    (tmp_path / "not_run.txt").write_text("deeploc: no deeploc/train.csv in DATA\nheads: stopped with status 3\n")
    assert command.cli([str(tmp_path)]) == 0
    for name in ("prottrans.md", "prottrans.html"):
        page = (tmp_path / name).read_text()
        assert "Not run: deeploc, no deeploc/train.csv in DATA" in page
        assert "Not run: Secondary structure, no results in OUT" in page and "Not run: Contacts" not in page
        assert "Mutations without training" in page and "Ankh" not in page and "Q3" not in page
    assert set(STEPS.values()) == set(SECTIONS)


def test_without_arms_of_random_weights(tmp_path):
    results = {
        name: copy.deepcopy(RESULTS[name]) for name in ("contacts.json", "contacts.heads.json", "scope_map.json")
    }
    results["contacts.json"] |= {"arms": {"pretrained": RESULTS["contacts.json"]["arms"]["pretrained"]}, "seeds": None}
    results["contacts.json"]["differences"] = {}
    results["contacts.heads.json"]["arms"].pop("random")
    for arm in ("random", "composition", "purity_minus_random"):
        results["scope_map.json"]["columns"]["class"].pop(arm)
    rows = collect(write(tmp_path, results)).rows
    assert {(row.random, row.difference) for row in rows} == {(None, None)} and len(rows) == 2 + 12
    assert command.cli([str(tmp_path)]) == 0 and "<svg" not in (tmp_path / "prottrans.html").read_text()


def without(name, *keys):
    content = copy.deepcopy(RESULTS[name])
    part = content
    for key in keys[:-1]:
        part = part[key]
    del part[keys[-1]]
    return content


BLAT = RESULTS["variants/blat.json"]["metrics"]
DAMAGED = {
    "cut off": ("contacts.json", '{"model": "models/m', "contacts.json: not JSON"),
    "a list": (
        "scope_map.json",
        "[]",
        "a JSON object was expected, found list; should be what proteinlm project wrote",
    ),
    "a key": (
        "deeploc/results.json",
        without("deeploc/results.json", "rows", 0, "metrics", "mcc"),
        "deeploc/results.json: 'mcc' is missing; should be what proteinlm probe wrote",
    ),
    "an interval": (
        "variants/blat.json",
        without("variants/blat.json", "metrics", "m", "ndcg", "value"),
        "blat.json: key 'metrics.m.ndcg.value' is missing; should be what proteinlm variants wrote",
    ),
    "text": (
        "contacts.json",
        RESULTS["contacts.json"] | {"arms": {"pretrained": {name: around(0) | {"low": "none"} for name in NAMES}}},
        "contacts.json: key 'arms.pretrained.precision_at_l.low' is 'none'; a finite number was expected; ",
    ),
    "a seed": (
        "scope_map.json",
        RESULTS["scope_map.json"] | {"random_seed": "7"},
        "scope_map.json: key 'random_seed' is '7'; a whole number or null was expected; should be what proteinlm ",
    ),
    "half an interval": (
        "variants/blat.json",
        without("variants/blat.json", "minus_random", "m", "ndcg", "low"),
        "blat.json: 'low' is missing; should be what proteinlm variants wrote",
    ),
    "true for a count": (
        "contacts.json",
        RESULTS["contacts.json"] | {"test_chains": True},
        "contacts.json: key 'test_chains' is True; a whole number was expected",
    ),
    "an arm's name": (
        "variants/blat.json",
        RESULTS["variants/blat.json"] | {"metrics": {"m": BLAT["m"], "randomx": BLAT["random"]}},
        "blat.json: metrics holds 'randomx', which is none of m, random, ",
    ),
    "no chance": (
        "scope_map.json",
        without("scope_map.json", "columns", "class", "pretrained", "purity", "chance"),
        "scope_map.json: 'chance' is missing; should be what proteinlm project wrote",
    ),
    "no difference": (
        "contacts.json",
        without("contacts.json", "differences", "minus_random"),
        "contacts.json: 'minus_random' is missing; should be what proteinlm contacts wrote",
    ),
    "no file's name": (
        "contacts.json",
        RESULTS["contacts.json"] | {"test": [40, "proteinnet_test.lmdb"]},
        "contacts.json: test begins with 40, which is no file's name",
    ),
    "an arm of a map": (
        "scope_map.json",
        RESULTS["scope_map.json"] | {"columns": {"class": {"points": 9, "Pretrained": space(0.5, 0.1)}}},
        "scope_map.json: column 'class' holds 'Pretrained', which is none of points, ",
    ),
    "a table": (
        "contacts.heads.json",
        RESULTS["contacts.heads.json"] | {"arms": {"pretrained": {"share": [], "weighted_share": [[0.1]]}}},
        "contacts --heads wrote",
    ),
    "two models": ("scope_map.json", RESULTS["scope_map.json"] | {"model": "m2"}, "scope_map.json: is of model m2, "),
}


@pytest.mark.parametrize(("name", "content", "line"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_results_are_one_line(output, capsys, name, content, line):
    write(output, {name: content})
    assert command.cli([str(output)]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1 and not (output / "prottrans.md").exists()


def test_a_directory_in_a_results_place_is_one_line(tmp_path, capsys):
    (write(tmp_path, RESULTS) / "contacts.json").unlink()
    (tmp_path / "contacts.json").mkdir()
    assert command.cli([str(tmp_path)]) == 2
    assert "contacts.json: a directory; should be a file" in capsys.readouterr().err


def test_a_directory_without_results_is_one_line(tmp_path, capsys):
    assert command.cli([str(tmp_path)]) == 2
    assert "no results; should be OUT of scripts/reproduce_prottrans.sh" in capsys.readouterr().err


def test_where_an_interval_lies():
    gap = {"better": (0.001, 0.2), "neither": (-0.1, 0.0), "worse": (-0.2, -0.001)}
    rows = [Row("maps", word, "m", 1, around(0), around(0), {"value": 0.0, "low": a, "high": b}, main=True)
            for word, (a, b) in gap.items()]  # fmt: skip
    assert [verdict(row) for row in rows] == list(gap)
    undefined = {"value": None, "low": -0.1, "high": 0.1}
    assert overview([Row("maps", "", "m", 1, around(0), around(0), undefined, main=True)]) == ""
    assert verdict(Row("maps", "", "m", 1, around(0))) == "" and overview([]) == ""
    drawn = overview(rows)
    assert [word for word in gap if f'class="{word}"' in drawn] == list(gap) and "not shown" not in drawn
    assert show({"value": 0.5, "low": None, "high": None}, True) == "50.0 [none, none]"


STEPS_OF_A_READER = """
const dot = at("circle"), before = getComputedStyle(dot).fill, paper = getComputedStyle(document.body).backgroundColor;
fire("#theme", "click"); await frame();
return {before, after: getComputedStyle(dot).fill, paper, other: getComputedStyle(document.body).backgroundColor,
  rows: document.querySelectorAll("svg circle").length, wide: document.documentElement.scrollWidth <= innerWidth};
"""


@pytest.mark.slow
def test_the_page_in_a_browser(output, tmp_path):
    command.cli([str(output)])
    report = click_through(output / "prottrans.html", tmp_path, STEPS_OF_A_READER)
    assert report.errors == [] and report.requests == []
    seen = report.value
    assert seen["rows"] == 1 + 1 + 1 + 3 + 1 and seen["wide"]
    assert seen["before"] != seen["after"] and seen["paper"] != seen["other"]


WILD = "MSKGEELFTG"


def write_gfp(folder, *, wild=True):
    def record(sequence, mutations, value):
        return {"primary": sequence, "num_mutations": mutations, "log_fluorescence": np.array([value], np.float32)}

    own = [record(WILD, 0, 3.7)] if wild else []
    write_lmdb(
        folder / "fluorescence/fluorescence_train.lmdb", [*own, record("A" + WILD[1:], 1, 1.25), record(WILD[1:], 1, 2)]
    )
    write_lmdb(
        folder / "fluorescence/fluorescence_test.lmdb", [record("AC" + WILD[2:], 2, 1.5), record("A" + WILD[1:], 1, 9)]
    )
    return folder


def test_fluorescence_as_an_assay(tmp_path, capsys):
    data = write_gfp(tmp_path / "data")
    assert fluorescence.cli([str(data), str(tmp_path / "gfp")]) == 0
    assert "3 proteins; 1 of another length" in capsys.readouterr().out
    assert (tmp_path / "gfp.fasta").read_text() == f">gfp\n{WILD}\n"
    with (tmp_path / "gfp.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["mutated_sequence"] for row in rows] == [WILD, "A" + WILD[1:], "AC" + WILD[2:]]
    assert [float(row["DMS_score"]) for row in rows] == pytest.approx([3.7, 1.25, 1.5])


def test_fluorescence_without_a_wild_type_is_one_line(tmp_path, capsys):
    data = write_gfp(tmp_path / "data", wild=False)
    assert fluorescence.cli([str(data), str(tmp_path / "gfp")]) == 2
    assert "no record with num_mutations 0, which is the wild type" in capsys.readouterr().err
    assert fluorescence.cli([str(tmp_path / "no"), str(tmp_path / "gfp")]) == 2
    assert "should be TAPE's data directory" in capsys.readouterr().err
    assert not list(tmp_path.glob("gfp*"))
