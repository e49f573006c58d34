"""Tensors without values and peers without processes, so that one process runs any rank's step of any layout.

What is used of PyTorch here has no promise that it stays: this is the place to look at when it is upgraded.
"""

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import schedules
from torch.distributed.tensor import _redistribute
from torch.distributed.tensor import debug as dtensor_debug
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes

from pretrain.parallel.mesh import Layout, World


def in_backward() -> bool:
    """Whether autograd is running a backward pass, recomputation included."""
    return torch._C._current_graph_task_id() != -1


def group_name(value: object) -> str | None:
    """The name of the process group that an operator was given, as an object or by its name."""
    if isinstance(value, str):
        return value
    if isinstance(value, torch.ScriptObject):
        with contextlib.suppress(RuntimeError):
            return dist.ProcessGroup.unbox(value).group_name
    return None


@contextlib.contextmanager
def whole_view(callback: Callable[[torch.UntypedStorage], None]) -> Iterator[None]:
    """Inside, a dispatch mode's view of what runs is whole, and nothing but what runs is in it.

    It sees no resize of a storage, so `callback` is called after each; and it would see DTensor try an operator on
    tensors without values, once for each shape, to learn the result's.
    """

    def resize_(storage: torch.UntypedStorage, size: int) -> None:
        honest(storage, size)
        callback(storage)

    honest, propagate = torch.UntypedStorage.resize_, ShardingPropagator._propagate_tensor_meta_non_cached
    with (
        replaced(torch.UntypedStorage, "resize_", resize_),
        replaced(ShardingPropagator, "_propagate_tensor_meta_non_cached", with_values(propagate)),
    ):
        yield


@contextlib.contextmanager
def fake_world(layout: Layout, rank: int) -> Iterator[World]:
    """The World of process `rank` of a layout, whose collectives return at once."""
    device, size = torch.device("cpu"), torch.Size(layout.sizes).numel()
    if size == 1:
        yield World(Layout(), device)
        return
    assert not dist.is_initialized(), "this process has peers"
    hook = sys.excepthook  # which each process group wraps in one that says the rank
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    sys.excepthook = hook
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Set timeout is now only supported")
            world = World.over_all(layout, device, timedelta(minutes=1))
        yield world
    finally:
        dist.destroy_process_group()
        # DTensor keeps what it found out by mesh, and in it the names of groups that are gone now
        dtensor_debug._clear_sharding_prop_cache()
        if clear := getattr(_redistribute._gen_transform_infos, "cache_clear", None):
            clear()


@contextlib.contextmanager
def fake_tensors() -> Iterator[None]:
    """Inside, tensors have shapes and no values."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(replaced(nn.Module, "to_empty", _to_empty))
        joined = staticmethod(with_values(DeviceMesh._concatenate))
        stack.enter_context(replaced(DeviceMesh, "_concatenate", joined))
        stack.enter_context(replaced(schedules._PipelineSchedule, "_warmup_p2p", _agree))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield


@contextlib.contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Inside, `owner.name` is `value`, where there is one."""
    present, own = hasattr(owner, name), name in vars(owner)
    honest = vars(owner).get(name)
    if present:
        setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, honest)
        elif present:
            delattr(owner, name)


def _agree(schedule: object, stages: list, *others: object) -> None:
    """Before its first step a schedule asks the other stages whether all know their shapes. Here they do."""
    for stage in stages:
        stage._inference_mode = schedules.InferenceMode.STATIC


def with_values(function: Callable) -> Callable:
    """`function` on real tensors, of which it reads the values."""

    def call(*args, **kwargs):
        with _disable_current_modes(), unset_fake_temporarily():
            return function(*args, **kwargs)

    return call


def _to_empty(module: nn.Module, *, device: torch.device, recurse: bool = True) -> nn.Module:
    """PyTorch's own swaps a fake parameter for another, which its weak references forbid."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(torch.empty_like(parameter, device=device))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty_like(buffer, device=device)
    for part in module.modules():
        if isinstance(part, FSDPModule) and (group := part._get_fsdp_state()._fsdp_param_group):
            for parameter in group.fsdp_params:
                parameter.reset_sharded_param()
    return module
