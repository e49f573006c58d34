"""What a configuration must satisfy before anything is built: bounds of single options, then what must fit together.

Every refusal is one line that names the options as flags and gives both numbers.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import fields

from proteinlm.errors import InputError

# bound -> (comparison that must hold, words)
BOUNDS = {
    "low": (operator.ge, "at least"),
    "above": (operator.gt, "more than"),
    "high": (operator.le, "at most"),
    "below": (operator.lt, "less than"),
}


def check(config, required: Sequence[str] = ()) -> None:
    """Raise InputError for the first thing that is wrong with `config`, whatever the number of processes."""
    for section in vars(config).values():
        for f in fields(section):
            _check_value(f, getattr(section, f.name), f.name in required)
    _check_model(config)
    _check_data(config)
    _check_length(config)
    _check_optim(config)
    _check_layout(config)


def check_world(config, world_size: int) -> int:
    """The number of replicas on `world_size` processes; InputError where layout or global batch does not divide."""
    tensor, pipeline = config.parallel.tensor_model_parallel_size, config.parallel.pipeline_model_parallel_size
    if world_size % (tensor * pipeline):
        raise InputError(
            f"tensor-model-parallel-size {tensor} x pipeline-model-parallel-size {pipeline} = {tensor * pipeline} "
            f"must divide the {world_size} processes of this run"
        )
    replicas = world_size // (tensor * pipeline)
    rows = config.training.micro_batch_size * replicas
    what = f"micro-batch-size {config.training.micro_batch_size} x {replicas} data-parallel replicas = {rows}"
    for name, size in _batches(config):
        if size % rows:
            raise InputError(f"{name} {size} must be a multiple of {what}")
    _check_replicas(config.parallel, replicas)
    _check_rounds(config, rows)
    return replicas


def _check_replicas(parallel, replicas: int) -> None:
    groups = parallel.num_distributed_optimizer_instances
    if replicas % groups:
        raise InputError(
            f"num-distributed-optimizer-instances {groups} must divide the {replicas} data-parallel replicas"
        )


def _check_rounds(config, rows: int) -> None:
    """Schedules of several stages a process work in rounds of as many micro-batches, about one for every stage."""
    pipeline = config.parallel.pipeline_model_parallel_size
    in_rounds = config.parallel.num_layers_per_virtual_pipeline_stage or config.parallel.pipeline_schedule
    if pipeline == 1 or in_rounds in (None, "1f1b"):
        return
    for size in _all_batch_sizes(config):
        count = size // rows
        rounds = max(1, count // pipeline)
        if count % rounds:
            raise InputError(
                f"global batch size {size} is {count} micro-batches a replica, which do not make {rounds} equal rounds "
                f"for pipeline-model-parallel-size {pipeline}; a multiple of {rows * pipeline} rows does"
            )


def _all_batch_sizes(config) -> Sequence[int]:
    training = config.training
    if not training.rampup_batch_size:
        return [training.global_batch_size] if training.global_batch_size else []
    start, increment, _ = training.rampup_batch_size
    return range(start, training.global_batch_size + 1, increment)


def _batches(config) -> list[tuple[str, int]]:
    training = config.training
    batches = [("global-batch-size", training.global_batch_size)] if training.global_batch_size is not None else []
    if training.rampup_batch_size:
        names = ("rampup-batch-size's start", "rampup-batch-size's increment")
        batches += zip(names, training.rampup_batch_size[:2], strict=True)
    return batches


def _check_value(f, value: object, required: bool) -> None:
    flag = "--" + f.name.replace("_", "-")
    if value is None or value == ():
        if required:
            raise InputError(f"{flag} is needed: {f.metadata['doc']}")
        return
    if f.metadata["choices"] and value not in f.metadata["choices"]:
        raise InputError(f"{flag} {value} is not one of {', '.join(f.metadata['choices'])}")
    for bound, limit in f.metadata["bounds"].items():
        holds, words = BOUNDS[bound]
        for number in value if isinstance(value, tuple) else (value,):
            if limit is not None and not holds(number, limit):
                raise InputError(f"{flag} is {number}, but must be {words} {limit}")


def _check_model(config) -> None:
    model = config.model
    if model.hidden_size % model.num_attention_heads:
        raise InputError(f"num-attention-heads {model.num_attention_heads} must divide hidden-size {model.hidden_size}")
    if config.data.seq_length > model.max_position_embeddings:
        raise InputError(
            f"seq-length {config.data.seq_length} is more than max-position-embeddings {model.max_position_embeddings}"
        )


def _check_data(config) -> None:
    data = config.data
    try:
        shares = [float(share) for share in data.split.split(",")]
    except ValueError:
        shares = []
    if len(shares) != 3 or min(shares) < 0 or not 0 < sum(shares) < math.inf:
        raise InputError(f"--split {data.split} is not three shares train,valid,test such as 969,30,1")
    if round(data.mask_prob * data.seq_length) < 1:
        raise InputError(f"mask-prob {data.mask_prob} of seq-length {data.seq_length} masks no token")
    if len(data.data_path) > 1:
        _check_blend(data.data_path)
    if data.tokenizer_type == "SentencePiece" and not data.vocab_file:
        raise InputError("--tokenizer-type SentencePiece needs --vocab-file, its model")


def _check_blend(words: Sequence[str]) -> None:
    if len(words) % 2:
        raise InputError(f"--data-path has {len(words)} words; one prefix, or pairs WEIGHT PREFIX, are read")
    for weight, prefix in zip(words[::2], words[1::2], strict=True):
        try:
            good = 0 < float(weight) < math.inf
        except ValueError:
            good = False
        if not good:
            raise InputError(f"--data-path: {weight!r} before {prefix} is not a weight above 0")


def _check_length(config) -> None:
    """Counted in iterations or in samples, never both (Megatron's rule)."""
    training, optim = config.training, config.optim
    if (training.train_iters is None) == (training.train_samples is None):
        both = f"train-iters {training.train_iters} and train-samples {training.train_samples} are both given"
        raise InputError(f"{both}; give one" if training.train_iters else "give --train-iters or --train-samples")
    unit, other = ("iters", "samples") if training.train_iters else ("samples", "iters")
    for name in (f"lr_decay_{other}", f"lr_warmup_{other}"):
        if getattr(optim, name):
            flag = name.replace("_", "-")
            raise InputError(
                f"{flag} {getattr(optim, name)} does not go with train-{unit}; use {flag[: -len(other)]}{unit}"
            )
    warmup, decay = getattr(optim, f"lr_warmup_{unit}"), getattr(optim, f"lr_decay_{unit}")
    if optim.lr_warmup_fraction is not None and warmup:
        raise InputError(f"lr-warmup-fraction {optim.lr_warmup_fraction} and lr-warmup-{unit} {warmup}: give one")
    if decay is not None and warmup > decay:
        raise InputError(f"lr-warmup-{unit} {warmup} is more than lr-decay-{unit} {decay}")
    micro = training.micro_batch_size
    for name, size in _batches(config):
        if size % micro:
            raise InputError(f"{name} {size} must be a multiple of micro-batch-size {micro}")
    _check_rampup(training)


def _check_rampup(training) -> None:
    ramp, final = training.rampup_batch_size, training.global_batch_size
    if not ramp:
        return
    if len(ramp) != 3 or ramp[0] < 1 or ramp[1] < 1:
        raise InputError(f"--rampup-batch-size takes START INCREMENT SAMPLES, not {' '.join(map(str, ramp))}")
    if final is None or final < ramp[0] or (final - ramp[0]) % ramp[1]:
        raise InputError(
            f"rampup-batch-size {ramp[0]} in steps of {ramp[1]} does not arrive at global-batch-size {final}"
        )


def _check_optim(config) -> None:
    optim, training = config.optim, config.training
    if optim.min_lr > optim.lr:
        raise InputError(f"min-lr {optim.min_lr} is more than lr {optim.lr}")
    if training.fp16 and training.bf16:
        raise InputError("--fp16 and --bf16 exclude each other; give one (--no-fp16 or --no-bf16 undoes a file's)")
    if optim.override_lr_scheduler and optim.use_checkpoint_lr_scheduler:
        raise InputError("--override-lr-scheduler and --use-checkpoint-lr-scheduler exclude each other; give one")
    if optim.loss_scale is None and optim.min_loss_scale > optim.initial_loss_scale:
        raise InputError(
            f"min-loss-scale {optim.min_loss_scale} is more than initial-loss-scale {optim.initial_loss_scale}"
        )


def _check_layout(config) -> None:
    model, parallel = config.model, config.parallel
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    ffn = model.ffn_hidden_size or 4 * model.hidden_size
    cut = {
        "num-attention-heads": model.num_attention_heads,
        "ffn-hidden-size": ffn,
        "make-vocab-size-divisible-by": model.make_vocab_size_divisible_by,
    }
    for name, size in cut.items():
        if size % tensor:
            raise InputError(f"tensor-model-parallel-size {tensor} must divide {name} {size}")
    rows = config.training.micro_batch_size * config.data.seq_length
    if parallel.sequence_parallel and rows % tensor:
        raise InputError(
            f"sequence-parallel: tensor-model-parallel-size {tensor} must divide the {rows} tokens of a batch"
        )
    if pipeline > model.num_layers:
        raise InputError(f"pipeline-model-parallel-size {pipeline} is more than num-layers {model.num_layers}")
    _check_interleaving(model.num_layers, pipeline, parallel.num_layers_per_virtual_pipeline_stage)
    _check_schedule(config)
    sharded = parallel.use_distributed_optimizer or parallel.use_torch_fsdp2
    groups = parallel.num_distributed_optimizer_instances
    if groups > 1 and not sharded:
        raise InputError(f"num-distributed-optimizer-instances {groups} needs --use-distributed-optimizer")


def _check_schedule(config) -> None:
    parallel = config.parallel
    name, pipeline = parallel.pipeline_schedule, parallel.pipeline_model_parallel_size
    piece = parallel.num_layers_per_virtual_pipeline_stage
    if name is None:
        return
    if pipeline == 1:
        raise InputError(f"pipeline-schedule {name} needs pipeline-model-parallel-size above 1, not {pipeline}")
    if name == "interleaved" and piece is None:
        raise InputError("pipeline-schedule interleaved needs --num-layers-per-virtual-pipeline-stage")
    if name == "1f1b" and piece is not None:
        raise InputError(
            f"pipeline-schedule 1f1b has one stage a process, so num-layers-per-virtual-pipeline-stage {piece} does "
            "not go with it; use interleaved"
        )
    if name == "zero-bubble" and parallel.use_torch_fsdp2:
        raise InputError(
            f"pipeline-schedule zero-bubble with pipeline-model-parallel-size {pipeline} keeps each stage's weights "
            "gathered for the whole step, so --use-torch-fsdp2 would save nothing; use --use-distributed-optimizer"
        )
    if name == "zero-bubble" and config.training.compile:
        raise InputError("pipeline-schedule zero-bubble cuts the backward pass in two, which --compile cannot")


def _check_interleaving(layers: int, pipeline: int, piece: int | None) -> None:
    if piece is None:
        return
    if pipeline < 2:
        raise InputError(
            f"num-layers-per-virtual-pipeline-stage {piece} needs pipeline-model-parallel-size above 1, not {pipeline}"
        )
    if layers % (pipeline * piece):
        raise InputError(
            f"num-layers {layers} must be a multiple of pipeline-model-parallel-size {pipeline} x "
            f"num-layers-per-virtual-pipeline-stage {piece}"
        )
