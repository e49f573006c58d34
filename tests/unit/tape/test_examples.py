"""The examples of adding a task and a model: trained and scored through the commands, as plugins and as scripts."""

import json
import pickle
import runpy
import sys
from pathlib import Path

import lmdb
import pytest
import torch
from toy_data import write_config, write_data

from tape.main import run_eval, run_train
from tape.registry import TAPETaskSpec, load_plugin, registry, resolve_task

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[3] / "examples"
SHORT = [
    "--num_train_epochs",
    "30",
    "--batch_size",
    "8",
    "--learning_rate",
    "1e-2",
    "--warmup_steps",
    "4",
    "--num_log_iter",
    "50",
]


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    """A registry of the test's own, in which no plugin has been loaded."""
    specs = {n: TAPETaskSpec(n, s.dataset, s.num_labels, dict(s.models)) for n, s in registry.task_name_mapping.items()}
    monkeypatch.setattr(type(registry), "task_name_mapping", specs)
    monkeypatch.setattr(type(registry), "metric_name_mapping", dict(registry.metric_name_mapping))
    monkeypatch.setattr("tape.registry._plugins", {})


@pytest.fixture
def variants(tmp_path):
    """Fluorescence data whose number of mutations is the number of lysines."""
    write_data(tmp_path, "fluorescence", train=40, valid=12)
    for path in (tmp_path / "fluorescence").glob("*.lmdb"):
        with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
            for number in range(pickle.loads(transaction.get(b"num_examples"))):
                record = pickle.loads(transaction.get(str(number).encode()))
                record["num_mutations"] = record["primary"].count("K") / 10
                transaction.put(str(number).encode(), pickle.dumps(record))
    return tmp_path


def test_adding_a_task(variants, tmp_path):
    config, run = write_config(tmp_path / "small.json"), tmp_path / "run"
    where = ["--plugin", str(EXAMPLES / "adding_task.py"), "--data_dir", str(variants)]
    common = ["transformer", "num_mutations"]
    run_train([*common, *where, "--model_config_file", str(config), "--output_dir", str(run), *SHORT])
    asked = ["mae", "median", "spearmanr", "loss"]
    scores = run_eval([*common, str(run), *where, "--split", "valid", "--metrics", *asked])
    assert list(scores) == asked and scores["median"] > 0
    again = run_eval([*common, str(run), *where, "--split", "valid", "--metrics", *asked, "--batch_size", "1"])
    assert again == pytest.approx(scores, rel=1e-4)
    result = json.loads((run / "num_mutations-valid.json").read_text())
    assert (result["n_examples"], result["metric"], result["value"]) == (
        12,
        "loss",
        again["loss"],
    )  # the file is the last call's
    records = [resolve_task("num_mutations", "transformer").dataset(variants, "valid")[i][2] for i in range(12)]
    mean = sum(records) / 12
    assert scores["loss"] < sum((value - mean) ** 2 for value in records) / 12  # better than always the mean


def test_adding_a_model(tmp_path):
    write_data(tmp_path / "data", "secondary_structure", train=24, valid=8)
    plugin = ["--plugin", str(EXAMPLES / "adding_model.py"), "--data_dir", str(tmp_path / "data")]
    run = tmp_path / "run"
    run_train(["dilated", "secondary_structure", *plugin, "--output_dir", str(run), *SHORT])
    scores = run_eval(["dilated", "secondary_structure", str(run), *plugin, "--split", "valid"])
    assert scores["accuracy"] > 0.9  # a class is a function of its letter; the largest has 0.37
    assert json.loads((run / "config.json").read_text())["dilations"] == [1, 2, 4, 8]


def test_a_model_by_hand(tmp_path):
    load_plugin(EXAMPLES / "adding_model.py")
    task = resolve_task("secondary_structure", "dilated")
    torch.manual_seed(0)
    model = task.model.from_pretrained(None, num_labels=3).eval()
    tokens, labels = torch.randint(5, 30, (2, 9)), torch.randint(0, 3, (2, 9))
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:], labels[1, 6:] = 0, -1
    (loss, measured), logits = model(tokens, mask, labels)
    assert loss.shape == () and list(measured) == ["accuracy"] and logits.shape == (2, 9, 3)
    torch.testing.assert_close(model(tokens[1:, :6], mask[1:, :6])[0], logits[1:, :6])
    model.save_pretrained(tmp_path / "saved")
    again = task.model.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(again(tokens, mask)[0], logits)
    trunk = type(model.dilated).from_pretrained(tmp_path / "saved")  # the trunk alone, by its prefix
    torch.testing.assert_close(trunk(tokens, mask)[0], model.dilated(tokens, mask)[0])


def test_a_script_that_trains(variants, tmp_path, monkeypatch):
    """`python adding_task.py transformer num_mutations ...`: registered by running, no --plugin."""
    config = write_config(tmp_path / "small.json")
    words = ["transformer", "num_mutations", "--data_dir", str(variants), "--model_config_file", str(config)]
    words += ["--output_dir", str(tmp_path / "run"), "--max_steps", "2", "--batch_size", "8"]
    monkeypatch.setattr(sys, "argv", ["adding_task.py", *words])
    runpy.run_path(str(EXAMPLES / "adding_task.py"), run_name="__main__")
    assert (tmp_path / "run" / "config.json").is_file()
