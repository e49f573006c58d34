"""Tasks that users register: a dataset and a model in songlab's form become a Task whose numbers ignore batching."""

import json

import numpy as np
import pytest
import torch
from tape_lmdb import write_lmdb
from torch import nn
from torch.utils.data import Dataset
from toy_data import TINY, build_model, write_config, write_data, write_split

from proteinlm.errors import InputError
from tape import TAPETokenizer, evaluate, train
from tape.data.splits import load_split
from tape.datasets import LMDBDataset, MaskedLanguageModelingDataset, SecondaryStructureDataset, pad_sequences
from tape.models.modeling_bert import ProteinBertConfig, ProteinBertForSequenceToSequenceClassification
from tape.registry import TAPETaskSpec, registry
from tape.tasks.plugin import plugin_task

CONFIG = ProteinBertConfig(**TINY)


class Hydrophobic(Dataset):
    """Which residues are one of AILMFVW: songlab's pattern, nothing of ours but the file reader."""

    def __init__(self, data_path, split, tokenizer="iupac", in_memory=False):
        self.tokenizer = TAPETokenizer(vocab=tokenizer) if isinstance(tokenizer, str) else tokenizer
        self.data = LMDBDataset(f"{data_path}/stability/stability_{split}.lmdb", in_memory=in_memory)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        primary = self.data[index]["primary"]
        token_ids = self.tokenizer.encode(primary)
        labels = np.array([-1, *(letter in "AILMFVW" for letter in primary), -1], np.int64)
        return token_ids, np.ones_like(token_ids), labels

    def collate_fn(self, batch):
        columns = zip(*batch, strict=True)
        names = (("input_ids", 0), ("input_mask", 0), ("targets", -1))
        return {n: torch.from_numpy(pad_sequences(c, p)) for (n, p), c in zip(names, columns, strict=True)}


