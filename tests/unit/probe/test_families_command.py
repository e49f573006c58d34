"""`proteinlm contacts --families` as a user calls it: its table, page and pictures, a kill, the line of a mistake."""

import json

import numpy as np
import pytest
from browser import click_through
from matplotlib import image
from toy_chains import relatives, write_chains
from toy_esm import esm_model

from probe import __main__ as command
from probe.contacts import scoring
from probe.contacts.chains import Chains
from probe.contacts.coevolution import evaluation, pictures
from probe.contacts.coevolution.evaluation import DCA, MI, FamilyChain
from probe.contacts.fitting import choose
from probe.contacts.scoring import NAMES
from tape import metrics

ARMS = ["pretrained", "random", "separation", MI, DCA]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Of ten chains of train two have 40 members in the corpus and another has 10; of those of test one has 40."""
    root = tmp_path_factory.mktemp("families")
    esm_model().save_pretrained(root / "esm")
    train = Chains(write_chains(root / "train.lmdb", 10, length=70), "train")
    test = Chains(write_chains(root / "test.lmdb", 2, seed=40, length=70), "test")
    rng, lines = np.random.default_rng(0), []
    free = [place for place in range(10) if place not in choose(10, 3, 0)]
    related = [(train, free[0], 40), (train, free[1], 40), (train, free[2], 10), (test, 1, 40)]
    for number, (data, place, members) in enumerate(related):
        lines += [f">m PF0000{number}\n{own}\n" for own in relatives(data.sequence(place), members, rng)]
    (root / "corpus.fasta").write_text("".join(lines))
    (root / "plain.fasta").write_text(">P1\nMKV\n")
    (root / "names.txt").write_text("\n".join([train[free[0]].name, train[free[1]].name, test[1].name]))
    return root


@pytest.fixture
def folder(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return root


def run(folder, *words):
    fit = ("--fit", folder / "train.lmdb", "--test", folder / "test.lmdb", "--proteins", 3, "--output", "own")
    words = (folder / "esm", *fit, "--families", folder / "corpus.fasta", "--members", 30, *words, "--device", "cpu")
    return command.cli(["contacts", *map(str, words)])


def test_the_table_the_page_and_a_run_that_was_killed(folder, tmp_path, capsys, monkeypatch):
    measure, calls = evaluation._measure, []

    def counted(chain, *rest):
        calls.append(chain.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(chain, *rest)

    monkeypatch.setattr(evaluation, "_measure", counted)
    monkeypatch.setattr(pictures, "SHOWN", 1)
    assert run(folder) != 0
    calls.append("killed")
    assert run(folder) == 0
    expected = (folder / "names.txt").read_text().split()
    assert sorted(calls[:1] + calls[3:]) == sorted(expected)
    names = ["own.families.dark.png", "own.families.dark.svg", "own.families.html", "own.families.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "own.families.png", "own.families.svg"]
    report = json.loads((tmp_path / "own.families.json").read_text())
    assert list(report["arms"]) == ARMS and report["searched_chains"] == 9 and report["test_chains"] == 3
    assert sorted(row["name"] for row in report["chains"]) == sorted(expected)
    for row in report["chains"]:
        assert row["members"] == 40 and 35 < row["neff"] <= 41
        assert row["first_residue"] < 5 and row["last_residue"] > row["length"] - 5
        assert list(row["precisions"]) == ARMS
    for arm in ARMS:
        own = [row["precisions"][arm]["precision_at_l"] for row in report["chains"]]
        assert report["arms"][arm]["precision_at_l"]["value"] == pytest.approx(np.mean(own))
    assert "minus_coevolution_dca" in capsys.readouterr().out
    light, dark = (image.imread(f"own.families{theme}.png") for theme in ("", ".dark"))
    assert light[0, 0, :3].mean() > 0.9 and dark[0, 0, :3].mean() < 0.2
    page = (tmp_path / "own.families.html").read_text()
    assert "corpus.fasta" in page and expected[0] in page and "PF00003" in page


THEMES = """
const images = () => [...document.querySelectorAll("img")];
const hidden = () => images().map(image => getComputedStyle(image).display === "none"), before = hidden();
fire("#theme", "click"); await frame();
return {before, after: hidden(), widths: images().map(image => image.naturalWidth)};
"""


@pytest.mark.slow
def test_the_page_follows_the_theme(folder, tmp_path):
    assert run(folder, "--arms", "pretrained") == 0
    for dark in (False, True):
        report = click_through(tmp_path / "own.families.html", tmp_path, THEMES, dark=dark)
        assert report.errors == [] and report.requests == [] and min(report.value["widths"]) > 500
        assert report.value["before"] == [dark, not dark] and report.value["after"] == [not dark, dark]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--members", "50"), "none of 9 chains has 50 members of a family in it (--members)"),
        (("--families", "plain.fasta"), "no header names a Pfam family"),
        (("--families", "absent.fasta"), "no such file"),
        (("--export", "copy"), "--export: is not of --families"),
    ],
)
def test_mistakes_get_one_line(folder, tmp_path, capsys, words, complaint):
    words = [str(folder / word) if word.endswith("fasta") else word for word in words]
    assert run(folder, *words) == 2
    printed = capsys.readouterr().err.strip()
    assert complaint in printed and "Traceback" not in printed
    assert [path for path in tmp_path.iterdir() if path.name != "own.families.json.parts"] == []


def test_families_without_test_are_refused(folder, capsys):
    words = ("contacts", folder / "esm", "--families", folder / "corpus.fasta", "--fit", folder / "train.lmdb")
    assert command.cli([*map(str, words)]) == 2
    assert "should be with --test" in capsys.readouterr().err


def test_of_one_file_the_chains_that_no_seed_fits_on_are_scored(root):
    data = Chains(root / "train.lmdb", "train")
    own = evaluation.unfitted(data, Chains(root / "train.lmdb", "test"), (0, 1), 3)
    fitted = {*choose(10, 3, 0).tolist(), *choose(10, 3, 1).tolist()}
    assert [place for _, place in own] == [place for place in range(10) if place not in fitted]
    both = evaluation.unfitted(data, Chains(root / "test.lmdb", "test"), (0,), 3)
    assert len(both) == 2 + 7 and len(evaluation.unfitted(None, data, (0,), 3)) == 10


def test_intervals_draw_families():
    """Two chains of each of five families, alike: as many draws of five as if each family were one chain."""
    values = np.random.default_rng(0).random((5, 1, len(NAMES)))
    arms = {"pretrained": values, "separation": values[::-1]}
    one = scoring.summarise(arms)["arms"]["pretrained"]["precision_at_l"]
    twice = {arm: own.repeat(2, 0) for arm, own in arms.items()}
    both = scoring.summarise(twice, np.arange(5).repeat(2))["arms"]["pretrained"]["precision_at_l"]
    assert both == pytest.approx(one)
    apart = scoring.summarise(twice)["arms"]["pretrained"]["precision_at_l"]
    assert apart["high"] - apart["low"] < 0.85 * (one["high"] - one["low"])


def family_chain(name, family, neff, length=40):
    rng = np.random.default_rng(len(name))
    labels = np.triu(rng.integers(-1, 2, (length, length)), 6)
    labels += labels.T
    maps = {arm: rng.normal(size=(length, length)).astype(np.float32) for arm in evaluation.DRAWN}
    own = {arm: scoring.precisions(scores, labels)[None] for arm, scores in maps.items()}
    return FamilyChain(name, "c.lmdb", family, 60, 10, 10 + length, 300, neff, labels, own, maps)


def test_what_is_drawn_are_the_pairs_that_precision_counts():
    row = family_chain("a", "PF00001", 100.0)
    first, second, right = pictures.likeliest(row.maps[DCA], row.labels)
    expected = metrics.contact_precisions(row.maps[DCA].astype(np.float64), row.labels)["precision_at_l"]
    assert len(first) == 40 and (second - first).min() >= 6 and right.mean() == expected > 0


def test_one_chain_a_family_is_drawn_by_what_its_alignment_holds():
    rows = [family_chain("a", "PF1", 90.0), family_chain("bb", "PF2", 50.0, 20), family_chain("ccc", "PF1", 80.0)]
    assert [row.name for row in pictures.chosen(rows)] == ["bb", "a"]
