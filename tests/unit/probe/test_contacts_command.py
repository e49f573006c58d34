"""`proteinlm contacts` as a user calls it: what it writes, the page clicked through, and the one line of a mistake."""

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from browser import click_through
from matplotlib import image
from safetensors.torch import load_file
from tape_lmdb import write_lmdb
from toy_chains import write_chains
from toy_esm import esm_model
from toy_huggingface import write_family

import proteinlm
from probe import __main__ as command
from probe.arms import open_encoder
from probe.contacts import output
from probe.contacts.chains import Chains
from probe.contacts.heads import attention_on_contacts
from proteinlm.encoder import Encoder
from proteinlm.model_dir.regression import read_regression
from tape.inference.fasta import Rules
from tape.inference.parts import PartStore

SEQUENCES = {"P1": "MKTAYIAKQRQISFVKSHFSRQ", "sp|P2/x": "MKVLAAGIVGACDEFG", "P3": "GACDMKVLAAG"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("contacts")
    esm_model().save_pretrained(root / "esm")
    write_family("ProtT5", root / "prott5")
    (root / "in.fasta").write_text("".join(f">{name} a protein\n{residues}\n" for name, residues in SEQUENCES.items()))
    write_chains(root / "train.lmdb", 5)
    write_chains(root / "test.lmdb", 3, seed=40)
    write_lmdb(root / "empty.lmdb", [])
    return root


@pytest.fixture
def folder(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return root


def run(*words):
    return command.cli(["contacts", *map(str, words), "--device", "cpu"])


def test_maps_in_the_three_forms(folder, tmp_path):
    expected = proteinlm.load(folder / "esm", device="cpu").contacts(list(SEQUENCES.values()), quiet=True)
    assert run(folder / "esm", folder / "in.fasta", "out.npz", "--png") == 0
    with np.load("out.npz") as archive:
        assert list(archive) == list(SEQUENCES)
        for name, own in zip(SEQUENCES, expected, strict=True):
            assert archive[name].dtype == np.float32 and archive[name] == pytest.approx(own, abs=1e-6)
    pictures = sorted((tmp_path / "out_png").iterdir())
    assert [path.name for path in pictures] == ["000001_P1.png", "000002_sp_P2_x.png", "000003_P3.png"]
    assert image.imread(pictures[0]).std() > 0.01
    assert run(folder / "esm", folder / "in.fasta", "out.h5") == 0
    with h5py.File("out.h5") as file:
        assert file["sp|P2_x"].attrs["original_id"] == "sp|P2/x"
        assert file["sp|P2_x"][:] == pytest.approx(expected[1], abs=1e-6)
    assert run(folder / "esm", folder / "in.fasta", "out.csv", "--top", 4) == 0
    with open("out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [name for name in SEQUENCES for _ in range(4)]
    own, first = expected[0], rows[0]
    i, j = int(first["i"]) - 1, int(first["j"]) - 1
    far = np.triu(own, 6)
    assert own[i, j] == far.max() == pytest.approx(float(first["probability"]), abs=1e-6)
    assert (first["residue_i"], first["residue_j"]) == (SEQUENCES["P1"][i], SEQUENCES["P1"][j])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.h5", "out.npz", "out_png"]


def test_a_killed_run_goes_on_at_its_last_part(folder, monkeypatch):
    calls, ends = [], True
    contacts = Encoder.contacts

    def counted(self, sequences, **flags):
        calls.append(len(sequences))
        if ends and len(calls) == 2:
            raise KeyboardInterrupt
        return contacts(self, sequences, **flags)

    monkeypatch.setattr(Encoder, "contacts", counted)
    monkeypatch.setattr(output, "PART_PAIRS", 500)
    encoder = proteinlm.load(folder / "esm", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        output.write_contacts(encoder, folder / "in.fasta", "a.npz", quiet=True)
    ends = False
    output.write_contacts(encoder, folder / "in.fasta", "a.npz", quiet=True)
    assert calls == [1, 2, 2]
    whole = contacts(encoder, list(SEQUENCES.values()), quiet=True)
    with np.load("a.npz") as archive:
        assert archive["P3"] == pytest.approx(whole[2], abs=1e-5)


def test_an_export_that_was_cut_off_is_made_again(folder, tmp_path, monkeypatch):
    """Killed between any two files: the same command still finds no copy that it would have to replace."""
    words = (folder / "esm", "--fit", folder / "train.lmdb", "--proteins", 3, "--output", "own")
    words += ("--export", tmp_path / "copy")

    class Killed(BaseException):
        pass

    for name in ("proteinlm.model_dir.regression.shutil.copyfile", "tape.inference.parts.PartStore.finish"):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(name, lambda *_: (_ for _ in ()).throw(Killed))
            run(*words)
        assert not (tmp_path / "copy").exists()
    assert run(*words) == 0 and (tmp_path / "copy/config.json").is_file()


def test_fit_score_export_and_use(folder, tmp_path, capsys):
    data = ("--fit", folder / "train.lmdb", "--test", folder / "test.lmdb", "--proteins", 4)
    assert run(folder / "esm", *data, "--seeds", 0, 3, "--output", "own", "--export", "copy") == 0
    printed, report = capsys.readouterr().out, json.loads((tmp_path / "own.json").read_text())
    assert list(report["arms"]) == ["pretrained", "random", "separation", "residue_pairs"]
    assert "C-alpha" in report["contact"] and report["test_chains"] == 3 and report["random_seed"] == 0
    assert "minus_random" in printed and "maps used" in printed
    names = {"own.json", "own.safetensors", "own.seed3.safetensors", "copy"}
    assert {path.name for path in tmp_path.iterdir()} == names
    (weight,) = (load_file("copy/model.safetensors")[f"esm.contact_head.regression.{part}"] for part in ("weight",))
    assert (weight == read_regression("own.safetensors").weight).all()
    assert run("copy", folder / "in.fasta", "a.npz") == 0
    assert run(folder / "esm", folder / "in.fasta", "b.npz", "--regression", "own.safetensors") == 0
    with np.load("a.npz") as one, np.load("b.npz") as two:
        assert (one["P1"] == two["P1"]).all()
    again = ("--test", folder / "test.lmdb", "--regression", "own.safetensors", "--output", "again")
    assert run(folder / "esm", *again) == 0  # the regression of seed 0, as it is
    arms = json.loads((tmp_path / "again.json").read_text())["arms"]
    assert list(arms) == ["pretrained", "separation"]
    assert arms["pretrained"]["precision_at_l"]["value"] == pytest.approx(
        report["by_seed"]["pretrained"]["precision_at_l"][0], abs=1e-6
    )


def test_an_encoder_of_transformers(folder, tmp_path):
    data = ("--fit", folder / "train.lmdb", "--proteins", 2, "--output", "t5")
    assert run(folder / "prott5", *data) == 0
    assert run(folder / "prott5", folder / "in.fasta", "t5.npz", "--regression", "t5.safetensors") == 0
    assert read_regression("t5.safetensors").weight.shape == (1, 4)
    with np.load("t5.npz") as archive:
        assert archive["P1"].shape == (22, 22)


@pytest.mark.slow
def test_heads_and_their_pictures(folder, tmp_path, capsys):
    assert run(folder / "esm", "--heads", folder / "test.lmdb", "--threshold", 0.1, "--output", "own") == 0
    report = json.loads((tmp_path / "own.heads.json").read_text())
    shares = report["arms"]["pretrained"]
    assert np.shape(shares["weighted_share"]) == np.shape(shares["share"]) == (2, 4)
    twin = open_encoder(str(folder / "esm"), random_seed=0, device="cpu")
    store = PartStore(tmp_path / "twin.json", {})
    own = attention_on_contacts(twin, Chains(folder / "test.lmdb", "test"), store, 0.1, quiet=True).report()
    assert report["arms"]["random"] == own and own["weighted_share"] != shares["weighted_share"]
    assert "contacts are" in capsys.readouterr().out
    light, dark = (image.imread(f"own.heads{theme}.png") for theme in ("", ".dark"))
    assert light[0, 0, :3].mean() > 0.9 and dark[0, 0, :3].mean() < 0.2 and light.std() > 0.05
    assert "lands on contacts" in (tmp_path / "own.heads.svg").read_text()


STEPS = """
const arcs = at("#arcs"), grid = at("#grid"), box = () => arcs.getBoundingClientRect(), out = {};
const residue = i => ({x: box().left + 20 + (i + .5) * (box().width - 40) / data.sequence.length, y: box().top + 40});
at("#lines").value = data.lines; fire("#lines", "input");
fire(arcs, "pointermove", residue(4)); out.tip = at("#tip").textContent;
fire(arcs, "pointerleave"); out.gone = at("#tip").style.display;
const cells = grid.getBoundingClientRect(), side = +grid.dataset.side;
const cell = {x: cells.left + 40 + 2.5 * side, y: cells.top + 1.5 * side};
fire(grid, "pointermove", cell); out.cell = at("#tip").textContent;
fire(grid, "click", cell);
out.layer = at("#layer").value; out.head = at("#head").value;
const picture = () => arcs.toDataURL(), before = picture();
at("#lines").value = 3; fire("#lines", "input"); out.least = at("#least").textContent; out.drawn = picture() !== before;
const few = picture(); at("#contacts").checked = false; fire("#contacts", "input"); out.hidden = picture() !== few;
const one = picture(); fire("#theme", "click"); await frame(); out.themed = picture() !== one;
fire(arcs, "pointermove", residue(4)); out.letter = data.sequence[4];
return out;
"""


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_of_a_protein_clicked_through(folder, tmp_path, dark):
    assert run(folder / "esm", "--view", folder / "test.lmdb", "--id", "c1", "--output", "own") == 0
    page = tmp_path / "own.html"
    report = click_through(page, tmp_path, STEPS, dark=dark)
    assert report.errors == [] and report.requests == []
    seen = report.value
    assert seen["tip"].startswith(f"{seen['letter']}5") and "attend" in seen["tip"] and seen["gone"] == "none"
    assert seen["cell"].startswith("layer 2, head 3: ") and "on contacts" in seen["cell"]
    assert (seen["layer"], seen["head"]) == ("1", "2")
    assert seen["least"].startswith("3 of ") and seen["drawn"] and seen["hidden"] and seen["themed"]
    assert "C-alpha" in page.read_text()


@pytest.mark.slow
def test_a_page_without_structure(folder, tmp_path):
    assert run(folder / "prott5", "--view", folder / "in.fasta", "--id", "P3", "--output", "t5") == 0
    report = click_through(tmp_path / "t5.html", tmp_path, "return at('#known').style.display;")
    assert report.errors == [] and report.value == "none"


def test_a_zero_byte_is_an_unknown_residue(folder):
    Path("zero.fasta").write_text(">P1\nMKTA\0IAKQRQ\n")
    assert run(folder / "esm", "zero.fasta", "out.h5") == 0
    with h5py.File("out.h5") as file:
        assert file["P1"].shape == (11, 11) and file["P1"].attrs["sequence"] == "MKTAXIAKQRQ"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("esm",), "should be MODEL with IN.fasta and OUT, or with one of --fit"),
        (("esm", "in.fasta", "out.npz", "--fit", "train.lmdb"), "should be MODEL with IN.fasta and OUT"),
        (("prott5", "in.fasta", "out.npz"), "no contact regression, so no contacts"),
        (("prott5", "--test", "test.lmdb"), "no contact regression, so no contacts"),
        (("esm", "in.fasta", "out.txt"), "out.txt: should end in .npz, .h5, .csv"),
        (("esm", "in.fasta", "in.fasta"), "should end in"),
        (("esm", "--fit", "train.lmdb"), "5 chains; the fit draws 20 (--proteins)"),
        (("esm", "--fit", "absent.lmdb"), "no such file"),
        (("esm", "--fit", "train.lmdb", "--seeds", "1", "1"), "--seeds 1 1: should differ"),
        (("esm", "--test", "test.lmdb", "--export", "copy"), "--export copy: is of --fit"),
        (("prott5", "--test", "test.lmdb", "--regression", "train.lmdb"), "a directory; a contact regression is"),
        (("esm", "--view", "test.lmdb", "--id", "c9"), "no chain 'c9' among its 3"),
        (("esm", "--view", "in.fasta", "--id", "P9"), "no protein 'P9'"),
        (("esm", "--heads", "test.lmdb", "--max_length", "20"), "30 residues, but max_length is 20"),
        (("esm", "in.fasta", "out.npz", "--max_length", "20", "--png"), "1 of 3 proteins exceed 20 residues"),
        (("esm", "--fit", "train.lmdb", "--export", "esm"), "exists already; give the copy of"),
        (("prott5", "--fit", "train.lmdb", "--export", "copy"), "has no place for a contact regression"),
        (("esm", "--view", "empty.lmdb"), "empty.lmdb: no chains"),
        (("esm", "--test", "empty.lmdb"), "empty.lmdb: no chains"),
        (("esm", "--test", "in.fasta"), "in.fasta: should be chains of known structure"),
        (("esm", "in.fasta", "out.npz", "--top", "3"), "out.npz: top (--top) is of a .csv"),
        (("esm", "in.fasta", "out.npz", "--id", "P1"), "--id: is not of IN and OUT"),
        (("esm", "--test", "test.lmdb", "--arms", "random"), "--arms random: pretrained should be one"),
    ],
)
def test_mistakes_get_one_line(folder, tmp_path, capsys, words, complaint):
    files = ("esm", "prott5", "in.fasta", "train.lmdb", "test.lmdb", "empty.lmdb")
    assert run(*(str(folder / word) if word in files else word for word in words)) == 2
    printed = capsys.readouterr().err.strip()
    assert complaint in printed and len(printed.splitlines()[-1]) > 20 and "Traceback" not in printed
    assert list(tmp_path.iterdir()) == []


def test_a_regression_of_another_model_is_refused(folder, tmp_path, capsys):
    assert run(folder / "prott5", "--fit", folder / "train.lmdb", "--proteins", 2, "--output", "t5") == 0
    assert run(folder / "esm", folder / "in.fasta", "a.npz", "--regression", "t5.safetensors") == 2
    assert "2 layers x 4 heads, so it should be [1, 8]" in capsys.readouterr().err
    with pytest.raises(proteinlm.errors.InputError, match="1 of 3 proteins exceed 20 residues"):
        encoder = proteinlm.load(folder / "esm", device="cpu")
        output.write_contacts(encoder, folder / "in.fasta", "b.npz", rules=Rules(max_length=20), quiet=True)
