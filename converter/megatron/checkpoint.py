"""PortableModel <-> Megatron checkpoints: the published ProteinLM weights, and what older Megatron-LM reads and writes.

Reading: versions 0, 1.0, 2.0 and 3.0, any TP x PP, interleaved pipelines too, with or without `args`.
Writing: version 3.0, any TP x PP that divides the model evenly, one shard in memory at a time.
"""

from pathlib import Path

import torch
from torch import Tensor

from converter.formats import Format, ReadOptions, WriteOptions
from converter.megatron.args import check_same_run, config_of, num_heads, parallel_sizes, to_args
from converter.megatron.files import (
    FILE_NAME,
    RELEASE,
    Shard,
    find_shards,
    iteration_name,
    open_shard,
    rank_name,
    recognises_megatron,
)
from converter.megatron.layout import check_even, padded_vocabulary, slice_for
from converter.megatron.merge import Merger
from converter.model import (
    PLAIN,
    PortableModel,
    require_final_layernorm,
    require_options,
    with_lm_head,
    without_contact_head,
)
from converter.names import LAYER, MEGATRON_HEAD_EMBEDDING
from converter.vocabulary import to_pretraining
from pretrain.checkpoint.files import TRACKER
from proteinlm.errors import InputError
from proteinlm.files import write_text
from proteinlm.model_dir.names import tensors_without_memory
from proteinlm.model_dir.vocabulary import VOCABULARY_TENSORS, take_rows
from proteinlm.tokenizer import build_tokenizer

VERSION = 3.0


def read_megatron(path: Path, options: ReadOptions) -> PortableModel:
    files = find_shards(path, options.iteration)
    first = open_shard(files.paths[0, 0])
    files.check_complete(*parallel_sizes(first, files))
    heads = num_heads(first, options.num_attention_heads)
    merger = Merger(files.tensor_parallel, heads, first.version, files.where)
    chunks, differences = len(first.chunks), set()
    for tp, pp in sorted(files.paths):
        shard = first if (tp, pp) == (0, 0) else open_shard(files.paths[tp, pp])
        differences |= check_same_run(first, shard, files)
        merger.add(shard, tp, [i * files.pipeline_parallel + pp for i in range(chunks)])
    tensors, notes = merger.finish()
    if "final_layernorm.weight" not in tensors:
        absent = files.path_of(0, files.pipeline_parallel, files.pipeline_parallel + 1)
        raise InputError(f"{files.where}: no shard holds final_layernorm.weight; {absent} or the like is missing")
    config, assumed = config_of(first, tensors, heads, files)
    tokenizer = build_tokenizer()
    padding = config.make_vocab_size_divisible_by
    tensors, dropped = take_rows(tensors, tokenizer.tokens, tokenizer, padding, files.where)
    if differences:
        notes.append(f"args differ between shards in {', '.join(sorted(differences))}; those of {first.path} are used")
    if first.others:
        notes.append(f"{', '.join(first.others)} left out: only weights are converted")
    origin = f"{files.where} (TP {files.tensor_parallel} x PP {files.pipeline_parallel}, version {first.version:g})"
    return PortableModel(config, tokenizer, tensors, origin, (*notes, *assumed, *dropped), _counters(first)).checked()


def _counters(first: Shard) -> dict[str, int]:
    consumed = (first.args or {}).get("consumed_train_samples")
    counters = {"iteration": first.iteration, "consumed_train_samples": consumed}
    return {name: value for name, value in counters.items() if type(value) is int and value >= 0}


# ---- writing


def prepare_megatron(model: PortableModel, options: WriteOptions) -> PortableModel:
    """The model as `write_megatron` stores it: on the pretraining vocabulary with Megatron's padding, with an LM head.

    Megatron's args set two activations at once: the LM head is the erf GELU, or tanh together with the MLP's
    (openai_gelu). Where they cannot express the model's, its LM head changes, with a note.
    """
    require_final_layernorm(model, "Megatron always applies")
    require_options(model, PLAIN, "Megatron's BERT")
    hidden_act, lm_head_act = model.config.hidden_act, model.config.lm_head_act
    if hidden_act not in ("gelu", "gelu_new"):
        raise InputError(f"{model.origin}: hidden_act {hidden_act} has no counterpart in Megatron's BERT")
    check_even(model.config, options.tensor_parallel, options.pipeline_parallel)
    model = with_lm_head(to_pretraining(without_contact_head(model, "Megatron")))
    if lm_head_act not in ("gelu", "gelu_new") or (hidden_act, lm_head_act) == ("gelu", "gelu_new"):
        pair = f"hidden_act {hidden_act} with lm_head_act {lm_head_act}"
        model = model.noted(f"Megatron cannot express {pair}: its LM head will compute gelu there")
        model = model.with_config(lm_head_act="gelu")
    return model


def write_megatron(model: PortableModel, directory: Path, options: WriteOptions) -> None:
    """Write one file a rank, and the tracker. Without an iteration (Megatron's begin at 1) it is a `release`.

    A file's tensors are cut and rounded when it is its turn: memory for the model and one file.
    """
    iteration, config = model.counters.get("iteration") or None, model.config
    rows = padded_vocabulary(config.vocab_size, config.make_vocab_size_divisible_by, options.tensor_parallel)
    args = to_args(model, rows, options)
    for pp in range(options.pipeline_parallel):
        for tp in range(options.tensor_parallel):
            content = {
                "args": args,
                "checkpoint_version": VERSION,
                "iteration": iteration or 0,
                "model": _rank_model(model, tp, pp, rows, options),
            }
            rank = directory / iteration_name(iteration) / rank_name(tp, pp, options.pipeline_parallel)
            rank.mkdir(parents=True)
            torch.save(content, rank / FILE_NAME)
    write_text(directory / TRACKER, RELEASE if iteration is None else str(iteration))


def _rank_model(model: PortableModel, tp: int, pp: int, rows: int, options: WriteOptions) -> dict:
    """The nested `model` dict of one rank, its keys in Megatron's order."""
    last = pp == options.pipeline_parallel - 1
    num_layers = model.config.num_layers // options.pipeline_parallel

    def part(name: str) -> Tensor:
        tensor = model.tensors[name]
        if name in VOCABULARY_TENSORS:
            tensor = torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])])
        return slice_for(name, tensor, tp, options.tensor_parallel).to(options.dtype or tensor.dtype)

    language: dict = {}
    if pp == 0:
        kinds = ("word_embeddings", "position_embeddings")
        language["embedding"] = {kind: {"weight": part(f"{kind}.weight")} for kind in kinds}
    language["transformer"] = transformer = {}
    content: dict = {"language_model": language}
    for name in tensors_without_memory(model.config, lm_head=True):  # Megatron's order too
        layer = LAYER.fullmatch(name)
        if layer and int(layer[1]) // num_layers == pp:
            transformer[f"layers.{int(layer[1]) % num_layers}.{layer[2]}"] = part(name)
        elif last and name.startswith("final_layernorm."):
            transformer[name] = part(name)
        elif last and name.startswith("lm_head."):
            content.setdefault("lm_head", {})[name.removeprefix("lm_head.")] = part(name)
    if last and options.pipeline_parallel > 1:
        module, parameter = MEGATRON_HEAD_EMBEDDING.split(".")
        content[module] = {parameter: part("word_embeddings.weight")}
    return content


MEGATRON = Format(
    "megatron",
    recognises_megatron,
    read_megatron,
    prepare_megatron,
    write_megatron,
    reads_files=True,
    has_iterations=True,
    asks_heads=True,
    is_parallel=True,
)
