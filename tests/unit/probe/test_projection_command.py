"""`proteinlm project` as a user calls it: its files, its page under a reader's hand, and the one line of a mistake."""

import csv
import itertools
import json

import numpy as np
import pytest
from toy_model import write_model

from probe import __main__ as command
from probe import projection, themes
from probe.projection import neighbors, outputs, transfer
from probe.projection.points import read_points
from tests.browser import click_through

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
QUERY = ("model", "a.csv", "--query", "new.fasta", "--column", "place")
PLACES = ("Nucleus", "Golgi", "ER")


def proteins(count, seed=0):
    """(id, sequence, place, kind): one of PLACES' proteins is rich in A, C or D."""
    generator = np.random.default_rng(seed)
    for i in range(count):
        place = i % 3
        letters = generator.choice([*LETTERS, *LETTERS[place] * 30], size=generator.integers(8, 40))
        yield f"P{i}", "".join(letters), "" if i == 5 else PLACES[place], ("M", "S")[i % 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, 24 labelled proteins, 3 new ones."""
    folder = tmp_path_factory.mktemp("project")
    write_model(folder / "model")
    with (folder / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "sequence", "place", "kind"), *proteins(24)])
    new = "".join(f">{name} new\n{sequence}\n" for name, sequence, *_ in proteins(3, seed=9))
    (folder / "new.fasta").write_text(new)
    return folder


QUICK = {"SILHOUETTE_SHUFFLES": 10, "SHUFFLES": 50, "RESAMPLES": 50}


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for name, value in QUICK.items():
        monkeypatch.setattr(neighbors, name, value)


def run(*words):
    return command.cli(["project", *map(str, words), "--device", "cpu"])


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def drawn(folder):
    """The outputs of one run, with both maps of both arms, and the columns of its pictures (another test draws one)."""
    settings = {"columns": ["place", "kind"], "perplexity": 5, "iterations": 250, "neighbors": 4, "device": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUICK.items():
            patch.setattr(neighbors, name, value)
        pictures = []
        patch.setattr(
            outputs.picture, "draw_column", lambda stem, points, column, *rest: pictures.append(rest[2]) or []
        )
        return pictures, projection.project(folder / "model", folder / "a.csv", folder / "out", **settings)


def test_files_and_numbers(drawn, folder):
    report, (pictures, results) = json.loads((folder / "out.json").read_text()), drawn
    assert report == json.loads(json.dumps(results))
    assert len(pictures) == 2 and pictures[0][0].startswith("pretrained: 4-NN purity") and "random" in pictures[0][1]
    place = report["columns"]["place"]
    assert place["missing"] == 1 and place["classes"] == {"Golgi": 8, "Nucleus": 8, "ER": 7}
    for arm in ("pretrained", "random"):
        assert place[arm]["purity"]["k"] == 4 and place[arm]["silhouette"]["points"] == 23
        assert set(place[arm]["purity"]["by_class"]) == set(PLACES)
    assert place["purity_minus_random"]["value"] == pytest.approx(
        place["pretrained"]["purity"]["value"] - place["random"]["purity"]["value"]
    )
    rows = rows_of(folder / "out.csv")
    ends = [f"{arm}_{method}_{axis}" for arm in ("pretrained", "random") for method in ("tsne", "pca") for axis in "12"]
    assert list(rows[0]) == ["id", "place", "kind", *ends] and rows[5]["place"] == "" and len(rows) == 24


def test_the_page_under_a_hand(drawn, folder, tmp_path):
    steps = """
    const box = at("#map").getBoundingClientRect(), place = i => ({x: box.left + 1 + px(i), y: box.top + 1 + py(i)});
    const out = {}, seen = () => pixel("#map", px(7), py(7)), paper = pixel("#map", 2, 2);
    fire("#map", "pointermove", place(7));
    out.hover = at("#tip").textContent; out.visible = at("#tip").style.display;
    fire("#map", "pointermove", {x: box.left + 1, y: box.top + 1});
    out.gone = at("#tip").style.display; await frame();
    out.drawn = seen() !== paper;
    const golgi = [...document.querySelectorAll("#legend button")].find(one => one.textContent.startsWith("Golgi"));
    golgi.click(); await frame();
    out.pressed = golgi.getAttribute("aria-pressed"); out.hidden = seen() === paper;
    fire("#map", "pointermove", place(7)); out.hoverHidden = at("#tip").textContent.startsWith("P7\\n");
    golgi.click(); await frame(); out.back = seen() !== paper;
    at("#find").value = "p7"; fire("#find", "input"); out.one = at("#status").textContent;
    at("#find").value = "P1"; fire("#find", "input"); out.many = at("#status").textContent;
    fire("#find", "keydown", {key: "Enter"}); out.next = at("#status").textContent;
    out.centred = [view.zoom, px(1) - at("#map").clientWidth / 2, py(1) - at("#map").clientHeight / 2];
    at("#column").value = "1"; fire("#column", "change"); out.legend = at("#legend").textContent;
    const before = px(3); fire("#map", "wheel", {...place(3), deltaY: -400});
    out.fixed = Math.abs(px(3) - before) < 1; out.zoomed = view.zoom > 4;
    fire("#map", "keydown", {key: "0"}); out.whole = view.zoom;
    fire("#map", "keydown", {key: "ArrowLeft"}); out.moved = Math.round(px(3) - (whole(), px(3)));
    const old = px(3); at("#arm").value = "random"; fire("#arm", "change"); out.arm = px(3) !== old;
    const other = px(3); at("#method").value = "pca"; fire("#method", "change"); out.method = px(3) !== other;
    await frame(); fire("#theme", "click"); await frame();
    out.dark = pixel("#map", 2, 2);
    out.rows = document.querySelectorAll("tbody tr").length; out.caption = at("#caption").textContent;
    return out;"""
    report = click_through(folder / "out.html", tmp_path, steps)
    assert report.errors == [] and report.requests == []
    out = report.value
    assert out["hover"] == "P7\nplace: Golgi\nkind: S" and out["visible"] == "block" and out["gone"] == "none"
    assert out["drawn"] and out["pressed"] == "false" and out["hidden"] and not out["hoverHidden"] and out["back"]
    assert out["one"] == "P7; place: Golgi; kind: S" and out["many"] == "11 found; Enter goes to the next"
    assert out["next"] == "1 of 11: P1; place: Golgi; kind: S" and out["centred"] == [4, 0, 0]
    assert "M12" in out["legend"] and "S12" in out["legend"] and "Golgi" not in out["legend"]
    assert (out["fixed"], out["zoomed"], out["whole"], out["moved"]) == (True, True, 1, 40)
    assert out["arm"] and out["method"] and out["dark"] == "18,23,30" and out["rows"] == 4
    assert out["caption"].startswith("a.csv: 24 points; model, mean-pooled last layer; perplexity 5, 250 iterations")


def test_labels_from_neighbours(folder, capsys):
    assert run(*QUERY, "--output", "labels.csv") == 0
    printed = capsys.readouterr().out
    rows, report = rows_of("labels.csv"), json.loads((folder / "labels.json").read_text())
    assert [(row["query"], row["rank"]) for row in rows] == [(f"P{i}", f"{k}") for i in range(3) for k in (1, 2, 3)]
    known = {name: place for name, _, place, _ in proteins(24)}
    assert all(row["place"] == known[row["neighbor"]] != "" for row in rows)
    assert all(float(a["distance"]) <= float(b["distance"]) for a, b in itertools.pairwise(rows)
               if a["query"] == b["query"])  # fmt: skip
    assert all(0 <= float(row["agreement"]) <= 1 and 0 <= float(row["reference_nearer"]) <= 1 for row in rows)
    assert report["labelled"] == 23 and report["queries"] == 3 and not report["relatives_excluded"]
    assert "on the reference itself" in printed and f"{report['reference']['right']['value']:.3f}" in printed
    (folder / "same.fasta").write_text("".join(f">Q\n{list(proteins(24))[7][1]}\n"))
    assert run(*QUERY, "--query", "same.fasta", "--output", "same.csv") == 0
    row = rows_of("same.csv")[0]
    assert row["neighbor"] == "P7" and float(row["distance"]) < 1e-5 and float(row["reference_nearer"]) == 0


def test_amino_acids(folder, monkeypatch, capsys):
    monkeypatch.setattr(themes, "THEMES", {})
    assert run("model", "--amino_acids", "--iterations", "250", "--method", "pca") == 0
    report = json.loads((folder / "model_amino_acids.json").read_text())
    assert list(report["columns"]) == ["charge", "polarity", "size", "hydrophobicity", "side chain"]
    assert report["neighbors"] == 3 and report["vectors"] == "input embeddings"
    assert "3-NN purity, chance" in capsys.readouterr().out


def test_a_fasta_without_labels_is_coloured_by_length(folder, monkeypatch):
    monkeypatch.setattr(themes, "THEMES", {})
    text = "".join(f">{name}\n{sequence}\n" for name, sequence, *_ in proteins(24))
    (folder / "plain.fasta").write_text(text)
    assert run("model", "plain.fasta", "--method", "pca", "--arms", "pretrained", "composition") == 0
    report = json.loads((folder / "plain_map.json").read_text())
    assert report["columns"] == {"length": {"points": 24, "missing": 0}}
    assert "composition_pca_1" in rows_of("plain_map.csv")[0]


def test_a_limit_draws_proteins_once():
    whole, few = (read_points("a.csv", limit=limit) for limit in (None, 9))
    places = [whole.ids.index(own) for own in few.ids]
    assert len(few) == 9 and places == sorted(places) and few.ids == read_points("a.csv", limit=9).ids
    assert [few.sequences[i] for i in range(9)] == [whole.sequences[i] for i in places]
    assert [few.columns[0].texts()[i] for i in range(9)] == [whole.columns[0].texts()[i] for i in places]


MISTAKES = [
    (("model",), "give TABLE, or --amino_acids without it"),
    (("model", "a.csv", "--amino_acids"), "give TABLE, or --amino_acids without it"),
    (("model", "a.csv", "--column", "plce"), "a.csv: no column 'plce'; did you mean place"),
    (("model", "a.csv"), "a.csv: 24 points, not more than the perplexity 30; --perplexity should be lower"),
    (("model", "a.csv", "--perplexity", "5", "--neighbors", "23"), "23 points have a label, not more than --neighbors"),
    (("model", "new.fasta", "--method", "pca"), "new.fasta: 3 proteins; a map needs 4 or more"),
    (("model", "a.csv", "--query", "new.fasta"), "--query: --column should name one column"),
    (("model", "a.csv", "--query", "new.fasta", "--column", "id"), "column id: each cell is another; should be labels"),
    (("model", "--amino_acids", "--limit", "9"), "--limit: is of TABLE's proteins; not with --amino_acids"),
    (
        ("model", "a.csv", "--query", "long.fasta", "--column", "place"),
        r"long.fasta, line 1 (L): 80 residues, at most 62",
    ),
    ((*QUERY, "--neighbors", "23"), "23 have a label, not more"),
    ((*QUERY, "--exclude_relatives", "--neighbors", "1"), "without relatives no protein has 1 neighbours"),
    ((*QUERY, "--arms", "random"), "--arms: is of a map; not with --query"),
    ((*QUERY, "--output", "taken.csv"), "taken.csv: a directory; the output is a file"),
    (("model", "--amino_acids", "--pooling", "max"), "--pooling: is of TABLE's proteins; not with --amino_acids"),
    (("model", "--amino_acids", "--column", "mass"), "column 'mass' of amino acids: should be one of charge"),
    (
        ("model", "a.csv", "--perplexity", "5", "--column", "place", "--ignore", *PLACES),
        "column place: no values in it",
    ),
    (("model", "a.csv", "--perplexity", "5", "--exclude_relatives"), "all proteins with a label are relatives"),
    (("model", "a.csv", "--perplexity", "5", "--sequence", "id"), "line 2, column id: '0' is no residue (in 'P0')"),
    (("model", "a.csv", "--perplexity", "5", "--output", "taken"), "taken.csv: a directory; the output is a file"),
    (
        (*QUERY, "--output", "x.tsv"),
        "should be a .csv of its own",
    ),
]


@pytest.mark.parametrize("words, line", MISTAKES)
def test_a_mistake_is_one_line(folder, capsys, monkeypatch, words, line):
    (folder / "long.fasta").write_text(f">L\n{'A' * 80}\n")
    (folder / "taken.csv").mkdir(exist_ok=True)
    for module in (outputs, transfer):  # all are relatives
        monkeypatch.setattr(module, "cluster_sequences", lambda sequences: np.zeros(len(sequences), int))
    assert run(*words) == 2
    error = capsys.readouterr().err.strip()
    assert line in error.splitlines()[-1] and "Traceback" not in error


def test_vectors_that_are_not_finite_are_one_line(folder, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    write_model(tmp_path / "broken")
    (path,) = (tmp_path / "broken").glob("*.safetensors")
    weights = load_file(path)
    next(iter(weights.values())).fill_(float("nan"))
    save_file(weights, path, metadata={"format": "pt"})
    assert run(tmp_path / "broken", "a.csv", "--perplexity", "5", "--method", "pca") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "finite" in error or "NaN" in error or "nan" in error
