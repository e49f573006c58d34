"""Every option of a pretraining run, with its one line of documentation, and `Config`, which holds them all.

    config.model.hidden_size, config.optim.lr, ...

A field is a flag (`num_layers` is `--num-layers`, Megatron-LM's name) and a key of a YAML file. The defaults are the
published ProteinLM-200M recipe where one exists. `pretrain.config.read` makes a Config of flags and a file,
`pretrain.config.validate` checks it.
"""

from dataclasses import asdict, dataclass, field, fields

from proteinlm.network.config import ACTIVATIONS as ACTS
from proteinlm.network.config import MOST_LAYERS, NORMALIZATIONS, POSITION_EMBEDDING_TYPES, ModelConfig
from proteinlm.running import MOST_WORKERS
from proteinlm.tokenizer import TOKENIZER_TYPES, Tokenizer

SCHEDULES = ("1f1b", "interleaved", "zero-bubble")


def opt(default: object, doc: str, *, choices: tuple = (), **bounds: float):
    """A field with its documentation and bounds: low and high may be reached, above and below may not."""
    return field(default=default, metadata={"doc": doc, "bounds": bounds, "choices": choices})


@dataclass(frozen=True)
class Model:
    """The encoder's shape and maths."""

    num_layers: int = opt(16, "transformer layers", low=1, high=MOST_LAYERS)
    hidden_size: int = opt(1024, "width of the hidden states", low=1)
    num_attention_heads: int = opt(16, "attention heads; must divide hidden-size", low=1)
    ffn_hidden_size: int | None = opt(None, "width inside the MLP (4 x hidden-size unless given)", low=1)
    max_position_embeddings: int = opt(2176, "learned positions: the longest protein in tokens, [CLS] included", low=2)
    position_embedding_type: str = opt("learned_absolute", "how places are encoded", choices=POSITION_EMBEDDING_TYPES)
    position_offset: int = opt(0, "learned positions: rows before the first token's (ESM-1b: 2)", low=0)
    rotary_base: float = opt(10000.0, "rope: base of the inverse frequencies of a new model", above=0)
    normalization: str = opt("LayerNorm", "the norm before attention and MLP, and last", choices=NORMALIZATIONS)
    layernorm_epsilon: float = opt(1e-12, "added to the variance in every norm", above=0, below=0.1)
    embedding_layernorm: bool = opt(False, "a norm on the embedding, before the first layer (ESM-1b)")
    qk_layernorm: bool = opt(False, "a LayerNorm without bias over all heads' queries, and over their keys (ESM C)")
    add_bias_linear: bool = opt(True, "biases in attention and MLP; --disable-bias-linear: none")
    swiglu: bool = opt(False, "gated MLP: swish(gate) x up, then down")
    residual_scale: float = opt(1.0, "factor of what attention and MLP add to the stream (ESM C)", above=0)
    token_dropout: bool = opt(False, "ESM: mask tokens embedded as 0, the others scaled for their share")
    attention_dropout: float = opt(0.1, "dropout on attention probabilities", low=0, below=1)
    hidden_dropout: float = opt(0.1, "dropout on the embedding and after attention and MLP", low=0, below=1)
    make_vocab_size_divisible_by: int = opt(128, "the embedding's rows are padded to a multiple of this", low=1)
    init_method_std: float = opt(0.02, "standard deviation of the initial weights", above=0)
    hidden_act: str = opt("gelu_new", "activation in the MLP; gelu is erf, gelu_new its tanh form", choices=ACTS)
    lm_head_act: str = opt("gelu", "activation in the masked-LM head", choices=ACTS)
    lm_head_transform: bool = opt(True, "the head's dense layer and norm; --no-lm-head-transform: decoder alone")
    untie_embeddings_and_output_weights: bool = opt(False, "a decoder of its own, not the word embedding")
    share_layers: bool = opt(False, "one layer's weights for all layers (ALBERT)")
    embedding_size: int | None = opt(None, "factorise the word embedding: vocabulary x N times N x hidden-size", low=1)


