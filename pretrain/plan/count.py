"""One rank's training step, run on fake tensors and counted.

    counted = count(config, model_config, layout, rank)

The model, the pipeline's schedule, FSDP2, the sums of gradients and the optimizer are the ones that train; only values
and peers are missing, and the attention is the GPU's flash kernel, whose shapes do not depend on the boundaries.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch.distributed.tensor import DTensor, Shard

from pretrain.config.options import Config
from pretrain.data.loader import Batch
from pretrain.parallel import apply
from pretrain.parallel.mesh import Layout, World
from pretrain.plan.fakes import fake_tensors, fake_world, replaced
from pretrain.plan.ledger import Ledger
from pretrain.train_step import build_step
from proteinlm.masking import num_to_mask
from proteinlm.network import model as network
from proteinlm.network.attention import choose_backend, cuda
from proteinlm.network.config import ModelConfig

PROTEINS_A_ROW = 8  # of a fake row; only the boundaries, 4 bytes each, depend on it


@dataclass(frozen=True)
class Counted:
    """traffic, work, peaks: the Ledger's. state: bytes by category after the step. saved: bytes by category when the
    first forward pass of the (last) stage is done. shapes: of this rank's weights before FSDP2, by name."""

    traffic: dict[tuple[str, ...], list[int]]
    work: dict[tuple, int]
    peaks: dict[str, dict[str, int]]
    state: dict[str, int]
    saved: dict[str, int]
    shapes: dict[str, tuple[int, ...]]


def count(config: Config, model_config: ModelConfig, layout: Layout, rank: int, micro_batches: int) -> Counted:
    """A step of process `rank` with so many micro-batches."""
    t, d = config.training, config.data
    model_config = replace(model_config, attention_dropout=0.0)
    config = replace(config, training=replace(t, global_batch_size=t.micro_batch_size * micro_batches))
    rows, masked = t.micro_batch_size, num_to_mask(d.mask_prob, d.seq_length)
    with fake_world(layout, rank) as world, fake_tensors(), _without_values():
        batches = [fake_batch(rows, d.seq_length, masked)] * micro_batches
        with Ledger(world, token_sizes(config, layout)) as ledger:
            return run_step(config, model_config, world, batches, ledger)


def token_sizes(config: Config, layout: Layout) -> tuple[int, ...]:
    """The sizes in a matrix product that are numbers of tokens: of a micro-batch, of a tp rank's part, masked."""
    rows, length = config.training.micro_batch_size, config.data.seq_length
    cut = layout.tp if config.parallel.sequence_parallel else 1
    return rows * length, rows * length // cut, rows * num_to_mask(config.data.mask_prob, length)


def run_step(config: Config, model_config: ModelConfig, world: World, batches: list[Batch], ledger: Ledger) -> Counted:
    """Build and step, inside `ledger`; on real tensors too."""
    step = build_step(config, model_config, world, mask_id=0, pad_id=0)
    shapes = {name: _local_shape(p) for name, p in step.model.named_parameters()}
    ledger.begin(step)
    step(batches, config.optim.lr)
    return Counted(dict(ledger.traffic), dict(ledger.work), ledger.peaks, ledger.state, ledger.saved, shapes)


def _local_shape(parameter: torch.Tensor) -> tuple[int, ...]:
    """Of this rank's tp part, whole over the replicas."""
    shape = list(parameter.shape)
    if isinstance(parameter, DTensor) and "tp" in parameter.device_mesh.mesh_dim_names:
        axis = parameter.device_mesh.mesh_dim_names.index("tp")
        if isinstance(place := parameter.placements[axis], Shard):
            shape[place.dim] //= parameter.device_mesh.size(axis)
    return tuple(shape)


def fake_batch(rows: int, length: int, masked: int) -> Batch:
    """A micro-batch of the right shapes."""
    tokens = torch.zeros(rows, length, dtype=torch.int64)
    bounds = torch.zeros(rows * PROTEINS_A_ROW + 1, dtype=torch.int32)
    places = torch.zeros(rows * masked, dtype=torch.int64)
    return Batch(tokens, tokens, bounds, places, places, rows * masked, rows * length, rows * PROTEINS_A_ROW, 0)


def _backend_of_a_gpu(device: torch.device, dtype: torch.dtype, dropout_p: float, head_size: int) -> str:
    """Never buckets, whose shapes depend on the proteins."""
    chosen = choose_backend(torch.device("cuda"), dtype, dropout_p, head_size, (9, 0))
    return "efficient" if chosen == "buckets" else chosen


@contextlib.contextmanager
def _without_values() -> Iterator[None]:
    """Nothing to initialise, and attention as on a GPU."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(replaced(apply, "_initialize", lambda part, seed: None))
        stack.enter_context(replaced(network, "choose_backend", _backend_of_a_gpu))
        stack.enter_context(replaced(cuda, "_scale", lambda qkv: None))  # which the fake kernels lack (torch 2.13)
        yield