class Letters(nn.Module):
    """Two logits of each letter; the loss is a mean, as TAPE's are. Strict about its arguments."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(30, 2)

    def forward(self, input_ids, input_mask=None, targets=None):
        logits = self.table(input_ids)
        if targets is None:
            return (logits,)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        counted = targets != -1
        right = ((logits.argmax(-1) == targets) & counted).sum() / counted.sum()
        return (loss, {"acc": right}), logits


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path, "stability", train=9, valid=7)


def results(task, model, data, size):
    predictions, total, count = [], 0.0, 0
    for start in range(0, len(data), size):
        batch = data[(0, np.arange(start, min(start + size, len(data))))]
        logits = task.forward(model, batch)
        loss, number = task.loss(logits.float(), batch)
        predictions += task.predictions(logits.float(), batch)
        total, count = total + float(loss.detach()), count + int(number)
    return predictions, total, count


def test_numbers_do_not_depend_on_the_batch(data):
    task, model = plugin_task(TAPETaskSpec("letters", Hydrophobic, 2), Letters), Letters()
    split = load_split(task, data, "valid", TAPETokenizer(), None, "error")
    records = Hydrophobic(data, "valid").data
    assert split.sequences == [records[i]["primary"] for i in range(7)]
    expected, loss, count = results(task, model, split, 1)
    lengths = [len(record["primary"]) for record in records]
    assert count == sum(lengths) and [p.length for p in expected] == lengths
    assert [p.id for p in expected] == [str(i) for i in range(7)]
    # By hand: the loss and the accuracy over all residues of the split at once.
    letters = torch.tensor([TAPETokenizer().vocab[letter] for record in records for letter in record["primary"]])
    labels = torch.tensor([letter in "AILMFVW" for record in records for letter in record["primary"]]).long()
    logits = model.table(letters)
    scores = task.score(expected)
    whole = nn.functional.cross_entropy(logits, labels).item()
    assert scores["loss"] == pytest.approx(whole, rel=1e-5) and loss / count == pytest.approx(whole, rel=1e-5)
    accuracy = (logits.argmax(-1) == labels).float().mean().item()
    assert [scores["accuracy"], scores["acc"]] == pytest.approx([accuracy] * 2) and np.isnan(scores["mse"])
    for size in (2, 7):
        predictions, other, number = results(task, model, split, size)
        assert number == count and other == pytest.approx(loss, rel=1e-5)
        assert task.score(predictions) == pytest.approx(scores, rel=1e-5, nan_ok=True)
        for one, two in zip(expected, predictions, strict=True):
            np.testing.assert_allclose(one.scores, two.scores, atol=1e-6)
            assert np.array_equal(one.labels, two.labels) and one.labels.shape == (one.length + 2,)
    table = task.per_protein(expected)
    assert table.shape == (7, 2) and table[:, 0].sum() / table[:, 1].sum() == pytest.approx(whole, rel=1e-5)
    assert task.metric == "loss" and not task.higher_is_better


class Composition(Hydrophobic):
    """A vector a protein, as wide as the longest of these proteins has tokens: shares of letters."""

    width: int

    def __getitem__(self, index):
        token_ids, mask, _ = super().__getitem__(index)
        return token_ids, mask, np.bincount(token_ids, minlength=30)[: self.width] / len(token_ids)

    def collate_fn(self, batch):
        return super().collate_fn(batch) | {"targets": torch.tensor(np.array([item[2] for item in batch])).float()}


class Shares(Letters):
    """Guesses the shares; the loss is a squared error."""

    def forward(self, input_ids, input_mask=None, targets=None):
        guess = self.table(input_ids)[..., :1].mean(1).expand(-1, targets.shape[1])
        return (nn.functional.mse_loss(guess, targets), {}), guess


@pytest.mark.parametrize("beyond", [0, 2])
def test_a_vector_as_wide_as_the_longest_protein_is_never_cut(tmp_path, monkeypatch, beyond):
    """Padding is known from batches of one, not guessed from widths that happen to agree."""
    lengths = (22, 9, 15)
    records = [{"primary": ("ACDEFGHIKL" * 3)[:length]} for length in lengths]
    write_lmdb(tmp_path / "stability/stability_train.lmdb", records)
    monkeypatch.setattr(Composition, "width", max(lengths) + 2 - beyond, raising=False)
    task = plugin_task(TAPETaskSpec("shares", Composition), Shares)
    split = load_split(task, tmp_path, "train", TAPETokenizer(), None, "error")
    alone, together = (results(task, Shares(), split, size)[0] for size in (1, 3))
    for one, other in zip(alone, together, strict=True):
        assert one.labels.shape == other.labels.shape == other.scores.shape == (Composition.width,)
        assert np.array_equal(one.labels, other.labels)


def test_a_long_protein_is_named_not_dropped(data):
    task = plugin_task(TAPETaskSpec("letters", Hydrophobic, 2), Letters)
    with pytest.raises(InputError, match=r"Hydrophobic valid protein .* residues, but the model sees 25"):
        load_split(task, data, "valid", TAPETokenizer(), 25, "crop")


def test_a_subclass_of_a_built_in_model_needs_no_wrapping(tmp_path):
    write_split(tmp_path, "secondary_structure", "valid", 5, seed=0)

    class Halves(SecondaryStructureDataset):
        pass

    task = plugin_task(TAPETaskSpec("halves", Halves, 3), ProteinBertForSequenceToSequenceClassification)
    model = build_model(task, config=CONFIG, head="tape")
    split = load_split(task, tmp_path, "valid", TAPETokenizer(), 30, "crop")
    assert split.truncated["proteins_cropped"] > 0 and task.splits == ("casp12", "ts115", "cb513")
    with torch.no_grad():
        one, two = (results(task, model, split, size)[0] for size in (1, 5))
    assert [p.id for p in one] == [str(i) for i in range(5)]
    assert task.score(one) == pytest.approx(task.score(two), rel=1e-4, nan_ok=True)


def test_a_model_that_returns_no_loss_is_named(data):
    class Mute(Letters):
        def forward(self, input_ids, input_mask=None, targets=None):
            return (self.table(input_ids),)

    task = plugin_task(TAPETaskSpec("letters", Hydrophobic, 2), Mute)
    split = load_split(task, data, "valid", TAPETokenizer(), None, "error")
    with pytest.raises(InputError, match=r"Mute\.forward with targets should return \(\(loss, metrics\), logits\)"):
        task.forward(Mute(), split[(0, np.arange(2))])


class PlainStructure(SecondaryStructureDataset):
    """A dataset of ours with songlab's usual collate_fn: a dict, and nothing of which target is padding."""

    def collate_fn(self, batch):
        token_ids, masks, labels = zip(*batch, strict=True)
        columns = {"input_ids": (token_ids, 0), "input_mask": (masks, 0), "targets": (labels, -1)}
        return {name: torch.from_numpy(pad_sequences(rows, fill)) for name, (rows, fill) in columns.items()}


class ShortConstructor(PlainStructure):
    def __init__(self, data_path, split, tokenizer="iupac", in_memory=False):
        super().__init__(data_path, split, tokenizer, in_memory)