@dataclass(frozen=True)
class Data:
    """What is read and how it is masked."""

    data_path: tuple[str, ...] = opt((), "prefix of a .bin/.idx pair, or WEIGHT PREFIX WEIGHT PREFIX ...")
    valid_data_path: tuple[str, ...] = opt((), "more validation sets, each PREFIX or NAME=PREFIX, read whole")
    split: str = opt("969,30,1", "shares of train, valid, test by protein")
    seq_length: int = opt(2176, "tokens in a packed row", low=2)
    seq_length_rampup: tuple[str, ...] = opt((), "RESIDUES:SAMPLES ...: until then only proteins of at most so many")
    group_temperature: float = opt(1.0, "of n proteins of a group an epoch sees n to this power", low=0, high=1)
    group_cap: int | None = opt(None, "at most so many proteins of a group in an epoch", low=1)
    mask_prob: float = opt(0.15, "share of a row's tokens to predict", above=0, below=1)
    mask_prob_rampup: tuple[str, ...] = opt((), "SHARE:SAMPLES ...: other shares until so many rows are consumed")
    mask_only_samples: int = opt(0, "rows until which each residue to predict is shown as [MASK]", low=0)
    tokenizer_type: str = opt("iupac", "vocabulary", choices=TOKENIZER_TYPES)
    vocab_file: str | None = opt(None, "SentencePiece model, or the original's iupac_vocab.txt")
    num_workers: int | None = opt(
        None, "processes that prepare batches (2 on a GPU, 0 on a CPU unless given)", low=0, high=MOST_WORKERS
    )


@dataclass(frozen=True)
class Training:
    """Batches, length, precision."""

    micro_batch_size: int = opt(4, "rows in one forward pass", low=1)
    global_batch_size: int | None = opt(None, "rows of a step (default micro-batch-size x replicas x stages)", low=1)
    rampup_batch_size: tuple[int, ...] | None = opt(None, "START INCREMENT SAMPLES: grow the global batch", low=0)
    objective: str = opt("mlm", "masked LM, or replaced-token detection (ELECTRA)", choices=("mlm", "rtd"))
    generator_size: float = opt(0.34, "rtd: the generator's share of the encoder's heads and width", above=0, high=1)
    rtd_weight: float = opt(50.0, "rtd: of the loss of telling replaced tokens", above=0)
    train_iters: int | None = opt(None, "optimizer steps in all; this or train-samples", low=1)
    train_samples: int | None = opt(None, "packed rows in all; this or train-iters", low=1)
    seed: int = opt(1234, "seed of weights, dropout, packing, order and masks", low=0)
    bf16: bool = opt(False, "compute in bfloat16 (weights stay fp32)")
    fp16: bool = opt(False, "compute in float16 with loss scaling (weights stay fp32)")
    fp32_residual_connection: bool = opt(True, "keep the residual stream in fp32 beside bf16 or fp16 products")
    recompute_granularity: str | None = opt(None, "recompute whole layers in the backward pass", choices=("full",))
    deterministic: bool = opt(False, "only deterministic kernels, so that CUDA runs repeat bit for bit")
    exit_interval: int | None = opt(None, "save and leave when the iteration is a multiple of this", low=1)
    exit_duration_in_mins: float | None = opt(None, "save and leave after so many minutes", above=0)
    max_skipped_iterations: int = opt(20, "stop after so many non-finite steps in a row (0: never)", low=0)
    compile: bool | None = opt(None, "torch.compile every layer (default: on a GPU in bf16 or fp16)")
    tf32: bool = opt(False, "CUDA: fp32 products in TF32, 10 bits of mantissa, several times faster")
    device: str = opt("auto", "where to compute; auto takes a GPU if there is one", choices=("auto", "cpu", "cuda"))


@dataclass(frozen=True)
class Optim:
    """The optimizer, the learning rate and fp16's loss scale."""

    optimizer: str = opt("adam", "AdamW; muon: Muon for the matrices in the layers", choices=("adam", "muon"))
    lr: float = opt(1e-4, "highest learning rate", above=0)
    min_lr: float = opt(0.0, "learning rate after the decay", low=0)
    lr_decay_style: str = opt("linear", "shape of the decay", choices=("constant", "linear", "cosine", "WSD"))
    lr_decay_iters: int | None = opt(None, "iterations until min-lr (train-iters unless given)", low=1)
    lr_decay_samples: int | None = opt(None, "rows until min-lr (train-samples unless given)", low=1)
    lr_warmup_fraction: float | None = opt(None, "warm-up as a share of the decay's length", low=0, high=1)
    lr_warmup_iters: int = opt(0, "iterations of warm-up", low=0)
    lr_warmup_samples: int = opt(0, "rows of warm-up", low=0)
    weight_decay: float = opt(0.01, "decoupled weight decay, not on biases and norms", low=0)
    adam_beta1: float = opt(0.9, "decay of the first moment", low=0, below=1)
    adam_beta2: float = opt(0.999, "decay of the second moment", low=0, below=1)
    adam_eps: float = opt(1e-8, "added to the root of the second moment", above=0)
    muon_momentum: float = opt(0.95, "decay of Muon's momentum", low=0, below=1)
    clip_grad: float = opt(1.0, "largest gradient norm, over the whole model (0: no clipping)", low=0)
    initial_loss_scale: float = opt(2.0**32, "fp16: first dynamic loss scale", above=0)
    loss_scale: float | None = opt(None, "fp16: fixed loss scale instead of a dynamic one", above=0)
    loss_scale_window: int = opt(1000, "fp16: good steps before the scale doubles", low=1)
    hysteresis: int = opt(2, "fp16: overflows before the scale halves", low=1)
    min_loss_scale: float = opt(1.0, "fp16: lowest dynamic loss scale", above=0)
    override_lr_scheduler: bool = opt(False, "on resume, the flags' schedule instead of the checkpoint's")
    use_checkpoint_lr_scheduler: bool = opt(False, "on resume, the checkpoint's schedule instead of the flags'")


