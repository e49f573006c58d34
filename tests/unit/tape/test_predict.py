"""tape-predict: every task against its model called by hand on one protein at a time."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_fasta import toy_config, toy_proteins, write_fasta

from proteinlm import errors
from proteinlm.errors import InputError
from tape import TAPETokenizer, predict
from tape.inference.predictors import STATES, kind_of_logits
from tape.registry import resolve_task

TASKS = (
    "secondary_structure",
    "ss_q8",
    "fluorescence",
    "stability",
    "remote_homology",
    "contact_prediction",
    "masked_language_modeling",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("predict")
    write_fasta(root / "in.fasta.gz", toy_proteins(8, longest=30))
    return root


def write_run(root: Path, name: str) -> torch.nn.Module:
    """A model directory as a run leaves it, with random weights whose outputs are far from rounding."""
    task = resolve_task(name, "transformer")
    torch.manual_seed(1)
    model = task.model(toy_config(num_labels=max(1, task.num_labels), finetuning_task=name, head="tape")).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.startswith("predict.predict"):
                value.normal_()
    model.save_pretrained(root / name)
    return model


def by_hand(model: torch.nn.Module, residues: str) -> torch.Tensor:
    """The logits of one protein alone."""
    with torch.no_grad():
        return model(torch.from_numpy(TAPETokenizer().encode(residues))[None])[0][0]


def run(root: Path, name: str, out: str, *flags: str) -> Path:
    assert predict.main([str(root / name), str(root / "in.fasta.gz"), str(root / out), *flags]) == 0
    return root / out


def read(path: Path) -> dict[str, list[dict]]:
    results: dict[str, list[dict]] = {}
    for row in csv.DictReader(path.open(), delimiter="\t"):
        results.setdefault(row["id"], []).append(row)
    return results


def columns(rows: list[dict], names: str) -> np.ndarray:
    return np.array([[float(row[name]) for name in names.split()] for row in rows])


@pytest.mark.parametrize("name", TASKS)
def test_each_protein_gets_what_the_model_says_of_it_alone(root, name):
    model = write_run(root, name)
    out = f"{name}.npz" if name == "contact_prediction" else f"{name}.tsv"
    flags = ["--no-png"] if name == "contact_prediction" else []
    path = run(root, name, out, *flags)
    few = run(root, name, f"few_{out}", "--tokens_per_batch", "40", *flags)
    results = dict(np.load(path)) if path.suffix == ".npz" else read(path)
    batched = dict(np.load(few)) if path.suffix == ".npz" else read(few)
    assert list(results) == list(batched) == list(toy_proteins(8))
    for protein, residues in toy_proteins(8, longest=30).items():
        logits, rows = by_hand(model, residues), results[protein]
        if name == "contact_prediction":
            expected = logits.softmax(-1)[..., 1].numpy()
            assert rows.shape == (len(residues), len(residues)) and rows.dtype == np.float32
            np.testing.assert_allclose(rows, expected, atol=1e-5)
            np.testing.assert_allclose(batched[protein], expected, atol=1e-5)
            continue
        if name in ("secondary_structure", "ss_q8"):
            letters = STATES[logits.shape[-1]]
            probabilities = logits[1:-1].softmax(-1).numpy()
            assert [(row["residue"], row["position"]) for row in rows] == [
                (letter, str(i)) for i, letter in enumerate(residues, 1)
            ]
            assert [row["state"] for row in rows] == [letters[i] for i in probabilities.argmax(1)]
            names, expected = " ".join(f"p_{letter}" for letter in letters), probabilities
        elif name == "remote_homology":
            values, classes = logits.softmax(-1).topk(5)
            assert [int(row["class"]) for row in rows] == classes.tolist()
            names, expected = "probability", values[:, None].numpy()
        elif name == "masked_language_modeling":
            logs = logits[1:-1].log_softmax(-1)
            ids = torch.from_numpy(TAPETokenizer().encode(residues)[1:-1])
            names, expected = "log_probability", logs.gather(1, ids[:, None]).numpy()
        else:
            names, expected = "value", logits[None].numpy()
        np.testing.assert_allclose(columns(rows, names), expected, atol=2e-5)
        np.testing.assert_allclose(columns(batched[protein], names), expected, atol=2e-5)


def test_masked_hides_one_residue_at_a_time(root):
    model = write_run(root, "masked_language_modeling")
    few = read(run(root, "masked_language_modeling", "few.tsv", "--masked", "--tokens_per_batch", "70"))
    seen = read(run(root, "masked_language_modeling", "seen.tsv"))
    for name, residues in list(toy_proteins(8, longest=30).items())[:4]:
        ids = torch.from_numpy(TAPETokenizer().encode(residues))
        expected = []
        for i in range(1, len(ids) - 1):
            hidden = ids.clone()
            hidden[i] = 1
            with torch.no_grad():
                expected.append(model(hidden[None])[0][0, i].log_softmax(-1)[ids[i]].item())
        results = columns(few[name], "log_probability")[:, 0]
        np.testing.assert_allclose(results, expected, atol=2e-5)
        assert np.abs(results - columns(seen[name], "log_probability")[:, 0]).max() > 0.01  # negative control


@pytest.mark.slow
def test_pictures(root):
    pytest.importorskip("matplotlib")
    write_run(root, "contact_prediction")
    run(root, "contact_prediction", "bare.npz", "--no-png")
    assert not (root / "bare_png").exists()
    run(root, "contact_prediction", "drawn.npz")
    pictures = sorted((root / "drawn_png").iterdir())
    assert len(pictures) == 9 and pictures[0].name == "000001_sp_P00000_TOY.png"
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stability", "in.fasta.gz", "out.xlsx"], "out.xlsx: should end in .tsv or .csv, or in .npz"),
        (["contact_prediction", "in.fasta.gz", "out.tsv"], "contact_prediction is written as .npz"),
        (["stability", "in.fasta.gz", "out.tsv", "--png"], "--png: draws contact maps"),
        (["stability", "in.fasta.gz", "out.tsv", "--masked"], "--masked: is for masked_language_modeling"),
        (["stability", "in.fasta.gz", "out.tsv", "--task", "fluorescence"], "was finetuned on stability"),
        (["absent", "in.fasta.gz", "out.tsv"], "no such directory"),
        (["stability", "absent.fasta", "out.tsv"], "no such file"),
        (["stability", "in.fasta.gz", "out.tsv", "--max_length", "20"], "--too_long crop"),
    ],
)
def test_mistakes_are_reported_in_one_line(root, capsys, monkeypatch, words, message):
    for name in ("stability", "contact_prediction"):
        write_run(root, name)
    monkeypatch.chdir(root)
    capsys.readouterr()
    assert errors.run(predict.main, words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in line and not (root / words[2]).exists()


def test_a_run_that_names_no_task_needs_the_flag(root):
    import json

    write_run(root, "fluorescence")
    path = root / "fluorescence" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"finetuning_task": None}))
    with pytest.raises(InputError, match="give --task"):
        run(root, "fluorescence", "no.tsv")
    run(root, "fluorescence", "yes.tsv", "--task", "fluorescence")


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((2, 1), "value"), ((2, 7), "classification"), ((2, 9, 4), "token_classification"), ((2, 9, 9, 2), "contacts")],
)
def test_a_plugins_task_is_known_by_its_logits(shape, kind):
    assert kind_of_logits(torch.zeros(shape)) == kind