class Reshaped(SecondaryStructureDataset):
    """What our collate_fn returns, but the target is a vector, wider than the proteins are long."""

    def collate_fn(self, batch):
        collated = super().collate_fn(batch)
        shares = [np.bincount(example[0], minlength=40) / len(example[0]) for example in batch]
        collated["targets"] = torch.tensor(np.array(shares)).float()
        return collated


class Classes(Letters):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(30, 3)


class MaskedShares(nn.Module):
    """A vector a protein, the mean over its tokens without padding; the loss is a squared error."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(30, 40)

    def forward(self, input_ids, input_mask, targets):
        guess = (self.table(input_ids) * input_mask[..., None]).sum(1) / input_mask.sum(1, keepdim=True)
        return (nn.functional.mse_loss(guess, targets), {}), guess


@pytest.mark.parametrize(("dataset", "limit"), [(PlainStructure, 30), (ShortConstructor, None), (Reshaped, 30)])
def test_a_collate_fn_of_the_users_on_a_dataset_of_ours(dataset, limit, tmp_path):
    """Labels and scores are those of the protein alone, whatever the batch; what our datasets can do stays."""
    write_split(tmp_path, "secondary_structure", "valid", 5, seed=0)
    model = MaskedShares() if dataset is Reshaped else Classes()
    task = plugin_task(TAPETaskSpec("own", dataset, 3), type(model))
    split = load_split(task, tmp_path, "valid", TAPETokenizer(), limit, "crop")
    assert (split.truncated["proteins_cropped"] > 0) == (limit is not None)
    (alone, loss, count), (together, other_loss, other_count) = (results(task, model, split, size) for size in (1, 5))
    assert count == other_count and other_loss == pytest.approx(loss, rel=1e-5)
    assert task.score(together) == pytest.approx(task.score(alone), rel=1e-5, nan_ok=True)
    whole = SecondaryStructureDataset(tmp_path, "valid", max_length=limit, too_long="crop")
    for place, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert one.id == other.id == str(place) and np.array_equal(one.labels, other.labels)
        assert one.labels.shape == ((40,) if dataset is Reshaped else whole[place][2].shape)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)


def test_masks_still_change_with_the_epoch(tmp_path):
    """A collate_fn of the user's does not hide what else a dataset of ours can do."""
    write_split(tmp_path, "masked_language_modeling", "train", 4, seed=0)

    class Plain(MaskedLanguageModelingDataset):
        def collate_fn(self, batch):
            return dict(super().collate_fn(batch))

    task = plugin_task(TAPETaskSpec("own_mlm", Plain), Letters)
    split = load_split(task, tmp_path, "train", TAPETokenizer(), None, "error")
    first, again, later = (split[(epoch, np.arange(4))]["targets"] for epoch in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, later)


def test_a_collate_fn_that_returns_no_dict_is_named(tmp_path):
    write_split(tmp_path, "secondary_structure", "valid", 2, seed=0)

    class Tuples(SecondaryStructureDataset):
        def collate_fn(self, batch):
            return tuple(super().collate_fn(batch).values())

    task = plugin_task(TAPETaskSpec("tuples", Tuples), Letters)
    split = load_split(task, tmp_path, "valid", TAPETokenizer(), None, "error")
    with pytest.raises(InputError, match=r"Tuples\.collate_fn should return a dict with input_ids"):
        split[(0, np.arange(2))]


def test_a_dataset_of_ours_with_a_collate_fn_of_the_users_trains_and_scores(tmp_path, monkeypatch):
    """End to end through the commands; the batch size changes no number."""
    monkeypatch.setattr(type(registry), "task_name_mapping", dict(registry.task_name_mapping))
    models = {"transformer": ProteinBertForSequenceToSequenceClassification}
    registry.register_task("own_structure", 3, PlainStructure, models)
    write_data(tmp_path, "secondary_structure", train=6, valid=5)
    config, run = write_config(tmp_path / "config.json"), str(tmp_path / "run")
    common = ["transformer", "own_structure"], ["--data_dir", str(tmp_path), "--device", "cpu"]
    shape = ["--model_config_file", str(config), "--batch_size", "3", "--num_train_epochs", "1"]
    train.main([*common[0], *common[1], *shape, "--output_dir", run])
    scores = []
    for size in (1, 5):
        evaluate.main([*common[0], run, *common[1], "--split", "valid", "--batch_size", str(size)])
        metrics = json.loads((tmp_path / "run/own_structure-valid.json").read_text())["metrics"]
        scores.append([metrics[name] for name in ("loss", "accuracy", "n_examples")])
    assert scores[0][2] == 5 and scores[1] == pytest.approx(scores[0], rel=1e-4)
