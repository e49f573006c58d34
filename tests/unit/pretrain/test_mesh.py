"""How a process takes its GPU and meets the others, on a machine that has none."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from tiny_runs import MODEL

from pretrain import trainer as trainer_module
from pretrain.config.read import parse_config
from pretrain.parallel.mesh import World
from proteinlm.errors import InputError


class Met(Exception):
    """Raised where the others would be waited for."""


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs, pretended; what is done with torch.cuda and the process group."""
    seen = SimpleNamespace(current=None, group=None)

    def meet(*arguments, **options):
        seen.group = arguments, options
        raise Met

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: setattr(seen, "current", device))
    monkeypatch.setattr(dist, "init_process_group", meet)
    return seen


def config(*flags: str, world_size: int = 1):
    return parse_config(
        [*MODEL, "--data-path", "x", "--save", "y", "--train-iters", "1", *flags], world_size=world_size
    )


def test_a_process_alone_computes_on_the_gpu_that_it_names(gpus):
    alone = config("--device", "cuda", "--local-rank", "1")
    world = World.join(alone, trainer_module._device(alone))
    assert world.alone and world.device == gpus.current == torch.device("cuda", 1)
    gpus.current = None
    World.join(config(), torch.device("cpu"))
    assert gpus.current is None


def test_more_processes_of_torchrun_than_gpus_are_refused(gpus, monkeypatch):
    """Where one GPU is visible: under Slurm each process may see its own."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert trainer_module._device(config("--device", "cuda")) == torch.device("cuda", 0)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(InputError, match="torchrun started 2 processes on this machine, but there are 1 GPUs"):
        trainer_module._device(config("--device", "cuda"))


@pytest.mark.parametrize(
    ("device", "backend", "backends", "bound"),
    [
        ("cuda:1", None, "cpu:gloo,cuda:nccl", True),
        ("cuda:1", "gloo", "gloo", False),
        ("cpu", None, "gloo", False),
    ],
)
def test_nccl_is_bound_to_the_device_of_its_process(gpus, monkeypatch, device, backend, backends, bound):
    monkeypatch.setenv("WORLD_SIZE", "2")
    flags = ["--distributed-backend", backend] if backend else []
    device = torch.device(device)
    with pytest.raises(Met):
        World.join(config(*flags, world_size=2), device)
    arguments, options = gpus.group
    assert arguments == (backends,) and options["device_id"] == (device if bound else None)
    assert gpus.current == (device if device.type == "cuda" else None)


def test_a_lost_process_is_told_in_a_line():
    alone, one_of_two = SimpleNamespace(alone=True), SimpleNamespace(alone=False, rank=1)
    lost = RuntimeError("[gloo] Timed out waiting 6000ms for send operation to complete")
    with (
        pytest.raises(InputError, match=r"^process 1: .* does not answer for 0.1 minutes"),
        World.answering(one_of_two, 0.1),
    ):
        raise lost
    for world, error in ((alone, lost), (one_of_two, RuntimeError("shape mismatch"))):  # a defect keeps its traceback
        with pytest.raises(RuntimeError) as raised, World.answering(world, 0.1):
            raise error
        assert raised.value is error
