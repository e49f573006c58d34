"""A plugin that does something wrong is one line that names its file, class and method; --debug shows its traceback."""

import json
from pathlib import Path

import pytest
from toy_data import write_data

from proteinlm import errors
from tape import embed, evaluate, predict, train
from tape.models.zoo import MODELS
from tape.registry import BUILT_IN, TAPETaskSpec, load_plugin, registry, resolve_task

PLUGIN = """
import os, sys
import numpy as np
import torch
from torch.utils.data import Dataset
from tape import ProteinConfig, ProteinModel, TAPETokenizer
from tape.datasets import LMDBDataset, pad_sequences
from tape.registry import registry

class Config(ProteinConfig):
    def __init__(self, vocab_size=30, **kwargs):
        super().__init__(**kwargs)
        self.vocab_size = vocab_size

@registry.register_task("lysines")
class Lysines(Dataset):
    def __init__(self, data_path, split, tokenizer="iupac", in_memory=False):
        self.tokenizer = TAPETokenizer(vocab=tokenizer) if isinstance(tokenizer, str) else tokenizer
        self.data = LMDBDataset(f"{data_path}/stability/stability_{split}.lmdb", in_memory=in_memory)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        primary = self.data[index]["primary"]
        token_ids = self.tokenizer.encode(primary)
        return token_ids, np.ones_like(token_ids), float(primary.count("K"))

    def collate_fn(self, batch):
        token_ids, masks, counts = zip(*batch)
        return {
            "input_ids": torch.from_numpy(pad_sequences(token_ids)),
            "input_mask": torch.from_numpy(pad_sequences(masks)),
            "targets": torch.tensor(counts).float()[:, None],
        }

class Sums(ProteinModel):
    config_class, base_model_prefix = Config, "none"
    def __init__(self, config):
        super().__init__(config)
        self.table = torch.nn.Embedding(config.vocab_size, 1)

    def forward(self, input_ids, input_mask=None, targets=None):
        values = self.table(input_ids).sum(1)
        if targets is None:
            return (values,)
        return (torch.nn.functional.mse_loss(values, targets), {"sum": values.sum()}), values

registry.register_task_model("lysines", "sums", Sums)
registry.register_task_model("stability", "sums", Sums)
registry.register_task_model("embed", "sums", Sums)
"""


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    new_registry(monkeypatch)


def new_registry(monkeypatch):
    """A registry of the test's own, in which no plugin has been loaded: that of another process."""
    specs = {
        name: TAPETaskSpec(name, spec.dataset, spec.num_labels, {k: m for k, m in spec.models.items() if k in MODELS})
        for name, spec in registry.task_name_mapping.items()
        if name in BUILT_IN
    }
    monkeypatch.setattr(type(registry), "task_name_mapping", specs)
    monkeypatch.setattr(type(registry), "metric_name_mapping", dict(registry.metric_name_mapping))
    monkeypatch.setattr("tape.registry._plugins", {})


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), "stability", train=6, valid=3)


def run(main, *words) -> int:
    return errors.run(main, list(map(str, words)))


def plugin(tmp_path: Path, old: str = "", new: str = "") -> Path:
    assert old in PLUGIN
    (tmp_path / "my_task.py").write_text(PLUGIN.replace(old, new, 1) if old else PLUGIN + new)
    return tmp_path / "my_task.py"


def training(tmp_path: Path, data: Path, file: Path, task: str, *words) -> int:
    common = ("sums", task, "--plugin", file, "--data_dir", data, "--device", "cpu", "--output_dir", tmp_path / "run")
    return run(train.main, *common, "--batch_size", 3, "--max_steps", 1, "--eval_steps", 1, *words)


