"""What tape-eval keeps of each protein: readable without our code, and enough to have the metric again."""

import pickle

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from proteinlm.errors import InputError
from tape import metrics
from tape.scoring.bootstrap import confidence_interval
from tape.scoring.files import load_ids, load_scores, save_predictions, save_results_pkl
from tape.tasks import TASKS, Prediction

RNG = np.random.default_rng(0)
LENGTHS = (30, 44, 31)


def predictions(task: str) -> list[Prediction]:
    """Three proteins with random scores and labels."""
    made = []
    for number, n in enumerate(LENGTHS):
        if task in ("stability", "fluorescence"):
            scores, labels = np.float32(RNG.normal()), np.float32(RNG.normal())
        elif task == "remote_homology":
            scores, labels = RNG.normal(size=1195).astype(np.float32), np.array(number)
        elif task == "secondary_structure":
            scores, labels = RNG.normal(size=(n, 3)).astype(np.float32), RNG.integers(-1, 3, n)
        elif task == "contact_prediction":
            scores = RNG.normal(size=(n, n)).astype(np.float32)
            scores, labels = scores + scores.T, RNG.integers(-1, 2, (n, n)).astype(np.int8)
            labels = np.triu(labels) + np.triu(labels, 1).T
        else:
            scores, labels = RNG.random(n // 6).astype(np.float32), RNG.integers(5, 30, n // 6)
        valid = np.ones(n, bool) if task == "secondary_structure" else None
        made.append(
            Prediction(f"protein {number}", n, np.asarray(scores), np.asarray(labels), valid, np.asarray(labels))
        )
    return made


TASK_NAMES = sorted(TASKS)


@pytest.mark.parametrize("form", ["npz", "parquet"])
@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_metric_comes_back(task, form, tmp_path):
    examples = predictions(task)
    path = tmp_path / f"a.{form}"
    save_predictions(path, TASKS[task], "valid", examples)
    expected = TASKS[task].score(examples)[TASKS[task].metric]
    assert confidence_interval(load_scores(path), 5)["value"] == pytest.approx(expected, abs=1e-7)
    assert load_ids(path) == [f"protein {number}" for number in range(3)]


def test_npz_is_read_by_numpy_alone(tmp_path):
    """3-class accuracy of the stored logits, by scikit-learn; no pickle in the file."""
    examples = predictions("secondary_structure")
    save_predictions(tmp_path / "a.npz", TASKS["secondary_structure"], "cb513", examples)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        assert stored["lengths"].tolist() == list(LENGTHS) and str(stored["split"]) == "cb513"
        labels, chosen = stored["labels"], stored["scores"].argmax(1)
        labelled = labels != -1
        accuracy = accuracy_score(labels[labelled], chosen[labelled])
        begin, end = stored["offsets"][1:3]
        assert np.array_equal(stored["scores"][begin:end], examples[1].scores)
        assert np.array_equal(stored["labels"][slice(*stored["label_offsets"][1:3])], examples[1].labels)
        own = stored["per_protein_accuracy"]
    assert accuracy == pytest.approx(TASKS["secondary_structure"].score(examples)["accuracy"])
    labelled = examples[2].labels != -1
    one = accuracy_score(examples[2].labels[labelled], examples[2].scores.argmax(1)[labelled])
    assert own[2] == pytest.approx(one)


def test_parquet_is_read_by_pandas_or_pyarrow_alone(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    examples = predictions("remote_homology")
    save_predictions(tmp_path / "a.parquet", TASKS["remote_homology"], "valid", examples)
    rows = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert [row["id"] for row in rows] == load_ids(tmp_path / "a.parquet")
    assert [row["length"] for row in rows] == list(LENGTHS) and [row["labels"] for row in rows] == [0, 1, 2]
    assert np.array_equal(np.float32(rows[1]["scores"]), examples[1].scores)


def test_contacts_keep_every_band(tmp_path):
    examples = predictions("contact_prediction")
    save_predictions(tmp_path / "a.npz", TASKS["contact_prediction"], "valid", examples)
    metric = "precision_at_l5_medium_long"
    expected = metrics.mean_over_proteins(metrics.precision_table([(p.scores, p.labels) for p in examples])[metric])[0]
    assert confidence_interval(load_scores(tmp_path / "a.npz", metric), 5)["value"] == pytest.approx(expected)
    with np.load(tmp_path / "a.npz") as stored:  # pairs (0,1) (0,2) ...: the map of protein 1 again
        n = LENGTHS[1]
        again = np.zeros((n, n), np.float32)
        again[np.triu_indices(n, 1)] = stored["scores"][slice(*stored["offsets"][1:3])]
    assert np.array_equal(np.triu(again, 1), np.triu(examples[1].scores, 1))
    with pytest.raises(InputError, match="per_protein_nonsense"):
        load_scores(tmp_path / "a.npz", "nonsense")


def test_a_rank_correlation_has_squared_errors(tmp_path):
    examples = predictions("stability")
    save_predictions(tmp_path / "a.npz", TASKS["stability"], "test", examples)
    with np.load(tmp_path / "a.npz") as stored:
        expected = (stored["scores"].astype(float) - stored["labels"].astype(float)) ** 2
        assert stored["per_protein_squared_error"] == pytest.approx(expected)
        assert str(stored["kind"]) == "spearman" and stored["columns"].shape == (3, 2)


def test_results_pkl_has_tapes_layout(tmp_path):
    examples = predictions("stability")
    save_results_pkl(tmp_path / "results.pkl", {"mse": 1.0}, examples)
    values, outputs = pickle.loads((tmp_path / "results.pkl").read_bytes())
    assert values == {"mse": 1.0}
    assert [set(output) for output in outputs] == [{"prediction", "target"}] * 3
    assert outputs[2]["target"] == examples[2].labels
