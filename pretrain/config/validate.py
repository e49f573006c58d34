"""What a configuration must satisfy before anything is built: bounds of single options, then what must fit together.

Each rule yields complaints, one line each, that name the options as flags and give both numbers; the first is raised.
A rule may take for granted what the rules before it asked for.
"""

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace

from pretrain.config.options import OPTIONS, Config, Training
from pretrain.data.sources import Split, parse_data_path, parse_valid_data_path
from pretrain.data.stages import Sampling
from proteinlm.errors import InputError
from proteinlm.masking import num_to_mask
from proteinlm.network.config import ModelConfig

# bound -> (comparison that must hold, words)
BOUNDS = {
    "low": (operator.ge, "at least"),
    "above": (operator.gt, "more than"),
    "high": (operator.le, "at most"),
    "below": (operator.lt, "less than"),
}


def check(config: Config, required: Sequence[str] = ()) -> None:
    """Raise InputError for the first thing that is wrong with `config`, whatever the number of processes."""
    _raise_first(_values(config, required))
    for rule in (_model, _data, _length, _batches, _precision, _layout, _pipeline, _compile):
        _raise_first(rule(config))


def for_world(config: Config, world_size: int) -> Config:
    """`config` for so many processes, its global batch filled in; InputError where layout or batch do not divide."""
    tensor, pipeline = config.parallel.tensor_model_parallel_size, config.parallel.pipeline_model_parallel_size
    if world_size % (tensor * pipeline):
        raise InputError(
            f"tensor-model-parallel-size {tensor} x pipeline-model-parallel-size {pipeline} = {tensor * pipeline} "
            f"must divide the {world_size} processes of this run"
        )
    replicas = world_size // (tensor * pipeline)
    config = with_global_batch(config, replicas)
    _raise_first(_replicas(config, replicas))
    return config


def with_global_batch(config: Config, replicas: int = 1) -> Config:
    """`config` with a global batch of one micro-batch a replica and pipeline stage, unless it has one."""
    training = config.training
    if training.global_batch_size is not None:
        return config
    rows = training.micro_batch_size * replicas * config.parallel.pipeline_model_parallel_size
    return replace(config, training=replace(training, global_batch_size=rows))


def _raise_first(complaints: Iterable[str]) -> None:
    for complaint in complaints:
        raise InputError(complaint)


def _values(config: Config, required: Sequence[str]) -> Iterator[str]:
    for name, (section, option) in OPTIONS.items():
        value, choices = getattr(getattr(config, section), name), option.metadata["choices"]
        flag = "--" + name.replace("_", "-")
        if value is None or value == ():
            if name in required:
                yield f"{flag} is needed: {option.metadata['doc']}"
            continue
        if choices and value not in choices:
            yield f"{flag} {value} is not one of {', '.join(choices)}"
        for bound, limit in option.metadata["bounds"].items():
            holds, words = BOUNDS[bound]
            for number in value if isinstance(value, tuple) else (value,):
                if not holds(number, limit):
                    yield f"{flag} is {number}, but must be {words} {limit}"


def _model(config: Config) -> Iterator[str]:
    model, length = config.model, config.data.seq_length
    try:
        longest = _shape(config).max_tokens
    except ValueError as error:
        yield str(error).replace("_", "-")
        return
    if longest is not None and length > longest:
        yield f"seq-length {length} is more than max-position-embeddings {longest}"
    if model.swiglu and model.hidden_act not in (type(model).hidden_act, "swish"):
        yield f"--swiglu's activation is swish; --hidden-act {model.hidden_act} does not go with it"
    if model.position_offset and longest is None:
        offset, kind = model.position_offset, model.position_embedding_type
        yield f"position-offset {offset} is of learned positions; position-embedding-type {kind} has none"


def _shape(config: Config) -> ModelConfig:
    """The model, for whatever vocabulary."""
    return ModelConfig(mask_token_id=0, **asdict(config.model))


def _data(config: Config) -> Iterator[str]:
    data = config.data
    split, names = Split.parse(data.split), parse_valid_data_path(data.valid_data_path)
    if data.data_path:
        parse_data_path(data.data_path)
    if split.valid > 0 and (prefix := names.get("valid")):
        yield f"--valid-data-path {prefix} is named valid, as --split {data.split}'s own set is; give another NAME="
    for prob in (data.mask_prob, *(prob for prob, _ in Sampling.of(data).mask_prob)):
        if prob >= 1:
            yield f"mask-prob-rampup {prob} must be less than 1"
        if num_to_mask(prob, data.seq_length) < 1:
            yield f"mask-prob {prob} of seq-length {data.seq_length} masks no token"
    if data.tokenizer_type == "SentencePiece" and not data.vocab_file:
        yield "--tokenizer-type SentencePiece needs --vocab-file, its model"


