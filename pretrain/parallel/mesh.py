"""Which process this is and whom it talks to: the DeviceMesh (pp, dp_replicate, dp_shard, tp) and its few collectives.

    world = World.join(config, device)        # under torchrun; alone, the same object without a process group
    world.dp_rank, world.is_main, world.sum_over_all(torch.tensor([3.0, 4.0]))

Ranks are laid out as Megatron-LM lays them: tp fastest, then the replicas, then pp. So with 8 GPUs a node, tp 8 stays
within a node, and pp, which sends least, crosses most nodes. Each axis has a file here.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pretrain.config.options import Config
from pretrain.torch_internals import joined_axes, set_timeout
from proteinlm.errors import InputError, lost_peer

AXES = ("pp", "dp_replicate", "dp_shard", "tp")


@dataclass(frozen=True)
class Layout:
    """The sizes of the four axes; their product is the number of processes."""

    pp: int = 1
    dp_replicate: int = 1
    dp_shard: int = 1  # ways that weights and optimizer state are cut over the replicas (1: not)
    tp: int = 1

    @classmethod
    def of(cls, config: Config, world_size: int) -> "Layout":
        """The layout that a Config (checked by `for_world`) asks for on so many processes."""
        p = config.parallel
        dp = world_size // (p.tensor_model_parallel_size * p.pipeline_model_parallel_size)
        sharded = p.use_distributed_optimizer or p.use_torch_fsdp2
        replicate = p.num_distributed_optimizer_instances if sharded else dp
        return cls(p.pipeline_model_parallel_size, replicate, dp // replicate, p.tensor_model_parallel_size)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(getattr(self, axis) for axis in AXES)

    def __str__(self) -> str:
        return " x ".join(f"{axis}{size}" for axis, size in zip(AXES, self.sizes, strict=True))


def world_size_of_launcher() -> int:
    """How many processes torchrun (or a script that sets its variables) started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank_of_launcher() -> int:
    """This process's number on its machine, as torchrun gives it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def processes_of_torchrun() -> int:
    """How many processes that see the same GPUs torchrun started on this machine; 0 if something else did."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def _meeting_place(timeout: timedelta) -> dict:
    """Where the processes of this start meet; {}: where the launcher's variables say.

    torchrun keeps one store over its restarts, where new processes would find the addresses of dead ones and wait for
    them; so every start has keys of its own. With several nodes their counts of starts can differ: there the scripts
    have torchrun make a new store each time (TORCH_DISABLE_SHARE_RDZV_TCP_STORE).
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    rank, size = int(os.environ["RANK"]), world_size_of_launcher()
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, size, is_master=False, timeout=timeout)
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return {"store": dist.PrefixStore(f"start {start}", store), "rank": rank, "world_size": size}


class World:
    """This process's place in the mesh. With one process there is no mesh and every collective is the identity."""

    def __init__(self, layout: Layout, device: torch.device, mesh: DeviceMesh | None = None):
        self.layout, self.device, self.mesh = layout, device, mesh
        self.rank = dist.get_rank() if mesh else 0
        self.size = dist.get_world_size() if mesh else 1
        place = dict(zip(AXES, mesh.get_coordinate() if mesh else (0, 0, 0, 0), strict=True))
        self.pp_rank, self.tp_rank = place["pp"], place["tp"]
        self.dp_size = layout.dp_replicate * layout.dp_shard
        self.dp_rank = place["dp_replicate"] * layout.dp_shard + place["dp_shard"]
        self.dp_replicate_rank = place["dp_replicate"]
        self.dp_group = joined_axes(mesh, ("dp_replicate", "dp_shard"), "dp").get_group() if mesh else None
        self.ends_group = self._make_ends_group() if layout.pp > 1 else None
        # What runs beside training (asynchronous saving) must not mix its messages with training's.
        self.side_group = None

    @classmethod
    def join(cls, config: Config, device: torch.device) -> "World":
        """Meet the other processes of this run; alone when there are none. A GPU becomes the current device."""
        if device.type == "cuda":
            torch.cuda.set_device(device)
        world_size = world_size_of_launcher()
        if world_size == 1 and not dist.is_initialized():
            return cls(Layout(), device)
        timeout = timedelta(minutes=config.parallel.distributed_timeout_minutes)
        if not dist.is_initialized():
            backend = config.parallel.distributed_backend or ("nccl" if device.type == "cuda" else "gloo")
            # Checkpoints' bookkeeping travels as CPU tensors, so gloo is there beside NCCL. That one is bound to its
            # device: it connects at once, and the groups of the mesh are split off it, not connected one by one.
            nccl = backend == "nccl"
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if nccl else "gloo",
                timeout=timeout,
                device_id=device if nccl else None,
                **_meeting_place(timeout),
            )
        return cls.over_all(Layout.of(config, dist.get_world_size()), device, timeout, config.checkpoint.async_save)

    @classmethod
    def over_all(cls, layout: Layout, device: torch.device, timeout: timedelta, side: bool = False) -> "World":
        """A World over every process of the default group."""
        mesh = init_device_mesh(device.type, layout.sizes, mesh_dim_names=AXES)
        world = cls(layout, device, mesh)
        groups = [dist.group.WORLD, *(mesh.get_group(axis) for axis in AXES), world.dp_group, world.ends_group]
        if side:
            world.side_group = dist.new_group(backend="gloo")
            groups.append(world.side_group)
        for group in groups:  # a group made later has the library's default, 30 minutes on gloo
            if group is not None:
                set_timeout(group, timeout)
        return world

    def _make_ends_group(self) -> dist.ProcessGroup | None:
        """The group of the two stages that hold a copy of the word embedding; None between them."""
        if self.layout.pp == 2:
            return self.mesh.get_group("pp")
        own = None
        ranks = self.mesh.mesh
        for place in itertools.product(*(range(size) for size in self.layout.sizes[1:])):
            ends = [int(ranks[(0, *place)]), int(ranks[(-1, *place)])]
            group = dist.new_group(ends)  # every process of the job has to call this, whoever is in it
            if self.rank in ends:
                own = group
        return own

    # ---- who is who

    @property
    def alone(self) -> bool:
        return self.mesh is None

    @property
    def is_main(self) -> bool:
        """The one process that prints and writes metrics."""
        return self.rank == 0

    @property
    def is_first_stage(self) -> bool:
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pp_rank == self.layout.pp - 1

    @property
    def counts_loss(self) -> bool:
        """Of the processes that hold a replica's loss (the last stage's tp ranks) one adds it to the sum."""
        return self.is_last_stage and self.tp_rank == 0

    # ---- collectives

    @contextlib.contextmanager
    def answering(self, minutes: float) -> Iterator[None]:
        """InputError where another process ends, or does not answer for so many minutes (--distributed-timeout-minutes)
        within. Checkpoints are whole then, for one that is not whole has no name."""
        try:
            yield
        except RuntimeError as error:
            what = None if self.alone else lost_peer(error)
            if what is None:
                raise
            what += f" for {minutes:g} minutes (--distributed-timeout-minutes)" if "answer" in what else ""
            raise InputError(f"process {self.rank}: {what}; the run goes on from its last checkpoint") from error

    def sum_over_all(self, values: Tensor) -> Tensor:
        """Element by element over every process, in place; the host does not wait."""
        if not self.alone:
            dist.all_reduce(values)
        return values

    def raise_together(self, problem: str | None) -> None:
        """InputError on every process where one has a problem: the first one's, so that one of them can tell it."""
        problems = [problem] * self.size
        if not self.alone:
            dist.all_gather_object(problems, problem)
        for problem in filter(None, problems):
            raise InputError(problem)

    def leave(self) -> None:
        """Say goodbye to the others."""
        if not self.alone and dist.is_initialized():
            dist.destroy_process_group()
