"""What a Megatron file's `args` say: the model's configuration, and whether two shards are of one run.

Without `args` the shape comes from the tensors, and what no tensor shows is assumed, with a note.
"""

import argparse
from collections.abc import Mapping

import torch
from torch import Tensor

from converter.formats import WriteOptions
from converter.megatron.files import Shard, ShardFiles
from converter.megatron.layout import padded_vocabulary
from converter.model import PortableModel, make_config
from converter.names import LAYER, MEGATRON_ARGS
from converter.vocabulary import WIDEST_PADDING
from proteinlm.errors import InputError
from proteinlm.network.config import ModelConfig
from proteinlm.tokenizer import PRETRAIN_TOKENS

# Fields of `args` that are one run's: where two shards differ in one, they are of two runs.
RUN_FIELDS = (
    *MEGATRON_ARGS,
    *("padded_vocab_size", "tensor_model_parallel_size", "pipeline_model_parallel_size", "model_parallel_size"),
    *("seed", "lr", "train_iters", "global_batch_size", "consumed_train_samples"),
    *("bias_gelu_fusion", "openai_gelu", "fp16"),
)
RANK_FIELDS = ("rank", "local_rank", "node_rank", "hostname")  # differ between the ranks of one run
LARGEST_SIZE = 10**4  # processes in one direction; a size beyond is a damaged file


def check_same_run(first: Shard, shard: Shard, files: ShardFiles) -> set[str]:
    """InputError unless both files are of one checkpoint. Returns names of other args that differ."""
    if files.iteration is not None and shard.iteration not in (None, files.iteration):
        raise InputError(f"{shard.path}: says iteration {shard.iteration}, but lies in that of {files.iteration}")
    for what, expected, value in (
        ("checkpoint_version", first.version, shard.version),
        ("iteration", first.iteration, shard.iteration),
        ("the number of model chunks", len(first.chunks), len(shard.chunks)),
    ):
        if value != expected:
            raise InputError(f"{shard.path}: {what} is {value}, but {expected} in {first.path}; two runs are mixed")
    if (first.args is None) != (shard.args is None):
        raise InputError(f"{shard.path}: one of it and {first.path} holds args, the other none; two runs are mixed")
    if first.args is None or shard.args is None:
        return set()
    names = {name for name in {*first.args, *shard.args} if not name.endswith("_rank") and name not in RANK_FIELDS}
    different = {name for name in names if _as_text(first.args, name) != _as_text(shard.args, name)}
    for name in RUN_FIELDS:
        if name in different:
            values = f"{_as_text(shard.args, name)}, but {_as_text(first.args, name)} in {first.path}"
            raise InputError(f"{shard.path}: args.{name} is {values}; two runs are mixed")
    return different


def _as_text(args: Mapping, name: str) -> str:
    return ascii(args.get(name, "absent"))[:200]


def parallel_sizes(first: Shard, files: ShardFiles) -> tuple[int, int, str]:
    """(TP, PP, their source): from args, else TP from the shape of query_key_value."""
    args = first.args
    if args is None:
        tensor, source = _tensor_parallel_of(first, files)
        return tensor, files.pipeline_parallel, source
    if "tensor_model_parallel_size" in args:
        tensor, default = args["tensor_model_parallel_size"], 1
    else:  # older than pipelines
        tensor, default = args.get("model_parallel_size", files.tensor_parallel), files.pipeline_parallel
    sizes = [tensor, args.get("pipeline_model_parallel_size", default)]
    if not all(type(size) is int and 0 < size < LARGEST_SIZE for size in sizes):
        raise InputError(f"{first.path}: args give the parallel sizes as {ascii(sizes)[:60]}")
    return *sizes, "its args"


def _tensor_parallel_of(first: Shard, files: ShardFiles) -> tuple[int, str]:
    for chunk in first.chunks:
        for name, tensor in chunk.items():
            if name.endswith("query_key_value.weight") and tensor.dim() == 2 and tensor.shape[0]:
                rows, hidden = tensor.shape
                if 3 * hidden % rows == 0:
                    return 3 * hidden // rows, f"the {rows} rows of {name}"
    return files.tensor_parallel, "the files"


