"""Which device a name means, on a machine without GPUs and on one (pretended) with two."""

from types import SimpleNamespace

import pytest
import torch

import pretrain.__main__
import pretrain.trainer
import tape.finetuning.runs
from proteinlm.devices import choose_device, denormals_as_zero
from proteinlm.errors import InputError


@pytest.fixture
def gpus(monkeypatch):
    """Sets how many GPUs torch reports."""

    def set_count(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return set_count


@pytest.mark.parametrize(
    ("name", "local_rank", "count", "device"),
    [
        ("auto", None, 0, "cpu"),
        ("auto", 1, 0, "cpu"),
        ("auto", None, 2, "cuda"),
        ("auto", 1, 2, "cuda:1"),
        ("cpu", 1, 2, "cpu"),
        ("cuda:1", None, 2, "cuda:1"),
        ("cuda", 0, 2, "cuda:0"),
        ("cuda", 3, 1, "cuda:0"),  # Slurm's --gpus-per-task=1: each process sees its own alone
        (torch.device("cuda", 1), None, 2, "cuda:1"),
    ],
)
def test_a_name_and_a_local_rank_choose_the_device(gpus, name, local_rank, count, device):
    gpus(count)
    assert choose_device(name, local_rank) == torch.device(device)


@pytest.mark.parametrize(
    ("name", "local_rank", "count", "message"),
    [
        ("abacus", None, 2, "^device 'abacus': should be auto, cpu or cuda"),
        ("cuda", None, 0, "^device 'cuda': this machine has no CUDA device; should be cpu$"),
        ("cuda:1", 1, 2, "^device 'cuda:1': several processes would share one GPU; should be cuda$"),
        ("auto", 2, 2, "^process 2 of this machine has no GPU: there are 2$"),
    ],
)
def test_a_device_that_is_not_there_is_refused(gpus, name, local_rank, count, message):
    gpus(count)
    with pytest.raises(InputError, match=message):
        choose_device(name, local_rank)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("meta", "^device 'meta': should be auto, cpu or cuda"),
        ("xpu", "^device 'xpu': should be auto, cpu or cuda"),
        ("mps", "^device 'mps': should be auto, cpu or cuda"),
        (torch.device("meta"), "^device 'meta': should be auto, cpu or cuda"),
        (["cpu"], "^device .*'cpu'.*: should be auto, cpu or cuda"),
        (True, "^device 'True': should be auto, cpu or cuda"),
        ("cuda:2", "^device 'cuda:2': there are 2 CUDA devices, from cuda:0$"),
    ],
)
def test_what_cannot_compute_here_is_refused(gpus, monkeypatch, name, message):
    gpus(2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=message):
        choose_device(name)


def test_none_is_auto(gpus):
    for count in (0, 2):
        gpus(count)
        assert choose_device(None) == choose_device("auto")


def test_denormals_count_as_zero_inside_alone():
    tiny = torch.full((100_000,), 2e-38)
    with denormals_as_zero():
        assert float((tiny * 0.1).sum()) == 0
    assert float((tiny * 0.1).sum()) > 0


def test_training_runs_with_denormals_as_zero(monkeypatch, tmp_path):
    inside = []

    def run(*_args) -> int:
        inside.append(float(torch.tensor(2e-38) * 0.1))
        return 0

    monkeypatch.setattr(tape.finetuning.runs, "choose_task", lambda options: None)
    monkeypatch.setattr(tape.finetuning.runs, "run", run)
    tape.finetuning.runs.finetune(SimpleNamespace(device="cpu"), "tape-train")
    assert inside == [0]
    monkeypatch.setattr(pretrain.trainer, "Trainer", run)
    with pytest.raises(AttributeError):  # what stands in its place has no run()
        pretrain.__main__.train(SimpleNamespace(checkpoint=SimpleNamespace(save=str(tmp_path))))
    assert inside == [0, 0]
