"""What a Megatron file's `args` say: the model's configuration, and whether two shards are of one run.

Without `args` the shape comes from the tensors, and what no tensor shows is assumed and said so.
"""

from collections.abc import Mapping

from torch import Tensor

from converter.megatron.files import Layout, Shard
from converter.megatron.layout import LAYER, padded_vocabulary
from converter.model import make_config
from converter.names import MEGATRON_ARGS
from proteinlm.errors import InputError
from proteinlm.model import ModelConfig
from proteinlm.tokenizer import PRETRAIN_TOKENS

# Fields of `args` that are one run's: where two shards differ in one, they are of two runs.
RUN_FIELDS = (
    *MEGATRON_ARGS,
    "padded_vocab_size",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "model_parallel_size",
    "seed",
    "lr",
    "train_iters",
    "global_batch_size",
    "consumed_train_samples",
    "bias_gelu_fusion",
    "openai_gelu",
    "fp16",
)
RANK_FIELDS = ("rank", "local_rank", "node_rank", "hostname")  # differ in every honest checkpoint
SIZES = ("hidden_size", "num_layers", "ffn_hidden_size", "max_position_embeddings")
WIDEST_PADDING = 128 * 64  # rows of a 31-token vocabulary padded for 64 ranks; more must be another vocabulary


def check_same_run(first: Shard, shard: Shard, layout: Layout) -> set[str]:
    """InputError unless both files are of one checkpoint. Returns names of args that differ without saying so."""
    if layout.iteration is not None and shard.iteration not in (None, layout.iteration):
        raise InputError(f"{shard.path}: says iteration {shard.iteration}, but lies in that of {layout.iteration}")
    for what, ours, theirs in (
        ("checkpoint_version", first.version, shard.version),
        ("iteration", first.iteration, shard.iteration),
        ("the number of model chunks", len(first.chunks), len(shard.chunks)),
    ):
        if ours != theirs:
            raise InputError(f"{shard.path}: {what} is {theirs}, but {ours} in {first.path}; two runs are mixed")
    if (first.args is None) != (shard.args is None):
        raise InputError(f"{shard.path}: one of it and {first.path} holds args, the other none; two runs are mixed")
    if first.args is None or shard.args is None:
        return set()
    names = {name for name in {*first.args, *shard.args} if not name.endswith("_rank") and name not in RANK_FIELDS}
    different = {name for name in names if _shown(first.args, name) != _shown(shard.args, name)}
    for name in RUN_FIELDS:
        if name in different:
            values = f"{_shown(shard.args, name)}, but {_shown(first.args, name)} in {first.path}"
            raise InputError(f"{shard.path}: args.{name} is {values}; two runs are mixed")
    return different


def _shown(args: Mapping, name: str) -> str:
    return ascii(args.get(name, "absent"))[:200]


def config_of(first: Shard, tensors: Mapping[str, Tensor], heads: int, layout: Layout) -> tuple[ModelConfig, list[str]]:
    """(configuration, what was assumed). The vocabulary is the pretraining one of 31 tokens."""
    args, where = first.args or {}, str(first.path)
    if args.get("apply_residual_connection_post_layernorm"):
        raise InputError(f"{where}: apply_residual_connection_post_layernorm is another architecture; not converted")
    values = {ours: args[theirs] for theirs, ours in MEGATRON_ARGS.items() if args.get(theirs) is not None}
    values |= {"num_attention_heads": heads}
    shown, notes = _shape_of(tensors, where), []
    for name in SIZES:
        if name in values and values[name] != shown[name]:
            raise InputError(f"{where}: args.{name} is {ascii(values[name])[:40]}, but the tensors give {shown[name]}")
    if not args:
        notes.append("no args in the file: the shape comes from the tensors; LayerNorm epsilon 1e-12, dropout 0.1")
    values = shown | values | _activations(args, notes)
    config = make_config(values | {"vocab_size": len(PRETRAIN_TOKENS)}, f"{where}: args")
    _check_vocabulary(args, tensors, config, layout, where)
    return config, notes


def _shape_of(tensors: Mapping[str, Tensor], where: str) -> dict[str, int]:
    """Sizes as the tensors have them."""

    def size(name: str, dim: int) -> int:
        if name not in tensors:
            raise InputError(f"{where}: the checkpoint holds no {name}")
        if tensors[name].dim() <= dim:
            raise InputError(f"{where}: {name} has shape {tuple(tensors[name].shape)}; a matrix is expected")
        return tensors[name].shape[dim]

    layers = {int(layer[1]) for layer in map(LAYER.fullmatch, tensors) if layer}
    if not layers:
        raise InputError(f"{where}: the checkpoint holds no layers")
    return {
        "hidden_size": size("word_embeddings.weight", 1),
        "max_position_embeddings": size("position_embeddings.weight", 0),
        "num_layers": len(layers),
        "ffn_hidden_size": size("layers.0.mlp.dense_h_to_4h.weight", 0),
    }


def _activations(args: Mapping, notes: list[str]) -> dict[str, str]:
    """Megatron's fused bias-GELU is the tanh form; openai_gelu is tanh too, in the LM head as well; else erf."""
    known = [name for name in ("bias_gelu_fusion", "openai_gelu") if args.get(name) is not None]
    if not known:
        notes.append("args do not say which GELU: tanh in the MLP, Megatron's default, assumed; --hidden-act overrides")
    tanh = bool(args.get("openai_gelu")) or bool(args.get("bias_gelu_fusion", not known))
    return {
        "hidden_act": "gelu_new" if tanh else "gelu",
        "lm_head_act": "gelu_new" if args.get("openai_gelu") else "gelu",
    }


def _check_vocabulary(
    args: Mapping, tensors: Mapping[str, Tensor], config: ModelConfig, layout: Layout, where: str
) -> None:
    """The rows are those of the 31 tokens with Megatron's padding; the files hold no vocabulary to compare with."""
    rows, told = len(tensors["word_embeddings.weight"]), args.get("padded_vocab_size")
    bias = tensors.get("lm_head.bias")
    if bias is not None and tuple(bias.shape) != (rows,):
        raise InputError(f"{where}: lm_head.bias has shape {tuple(bias.shape)}, the embedding has {rows} rows")
    if told is not None and told != rows:
        raise InputError(f"{where}: args.padded_vocab_size is {ascii(told)[:40]}, the embedding has {rows} rows")
    expected = padded_vocabulary(config.vocab_size, config.make_vocab_size_divisible_by, layout.tensor_parallel)
    wrong = (
        rows != expected if "make_vocab_size_divisible_by" in args else not config.vocab_size <= rows <= WIDEST_PADDING
    )
    if wrong:
        raise InputError(
            f"{where}: the embedding has {rows} rows; the {config.vocab_size} tokens of iupac_vocab.txt, padded for "
            f"TP {layout.tensor_parallel}, have {expected}: this model has another vocabulary"
        )