def num_heads(first: Shard, requested: int | None) -> int:
    """Attention heads, of which no tensor shows the number: as args say, else as --num-attention-heads does."""
    stored = (first.args or {}).get("num_attention_heads")
    if stored is None and requested is None:
        raise InputError(
            f"{first.path}: holds no args that say the number of attention heads, and no tensor shows it; "
            "give it with --num-attention-heads"
        )
    if None not in (requested, stored) and requested != stored:
        raise InputError(f"--num-attention-heads {requested}: {first.path} says {ascii(stored)[:40]}")
    heads = requested if stored is None else stored
    if type(heads) is not int or not 0 < heads < 10**6:
        raise InputError(f"{first.path}: num_attention_heads is {ascii(heads)[:40]}, which cannot be")
    return heads


def config_of(
    first: Shard, tensors: Mapping[str, Tensor], heads: int, files: ShardFiles
) -> tuple[ModelConfig, list[str]]:
    """(configuration, what was assumed). The vocabulary is the pretraining one of 31 tokens."""
    args, where, notes = first.args or {}, str(first.path), []
    if args.get("apply_residual_connection_post_layernorm"):
        raise InputError(f"{where}: apply_residual_connection_post_layernorm is another architecture; not converted")
    values = {name: args[name] for name in MEGATRON_ARGS if args.get(name) is not None}
    shape = _shape_of(tensors, where)
    for name, size in shape.items():
        if values.get(name, size) != size:
            raise InputError(f"{where}: args.{name} is {ascii(values[name])[:40]}, but the tensors give {size}")
    if not args:
        notes.append("no args in the file: the shape comes from the tensors; LayerNorm epsilon 1e-12, dropout 0.1")
    values |= {"num_attention_heads": heads, "vocab_size": len(PRETRAIN_TOKENS)} | _activations(args, notes)
    config = make_config(shape | values, f"{where}: args")
    _check_vocabulary(args, tensors, config, files, where)
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
    args: Mapping, tensors: Mapping[str, Tensor], config: ModelConfig, files: ShardFiles, where: str
) -> None:
    """The rows are those of the 31 tokens with Megatron's padding; the files hold no vocabulary to compare with."""
    rows, stored = len(tensors["word_embeddings.weight"]), args.get("padded_vocab_size")
    bias = tensors.get("lm_head.bias")
    if bias is not None and tuple(bias.shape) != (rows,):
        raise InputError(f"{where}: lm_head.bias has shape {tuple(bias.shape)}, the embedding has {rows} rows")
    if stored is not None and stored != rows:
        raise InputError(f"{where}: args.padded_vocab_size is {ascii(stored)[:40]}, the embedding has {rows} rows")
    expected = padded_vocabulary(config.vocab_size, config.make_vocab_size_divisible_by, files.tensor_parallel)
    plausible = "make_vocab_size_divisible_by" not in args and config.vocab_size <= rows <= WIDEST_PADDING
    if rows != expected and not plausible:
        raise InputError(
            f"{where}: the embedding has {rows} rows; the {config.vocab_size} tokens of iupac_vocab.txt, padded for "
            f"TP {files.tensor_parallel}, have {expected}: this model has another vocabulary"
        )


def to_args(model: PortableModel, rows: int, options: WriteOptions) -> argparse.Namespace:
    """The fields of `args` that Megatron's loader compares or reads, and those that say how the model computes.

    rows: of the padded word embedding.
    """
    config, dtype = model.config, options.dtype or model.dtype
    tanh = config.hidden_act == "gelu_new"
    return argparse.Namespace(
        **{name: getattr(config, name) for name in MEGATRON_ARGS},
        kv_channels=config.hidden_size // config.num_attention_heads,
        seq_length=config.max_position_embeddings,
        encoder_seq_length=config.max_position_embeddings,
        padded_vocab_size=rows,
        tensor_model_parallel_size=options.tensor_parallel,
        pipeline_model_parallel_size=options.pipeline_parallel,
        bias_gelu_fusion=tanh,
        openai_gelu=tanh and config.lm_head_act == "gelu_new",
        onnx_safe=None,
        apply_residual_connection_post_layernorm=False,
        fp16=dtype == torch.float16,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        tokenizer_type="BertWordPieceCase",
        iteration=model.counters.get("iteration", 0),
        consumed_train_samples=model.counters.get("consumed_train_samples", 0),
        consumed_valid_samples=0,
    )
