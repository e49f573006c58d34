"""`proteinlm variants` as a user calls it: what it writes, and the one line that a mistake gets."""

import csv
import json

import numpy as np
import pytest
from matplotlib import image
from scipy import stats
from toy_esm import esm_model

import proteinlm
from probe import __main__ as command
from probe import variants
from probe.arms import open_encoder
from probe.variants import ranking

WILD = "MKTAYIAKQRQISFVKSHFSRQ"
MUTANTS = [f"{WILD[i]}{i + 24}{letter}" for i, letter in ((1, "A"), (3, "C"), (4, "D"), (8, "E"), (10, "F"), (12, "G"))]
ROWS = [*MUTANTS, "K25R:A27G", "WT", "M24L", "Q45A", "T26S", "I29V"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    directories = []
    for seed in (0, 1):
        directories.append(tmp_path_factory.mktemp("models") / f"esm{seed}")
        esm_model(seed).save_pretrained(directories[-1])
    return [str(directory) for directory in directories]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wt.fasta").write_text(f">P1 a protein\n{WILD[:10]}\n{WILD[10:]}\n")
    lines = [f"{mutant},{value:.2f},x{value:.0f}" for value, mutant in enumerate(ROWS)]
    (tmp_path / "dms.csv").write_text("\n".join(["mutant,DMS_score,note", *lines]) + "\n")
    return tmp_path


def run(*words):
    return command.cli([str(word) for word in words])


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_scores_and_metrics_of_two_models(models, folder, capsys):
    flags = ("--offset", "24", "--device", "cpu", "--output", "out.csv")
    assert run("variants", *models, "wt.fasta", "dms.csv", *flags) == 0
    rows = rows_of("out.csv")
    assert list(rows[0]) == ["mutant", "DMS_score", "note", "esm0", "esm1", "ensemble"]
    assert [row["mutant"] for row in rows] == ROWS and rows[3]["note"] == "x3"
    columns = {name: np.array([float(row[name]) for row in rows]) for name in ("esm0", "esm1", "ensemble")}
    expected = variants.score(proteinlm.load(models[0], device="cpu"), WILD, ROWS, offset=24, quiet=True)
    assert columns["esm0"] == pytest.approx(expected, abs=1e-4)
    assert columns["ensemble"] == pytest.approx((columns["esm0"] + columns["esm1"]) / 2, abs=1e-5)
    report = json.loads((folder / "out.json").read_text())
    assert list(report["metrics"]) == ["esm0", "esm1", "ensemble", "blosum62", "composition", "fewer_mutations"]
    assert report["score"] == "masked-marginals" and report["offset"] == 24
    printed = capsys.readouterr().out
    assert "top_recall" in printed and "blosum62" in printed and "wrote out.csv: 12 mutants" in printed
    assert sorted(path.name for path in folder.iterdir()) == ["dms.csv", "out.csv", "out.json", "wt.fasta"]


@pytest.mark.slow
def test_random_weights_are_a_column_and_the_difference_to_them(models, folder):
    flags = ("--offset", "24", "--device", "cpu", "--output", "out.csv", "--random_seed", "3")
    assert run("variants", *models, "wt.fasta", "dms.csv", *flags) == 0
    rows, report = rows_of("out.csv"), json.loads((folder / "out.json").read_text())
    assert list(rows[0])[3:] == ["esm0", "esm1", "random", "ensemble"] and report["random_seed"] == 3
    columns = {name: np.array([float(row[name]) for row in rows]) for name in list(rows[0])[3:]}
    twin = open_encoder(models[0], random_seed=3, device="cpu")
    assert columns["random"] == pytest.approx(variants.score(twin, WILD, ROWS, offset=24, quiet=True), abs=1e-5)
    assert columns["ensemble"] == pytest.approx((columns["esm0"] + columns["esm1"]) / 2, abs=1e-5)
    assert list(report["minus_random"]) == ["esm0", "esm1", "ensemble"]
    measured = np.arange(float(len(ROWS)))
    own, other = (stats.spearmanr(columns[name], measured).statistic for name in ("esm1", "random"))
    gap = report["minus_random"]["esm1"]["spearman"]
    assert gap["value"] == pytest.approx(own - other, abs=1e-9) and gap["low"] < gap["value"] < gap["high"]
    zero = ranking.differences(columns["esm0"], columns["esm0"], measured)
    assert all(own["value"] == own["low"] == own["high"] == 0 for own in zero.values())  # the same mutants for both


def test_mutated_sequences_and_proteingyms_reference_file(models, folder):
    (folder / "ref.csv").write_text(f"DMS_id,DMS_filename,target_seq,start_idx\nP1,dms2.csv,{WILD},24.0\n")
    (folder / "dms2.csv").write_text(f"mutated_sequence,DMS_score\nA{WILD[1:]},1\nM{WILD[1:]},\n{WILD[:-1]}C,3\n")
    assert run("variants", models[0], "ref.csv", "dms2.csv", "--device", "cpu", "--score", "wt-marginals") == 0
    rows = rows_of("dms2_scored.csv")
    assert [row["mutant"] for row in rows] == ["M24A", "WT", "Q45C"]
    assert float(rows[1]["esm0"]) == 0


def test_a_scan_draws_every_mutation(models, folder):
    assert run("variants", models[0], "wt.fasta", "--scan", "--device", "cpu", "--score", "wt-marginals") == 0
    rows = rows_of("wt_scan.csv")
    assert len(rows) == 20 * len(WILD) and (rows[0]["mutant"], rows[21]["position"]) == ("M1A", "2")
    table = variants.scan(proteinlm.load(models[0], device="cpu"), WILD, "wt-marginals", quiet=True)
    assert [float(row["esm0"]) for row in rows] == pytest.approx(table.ravel(), abs=1e-4)
    light, dark = (image.imread(f"wt_scan{theme}.png")[..., :3] for theme in ("", ".dark"))
    assert light.shape == dark.shape and light[0, 0].mean() > 0.9 and dark[0, 0].mean() < 0.2  # the paper
    drawn = (folder / "wt_scan.svg").read_text()
    assert all(text in drawn for text in ("amino acid put in", "position in P1", "esm0, wt-marginals"))
    assert (folder / "wt_scan.dark.svg").exists()


MISTAKES = {
    "the numbering": (
        ["wt.fasta", "dms.csv"],
        "dms.csv, line 2, column mutant: K25A is at position 25; the 22 residues",
    ),
    "a better one": (["wt.fasta", "dms.csv", "--offset", "23"], "with --offset 24 every mutation of the file fits"),
    "two wild types": (["two.fasta", "dms.csv"], "two.fasta: 2 proteins (A, A); a wild type is a file of one"),
    "a letter": (["j.fasta", "dms.csv"], "j.fasta, line 1: '1' at position 2 is no residue"),
    "a genome": (["genome.fasta", "--scan"], "genome.fasta, line 1: 100,001 residues, more than 100,000; is this a"),
    "no such file": (["no.fasta", "dms.csv"], "no.fasta: no such file"),
    "empty": (["wt.fasta", "empty.csv"], "empty.csv: no proteins in it"),
    "no column": (["wt.fasta", "columns.csv"], "columns.csv: no column mutant or mutated_sequence; it has a, b"),
    "a flag's column": (
        ["wt.fasta", "dms.csv", "--offset", "24", "--score_column", "DMS_scor"],
        "did you mean DMS_score",
    ),
    "twice": (["wt.fasta", "twice.csv"], "twice.csv, line 3: M1A is on line 2 too"),
    "no number": (["wt.fasta", "text.csv"], "text.csv, line 2, column score: 'high' is no number"),
    "an insertion": (["wt.fasta", "long.csv"], "long.csv, line 2, column mutated_sequence: 2 residues, P1 has 22"),
    "another protein": (["wt.fasta", "other.csv"], "other.csv, line 2, column mutated_sequence: is not P1 with M1A"),
    "no mutants": (["wt.fasta"], "no MUTATIONS.csv and no --scan; should be one of them"),
    "both": (["wt.fasta", "dms.csv", "--scan"], "give MUTATIONS.csv, or --scan without it"),
    "the output": (
        ["wt.fasta", "dms.csv", "--output", "dms.csv", "--offset", "24"],
        "--output dms.csv: should be a .csv",
    ),
    "a reference": (["ref.csv", "dms.csv"], "ref.csv: 0 rows for dms.csv; should be one"),
    "a column random": (["wt.fasta", "random.csv", "--random_seed", "0"], "has a column 'random' already"),
    "its own column": (["wt.fasta", "column.csv"], "has a column 'esm0' already"),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(models, folder, capsys, words, message):
    files = {
        "two.fasta": ">A\nMK\n>A\nMK\n",
        "j.fasta": ">A\nM1\n",
        "genome.fasta": ">A\n" + "A" * 100_001 + "\n",
        "empty.csv": "mutant,DMS_score\n",
        "columns.csv": "a,b\n1,2\n",
        "twice.csv": "mutant\nM1A\nM1A\n",
        "text.csv": "mutant,score\nM1A,high\n",
        "long.csv": "mutated_sequence\nMK\n",
        "other.csv": f"mutant,mutated_sequence\nM1A,{WILD}\n",
        "ref.csv": f"DMS_id,DMS_filename,target_seq\nP1,P1.csv,{WILD}\n",
        "column.csv": "mutant,esm0\nM1A,1\n",
        "random.csv": "mutant,random\nM1A,1\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    assert run("variants", models[0], *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert {path.name for path in folder.iterdir()} == {*files, "wt.fasta", "dms.csv"}


def test_numbers_that_rank_nothing(models, folder, capsys):
    text = (folder / "dms.csv").read_text()
    (folder / "dms.csv").write_text(text.replace(",3.00,", ",-inf,"))
    assert run("variants", models[0], "wt.fasta", "dms.csv", "--offset", "24", "--device", "cpu") == 2
    line = "dms.csv, line 5, column DMS_score: '-inf' is no finite number; NA says that there is none"
    assert capsys.readouterr().err.strip() == f"error: {line}"
    (folder / "dms.csv").write_text("mutant,DMS_score\n" + "".join(f"{mutant},2.5\n" for mutant in ROWS[:9]))
    assert run("variants", models[0], "wt.fasta", "dms.csv", "--offset", "24", "--device", "cpu") == 0
    printed = capsys.readouterr().out
    assert "notice: every value of DMS_score is 2.5, so there is nothing to rank" in printed
    assert "notice: ndcg is of the best tenth, and 9 measured mutants have none" in printed
    report = json.loads((folder / "dms_scored.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert report["metrics"]["esm0"]["ndcg"]["value"] is None


def test_verbs(capsys):
    assert run("variant") == 2
    assert "did you mean variants?" in capsys.readouterr().err
    assert run("--help") == 0
    assert "variants" in capsys.readouterr().out
    assert run("variants", "wt.fasta") == 2
    assert "should be MODEL ... WT.fasta [MUTATIONS.csv]" in capsys.readouterr().err
