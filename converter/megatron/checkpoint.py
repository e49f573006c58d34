"""PortableModel <-> Megatron checkpoints: the published ProteinLM weights, and what older Megatron-LM reads and writes.

Reading: versions 0, 1.0, 2.0 and 3.0, any TP x PP, interleaved pipelines too, with or without `args`.
Writing: version 3.0, any TP x PP that divides the model evenly, one shard in memory at a time.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from converter.megatron import layout as cut
from converter.megatron.args import check_same_run, config_of
from converter.megatron.files import (
    FILE_NAME,
    RELEASE,
    TRACKER,
    Layout,
    Shard,
    check_complete,
    find_layout,
    open_shard,
    shard_path,
)
from converter.megatron.merge import Merger
from converter.model import VOCABULARY_TENSORS, PortableModel, expected_shapes, with_lm_head
from converter.names import MEGATRON_ARGS, MEGATRON_HEAD_EMBEDDING
from converter.vocabulary import take_rows, to_tokenizer
from proteinlm.errors import InputError
from proteinlm.files import write_text
from proteinlm.tokenizer import build_tokenizer

VERSION = 3.0


def read(path: str | Path, iteration: int | None = None, heads: int | None = None) -> PortableModel:
    """One checkpoint as a whole model. heads: --num-attention-heads, needed where the files hold no `args`."""
    layout = find_layout(Path(path), iteration)
    first = open_shard(layout.shards[0, 0])
    check_complete(layout, *_sizes(first, layout))
    heads = _heads(first, heads)
    merger = Merger(layout.tensor_parallel, heads, first.version, layout.where)
    chunks, differences = len(first.chunks), set()
    for tp, pp in sorted(layout.shards):
        shard = first if (tp, pp) == (0, 0) else open_shard(layout.shards[tp, pp])
        differences |= check_same_run(first, shard, layout)
        merger.add(shard, tp, [i * layout.pipeline_parallel + pp for i in range(chunks)])
    tensors, notes = merger.finish()
    if "final_layernorm.weight" not in tensors:
        absent = shard_path(layout, 0, layout.pipeline_parallel, layout.pipeline_parallel + 1)
        raise InputError(f"{layout.where}: no shard holds final_layernorm.weight; {absent} or the like is missing")
    config, assumed = config_of(first, tensors, heads, layout)
    tensors, dropped = take_rows(
        tensors, build_tokenizer().tokens, build_tokenizer(), config.make_vocab_size_divisible_by, layout.where
    )
    if differences:
        notes.append(f"args differ between shards in {', '.join(sorted(differences))}; those of {first.path} are used")
    if first.others:
        notes.append(f"{', '.join(first.others)} left out: only weights are converted")
    origin = f"{layout.where} (TP {layout.tensor_parallel} x PP {layout.pipeline_parallel}, version {first.version:g})"
    model = PortableModel(config, build_tokenizer(), tensors, origin, (*notes, *assumed, *dropped), _counters(first))
    return model.checked()


def _sizes(first: Shard, layout: Layout) -> tuple[int, int, str]:
    """(TP, PP, who says so): as args have it, else as the shape of query_key_value gives TP away."""
    if first.args is not None:
        sizes = [first.args.get(f"{kind}_model_parallel_size", 1) for kind in ("tensor", "pipeline")]
        if "tensor_model_parallel_size" not in first.args:
            sizes[0] = first.args.get("model_parallel_size", layout.tensor_parallel)
            sizes[1] = first.args.get("pipeline_model_parallel_size", layout.pipeline_parallel)
        if not all(type(size) is int and 0 < size < 10**4 for size in sizes):
            raise InputError(f"{first.path}: args give the parallel sizes as {ascii(sizes)[:60]}")
        return *sizes, "its args"
    for chunk in first.chunks:
        for name, tensor in chunk.items():
            if name.endswith("query_key_value.weight") and tensor.dim() == 2 and tensor.shape[0]:
                rows, hidden = tensor.shape
                if 3 * hidden % rows == 0:
                    return 3 * hidden // rows, layout.pipeline_parallel, f"the {rows} rows of {name}"
    return layout.tensor_parallel, layout.pipeline_parallel, "the files"


def _heads(first: Shard, asked: int | None) -> int:
    said = (first.args or {}).get("num_attention_heads")
    if said is None and asked is None:
        raise InputError(
            f"{first.path}: holds no args that say the number of attention heads, and no tensor shows it; "
            "give it with --num-attention-heads"
        )
    if asked is not None and said is not None and asked != said:
        raise InputError(f"--num-attention-heads {asked}: {first.path} says {ascii(said)[:40]}")
    heads = asked if said is None else said
    if type(heads) is not int or not 0 < heads < 10**6:
        raise InputError(f"{first.path}: num_attention_heads is {ascii(heads)[:40]}, which cannot be")
    return heads


def _counters(first: Shard) -> dict[str, int]:
    consumed = (first.args or {}).get("consumed_train_samples")
    counters = {"iteration": first.iteration, "consumed_train_samples": consumed}
    return {name: value for name, value in counters.items() if type(value) is int and value >= 0}


# ---- writing


def prepare(model: PortableModel, tensor_parallel: int = 1, pipeline_parallel: int = 1) -> PortableModel:
    """The model as `write` stores it: on the pretraining vocabulary with Megatron's padding, with an LM head."""
    if not model.config.final_layernorm:
        raise InputError(
            f"{model.origin}: final_layernorm is false, and Megatron always applies that norm; remove the key from "
            "config.json to convert the model with it"
        )
    if model.config.hidden_act not in ("gelu", "gelu_new"):
        raise InputError(f"{model.origin}: hidden_act {model.config.hidden_act} has no counterpart in Megatron's BERT")
    cut.check_even(model.config, tensor_parallel, pipeline_parallel)
    divisible_by = model.config.make_vocab_size_divisible_by
    divisible_by = 128 if divisible_by == 1 else divisible_by
    model = with_lm_head(to_tokenizer(model, "iupac", divisible_by))
    if said := lost_activation(model):
        model = model.noted(said)
    return replace(model, config=replace(model.config, output_dropout=True))


