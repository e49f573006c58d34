"""Tasks: losses as sums and counts, scores that do not depend on the batch, and agreement between their parts."""

import numpy as np
import pytest
import torch
from tape_lmdb import write_lmdb
from toy_data import build_model

from tape import metrics
from tape.models.modeling_bert import ProteinBertConfig
from tape.tasks import TASKS, Prediction
from tape.tasks.base import describe_constant

CONFIG = ProteinBertConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, max_position_embeddings=64
)
LENGTHS = (20, 7, 33, 12, 4)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Five small proteins with every task's fields."""
    directory = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    records = [
        {
            "id": f"protein{i}",
            "primary": "".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), length)),
            "log_fluorescence": rng.normal(size=1),
            "stability_score": rng.normal(size=1),
            "fold_label": int(rng.integers(1195)),
            "ss3": rng.integers(0, 3, length),
            "tertiary": rng.normal(scale=6.0, size=(length, 3)),
            "valid_mask": rng.random(length) < 0.9,
        }
        for i, length in enumerate(LENGTHS)
    ]
    for folder in {task.dataset.folder for task in TASKS.values()}:
        write_lmdb(directory / folder / f"{folder}_valid.lmdb", records)
    return directory


def evaluate(task, model, data, batch_size):
    """(predictions, total loss, count) of a split."""
    predictions, total, count = [], 0.0, 0
    with torch.no_grad():
        for start in range(0, len(data), batch_size):
            batch = data.collate_fn([data[i] for i in range(start, min(start + batch_size, len(data)))])
            logits = task.forward(model, batch)
            loss, number = task.loss(logits, batch)
            predictions += task.predictions(logits, batch)
            total, count = total + float(loss), count + int(number)
    return predictions, total, count


@pytest.mark.parametrize("name", TASKS)
def test_scores_do_not_depend_on_the_batch(root, name):
    task = TASKS[name]
    torch.manual_seed(0)
    model = build_model(task, config=CONFIG, head="tape")
    data = task.dataset(root, "valid")
    results = {size: evaluate(task, model, data, size) for size in (1, 2, 5)}
    expected, loss, count = results[1]
    assert [p.id for p in expected] == [f"protein{i}" for i in range(5)] and [p.length for p in expected] == list(
        LENGTHS
    )
    scores = task.score(expected)
    assert scores["n_examples"] == 5 and task.metric in scores and task.metric in task.metrics
    for predictions, other_loss, other_count in results.values():
        assert other_count == count and other_loss == pytest.approx(loss, rel=1e-5)
        assert task.score(predictions) == pytest.approx(scores, nan_ok=True, rel=1e-5)
        for one, other in zip(expected, predictions, strict=True):
            np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
            assert np.array_equal(one.labels, other.labels)
    for metric, function in task.metrics.items():
        assert function(expected) == pytest.approx(scores[metric], nan_ok=True)


@pytest.mark.parametrize("name", TASKS)
def test_loss_is_the_models_loss(root, name):
    task = TASKS[name]
    model, data = build_model(task, config=CONFIG, head="tape"), task.dataset(root, "valid")
    batch = data.collate_fn([data[i] for i in range(4)])
    total, count = task.loss(task.forward(model, batch), batch)
    (loss, _), _ = model(batch["input_ids"], batch["input_mask"], batch["targets"])
    torch.testing.assert_close(loss, total / count)


@pytest.mark.parametrize("name", TASKS)
def test_per_protein_values_give_the_metric(root, name):
    task = TASKS[name]
    predictions, _, _ = evaluate(task, build_model(task, config=CONFIG, head="tape"), task.dataset(root, "valid"), 2)
    values, score = task.per_protein(predictions), task.score(predictions)[task.metric]
    if values is None:
        assert task.metric in ("spearmanr", "perplexity")
    elif values.ndim == 2:
        assert score == values[:, 0].sum() / values[:, 1].sum()
    else:
        assert len(values) == 5 and score == pytest.approx(np.nanmean(values))


@pytest.mark.parametrize("name", TASKS)
def test_an_empty_split_has_no_score(name):
    task = TASKS[name]
    assert np.isnan(task.score([])[task.metric]) and task.score([])["n_examples"] == 0


