"""The registry: songlab's methods and errors, what the commands ask of it, and plugins."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from proteinlm.errors import InputError
from tape import metrics
from tape.models.modeling_bert import ProteinBertForSequenceToSequenceClassification, ProteinBertForValuePrediction
from tape.registry import (
    TAPETaskSpec,
    load_plugin,
    model_types,
    registry,
    resolve_task,
    task_names,
)
from tape.runs.plugins import load_plugins
from tape.tasks.base import Prediction


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    """Each test has a registry of its own: what it registers is gone afterwards."""
    specs = {n: TAPETaskSpec(n, s.dataset, s.num_labels, dict(s.models)) for n, s in registry.task_name_mapping.items()}
    monkeypatch.setattr(type(registry), "task_name_mapping", specs)
    monkeypatch.setattr(type(registry), "metric_name_mapping", dict(registry.metric_name_mapping))


class Data(torch.utils.data.Dataset):
    pass


def test_tapes_names_are_there():
    tapes = "language_modeling masked_language_modeling secondary_structure contact_prediction remote_homology"
    assert {*tapes.split(), "fluorescence", "stability", "ss_q8", "embed"} <= set(task_names())
    assert {"mse", "mae", "spearmanr", "accuracy"} <= set(registry.metric_name_mapping)
    assert registry.get_metric("L5") is registry.get_metric("precision_at_l5")
    assert registry.get_task_spec("remote_homology").num_labels == 1195
    assert registry.get_task_spec("fluorescence").num_labels == -1
    assert registry.get_task_spec("stability").get_model("transformer") is ProteinBertForValuePrediction
    assert "transformer" in model_types()


def test_both_forms_of_registering_a_task():
    assert registry.register_task("one", 3, Data, {"transformer": ProteinBertForValuePrediction}) is Data
    two = registry.register_task("two", num_labels=3)(Data)
    registry.register_task_model("two", "transformer")(ProteinBertForValuePrediction)
    registry.register_task_spec("three")(TAPETaskSpec("three", Data))
    assert two is Data and vars(registry.get_task_spec("one")) == vars(registry.get_task_spec("two")) | {"name": "one"}
    assert (registry.get_task_spec("three").num_labels, registry.get_task_spec("three").models) == (-1, {})
    assert "three" in task_names()


def test_key_errors():
    registry.register_task("mine", dataset=Data)
    registry.register_task_model("mine", "transformer", ProteinBertForValuePrediction)
    with pytest.raises(KeyError, match="'mine' is already registered"):
        registry.register_task("mine", dataset=Data)
    with pytest.raises(KeyError, match="model 'transformer' of task 'mine' is already registered"):
        registry.register_task_model("mine", "transformer", ProteinBertForValuePrediction)
    with pytest.raises(KeyError, match="'theirs' is not registered"):
        registry.register_task_model("theirs", "transformer")
    for lookup in (registry.get_task_spec, registry.get_metric, registry.get_task_spec("mine").get_model):
        with pytest.raises(KeyError, match="nothing"):
            lookup("nothing")


@pytest.mark.parametrize(
    ("task", "model", "message"),
    [
        ("fluorescense", "transformer", r"task 'fluorescense': unknown; did you mean fluorescence\?"),
        ("x", "transformer", "task 'x': unknown; there are secondary_structure"),
        ("stability", "transfromer", r"model type 'transfromer': unknown; did you mean transformer\?"),
        ("stability", "unirep", "songlab's unirep is left out here; there are transformer"),
        ("stability", "trrosetta", "trrosetta is left out"),
        ("language_modeling", "transformer", "task language_modeling has no model 'transformer'; it has"),
    ],
)
def test_unknown_names_in_a_command(task, model, message):
    with pytest.raises(InputError, match=message) as error:
        resolve_task(task, model)
    assert "\n" not in str(error.value)


def test_a_built_in_task_with_another_model():
    class Mine(ProteinBertForSequenceToSequenceClassification):
        pass

    registry.register_task_model("secondary_structure", "mine", Mine)
    built_in, registered = (resolve_task("secondary_structure", name) for name in ("transformer", "mine"))
    assert registered.model is Mine and built_in.model is ProteinBertForSequenceToSequenceClassification
    assert (registered.name, registered.metric, registered.num_labels) == ("secondary_structure", "accuracy", 3)
    assert type(registered) is type(built_in) and set(registered.metrics) == set(built_in.metrics)


def test_a_model_must_be_one():
    registry.register_task("mine", 3, Data, {"mine": Data})
    with pytest.raises(InputError, match=r"'mine' of mine: .*Data.* should be a subclass of tape.ProteinModel"):
        resolve_task("mine", "mine")


def test_get_task_model(tmp_path):
    from toy_data import write_config

    config = write_config(tmp_path / "config.json")
    model = registry.get_task_model("transformer", "secondary_structure", config_file=config)
    assert type(model) is ProteinBertForSequenceToSequenceClassification and model.config.num_labels == 3
    model.save_pretrained(tmp_path / "saved")
    again = registry.get_task_model("transformer", "secondary_structure", load_dir=tmp_path / "saved")
    assert torch.equal(again.classify.classify.main["4"].bias, model.classify.classify.main["4"].bias)


def test_a_registered_metric_is_one_of_the_tasks(caplog):
    @registry.register_metric("largest")
    def largest(target, prediction):
        return max(abs(t - p) for t, p in zip(target, prediction, strict=True)).item()

    @registry.register_metric("broken")
    def broken(target, prediction):
        raise RuntimeError("not for these")

    @registry.register_metric("spearmanr")
    def wrong_spearman(target, prediction):
        return 7.0

    task = resolve_task("stability", "transformer")
    predictions = [Prediction(str(i), 3, np.array([float(i)]), np.array([0.5])) for i in range(3)]
    scores = task.score(predictions)
    assert scores["largest"] == 1.5 and np.isnan(scores["broken"]) and scores["mae"] == pytest.approx(2.5 / 3)
    assert scores["spearmanr"] != 7.0 and "broken: RuntimeError: not for these" in caplog.text


def test_tapes_metrics_take_target_and_prediction():
    """Hand-worked. accuracy: 2 of 3 labelled residues; then 1 of 2 proteins. P@L/5: 12 residues, the best two pairs."""
    one_hot = np.eye(3)
    residues = registry.get_metric("accuracy")(
        [np.array([-1, 0, 1]), np.array([2])], [one_hot[[0, 0, 2]], one_hot[[2]]]
    )
    assert residues == pytest.approx(2 / 3)
    assert registry.get_metric("accuracy")([1, 2], [[0.0, 9.0, 1.0], [5.0, 0.0, 4.0]]) == 0.5
    assert registry.get_metric("mae")([1.0, 2.0], [2.0, 5.0]) == 2.0 and registry.get_metric("mse")([1.0], [3.0]) == 4.0
    assert registry.get_metric("spearmanr")([1, 2, 3], [30, 20, 10]) == pytest.approx(-1.0)
    target, scores = np.zeros((12, 12), int), np.zeros((12, 12))
    scores[0, 8], scores[1, 9], target[0, 8] = 2.0, 1.0, 1
    logits = np.stack((np.zeros_like(scores), scores), -1)
    assert [registry.get_metric("L5")([target], [each]) for each in (scores, logits)] == [0.5, 0.5]
    assert metrics.canonical_metric("L5") == "precision_at_l5" and metrics.canonical_metric("mse") == "mse"


# ---- plugins

GOOD = """
from tape.registry import registry
from tape.tasks import TASKS