# What is replaced in PLUGIN, by what, and what the line then says after the file's name.
LENGTH, ENCODE = "return len(self.data)", "self.tokenizer.encode(primary)"
ITEM = 'return token_ids, np.ones_like(token_ids), float(primary.count("K"))'
RETURN, TARGETS, IDS = (
    "        return {\n",
    "torch.tensor(counts).float()[:, None]",
    "torch.from_numpy(pad_sequences(token_ids))",
)
OUTPUTS = 'return (torch.nn.functional.mse_loss(values, targets), {"sum": values.sum()}), values'
DICT = "Lysines.collate_fn should return a dict with"
FORM = "Sums.forward with targets should return ((loss, metrics), logits); it"
METRIC = "@registry.register_metric('mine')\ndef mine(target, prediction):\n    sys.exit(0)\n"
CASES = [
    ("", "sys.exit(3)", ": called sys.exit(3) (line "),
    ("self.data = ", "self.data = 1 / 0 or ", "Lysines.__init__: ZeroDivisionError: division by zero (line "),
    (
        "self.table = ",
        "self.other = lambda ids: torch.zeros(*ids.shape, 1)  # ",
        "Sums.__init__ should make a parameter",
    ),
    ("super().__init__(config)", "return", "Sums.__init__ should call super().__init__(config)"),
    (
        "self.table = ",
        "self.part = type('Part', (torch.nn.Module,), {'__init__': lambda self: None})(); self.table = ",
        "Sums.__init__: AttributeError: 'Part' object has no attribute '_modules'",
    ),
    (LENGTH, "return -1", "Lysines.__len__: ValueError: __len__() should return >= 0"),
    (LENGTH, "return None", "Lysines.__len__: TypeError: "),
    (ITEM, "raise KeyError('a key')", "Lysines.__getitem__(0): KeyError: a key (line "),
    (ITEM, "sys.exit()", "Lysines.__getitem__(0): called sys.exit() (line "),
    (ENCODE, "np.array([2, 99, 3])", "Lysines.__getitem__(0) has the token id 99; the model's are 0 to 29"),
    (ENCODE, "np.array([2, -4, 3])", "Lysines.__getitem__(0) has the token id -4; "),
    (ENCODE, "np.array([2])", "Lysines.__getitem__(0) has 1 tokens; "),
    (
        RETURN,
        "        return {}\n        {",
        f"{DICT} input_ids, input_mask and targets; it returned a dict of n",
    ),
    (RETURN, "        return None\n        {", f"{DICT} input_ids, input_mask and targets; it returned None"),
    (TARGETS, "counts", f"{DICT} targets, a tensor [1, ...]; they are a tuple of 1"),
    (TARGETS, "torch.zeros(2)", f"{DICT} targets, a tensor [1, ...]; they are float32 [2]"),
    ("pad_sequences(masks)", "pad_sequences(masks)[:, 1:]", f"{DICT} input_mask [1, "),
    (IDS, f"{IDS}.float()", f"{DICT} input_ids, whole numbers [1, N]; they are float32 [1, "),
    ("super().__init__(config)", "super().__init__(config, 1)", "Sums.__init__: TypeError: "),
    (OUTPUTS, "return {}", f"{FORM} returned a dict of nothing"),
    (OUTPUTS, "return None", f"{FORM} returned None"),
    (OUTPUTS, "return (0.0, {}), values", f"{FORM}s loss is a float, its metrics are a dict of nothing"),
    (OUTPUTS, "return (values.mean(), {}), values[:-1]", f"{FORM}s logits of 3 proteins are float32 [2, 1]"),
    (OUTPUTS, "return (values.mean(), {'a': 'b'}), values", "Sums.forward: TypeError: "),
    (OUTPUTS, "raise RuntimeError('no\\nway')", "Sums.forward: RuntimeError: no way (line "),
    (OUTPUTS, "sys.exit('stop')", "Sums.forward: called sys.exit('stop') (line "),
    ("", METRIC, "mine: called sys.exit(0) (line "),
]


@pytest.mark.parametrize(("old", "new", "message"), CASES)
def test_a_plugin_is_named_by_what_it_did_wrong(old, new, message, tmp_path, data, capsys):
    status = training(tmp_path, data, plugin(tmp_path, old, new), "lysines")
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and line.split("my_task.py", 1)[1].removeprefix(", ").startswith(message), line
    assert not (tmp_path / "run/model.safetensors").exists()


def test_a_plugin_that_does_nothing_wrong(tmp_path, data, capsys):
    """The negative control: the same files, unchanged, train, score and predict."""
    file, directory = plugin(tmp_path), tmp_path / "run"
    common = ("--plugin", file, "--device", "cpu")
    assert training(tmp_path, data, file, "lysines") == 0
    assert run(evaluate.main, "sums", "lysines", directory, *common, "--data_dir", data, "--split", "valid") == 0
    assert json.loads((directory / "lysines-valid.json").read_text())["n_examples"] == 3
    (tmp_path / "in.fasta").write_text(">a\nMKV\n")
    assert run(predict.main, directory, tmp_path / "in.fasta", tmp_path / "out.tsv", *common) == 0
    assert "Traceback" not in capsys.readouterr().err


