"""Data parallelism: any number of processes computes the step of one process. Threads stand in for processes here;
the real ones are in test_train_distributed.py."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_data import FOLDERS, write_config, write_data

from proteinlm.errors import InputError
from tape.data.batching import share_step
from tape.data.lengths import residue_limit
from tape.finetuning import norms, runs
from tape.finetuning.options import parse_options
from tape.finetuning.trainer import Trainer
from tape.runs import processes
from tape.runs.processes import Processes, SharedInputError, run_together
from tape.scoring.inference import predict
from tape.tasks import TASKS

pytestmark = pytest.mark.slow


@pytest.fixture
def descent(monkeypatch):
    """Plain gradient descent, under which weights differ as their gradients do.

    Adam turns rounding noise into whole steps where the true gradient is 0 (a bias that a softmax or a BatchNorm takes
    out again, the antisymmetric half of a contact head), so weights then agree only in what they compute.
    """

    def build(model, lr, weight_decay, lr_scale):
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)

    monkeypatch.setattr("tape.finetuning.trainer.build_optimizer", build)


class Board:
    """Where threads meet: everyone's value, once everyone has come."""

    def __init__(self, size: int):
        self.barrier, self.values = threading.Barrier(size, timeout=60), [None] * size

    def exchange(self, rank: int, value: object) -> list:
        self.values[rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values


@dataclass(frozen=True)
class ThreadProcesses(Processes):
    """A Processes whose ranks are threads."""

    board: Board = field(default=None)

    def all_gather(self, value):
        return self.board.exchange(self.rank, value)

    def gather(self, value):
        values = self.all_gather(value)
        return values if self.is_main else None

    def broadcast(self, value):
        return self.all_gather(value)[0]

    def all_reduce(self, tensor):
        with torch.no_grad():
            total = sum(t.clone() for t in self.all_gather(tensor.detach().clone()))
            return tensor.copy_(total)

    def same_tensors(self, tensors):
        for tensor in tensors:
            tensor.data.copy_(self.all_gather(tensor.data.clone())[0])

    def barrier(self):
        self.board.exchange(self.rank, None)


def in_threads(size: int, work) -> list:
    """work(processes) on every rank; their results, or the first error."""
    board, results = Board(size), [None] * size

    def one(rank: int) -> None:
        try:
            results[rank] = work(ThreadProcesses(rank, size, rank, board=board))
        except BaseException as error:
            results[rank] = error
            board.barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parallel")
    for task in FOLDERS:
        write_data(root, task, train=13 if task == "contact_prediction" else 22, valid=7)
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "contact_dropout_prob": 0.0}
    write_config(root / "config.json", **off)
    return root


def steps(root: Path, task: str, size: int, *flags: object) -> list[dict]:
    """Every rank's losses, gradient norms, weights and validation after a few steps."""
    words = ["transformer", task, "--data_dir", root, "--output_dir", root / "run", "--device", "cpu", "--head", "tape"]
    words += ["--model_config_file", root / "config.json", "--batch_size", 7, "--max_steps", 5, "--recipe", "none"]
    options = parse_options([str(word) for word in (*words, *flags)], tuple(TASKS))
    lock = threading.Lock()  # torch's generator, which initial weights come from, is one for all threads

    def work(processes: Processes) -> dict:
        with lock:
            model = runs.build_model(TASKS[task], options)
            data, valid, _ = runs.choose_validation(TASKS[task], options, residue_limit(model.config, None))
        trainer = Trainer(TASKS[task], model, options, data, valid, processes)
        metrics = []
        trainer._train_mode()
        for share in trainer._plan():
            parts = [data[(0, part)] for part in share.parts]
            metrics.append(trainer.train_step(parts, share))
        predictions, loss = predict(TASKS[task], model, valid, 3, trainer.device, processes=processes)
        score = TASKS[task].score(predictions) if processes.is_main else None
        return {"metrics": metrics, "state": model.state_dict(), "loss": loss, "score": score, "n": len(predictions)}

    return in_threads(size, work)


def furthest(a: dict, b: dict) -> float:
    """The largest difference of any weight or running statistic."""
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


