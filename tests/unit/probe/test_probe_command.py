"""`proteinlm probe` as a user calls it: its files, what a killed run keeps, and the one line that a mistake gets."""

import json

import numpy as np
import pytest
import torch
from matplotlib import image
from toy_esm import esm_model

from probe import __main__ as command
from probe import probes
from probe.probes import experiment, report, scoring
from probe.probes.data import KNOWN, LOCATIONS
from probe.probes.heads import CNN
from tape.data import holdout

RNG = np.random.default_rng(1)
LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "esm"
    esm_model().save_pretrained(directory)
    return str(directory)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """deeploc.csv of 30 proteins; few draws, and no second spent on pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scoring, "RESAMPLES", 20)
    monkeypatch.setattr(holdout, "ROUNDS", 2)
    lines = ["id,sequence,location,membrane,states,split"]
    for i in range(30):
        sequence = "".join(RNG.choice(LETTERS, 12))
        states = "".join("HEC"[ord(letter) % 3] for letter in sequence)
        lines.append(f"P{i},{sequence},{LOCATIONS[i % 3]},{'SMU'[i % 3]},{states},{'test' if i > 20 else 'train'}")
    (tmp_path / "deeploc.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def no_pictures(monkeypatch):
    drawn = []
    for name in ("draw_confusion", "draw_layers"):
        monkeypatch.setattr(report, name, lambda stem, *rest: drawn.append((stem.name, *rest)) or [stem])
    return drawn


def call(*words):
    return command.cli(["probe", *map(str, words)])


QUICK = ("--device", "cpu", "--epochs", "2", "--seeds", "0", "1", "--output", "out")


def test_a_train_of_one_sequence_is_refused_before_it_is_embedded(model, folder, capsys):
    table = folder / "deeploc.csv"
    head, *rows = [line.split(",") for line in table.read_text().splitlines()]
    table.write_text("\n".join(",".join([row[0], "MKTAYIAKQRQI", *row[2:]]) for row in [head, *rows]) + "\n")
    table.write_text(table.read_text().replace("id,MKTAYIAKQRQI", "id,sequence"))
    assert call(model, "deeploc.csv", "--target", "location", *QUICK) == 2
    assert "train of deeploc.csv has one distinct sequence" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_arms_heads_poolings_and_layers_in_one_table(model, folder, no_pictures, capsys):
    words = ("deeploc.csv", "--target", "location", "membrane", "--heads", "fnn", "logistic", "--layers", "0", "2")
    assert call(model, *words, "--poolings", "mean", "max_min", *QUICK, "--epochs", "1") == 0
    results = json.loads((folder / "out/results.json").read_text())
    rows = results["rows"]
    setups = {(row["head"], row["pooling"], row["layer"], row["arm"]) for row in rows}
    encoders = {(h, p, n, a) for h in ("fnn", "logistic") for p in ("mean", "max_min") for n in (0, 2)
                for a in ("pretrained", "random")}  # fmt: skip
    assert setups == encoders | {(head, "mean", None, "composition") for head in ("fnn", "logistic")}
    assert {(row["split"], row["target"], row["proteins"]) for row in rows} == {
        ("test", "location", 9),
        ("test", "membrane", 6),
    }
    for row in rows:
        seeds = [own["mcc"] for own in row["of_each_seed"]]
        assert row["metrics"]["mcc"]["value"] == pytest.approx(np.mean(seeds)) and len(seeds) == 2
        assert np.sum(row["confusion"]) == 2 * row["proteins"] and ("minus_random" in row) == (
            row["arm"] == "pretrained"
        )
        if row["arm"] == "pretrained":
            same = ("head", "pooling", "layer", "target")
            (twin,) = [r for r in rows if r["arm"] == "random" and all(r[key] == row[key] for key in same)]
            difference = row["metrics"]["accuracy"]["value"] - twin["metrics"]["accuracy"]["value"]
            assert row["minus_random"]["accuracy"]["value"] == pytest.approx(difference)
    assert results["settings"]["held out of train"]["held_out"] == 2 and results["seconds"] > 0
    printed = capsys.readouterr()
    assert "location (Q10)" in printed.out and "accuracy minus random" in (folder / "out/table.md").read_text()
    assert "splits" not in printed.err and "deeploc: train 21, test 9 proteins" in printed.err
    stems = [stem for stem, *_ in no_pictures]
    assert stems[:2] == ["confusion_location_test", "confusion_membrane_test"]
    assert "layers_location_test_fnn_max_min" in stems and len(stems) == 2 + 8
    curves, level = next(rest[0:2] for stem, *rest in no_pictures if stem == "layers_location_test_fnn_mean")
    assert (
        list(curves) == ["pretrained", "random"] and list(curves["random"]) == [0, 2] and list(level) == ["composition"]
    )


def test_a_killed_run_goes_on_and_a_second_reads_what_is_there(model, folder, no_pictures, monkeypatch):
    words = (model, "deeploc.csv", "--target", "location", *QUICK)
    assert call(*words) == 0
    whole = json.loads((folder / "out/results.json").read_text())["rows"]
    fits, fit = [], experiment.fit

    def killed(*arguments, **options):
        if len(fits) == 3:
            raise KeyboardInterrupt
        fits.append(options["seed"])
        return fit(*arguments, **options)

    monkeypatch.setattr(experiment, "fit", killed)
    again = [word if word != "out" else "again" for word in words]
    assert call(*again) == 130
    assert not (folder / "again/results.json").exists()
    fits.clear()
    assert call(*again) == 0 and fits == [1, 0, 1]  # six fits, three of them were done
    rows = json.loads((folder / "again/results.json").read_text())["rows"]
    for row, other in zip(whole, rows, strict=True):
        row.pop("fits"), other.pop("fits")  # their seconds
        assert row == other
    monkeypatch.setattr(experiment, "fit", None)
    next((folder / "again/heads").glob("*.npz")).with_suffix(".training").touch()  # as a kill before its removal has it
    assert call(*again) == 0
    assert {path.suffix for path in (folder / "again/heads").iterdir()} == {".npz", ".pt"}


def test_a_checkpoint_is_scored_without_training(model, folder, no_pictures, monkeypatch, capsys):
    torch.manual_seed(0)
    head = CNN(16, {name: KNOWN[name][0] for name in ("ss3", "ss8", "disorder")})
    torch.save({"state_dict": head.state_dict()}, "secstruct_checkpoint.pt")
    words = ("deeploc.csv", "--target", "states", "--checkpoint", "secstruct_checkpoint.pt", "--device", "cpu")
    assert call(model, *words) == 0
    (row,) = json.loads((folder / "deeploc_probe/results.json").read_text())["rows"]
    assert (row["head"], row["arm"], row["split"], row["labels"]) == ("cnn", "pretrained", "test", 9 * 12)
    data = probes.read_columns("deeploc.csv", ("states",))
    vectors = experiment.embed_once(model, data.sequences, "embeddings", per_residue=True, device="cpu", quiet=True)
    right = 0
    for i in data.splits["test"]:
        x = torch.from_numpy(vectors.residues(i))[None]
        best = head.eval()(x, torch.ones(1, 12, dtype=torch.bool))["states" if "states" in head.names else "ss3"]
        right += int((best[0].argmax(-1).numpy() == data.targets["states"].labels[i]).sum())
    assert row["metrics"]["accuracy"]["value"] == pytest.approx(right / (9 * 12))
    torch.save({"state_dict": CNN(20, {"ss3": KNOWN["ss3"][0]}).state_dict()}, "secstruct_checkpoint.pt")
    assert call(model, *words) == 2
    assert "has shape [32, 20, 7, 1], these embeddings need [32, 16, 7, 1]" in capsys.readouterr().err


@pytest.mark.slow
def test_residues_with_every_arm(model, folder, no_pictures):
    heads = ("cnn", "logistic", "mlp", "lstm")
    assert call(model, "deeploc.csv", "--target", "states", "--heads", *heads, *QUICK) == 0
    rows = json.loads((folder / "out/results.json").read_text())["rows"]
    assert [(row["head"], row["arm"]) for row in rows] == [
        (head, arm) for head in heads for arm in ("pretrained", "random", "one_hot")
    ]
    data = probes.read_columns("deeploc.csv", ("states",))
    options = probes.Options(heads=("cnn",), arms=("one_hot",), epochs=2, seeds=(0, 1), device="cpu")
    alone = probes.run(None, data, folder / "alone", options)
    assert alone["rows"][0]["metrics"] == rows[2]["metrics"]


@pytest.mark.slow
def test_pictures(model, folder):
    words = ("deeploc.csv", "--target", "location", "--layers", "all", "--heads", "light_attention", "fnn")
    assert call(model, *words, *QUICK) == 0
    for stem in ("confusion_location_test", "layers_location_test_fnn_mean", "layers_location_test_light_attention"):
        light, dark = (image.imread(f"out/{stem}{theme}.png")[..., :3] for theme in ("", ".dark"))
        assert light[0, 0].mean() > 0.9 and dark[0, 0].mean() < 0.2  # the paper
        drawn = (folder / f"out/{stem}.svg").read_text()
        assert all(text in drawn for text in ("deeploc", "split test", "esm (random: seed 0)", "2 seeds of the head"))
        assert (folder / f"out/{stem}.dark.svg").exists()
    assert all(text in drawn for text in ("layer (0: the embedding)", "accuracy", "pretrained", "one_hot"))


MISTAKES = {
    "a head": (["--heads", "cnn"], "head 'cnn': none for a label a protein; should be one of fnn, light_attention"),
    "a pooling": (["--poolings", "median"], "pooling 'median': should be one of mean, max, min, first"),
    "a layer": (["--layers", "7"], "layer 7: the model has 2 layers"),
    "layers": (["--layers", "some"], "--layers some: should be whole numbers, or all"),
    "long": (["--max_length", "4"], "12 residues, at most 4 are embedded (30 such proteins)"),
    "an arm": (["--arms", "one_hot"], "no arm of one_hot fits fnn"),
    "a column": (["--target", "locaton"], "deeploc.csv: no column 'locaton'; did you mean location?"),
    "precision": (["--fp16", "--bf16"], "--fp16 and --bf16 exclude each other"),
    "seeds": (["--seeds", "1", "1"], "seeds 1, 1: should differ"),
    "an output": (["--output", "deeploc.csv/out"], "deeploc.csv is not a directory"),
    "a batch": (["--heads", "light_attention", "--batch_size", "1", "--arms", "one_hot"], "batches of two proteins"),
    "a rate": (["--learning_rate", "1e38"], "the loss is not finite; --learning_rate should be lower"),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(model, folder, no_pictures, capsys, words, message):
    target = () if "--target" in words else ("--target", "location")
    assert call(model, "deeploc.csv", *target, "--device", "cpu", *words) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and message in error[0]
    assert not (folder / "deeploc_probe/results.json").exists()


def test_a_head_that_was_trained_here_is_scored_again_as_it_was(model, folder, no_pictures):
    words = ("deeploc.csv", "--target", "location", "--device", "cpu", "--arms", "pretrained")
    assert call(model, *words, "--epochs", "3", "--seeds", "0", "--output", "out") == 0
    (path,) = folder.glob("out/heads/*.pt")
    saved = torch.load(path)
    assert set(saved["scale"]) == {"mean", "deviation"} and len(saved["scale"]["mean"]) == 16
    for change in (False, True):
        if change:
            torch.save({"state_dict": saved["state_dict"], "scale": {"mean": saved["scale"]["mean"]}}, path)
        assert call(model, *words, "--checkpoint", path, "--output", "again") == (2 if change else 0)
    rows, again = (json.loads((folder / f"{o}/results.json").read_text())["rows"][0] for o in ("out", "again"))
    assert rows["confusion"] == again["confusion"] and rows["metrics"] == again["metrics"]


@pytest.mark.parametrize("words", ["probe m d.csv --seeds", "project m d.csv --seed", "contacts m --fit d --seeds"])
@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_is_what_scikit_learn_takes(capsys, words, seed):
    with pytest.raises(SystemExit, match="2"):
        command.cli([*words.split(), str(seed)])
    assert f"{seed} should be between 0 and 4294967295" in capsys.readouterr().err


def test_the_bare_sequence_is_cropped_as_the_encoder_reads_it(model, folder, no_pictures):
    words = ("deeploc.csv", "--target", "states", "--max_length", "8", "--too_long", "crop")
    assert call(model, *words, *QUICK, "--arms", "pretrained", "one_hot") == 0
    rows = json.loads((folder / "out/results.json").read_text())["rows"]
    assert [(row["arm"], row["labels"]) for row in rows] == [("pretrained", 9 * 8), ("one_hot", 9 * 8)]


def test_sequences_that_are_in_train_too_are_counted(folder):
    text = (folder / "deeploc.csv").read_text().splitlines()
    (folder / "train.csv").write_text("\n".join(line for line in text if not line.endswith("test")) + "\n")
    (folder / "new.csv").write_text("\n".join([text[0], *text[20:24]]) + "\n")
    data = probes.read_columns("train.csv", ("location",), tests=("new.csv",))
    assert data.notices[-1] == "2 of the 4 sequences of new are in train too"
    assert not any("in train too" in notice for notice in probes.read_columns("deeploc.csv", ("location",)).notices)


def test_files_that_were_damaged_are_named(model, folder, no_pictures, capsys):
    words = (model, "deeploc.csv", "--target", "location", *QUICK, "--arms", "pretrained")
    assert call(*words) == 0
    for pattern in ("out/heads/*.npz", "embeddings/*.npz", "embeddings/*.h5"):
        for path in folder.glob(pattern):
            path.write_bytes(b"not whole")
        assert call(*words) == 2
        assert "damaged" in (line := capsys.readouterr().err.splitlines()[-1]) and "is made again" in line


def test_other_mistakes(model, folder, capsys):
    torch.save({"state_dict": {}}, "head.pt")
    for words, message in (
        ((model, "folder", "--target", "x"), "--target: is of a table; folder should be a .csv"),
        ((model, "folder"), "folder/secondary_structure/secondary_structure_train.lmdb: no such LMDB"),
        (("none", "deeploc.csv", "--target", "location"), "arm pretrained: needs a model"),
        (
            (model, "deeploc.csv", "--target", "states", "--checkpoint", "head.pt", "--arms", "random"),
            "arms random: with a checkpoint, only pretrained",
        ),
        ((model, "deeploc.csv", "--target", "states", "--checkpoint", "no.pt"), "no.pt: No such file"),
    ):
        assert call(*words) == 2
        assert message in capsys.readouterr().err
    assert not (folder / "embeddings").exists() and not (folder / "deeploc_probe").exists()
