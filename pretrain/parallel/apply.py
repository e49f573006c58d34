"""The order in which a model becomes this process's part of it: cut into stages, over tp, filled, cut over replicas.

Built on the meta device and filled when cut, so that no process ever holds the whole model. Weights are a function of
(seed, name), whatever the layout.
"""

import hashlib

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from pretrain.parallel import data, pipeline, tensor
from pretrain.parallel.mesh import World
from proteinlm.loss import masked_lm_loss
from proteinlm.masking import num_to_mask
from proteinlm.model import ModelConfig, ProteinBert, initial_weight


def build_parts(config, model_config: ModelConfig, world: World) -> pipeline.Parts:
    """This process's stages (one, unless interleaved) of the model, on its device, with their initial weights."""
    stages, num_stages = _stages(config, world)
    parts = pipeline.Parts()
    for stage in stages:
        with torch.device("meta"):
            part = pipeline.cut(ProteinBert(model_config), stage, num_stages)
        _apply(part, config, world)
        parts.append(part)
    return parts


def _stages(config, world: World) -> tuple[list[int], int]:
    pp, layers = world.layout.pp, config.model.num_layers
    per_stage = config.parallel.num_layers_per_virtual_pipeline_stage
    mine = pipeline.stages_of_rank(pp, world.pp_rank, layers, per_stage)
    return mine, pp * len(mine)


def _apply(part: ProteinBert, config, world: World) -> None:
    if world.layout.tp > 1:
        tensor.parallelize(part, world.mesh["tp"], config.parallel.sequence_parallel)
    part.recompute = config.training.recompute_granularity == "full"
    if config.training.compile:
        for layer in part.layers.values():
            layer.compile()
    part.to_empty(device=world.device)
    _initialize(part, config.training.seed)
    if world.layout.dp_shard > 1:
        one_unit = schedule_name(config) == "zero-bubble"
        data.shard(part, world, config.parallel.use_torch_fsdp2, one_unit, reduce_dtype(config))


@torch.no_grad()
def _initialize(part: ProteinBert, seed: int) -> None:
    for name, parameter in part.named_parameters():
        value = initial_weight(name, parameter.shape, part.config, seed)
        if isinstance(parameter, DTensor):  # every process makes the whole weight and keeps its piece: nothing is sent
            value = value.to(parameter.device, parameter.dtype)
            value = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.copy_(value)


def schedule_name(config) -> str | None:
    """The pipeline schedule in use; None without a pipeline."""
    parallel = config.parallel
    if parallel.pipeline_model_parallel_size == 1:
        return None
    interleaved = parallel.num_layers_per_virtual_pipeline_stage is not None
    return parallel.pipeline_schedule or ("interleaved" if interleaved else "1f1b")


def reduce_dtype(config) -> torch.dtype | None:
    """The dtype that gradients travel in between replicas; None is their own, fp32."""
    return torch.bfloat16 if config.parallel.grad_reduce_in_bf16 else None


def loss_of(model: pipeline.Parts, world: World):
    """The masked-LM loss over whole logits, or over this tp rank's part of them."""
    if world.layout.tp == 1:
        return masked_lm_loss
    return tensor.vocabulary_parallel_loss(world.mesh.get_group("tp"), model[0].vocab_start)


def build_pipeline(parts: pipeline.Parts, config, world: World, autocast: torch.dtype | None):
    """The Pipeline over `parts`; None with one stage."""
    if world.layout.pp == 1:
        return None
    stages, num_stages = _stages(config, world)
    rows, length = config.training.micro_batch_size, config.data.seq_length
    return pipeline.Pipeline(
        parts,
        stages,
        num_stages,
        world,
        schedule_name(config),
        loss_of(parts, world),
        (rows, length, rows * num_to_mask(config.data.mask_prob, length)),
        config.parallel.sequence_parallel and world.layout.tp > 1,
        autocast,
    )


def seed_generators(config, world: World, iteration: int = 0) -> None:
    """Start this process's generators: tp ranks alike where they hold the same activations, everyone else apart."""
    tp_rank = world.tp_rank if config.parallel.sequence_parallel else 0
    place = f"{config.training.seed}:{iteration}:{world.pp_rank}:{world.dp_rank}:{tp_rank}"
    torch.manual_seed(int.from_bytes(hashlib.sha256(place.encode()).digest()[:7], "little"))
