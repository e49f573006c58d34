"""--too_long window of tape-embed and tape-predict, against means over windows that are cut and averaged here."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_fasta import by_hand, toy_config, toy_proteins, write_fasta, write_model

from proteinlm import errors
from tape import TAPETokenizer, embed, predict
from tape.inference.predictors import STATES
from tape.inference.windows import spans
from tape.models import modeling_lstm
from tape.registry import resolve_task

LONG = "".join(np.random.default_rng(5).choice(list("ACDEFGHIKLMNPQRSTVWY"), 97))  # the toy models read 62
PROTEINS = toy_proteins(4, longest=60) | {"long": LONG}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("windows")
    write_fasta(root / "in.fasta", PROTEINS)
    write_fasta(root / "short.fasta", {name: residues for name, residues in PROTEINS.items() if name != "long"})
    return root


def averaged(of_window, length: int = len(LONG), width: int = 62) -> np.ndarray:
    """float64 [L + 2, k]: rows of <cls>, residues, <sep>, each the mean over the windows that have it."""
    windows = [(np.asarray(of_window(LONG[b:e]), np.float64), b, e) for b, e in spans(length, width)]
    rows = [[own[1 + i - b] for own, b, e in windows if b <= i < e] for i in range(length)]
    ends = [np.mean([own[place] for own, _, _ in windows], 0) for place in (0, -1)]
    return np.stack([ends[0], *(np.mean(own, 0) for own in rows), ends[1]])


def embedded(root: Path, out: str, data: str, *flags: str, model_type: str = "transformer") -> dict:
    words = [model_type, root / data, root / out, root / model_type, "--device", "cpu", *flags]
    assert embed.main([str(word) for word in words]) == 0
    file = np.load(root / out, allow_pickle=True)
    return {name: file[name].item() for name in file.files}


def test_embeddings_of_a_long_protein_are_means_over_its_windows(root, capsys):
    model = write_model(root / "transformer")
    kinds = ("--embeddings", "pooled", "avg", "mean", "--full_sequence_embed", "--tokens_per_batch", "80")
    results = embedded(root, "window.npz", "in.fasta", *kinds, "--too_long", "window")
    assert "1 read in windows of 62 residues" in capsys.readouterr().out
    states = averaged(lambda residues: by_hand(model, residues)["seq"])
    expected = {"seq": states, "pooled": states[0], "avg": states.mean(0), "mean": states[1:-1].mean(0)}
    for kind, value in expected.items():
        np.testing.assert_allclose(results["long"][kind], value, atol=1e-5)
    # those that fit are untouched, to the bit
    direct = embedded(root, "direct.npz", "short.fasta", *kinds)
    assert len(direct) == 5
    for name, values in direct.items():
        assert all(np.array_equal(value, results[name][kind]) for kind, value in values.items())
    # the negative controls: the first window alone, and windows that are not averaged
    assert np.abs(by_hand(model, LONG[:62])["mean"] - expected["mean"]).max() > 0.01
    assert np.abs(by_hand(model, LONG[:62])["seq"][1:62] - states[1:62]).max() > 0.01


def test_a_model_with_a_pooling_of_its_own(root):
    torch.manual_seed(0)
    shape = modeling_lstm.ProteinLSTMConfig(vocab_size=30, input_size=8, hidden_size=8, num_hidden_layers=1)
    model = modeling_lstm.ProteinLSTMModel(shape).eval()
    model.save_pretrained(root / "lstm")
    flags = ("--max_length", "40", "--too_long", "window", "--embeddings", "pooled", "mean")
    results = embedded(root, "lstm.npz", "in.fasta", *flags, model_type="lstm")

    def outputs(residues: str) -> list[np.ndarray]:
        with torch.no_grad():
            return [value[0].numpy() for value in model(torch.from_numpy(TAPETokenizer().encode(residues))[None])[:2]]

    states = averaged(lambda residues: outputs(residues)[0], width=40)
    pooled = np.mean([outputs(LONG[b:e])[1] for b, e in spans(len(LONG), 40)], 0)
    np.testing.assert_allclose(results["long"]["mean"], states[1:-1].mean(0), atol=1e-5)
    np.testing.assert_allclose(results["long"]["pooled"], pooled, atol=1e-5)


def finetuned(root: Path, name: str, **changes) -> torch.nn.Module:
    task = resolve_task(name, "transformer")
    torch.manual_seed(1)
    shape = {"num_labels": max(1, task.num_labels), "finetuning_task": name, "head": "tape"} | changes
    model = task.model(toy_config(**shape)).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.startswith("predict."):
                value.normal_()
    model.save_pretrained(root / name)
    return model


def predicted(root: Path, name: str, out: str, *flags: str, data: str = "in.fasta") -> Path:
    words = [root / name, root / data, root / out, "--device", "cpu", "--tokens_per_batch", "150", *flags]
    assert predict.main([str(word) for word in words]) == 0
    return root / out


def rows_of(path: Path, protein: str) -> list[dict]:
    return [row for row in csv.DictReader(path.open(), delimiter="\t") if row["id"] == protein]


def trunk(model: torch.nn.Module, residues: str) -> torch.Tensor:
    with torch.no_grad():
        return model.base_model(torch.from_numpy(TAPETokenizer().encode(residues))[None])[0][0]


@pytest.mark.parametrize("name", ["secondary_structure", "stability", "contact_prediction", "masked_language_modeling"])
@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_a_head_reads_the_averaged_vectors(root, name, pooling):
    if pooling == "mean" and name != "stability":
        pytest.skip("only of what is predicted for a whole protein")
    model = finetuned(root, name, pooling=pooling)
    maps = name == "contact_prediction"
    out, flags = ("maps.npz", ["--no-png"]) if maps else (f"{name}.tsv", [])
    path = predicted(root, name, out, "--too_long", "window", *flags)
    states = torch.from_numpy(averaged(lambda residues: trunk(model, residues))).float()[None]
    pooled = states[:, 0] if pooling == "first" else states[:, 1:-1].mean(1)
    with torch.no_grad():
        logits = model._logits(states, pooled, torch.ones(states.shape[:2], dtype=torch.bool))[0]
    if maps:
        actual, expected = np.load(path)["long"], logits.softmax(-1)[..., 1].numpy()
    elif name == "stability":
        actual, expected = float(rows_of(path, "long")[0]["value"]), float(logits[0])
    elif name == "secondary_structure":
        columns = [f"p_{state}" for state in STATES[3]]
        actual = [[float(row[column]) for column in columns] for row in rows_of(path, "long")]
        expected = logits[1:-1].softmax(-1).numpy()
    else:
        ids = torch.from_numpy(TAPETokenizer().encode(LONG))[1:-1, None]
        actual = [[float(row["log_probability"])] for row in rows_of(path, "long")]
        expected = logits[1:-1].log_softmax(-1).gather(1, ids).numpy()
    np.testing.assert_allclose(actual, expected, atol=3e-5)
    # what fits is as without windows
    direct = predicted(root, name, f"direct_{out}", *flags, data="short.fasta")
    if maps:
        assert all(np.array_equal(np.load(path)[key], value) for key, value in np.load(direct).items())
    else:
        assert path.read_text().startswith(direct.read_text())


def test_masked_passes_are_averaged_over_windows(root):
    model = finetuned(root, "masked_language_modeling")
    path = predicted(root, "masked_language_modeling", "masked.tsv", "--masked", "--too_long", "window")

    def hidden_in_turn(residues: str) -> torch.Tensor:
        ids = torch.from_numpy(TAPETokenizer().encode(residues)).repeat(len(residues) + 2, 1)
        ids.fill_diagonal_(1)
        with torch.no_grad():
            logits = model(ids)[0]
        return logits[torch.arange(len(logits)), torch.arange(len(logits))]

    logs = torch.from_numpy(averaged(hidden_in_turn)[1:-1]).log_softmax(-1)
    ids = torch.from_numpy(TAPETokenizer().encode(LONG))[1:-1, None]
    actual = [float(row["log_probability"]) for row in rows_of(path, "long")]
    np.testing.assert_allclose(actual, logs.gather(1, ids)[:, 0], atol=3e-5)


def test_what_cannot_be_read_in_windows_is_refused(root, capsys):
    finetuned(root, "contact_prediction", head="attention")
    words = [root / "contact_prediction", root / "in.fasta", root / "no.npz", "--device", "cpu", "--too_long", "window"]
    assert errors.run(predict.main, [str(word) for word in words]) == 2
    assert "no head that reads vectors alone; crop or skip" in capsys.readouterr().err
    assert errors.run(predict.main, [str(word) for word in words[:-2]]) == 2
    expected = "1 of 6 proteins exceed 62 residues, the first is record 6 (long) of 97; --too_long crop|skip|window"
    assert expected in capsys.readouterr().err