def _length(config: Config) -> Iterator[str]:
    """Counted in iterations or in samples, never both (Megatron's rule)."""
    training, optim = config.training, config.optim
    iters, samples = training.train_iters, training.train_samples
    if iters is None and samples is None:
        yield "give --train-iters or --train-samples"
    if iters is not None and samples is not None:
        yield f"train-iters {iters} and train-samples {samples} are both given; give one"
    unit, other = ("iters", "samples") if iters else ("samples", "iters")
    for name in ("lr-decay", "lr-warmup"):
        if value := getattr(optim, f"{name}_{other}".replace("-", "_")):
            yield f"{name}-{other} {value} does not go with train-{unit}; use {name}-{unit}"
    warmup, decay = getattr(optim, f"lr_warmup_{unit}"), getattr(optim, f"lr_decay_{unit}")
    if optim.lr_warmup_fraction is not None and warmup:
        yield f"lr-warmup-fraction {optim.lr_warmup_fraction} and lr-warmup-{unit} {warmup}: give one"
    if decay is not None and warmup > decay:
        yield f"lr-warmup-{unit} {warmup} is more than lr-decay-{unit} {decay}"
    if optim.min_lr > optim.lr:
        yield f"min-lr {optim.min_lr} is more than lr {optim.lr}"
    if optim.override_lr_scheduler and optim.use_checkpoint_lr_scheduler:
        yield "--override-lr-scheduler and --use-checkpoint-lr-scheduler exclude each other; give one"


def _batches(config: Config, replicas: int | None = None) -> Iterator[str]:
    """Every global batch divides into micro-batches, and those over the replicas where their number is known."""
    training = config.training
    unit, meaning = training.micro_batch_size, f"micro-batch-size {training.micro_batch_size}"
    if replicas is not None:
        unit *= replicas
        meaning += f" x {replicas} data-parallel replicas = {unit}"
    name = "rampup-batch-size: a global batch of" if training.rampup_batch_size else "global-batch-size"
    for size in batch_sizes(training):
        if size % unit:
            yield f"{name} {size} must be a multiple of {meaning}"


def _precision(config: Config) -> Iterator[str]:
    training, optim = config.training, config.optim
    if training.fp16 and training.bf16:
        yield "--fp16 and --bf16 exclude each other; give one (--no-fp16 or --no-bf16 undoes a file's)"
    if optim.loss_scale is None and optim.min_loss_scale > optim.initial_loss_scale:
        yield f"min-loss-scale {optim.min_loss_scale} is more than initial-loss-scale {optim.initial_loss_scale}"


def _layout(config: Config) -> Iterator[str]:
    parallel, model = config.parallel, _shape(config)
    tensor, groups = parallel.tensor_model_parallel_size, parallel.num_distributed_optimizer_instances
    for name in ("num_attention_heads", "ffn_hidden_size", "make_vocab_size_divisible_by"):
        if (size := getattr(model, name)) % tensor:
            yield f"tensor-model-parallel-size {tensor} must divide {name.replace('_', '-')} {size}"
    tokens = config.training.micro_batch_size * config.data.seq_length
    if parallel.sequence_parallel and tokens % tensor:
        yield f"sequence-parallel: tensor-model-parallel-size {tensor} must divide the {tokens} tokens of a batch"
    cut = tensor > 1 or parallel.pipeline_model_parallel_size > 1
    cut = cut or parallel.use_distributed_optimizer or parallel.use_torch_fsdp2
    whole = [f"--embedding-size {config.model.embedding_size}"] if config.model.embedding_size else []
    whole += ["--share-layers"] if config.model.share_layers else []
    whole += ["--objective rtd"] if config.training.objective == "rtd" else []
    if whole and cut:
        yield (
            f"{whole[0]} needs the whole model in each process: tensor and pipeline parallelism, "
            "--use-distributed-optimizer and --use-torch-fsdp2 do not go with it"
        )
    if groups > 1 and not (parallel.use_distributed_optimizer or parallel.use_torch_fsdp2):
        yield f"num-distributed-optimizer-instances {groups} needs --use-distributed-optimizer"