@dataclass(frozen=True)
class Parallel:
    """How the model is cut over processes."""

    tensor_model_parallel_size: int = opt(1, "ways each layer is cut", low=1)
    pipeline_model_parallel_size: int = opt(1, "stages that the layers are cut into", low=1)
    num_layers_per_virtual_pipeline_stage: int | None = opt(None, "layers of an interleaved stage's piece", low=1)
    sequence_parallel: bool = opt(False, "also cut norms and dropout along the tokens (with tensor parallelism)")
    use_distributed_optimizer: bool = opt(False, "shard weights and optimizer state over the replicas")
    use_torch_fsdp2: bool = opt(False, "its full form: also free gathered weights after each layer's use")
    num_distributed_optimizer_instances: int = opt(1, "groups of replicas that each shard the whole model", low=1)
    grad_reduce_in_bf16: bool = opt(False, "send gradients between replicas in bf16 (fp32 unless given)")
    pipeline_schedule: str | None = opt(None, "order of micro-batches (default 1f1b or interleaved)", choices=SCHEDULES)
    distributed_backend: str | None = opt(None, "nccl on GPUs, gloo on CPUs unless given", choices=("nccl", "gloo"))
    local_rank: int | None = opt(None, "this process's GPU on its node, as old launchers pass it", low=0)
    distributed_timeout_minutes: float = opt(10.0, "how long a silent peer is waited for", above=0)


@dataclass(frozen=True)
class Checkpoint:
    """What is saved and loaded, and when."""

    save: str | None = opt(None, "directory for checkpoints, metrics.jsonl and exit_reason.json")
    load: str | None = opt(None, "directory of checkpoints to go on from; an empty one starts afresh")
    save_interval: int | None = opt(None, "iterations between checkpoints (only at the end unless given)", low=1)
    no_save_optim: bool = opt(False, "leave the optimizer out of checkpoints")
    no_load_optim: bool = opt(False, "start the optimizer afresh")
    no_save_rng: bool = opt(False, "leave the random generators out of checkpoints")
    no_load_rng: bool = opt(False, "start the random generators afresh")
    finetune: bool = opt(False, "take only the weights and start at iteration 0")
    override_data: bool = opt(False, "on resume, read on in other data (path, split, seq-length, seed)")
    keep_last: int | None = opt(None, "newest checkpoints to keep (all unless given)", low=1)
    async_save: bool = opt(False, "write checkpoints while training goes on")


@dataclass(frozen=True)
class Logging:
    """What is reported."""

    log_interval: int = opt(100, "iterations between lines of metrics.jsonl", low=1)
    eval_interval: int | None = opt(1000, "iterations between evaluations", low=1)
    eval_iters: int = opt(100, "global batches of one evaluation (0: the whole split)", low=0)
    tensorboard_dir: str | None = opt(None, "directory for TensorBoard")


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run does: one attribute a section. Saved with every checkpoint."""

    model: Model = Model()
    data: Data = Data()
    training: Training = Training()
    optim: Optim = Optim()
    parallel: Parallel = Parallel()
    checkpoint: Checkpoint = Checkpoint()
    logging: Logging = Logging()

    def model_config(self, tokenizer: Tokenizer) -> ModelConfig:
        """The shape of this run's model for a tokenizer's vocabulary."""
        mask_token_id = tokenizer.mask_id if self.model.token_dropout else None
        return ModelConfig(vocab_size=tokenizer.vocab_size, mask_token_id=mask_token_id, **asdict(self.model))

    def to_dict(self) -> dict[str, dict]:
        """Plain dicts, lists, texts and numbers, by section: as YAML or JSON a file that --config reads."""
        plain = asdict(self)
        return {s: {k: list(v) if isinstance(v, tuple) else v for k, v in o.items()} for s, o in plain.items()}


SECTIONS = {section.name: section.type for section in fields(Config)}
OPTIONS = {option.name: (name, option) for name, section in SECTIONS.items() for option in fields(section)}