@pytest.mark.parametrize(
    ("task", "size", "accumulation"),
    [
        ("stability", 2, 1),
        ("stability", 3, 2),  # two parts spread over three
        ("masked_language_modeling", 2, 3),  # three parts dealt to two: unequal counts of hidden residues
        ("remote_homology", 8, 1),  # one process is idle
        ("secondary_structure", 2, 1),  # BatchNorm over both
        ("secondary_structure", 2, 3),  # BatchNorm of whole parts
        ("secondary_structure", 4, 2),  # a part of three proteins on four processes
        ("contact_prediction", 2, 1),
    ],
)
def test_any_number_of_processes_takes_the_steps_of_one(root, descent, task, size, accumulation):
    flags = ("--gradient_accumulation_steps", accumulation, "--learning_rate", 0.1)
    (one,), several = steps(root, task, 1, *flags), steps(root, task, size, *flags)
    for rank in several:
        assert np.allclose(rank["metrics"], one["metrics"], rtol=1e-5), "the same loss and norm on every rank"
        assert all(torch.equal(rank["state"][name], value) for name, value in several[0]["state"].items())
    assert furthest(one["state"], several[0]["state"]) < 2e-6
    assert several[0]["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert several[0]["n"] == one["n"] and all(rank["n"] == 0 for rank in several[1:])


def test_so_it_does_with_adam(root):
    flags = ("--learning_rate", 1e-3)
    (one,), several = (steps(root, "fluorescence", n, *flags) for n in (1, 2))
    assert furthest(one["state"], several[0]["state"]) < 2e-6


@pytest.mark.parametrize(("size", "accumulation"), [(2, 1), (3, 7), (2, 3), (9, 2)])
def test_running_statistics_are_those_of_one_process(root, size, accumulation):
    """Weights at rest: what is left is BatchNorm's running mean and variance, parts in order."""
    flags = ("--gradient_accumulation_steps", accumulation, "--learning_rate", 0)
    (one,), several = (steps(root, "secondary_structure", n, *flags) for n in (1, size))
    for name, value in one["state"].items():
        torch.testing.assert_close(several[0]["state"][name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_contact_heads_norms_follow_when_each_process_has_whole_parts(root):
    flags = ("--gradient_accumulation_steps", 7, "--max_steps", 1, "--learning_rate", 0, "--head", "proteinlm")
    (one,), several = (steps(root, "contact_prediction", n, *flags) for n in (1, 2))
    assert furthest(one["state"], several[0]["state"]) < 1e-4
    assert int(several[0]["state"]["predict.predict.ResidualBlock0.bn1.num_batches_tracked"]) in (
        6,
        7,
    )  # one of 13 is left out of two batches of 7


def test_negative_controls(root, monkeypatch):
    """Statistics of one process's proteins give another gradient; so does a mean of the processes' means."""
    flags = ("--learning_rate", 0, "--max_steps", 1)
    (one,) = steps(root, "secondary_structure", 1, *flags)
    with monkeypatch.context() as patch:
        patch.setattr(norms.NormKeeper, "begin", lambda self, share: dict.fromkeys(self.norms, (None, None)))
        patch.setattr(norms.NormKeeper, "end", lambda *args: None)
        apart = steps(root, "secondary_structure", 2, *flags)
    assert apart[0]["metrics"][0][1] != pytest.approx(one["metrics"][0][1], rel=1e-3)
    (one,) = steps(root, "masked_language_modeling", 1, *flags)
    kind = type(TASKS["masked_language_modeling"])
    loss = kind.loss
    monkeypatch.setattr(kind, "loss", lambda *args: (loss(*args)[0] / loss(*args)[1], 1))
    means = steps(root, "masked_language_modeling", 2, *flags)
    assert means[0]["metrics"][0] != pytest.approx(one["metrics"][0], rel=1e-4)


def test_a_split_predicted_by_several_is_the_same_to_the_last_bit(root):
    (one,) = steps(root, "contact_prediction", 1, "--learning_rate", 0)
    several = steps(root, "contact_prediction", 3, "--learning_rate", 0)
    assert several[0]["score"] == one["score"] and several[0]["loss"] == several[2]["loss"] == one["loss"]


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_a_share_is_each_protein_once(count, size):
    """Over all ranks every protein counts once, whole parts in order; all ranks make as many passes when they split."""
    parts = np.array_split(np.arange(11), count)
    shares = [share_step(parts, rank, size) for rank in range(size)]
    counted = [p for s in shares for part, idle in zip(s.parts, s.idle, strict=True) if not idle for p in part]
    assert sorted(counted) == list(range(11))
    assert all(share.parts and all(len(part) for part in share.parts) for share in shares)
    if shares[0].split:
        assert {len(share.parts) for share in shares} == {count}
    else:
        assert counted == list(range(11)) and shares[-1].after == 0
        assert [share.after for share in shares] == [sum(len(s.parts) for s in shares[r + 1 :]) for r in range(size)]


def test_one_ranks_mistake_is_everyones():
    def work(processes: Processes) -> None:
        def maybe():
            if processes.rank == 1:
                raise InputError("no such thing")
            return processes.rank

        with pytest.raises(SharedInputError, match="process 1: no such thing"):
            processes.together(maybe)
        assert processes.together(lambda: processes.rank) == processes.rank

    in_threads(3, work)
    with pytest.raises(InputError, match="alone"):
        Processes().together(lambda: (_ for _ in ()).throw(InputError("alone")))


@pytest.mark.parametrize(
    ("size", "text", "raised"),
    [
        (2, "[pair.cc:553] Connection closed by peer [127.0.0.1]:9", InputError),
        (2, "shape mismatch", RuntimeError),
        (1, "Connection closed by peer", RuntimeError),
    ],
)
def test_a_process_whose_peer_has_ended_says_so(size, text, raised, monkeypatch):
    """A disk that is full when rank 0 writes ends that process, and the other one's next sum."""

    def work(*_):
        raise RuntimeError(text)

    monkeypatch.setattr(processes, "start", lambda _: (Processes(size - 1, size), torch.device("cpu")))
    with pytest.raises(raised) as caught:
        run_together("cpu", work)
    assert ("another process of the run has ended, which" in str(caught.value)) is (raised is InputError)