def _compile(config: Config) -> Iterator[str]:
    if config.training.compile and (reason := not_compiled(config)):
        yield f"{reason}, so --compile does not go with it"


def not_compiled(config: Config) -> str | None:
    """Why layers of this layout cannot be compiled, whatever the device."""
    parallel = config.parallel
    tensor, dropout = parallel.tensor_model_parallel_size, config.model.attention_dropout
    if parallel.pipeline_schedule == "zero-bubble":
        return "pipeline-schedule zero-bubble cuts the backward pass in two"
    if tensor > 1 and dropout > 0 and not parallel.sequence_parallel:
        return (
            f"tensor-model-parallel-size {tensor} without --sequence-parallel gives attention-dropout {dropout} a "
            "generator of its own within each layer"
        )
    return None


def _pipeline(config: Config) -> Iterator[str]:
    parallel, layers = config.parallel, config.model.num_layers
    name, size = parallel.pipeline_schedule, parallel.pipeline_model_parallel_size
    piece = parallel.num_layers_per_virtual_pipeline_stage
    if size > layers:
        yield f"pipeline-model-parallel-size {size} is more than num-layers {layers}"
    for flag, value in (("num-layers-per-virtual-pipeline-stage", piece), ("pipeline-schedule", name)):
        if value is not None and size == 1:
            yield f"{flag} {value} needs pipeline-model-parallel-size above 1, not 1"
    if piece is not None and layers % (size * piece):
        yield (
            f"num-layers {layers} must be a multiple of pipeline-model-parallel-size {size} x "
            f"num-layers-per-virtual-pipeline-stage {piece}"
        )
    if name == "interleaved" and piece is None:
        yield "pipeline-schedule interleaved needs --num-layers-per-virtual-pipeline-stage"
    if name == "1f1b" and piece is not None:
        yield (
            f"pipeline-schedule 1f1b has one stage a process, so num-layers-per-virtual-pipeline-stage {piece} does "
            "not go with it; use interleaved"
        )
    if name == "zero-bubble" and parallel.use_torch_fsdp2:
        yield (
            f"pipeline-schedule zero-bubble with pipeline-model-parallel-size {size} keeps each stage's weights "
            "gathered for the whole step, so --use-torch-fsdp2 would save nothing; use --use-distributed-optimizer"
        )


def _replicas(config: Config, replicas: int) -> Iterator[str]:
    yield from _batches(config, replicas)
    parallel = config.parallel
    groups, pipeline = parallel.num_distributed_optimizer_instances, parallel.pipeline_model_parallel_size
    if replicas % groups:
        yield f"num-distributed-optimizer-instances {groups} must divide the {replicas} data-parallel replicas"
    if pipeline == 1:
        return
    # Schedules of several stages a process work in rounds of as many micro-batches, about one for every stage.
    in_rounds = parallel.num_layers_per_virtual_pipeline_stage or parallel.pipeline_schedule not in (None, "1f1b")
    rows = config.training.micro_batch_size * replicas
    for size in batch_sizes(config.training):
        count = size // rows
        if not in_rounds and count < pipeline:
            yield (
                f"global batch size {size} is {count} micro-batches a replica, fewer than the {pipeline} stages of "
                f"pipeline-schedule 1f1b; {rows * pipeline} rows are enough"
            )
        if not in_rounds:
            continue
        rounds = max(1, count // pipeline)
        if count % rounds:
            yield (
                f"global batch size {size} is {count} micro-batches a replica, which do not make {rounds} equal rounds "
                f"for pipeline-model-parallel-size {pipeline}; a multiple of {rows * pipeline} rows does"
            )


def batch_sizes(training: Training) -> range:
    """The sizes, in rows, that the global batch takes one after the other.

    --rampup-batch-size START INCREMENT SAMPLES: it starts at START rows and grows by INCREMENT in equal steps over the
    first SAMPLES rows until it is --global-batch-size. Empty while that is still to be filled in.
    """
    ramp, final = training.rampup_batch_size, training.global_batch_size
    if not ramp:
        return range(final, final + 1) if final else range(0)
    if len(ramp) != 3 or ramp[0] < 1 or ramp[1] < 1:
        raise InputError(f"--rampup-batch-size takes START INCREMENT SAMPLES, not {' '.join(map(str, ramp))}")
    start, increment, _ = ramp
    if final is None or final < start or (final - start) % increment:
        raise InputError(f"rampup-batch-size {start} in steps of {increment} does not reach global-batch-size {final}")
    return range(start, final + 1, increment)