@registry.register_metric("seven")
def seven(target, prediction):
    return 7.0

registry.register_task("plugged", 3, TASKS["secondary_structure"].dataset, {"transformer": TASKS["stability"].model})
"""


def test_a_plugin_is_loaded_once(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GOOD + f"open({str(tmp_path / 'loads')!r}, 'a').write('x')\n")
    load_plugin(path)
    load_plugin(str(path))
    assert load_plugins(["transformer", "--plugin", str(path)]) == [str(path)]
    assert (tmp_path / "loads").read_text() == "x"
    task = resolve_task("plugged", "transformer")
    assert (task.name, task.num_labels, task.metric) == ("plugged", 3, "loss") and "seven" in task.metrics
    assert resolve_task("stability", "transformer").score([])["seven"] == 7.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name' .line 1."),
        ("def f(:", "SyntaxError: "),
        (GOOD + "\n1 / 0", "ZeroDivisionError: division by zero .line 11."),
        (GOOD + "\nregistry.register_task('stability', dataset=dict)", "KeyError: task 'stability' is already reg"),
        (GOOD + "\nregistry.register_task_model('nope', 'x', dict)", "KeyError: task 'nope' is not registered"),
    ],
)
def test_a_plugin_that_fails_leaves_nothing(tmp_path, text, message):
    path = tmp_path / "bad.py"
    path.write_text(text)
    modules = set(sys.modules)
    with pytest.raises(InputError, match=message) as error:
        load_plugin(path)
    assert str(path) in str(error.value) and set(sys.modules) - modules <= {"toy_data"}
    assert "plugged" not in task_names() and "seven" not in registry.metric_name_mapping


def test_plugins_of_a_command_line(tmp_path):
    files = [str(tmp_path / name) for name in ("x.py", "y.py")]
    for file in files:
        Path(file).write_text("")
    assert load_plugins(["a", "--plugin", files[0], "--seed", "1", f"--plugin={files[1]}"]) == files
    assert load_plugins(["transformer", "stability"]) == []
    for argv, message in ((["--plugin"], "should be followed"), (["--plugin", "no.py"], "should be a Python file")):
        with pytest.raises(InputError, match=message):
            load_plugins(argv)
