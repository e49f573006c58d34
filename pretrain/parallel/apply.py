"""The order in which a model becomes this process's part of it: cut into stages, over tp, compiled, cut over replicas.

Built and cut on the meta device; only what is left of each weight gets memory and is filled, so that no process ever
holds more than its part and one whole weight. Weights are a function of (seed, name), whatever the layout; a process
alone is the layout of ones.
"""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pretrain.config.options import Config, Parallel, Training
from pretrain.config.validate import not_compiled
from pretrain.data.stages import highest_mask_prob
from pretrain.parallel.mesh import World
from pretrain.parallel.overlap import Overlap
from pretrain.parallel.pipeline import Parts, Pipeline, cut, stages_of_rank
from pretrain.parallel.replicas import shard
from pretrain.parallel.tensor import parallelize, vocabulary_parallel_loss
from pretrain.replaced_tokens import network_for
from proteinlm.errors import InputError
from proteinlm.loss import masked_lm_loss
from proteinlm.masking import num_to_mask
from proteinlm.network.config import ModelConfig
from proteinlm.network.model import ProteinBert, initial_weight, initialize_buffers

Loss = Callable[[Tensor, Tensor], Tensor]


def build_model(config: Config, model_config: ModelConfig, world: World) -> tuple[Parts, Loss, Pipeline | None]:
    """(this process's stages, filled and on its device; the loss over their logits; what runs them, if a pipeline).

    Afterwards this process's generators are at the start of the run.
    """
    pp, per_stage = world.layout.pp, config.parallel.num_layers_per_virtual_pipeline_stage
    stages = stages_of_rank(pp, world.pp_rank, model_config.num_layers, per_stage)
    num_stages = pp * len(stages)
    parts = Parts()
    for stage in stages:
        with torch.device("meta"):
            part = cut(network_for(config.training, model_config), stage, num_stages)
        _apply(part, config, world)
        parts.append(part)
    if world.layout.dp_replicate == world.size > 1:
        parts.overlap = Overlap(parts, world.dp_group, reduce_dtype(config.parallel))
    loss = masked_lm_loss
    if world.layout.tp > 1:  # each rank has a part of the vocabulary's logits
        loss = vocabulary_parallel_loss(world.mesh.get_group("tp"), parts[0].vocab_start)
    pipeline = _pipeline(parts, stages, num_stages, config, world) if pp > 1 else None
    seed_generators(config, world)
    return parts, loss, pipeline


def _apply(part: ProteinBert, config: Config, world: World) -> None:
    if world.layout.tp > 1:
        parallelize(part, world.mesh["tp"], config.parallel.sequence_parallel)
    dtype = compute_dtype(config.training)
    for network in networks_in(part):
        network.recompute = config.training.recompute_granularity == "full"
        if dtype != torch.float32:
            network.compute_dtype = dtype
            network.stream_dtype = torch.float32 if config.training.fp32_residual_connection else dtype
        if compiles(config, world.device):
            compile_layers(network)
    if world.layout.dp_shard > 1:
        one_unit = schedule_of(config.parallel) == "zero-bubble"
        shard(part, world, config.parallel.use_torch_fsdp2, one_unit, part.compute_dtype, reduce_dtype(config.parallel))
    part.to_empty(device=world.device)
    _initialize(part, config.training.seed)


def networks_in(part: nn.Module) -> list[ProteinBert]:
    """The encoder, and the generator where there is one."""
    return [module for module in part.modules() if isinstance(module, ProteinBert)]


def compiles(config: Config, device: torch.device) -> bool:
    """Whether layers are compiled: as --compile says, or where it pays. InputError on a CPU."""
    asked = config.training.compile
    if asked and device.type != "cuda":
        raise InputError(
            "--compile needs a GPU: on a CPU attention has other shapes for every batch, and each would be compiled"
        )
    pays = device.type == "cuda" and compute_dtype(config.training) != torch.float32 and not not_compiled(config)
    return pays if asked is None else asked


