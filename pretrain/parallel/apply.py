"""The order in which a model becomes this process's part of it: cut into stages, over tp, filled, cut over replicas.

Built on the meta device and filled when cut, so that no process ever holds more than its part. Weights are a function
of (seed, name), whatever the layout; a process alone is the layout of ones.
"""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from pretrain.config.options import Config, Parallel, Training
from pretrain.parallel.mesh import World
from pretrain.parallel.pipeline import Parts, Pipeline, cut, stages_of_rank
from pretrain.parallel.replicas import shard
from pretrain.parallel.tensor import parallelize, vocabulary_parallel_loss
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
            part = cut(ProteinBert(model_config), stage, num_stages)
        _apply(part, config, world)
        parts.append(part)
    loss = masked_lm_loss
    if world.layout.tp > 1:  # each rank has a part of the vocabulary's logits
        loss = vocabulary_parallel_loss(world.mesh.get_group("tp"), parts[0].vocab_start)
    pipeline = _pipeline(parts, stages, num_stages, config, world) if pp > 1 else None
    seed_generators(config, world)
    return parts, loss, pipeline


def _apply(part: ProteinBert, config: Config, world: World) -> None:
    if world.layout.tp > 1:
        parallelize(part, world.mesh["tp"], config.parallel.sequence_parallel)
    part.recompute = config.training.recompute_granularity == "full"
    if config.training.compile:
        for layer in part.layers.values():
            layer.compile()
    part.to_empty(device=world.device)
    _initialize(part, config.training.seed)
    if world.layout.dp_shard > 1:
        one_unit = _schedule(config.parallel) == "zero-bubble"
        shard(part, world, config.parallel.use_torch_fsdp2, one_unit, reduce_dtype(config.parallel))


@torch.no_grad()
def _initialize(part: ProteinBert, seed: int) -> None:
    for name, parameter in part.named_parameters():
        value = initial_weight(name, parameter.shape, part.config, seed)
        if isinstance(parameter, DTensor):  # every process makes the whole weight and keeps its piece: nothing is sent
            value = value.to(parameter.device, parameter.dtype)
            value = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.copy_(value)
    initialize_buffers(part)


def _pipeline(parts: Parts, stages: list[int], num_stages: int, config: Config, world: World) -> Pipeline:
    rows, length = config.training.micro_batch_size, config.data.seq_length
    shape = rows, length, rows * num_to_mask(config.data.mask_prob, length)
    schedule, dtype = _schedule(config.parallel), compute_dtype(config.training)
    sequence_parallel = config.parallel.sequence_parallel and world.layout.tp > 1
    autocast = None if dtype == torch.float32 else dtype
    return Pipeline(parts, stages, num_stages, world, schedule, shape, sequence_parallel, autocast)


def _schedule(parallel: Parallel) -> str | None:
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


def reduce_dtype(parallel: Parallel) -> torch.dtype | None:
    """The dtype that gradients travel in between replicas; None is their own, fp32."""
    return torch.bfloat16 if parallel.grad_reduce_in_bf16 else None


def seed_generators(config: Config, world: World, iteration: int = 0) -> None:
    """Start this process's generators: tp ranks alike where they hold the same activations, everyone else apart."""
    tp_rank = world.tp_rank if config.parallel.sequence_parallel else 0
    place = f"{config.training.seed}:{iteration}:{world.pp_rank}:{world.dp_rank}:{tp_rank}"
    torch.manual_seed(int.from_bytes(hashlib.sha256(place.encode()).digest()[:7], "little"))
