"""Tasks beside the five and masked LM: language_modeling, ss_q8 and embed; each task with each model of TAPE's list."""

import numpy as np
import pytest
import torch
from tape_lmdb import write_lmdb
from toy_data import RESIDUES

from proteinlm.errors import InputError
from tape import TAPETokenizer
from tape.data.splits import SplitData, load_split
from tape.registry import model_types, registry, resolve_task

LENGTHS = (20, 7, 33, 12)
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "input_size": 8,
    "max_position_embeddings": 64,
    "head": "tape",
}
TRAINABLE = [
    (task, model)
    for task, spec in registry.task_name_mapping.items()
    for model in ("transformer", "tape_transformer", "lstm", "resnet", "onehot")
    if model in spec.models and task != "embed"
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Four proteins with every task's fields."""
    directory, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    records = [
        {
            "primary": "".join(rng.choice(RESIDUES, length)),
            "log_fluorescence": rng.normal(size=1),
            "stability_score": rng.normal(size=1),
            "fold_label": int(rng.integers(1195)),
            "ss3": rng.integers(0, 3, length),
            "ss8": rng.integers(0, 8, length),
            "tertiary": rng.normal(scale=6.0, size=(length, 3)),
            "valid_mask": rng.random(length) < 0.9,
        }
        for length in LENGTHS
    ]
    for folder in {spec.dataset.folder for name, spec in registry.task_name_mapping.items() if name != "embed"}:
        write_lmdb(directory / folder / f"{folder}_valid.lmdb", records)
    return directory


def build(task, model_type):
    """A small model with weights of a fixed seed; only the keys that its configuration knows."""
    torch.manual_seed(0)
    known = set(vars(task.model.config_class()))
    return task.model.from_pretrained(
        None, **{k: v for k, v in SMALL.items() if k in known}, num_labels=task.num_labels
    )


@torch.no_grad()
def scores(task, model, data: SplitData, size: int):
    predictions, total, count = [], 0.0, 0
    for start in range(0, len(data), size):
        batch = data[(0, np.arange(start, min(start + size, len(data))))]
        logits = task.forward(model, batch)
        loss, number = task.loss(logits, batch)
        predictions += task.predictions(logits, batch)
        total, count = total + float(loss), count + int(number)
    return task.score(predictions), total / count, predictions


@pytest.mark.parametrize(("name", "model_type"), TRAINABLE)
def test_every_model_of_every_task(root, name, model_type):
    """A score, the same for one protein at a time and for all at once; and the model's own loss agrees."""
    task = resolve_task(name, model_type)
    model, data = build(task, model_type), load_split(task, root, "valid", TAPETokenizer(), 62, "error")
    one, loss, _ = scores(task, model, data, 1)
    every, other, _ = scores(task, model, data, 4)
    assert one["n_examples"] == 4 and task.metric in one
    assert every == pytest.approx(one, rel=1e-4, nan_ok=True) and other == pytest.approx(loss, rel=1e-4)
    batch = data[(0, np.arange(4))]
    (own, _), *_ = model(**batch)  # a batch's keys are the model's arguments, as in songlab's package
    assert own.item() == pytest.approx(loss, rel=1e-4)


def test_language_modeling_scores_residues(root):
    task = resolve_task("language_modeling", "lstm")
    data = load_split(task, root, "valid", TAPETokenizer(), None, "error")
    metrics, _, predictions = scores(task, build(task, "lstm"), data, 4)
    assert [len(p.labels) for p in predictions] == list(LENGTHS) == [p.length for p in predictions]
    assert metrics["n_masked"] == sum(LENGTHS) and metrics["perplexity"] > 1
    nats = np.concatenate([p.scores for p in predictions])
    assert metrics["perplexity"] == pytest.approx(np.exp(nats.mean()))
    with pytest.raises(InputError, match="language_modeling has no model 'transformer'; it has lstm"):
        resolve_task("language_modeling", "transformer")


def test_eight_states(root):
    task = resolve_task("ss_q8", "transformer")
    data = load_split(task, root, "valid", TAPETokenizer(), 62, "error")
    _, _, predictions = scores(task, build(task, "transformer"), data, 4)
    assert [p.scores.shape for p in predictions] == [(length, 8) for length in LENGTHS]
    assert (task.num_labels, task.metric, task.splits) == (8, "accuracy", ("casp12", "ts115", "cb513"))


@pytest.mark.parametrize("model_type", [name for name in model_types() if name in ("transformer", "lstm", "onehot")])
def test_embed_is_looked_up_but_not_trained(model_type):
    task = resolve_task("embed", model_type)
    assert task.model is registry.get_task_spec("embed").get_model(model_type)
    states, pooled = build(task, model_type)(torch.from_numpy(TAPETokenizer().encode("MKVL")[None]))[:2]
    assert states.shape[:2] == (1, 6) and pooled.shape[0] == 1
    for call in (task.loss, task.predictions):
        with pytest.raises(InputError, match=r"nothing to .*; tape-embed writes embeddings"):
            call(states, {})