def compile_layers(part: ProteinBert, backend: str | Callable = "inductor") -> None:
    """torch.compile every layer, as one graph: a break in it is an error.

    Rows have one length in training; only the number of proteins in a batch changes, which the graph leaves open.
    """
    for layer in dict.fromkeys(part.layers.values()):  # shared ones once
        layer.forward = torch.compile(layer.forward, backend=backend, fullgraph=True)  # FSDP2's hooks stay outside
    part.register_forward_pre_hook(_leave_boundaries_open, with_kwargs=True)


def _leave_boundaries_open(part: nn.Module, args: tuple, kwargs: dict) -> None:
    boundaries = kwargs["cu_seqlens"] if "cu_seqlens" in kwargs else args[2]
    torch._dynamo.maybe_mark_dynamic(boundaries, 0)


@torch.no_grad()
def _initialize(part: ProteinBert, seed: int) -> None:
    """Every process makes each whole weight and keeps its piece: nothing is sent."""
    for name, parameter in part.named_parameters():
        value = initial_weight(name, parameter.shape, part.config, seed)
        if isinstance(parameter, DTensor):
            parameter.to_local().copy_(_piece(value, parameter))
        else:
            parameter.copy_(value)
    for network in networks_in(part):
        initialize_buffers(network)


def _piece(value: Tensor, parameter: DTensor) -> Tensor:
    """This process's piece of a whole weight: cut over tp first, then, as FSDP2 cuts, over the replicas."""
    places = zip(parameter.device_mesh.get_coordinate(), parameter.device_mesh.shape, parameter.placements, strict=True)
    for rank, ranks, placement in reversed(list(places)):
        if not placement.is_replicate():
            pieces = value.chunk(ranks, placement.dim)
            value = pieces[rank] if rank < len(pieces) else value.narrow(placement.dim, 0, 0)
    return value


def _pipeline(parts: Parts, stages: list[int], num_stages: int, config: Config, world: World) -> Pipeline:
    rows, length = config.training.micro_batch_size, config.data.seq_length
    shape = rows, length, rows * num_to_mask(highest_mask_prob(config.data), length)
    schedule = schedule_of(config.parallel)
    sequence_parallel = config.parallel.sequence_parallel and world.layout.tp > 1
    autocast = autocast_dtype(config.training, world)
    return Pipeline(parts, stages, num_stages, world, schedule, shape, sequence_parallel, autocast)


def schedule_of(parallel: Parallel) -> str | None:
    """The pipeline schedule in use; None without a pipeline."""
    if parallel.pipeline_model_parallel_size == 1:
        return None
    interleaved = parallel.num_layers_per_virtual_pipeline_stage is not None
    return parallel.pipeline_schedule or ("interleaved" if interleaved else "1f1b")


def compute_dtype(training: Training) -> torch.dtype:
    """What --fp16, --bf16 or neither computes in; weights are fp32."""
    if training.bf16:
        return torch.bfloat16
    return torch.float16 if training.fp16 else torch.float32


def autocast_dtype(training: Training, world: World) -> torch.dtype | None:
    """What autocast computes in; None for fp32, and for sharded weights, which FSDP2 gathers in half precision."""
    dtype = compute_dtype(training)
    return None if dtype == torch.float32 or world.layout.dp_shard > 1 else dtype


def reduce_dtype(parallel: Parallel) -> torch.dtype | None:
    """The dtype that gradients travel in between replicas; None is their own, fp32."""
    return torch.bfloat16 if parallel.grad_reduce_in_bf16 else None


def seed_generators(config: Config, world: World, iteration: int = 0) -> None:
    """Start this process's generators: tp ranks alike where they hold the same activations, everyone else apart."""
    tp_rank = world.tp_rank if config.parallel.sequence_parallel else 0
    place = f"{config.training.seed}:{iteration}:{world.pp_rank}:{world.dp_rank}:{tp_rank}"
    torch.manual_seed(int.from_bytes(hashlib.sha256(place.encode()).digest()[:7], "little"))