def without_targets(tmp_path: Path, result: str) -> Path:
    """The plugin whose model does something else where it is given no targets."""
    return plugin(tmp_path, "return (values,)", result)


@pytest.mark.parametrize("result", ["return values", "return None", "return (values[:-1],)", "return {'a': values}"])
def test_a_users_model_of_a_task_of_ours(result, tmp_path, data, capsys):
    status = training(tmp_path, data, without_targets(tmp_path, result), "stability")
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and "my_task.py, Sums.forward should return a tuple that begins with logits [3, ...]; it" in line


@pytest.mark.parametrize("result", ["return values", "return (values, values)", "raise ValueError('no')"])
def test_a_users_trunk_that_embeds(result, tmp_path, capsys):
    file, fasta = without_targets(tmp_path, result), tmp_path / "in.fasta"
    fasta.write_text(">a\nMKV\n")
    load_plugin(file)
    resolve_task("embed", "sums").model.from_pretrained().save_pretrained(tmp_path / "model")
    words = ("sums", fasta, tmp_path / "out.npz", tmp_path / "model", "--plugin", file, "--device", "cpu")
    status = run(embed.main, *words)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and "my_task.py, Sums.forward" in line


def in_batches(tmp_path: Path, line: str) -> Path:
    """The plugin with one more line in collate_fn."""
    old = "token_ids, masks, counts = zip(*batch)"
    return plugin(tmp_path, old, f"{old}\n        {line}")


def test_what_is_wrong_in_a_worker_process_is_the_same_line(tmp_path, data, capsys):
    assert training(tmp_path, data, in_batches(tmp_path, "1 / (3 - len(batch))"), "lysines", "--num_workers", 1) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "my_task.py, Lysines.collate_fn: ZeroDivisionError: division by zero (line " in line


def test_a_plugin_that_ends_a_worker_process(tmp_path, data, capsys):
    file = in_batches(tmp_path, "len(batch) < 3 or os._exit(7)")
    assert training(tmp_path, data, file, "lysines", "--num_workers", 1) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: --num_workers: one of them was killed")


def test_debug_shows_the_traceback_of_the_users_own_line(tmp_path, data, capsys):
    file = plugin(tmp_path, ITEM, "raise KeyError('a key')")
    assert training(tmp_path, data, file, "lysines", "--debug") == 2
    error = capsys.readouterr().err
    assert "raise KeyError('a key')" in error and error.count("Traceback") >= 2
    assert error.strip().splitlines()[-1].startswith("error: my_task.py, Lysines.__getitem__(0): KeyError: a key")


def test_a_run_remembers_its_plugin(tmp_path, data, monkeypatch, capsys):
    """Given once, the file is known by its content; one that is only named in a run's directory is never executed."""
    monkeypatch.setattr("tape.runs.plugins.GIVEN", tmp_path / "given")
    file, fasta, out = plugin(tmp_path), tmp_path / "in.fasta", tmp_path / "out.tsv"
    fasta.write_text(">a\nMKV\n")
    predicting = (tmp_path / "run", fasta, out, "--device", "cpu")
    assert training(tmp_path, data, file, "lysines") == 0
    new_registry(monkeypatch)
    assert run(predict.main, *predicting) == 0 and out.read_text().startswith("id\tlength\tvalue\na\t3\t")
    words = ("sums", "lysines", tmp_path / "run", "--data_dir", data, "--split", "valid", "--device", "cpu")
    assert run(evaluate.main, *words) == 0
    plugin(tmp_path, new=f"open({str(tmp_path / 'executed')!r}, 'w')\n")  # another's file under the same name
    new_registry(monkeypatch)
    capsys.readouterr()
    assert run(predict.main, *predicting) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.endswith(f"; the run was trained with --plugin {file}, which should be given")
    assert not (tmp_path / "executed").exists()
    assert run(predict.main, *predicting, "--plugin", file) == 0 and (tmp_path / "executed").exists()


def test_an_error_of_ours_keeps_its_traceback(tmp_path, data, monkeypatch):
    """Nothing that is not a plugin's is taken for a user's mistake."""
    monkeypatch.setattr("tape.datasets.StabilityDataset._target", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        training(tmp_path, data, plugin(tmp_path), "stability")