def lost_activation(model: PortableModel) -> str | None:
    """What Megatron's args cannot say: its LM head is the erf GELU, or tanh together with the MLP's (openai_gelu)."""
    pair = (model.config.hidden_act, model.config.lm_head_act)
    if pair in (("gelu_new", "gelu"), ("gelu", "gelu"), ("gelu_new", "gelu_new")):
        return None
    return f"Megatron cannot say hidden_act {pair[0]} with lm_head_act {pair[1]}: its LM head will compute gelu there"


@dataclass(frozen=True)
class Cut:
    """How a model is written: sizes, and the dtype to round to (None: each tensor's own)."""

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    dtype: torch.dtype | None = None


def write(model: PortableModel, directory: Path, how: Cut) -> None:
    """Write one file a rank, and the tracker. Without an iteration (Megatron's begin at 1) it is a `release`.

    A file's tensors are cut and rounded when it is its turn: memory for the model and one file.
    """
    iteration = model.counters.get("iteration") or None
    name = RELEASE if iteration is None else f"iter_{iteration:07d}"
    args = _namespace(model, how)
    for pp in range(how.pipeline_parallel):
        for tp in range(how.tensor_parallel):
            rank = f"mp_rank_{tp:02d}_{pp:03d}" if how.pipeline_parallel > 1 else f"mp_rank_{tp:02d}"
            content = {
                "args": args,
                "checkpoint_version": VERSION,
                "iteration": iteration or 0,
                "model": _rank_model(model, tp, pp, how),
            }
            (directory / name / rank).mkdir(parents=True)
            torch.save(content, directory / name / rank / FILE_NAME)
    write_text(directory / TRACKER, RELEASE if iteration is None else str(iteration))


def _rows(model: PortableModel, how: Cut) -> int:
    """Rows of the whole word embedding in the files."""
    config = model.config
    return cut.padded_vocabulary(config.vocab_size, config.make_vocab_size_divisible_by, how.tensor_parallel)


def _rank_model(model: PortableModel, tp: int, pp: int, how: Cut) -> dict:
    """The nested `model` dict of one rank, its keys in Megatron's order."""
    first, last = pp == 0, pp == how.pipeline_parallel - 1
    each = model.config.num_layers // how.pipeline_parallel

    def mine(name: str) -> Tensor:
        tensor = model.tensors[name]
        if name in VOCABULARY_TENSORS:
            tensor = torch.cat([tensor, tensor.new_zeros(_rows(model, how) - len(tensor), *tensor.shape[1:])])
        return cut.slice_for(name, tensor, tp, how.tensor_parallel).to(how.dtype or tensor.dtype)

    language: dict = {}
    if first:
        kinds = ("word_embeddings", "position_embeddings")
        language["embedding"] = {kind: {"weight": mine(f"{kind}.weight")} for kind in kinds}
    language["transformer"] = transformer = {}
    names = [name for name, _ in expected_shapes(model.config, lm_head=True)]  # Megatron's order too
    for name in names:
        layer = cut.LAYER.fullmatch(name)
        if layer and pp * each <= int(layer[1]) < (pp + 1) * each:
            transformer[f"layers.{int(layer[1]) - pp * each}.{layer[2]}"] = mine(name)
        elif last and name.startswith("final_layernorm."):
            transformer[name] = mine(name)
    content: dict = {"language_model": language}
    if last:
        heads = [name for name in names if name.startswith("lm_head.")]
        content["lm_head"] = {name.removeprefix("lm_head."): mine(name) for name in heads}
        if how.pipeline_parallel > 1:
            outer, inner = MEGATRON_HEAD_EMBEDDING.split(".")
            content[outer] = {inner: mine("word_embeddings.weight")}
    return content


def _namespace(model: PortableModel, how: Cut) -> argparse.Namespace:
    """The fields of `args` that Megatron's loader compares or reads, and those that say how the model computes."""
    config, dtype = model.config, how.dtype or model.dtype
    values: Mapping = {theirs: getattr(config, ours) for theirs, ours in MEGATRON_ARGS.items()}
    tanh = config.hidden_act == "gelu_new"
    return argparse.Namespace(
        **values,
        kv_channels=config.hidden_size // config.num_attention_heads,
        seq_length=config.max_position_embeddings,
        encoder_seq_length=config.max_position_embeddings,
        padded_vocab_size=_rows(model, how),
        tensor_model_parallel_size=how.tensor_parallel,
        pipeline_model_parallel_size=how.pipeline_parallel,
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
