"""What pretraining uses of PyTorch that it does not promise to keep: the place to look at when it is upgraded.

The parts of torch.distributed.checkpoint are imported when called: a loader's workers import this file, and would each
start a second and a half later.
"""

from datetime import timedelta

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh


def with_local(tensor: Tensor, local: Tensor) -> Tensor:
    """The DTensor `tensor` with `local`, which may be on another device, as this process's shard."""
    tensor = tensor.detach()
    tensor._local_tensor = local
    return tensor


def flatten_state_dict(state: dict) -> tuple[dict[str, object], dict[str, tuple]]:
    """(the leaves of nested dicts under dotted names, each name's path): the names that a checkpoint's entries have."""
    from torch.distributed.checkpoint._nested_dict import flatten_state_dict

    return flatten_state_dict(state)


def joined_axes(mesh: DeviceMesh, axes: tuple[str, ...], name: str) -> DeviceMesh:
    """Several axes of a mesh as one axis `name`."""
    return mesh[axes]._flatten(name)


def run_schedule(
    schedule: object, arguments: list[tuple], options: list[dict], targets: list | None, training: bool
) -> None:
    """One pipeline step, or only its forward passes; each micro-batch's arguments, options and target as they are.

    `schedule.step` would cut tensors of the whole batch into equal pieces, which packed proteins are not.
    """
    schedule._has_backward = training
    for stage in getattr(schedule, "_stages", None) or [schedule._stage]:
        stage.has_backward = training
        stage.clear_runtime_states()
    schedule._step_microbatches(arguments, options, targets, return_outputs=False)


def set_timeout(group: dist.ProcessGroup, timeout: timedelta) -> None:
    """How long the group's collectives wait; a group made without a time has the library's default."""
    dist.distributed_c10d._set_pg_timeout(timeout, group)


def stop_workers(batches: object) -> None:
    """End the processes behind an iterator of a DataLoader, which else live until it is collected."""
    if shutdown := getattr(batches, "_shutdown_workers", None):
        shutdown()