def test_secondary_structure_counts_residues_not_proteins(root):
    task = TASKS["secondary_structure"]
    data = task.dataset(root, "valid")
    batch = data.collate_fn([data[i] for i in range(5)])
    logits = torch.nn.functional.one_hot(batch["targets"].clamp(min=0), 3).float()
    logits[0, 1:11] = -logits[0, 1:11]  # ten residues of protein 0 wrong
    predictions = task.predictions(logits, batch)
    wrong = int((predictions[0].scores.argmax(-1) != predictions[0].labels).sum())
    scores = task.score(predictions)
    assert scores["accuracy"] == (sum(LENGTHS) - wrong) / sum(LENGTHS) and scores["n_residues"] == sum(LENGTHS)
    valid = np.concatenate([p.valid for p in predictions])
    missed = int((predictions[0].scores.argmax(-1) != predictions[0].labels)[predictions[0].valid].sum())
    assert scores["accuracy_valid"] == (valid.sum() - missed) / valid.sum()


def test_contact_scores_of_true_contacts_are_perfect(root):
    task = TASKS["contact_prediction"]
    data = task.dataset(root, "valid")
    batch = data.collate_fn([data[i] for i in range(5)])
    logits = torch.stack((torch.zeros_like(batch["targets"]), batch["targets"]), -1).float()
    scores = task.score(task.predictions(logits, batch))
    best = task.predictions(logits, batch)
    table = metrics.precision_table([(p.scores, p.labels) for p in best])["precision_at_l5"]
    for value, p in zip(table, best, strict=True):
        contacts, k = int((np.triu(p.labels) == 1).sum()), p.length // 5
        pairs = int((np.triu(p.labels, 6) != -1).sum())
        assert np.isnan(value) if min(k, pairs) == 0 else value == pytest.approx(min(contacts, k) / min(k, pairs))
    assert scores["n_left_precision_at_l5"] >= 1  # four residues have no pair six apart
    worst = metrics.precision_table([(-p.scores, p.labels) for p in best])["precision_at_l5"]
    assert np.nanmean(worst) < np.nanmean(table)


def test_perplexity_is_exp_of_the_summed_loss(root):
    task = TASKS["masked_language_modeling"]
    predictions, total, count = evaluate(task, build_model(task, config=CONFIG), task.dataset(root, "valid"), 3)
    scores = task.score(predictions)
    assert scores["perplexity"] == pytest.approx(np.exp(total / count), rel=1e-5)
    assert scores["n_masked"] == count and 0 <= scores["accuracy"] <= 1


def test_a_built_model_is_what_was_asked_for(tmp_path):
    task = TASKS["remote_homology"]
    model = build_model(task, config=CONFIG, head="tape")
    assert model.config.num_labels == 1195 and model.config.head == "tape" and not model.training
    model.save_pretrained(tmp_path)
    assert build_model(task, tmp_path).config.head == "tape"  # as the directory says


def test_tasks_are_tapes():
    assert list(TASKS) == [
        "secondary_structure",
        "contact_prediction",
        "remote_homology",
        "fluorescence",
        "stability",
        "masked_language_modeling",
    ]
    assert TASKS["secondary_structure"].splits == ("casp12", "ts115", "cb513")
    assert {name: task.metric for name, task in TASKS.items()}["contact_prediction"] == "precision_at_l5"


def test_a_protein_without_finite_scores_spoils_the_interval_as_it_spoils_the_metric():
    """A NaN must not leave the bootstrap silently while the metric itself is undefined."""
    task = TASKS["remote_homology"]
    good = Prediction("a", 5, np.array([0.0, 1.0]), np.array(1))
    broken = Prediction("b", 5, np.array([np.nan, 1.0]), np.array(1))
    assert np.isnan(task.score([good, broken])["accuracy"])
    assert not np.isfinite(task.per_protein([good, broken])).all()
    assert task.per_protein([good, good]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("scores", "text"),
    [
        ([1.25, 1.25, 1.25], "all 3 predictions are 1.25"),
        ([0.0, 0.0], "all 2 predictions are 0"),
        ([1.0, 1.0 + 1e-7], "all 2 predictions are 1"),
        ([1.0, 1.001], ""),
        ([1.0], ""),
        ([float("nan"), float("nan")], ""),
        ([[0, 2, 1], [0, 5, 4]], "class 1 is predicted for all 2 proteins"),
        ([[0, 2, 1], [6, 5, 4]], ""),
    ],
)
def test_predictions_that_tell_no_protein_from_another(scores, text):
    predictions = [Prediction(str(i), 9, np.array(own), np.array(0)) for i, own in enumerate(scores)]
    assert describe_constant(predictions) == text


def test_predictions_of_residues_are_not_compared():
    predictions = [Prediction(str(i), 2, np.ones((2, 3)), np.zeros(2, int)) for i in range(3)]
    assert describe_constant(predictions) == ""
