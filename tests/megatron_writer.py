"""Writes Megatron checkpoints of every version and layout, independently of `converter`: plain loops over numpy arrays.

    weights = random_weights(seed=1, hidden=32, heads=4, layers=4)
    write_megatron(directory, weights, tp=2, pp=2, version=1.0)
    our_tensors(weights)                 # what any reader must make of them, under the names of proteinlm.network.model

`weights` holds query, key and value apart, as [heads, head size, hidden]; nothing here is imported from the packages.
"""

import argparse
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

VOCABULARY = 31
PADDING = 0.017  # what padding rows hold, so that a reader that takes them for tokens is seen


@dataclass(frozen=True)
class Weights:
    """A whole model. layers[i] maps a name to an array; names are those of the paper, not of any file."""

    word: np.ndarray  # [31, h]
    position: np.ndarray  # [P, h]
    layers: list[dict[str, np.ndarray]]
    final: dict[str, np.ndarray]
    head: dict[str, np.ndarray]
    token_types: np.ndarray | None = None

    @property
    def hidden(self) -> int:
        return self.word.shape[1]

    @property
    def heads(self) -> int:
        return self.layers[0]["query_weight"].shape[0]


def random_weights(seed=1, hidden=32, heads=4, layers=4, positions=64, ffn=None, token_types=0) -> Weights:
    rng = np.random.default_rng(seed)
    ffn, size = ffn or 4 * hidden, hidden // heads

    def array(*shape: int, around: float = 0.0) -> np.ndarray:
        return (around + 0.1 * rng.standard_normal(shape)).astype(np.float32)

    def layer() -> dict[str, np.ndarray]:
        parts = {f"{part}_weight": array(heads, size, hidden) for part in ("query", "key", "value")}
        parts |= {f"{part}_bias": array(heads, size) for part in ("query", "key", "value")}
        parts |= {"dense_weight": array(hidden, hidden), "dense_bias": array(hidden)}
        parts |= {"up_weight": array(ffn, hidden), "up_bias": array(ffn)}
        parts |= {"down_weight": array(hidden, ffn), "down_bias": array(hidden)}
        for norm in ("norm1", "norm2"):
            parts |= {f"{norm}_weight": array(hidden, around=1.0), f"{norm}_bias": array(hidden)}
        return parts

    return Weights(
        word=array(VOCABULARY, hidden),
        position=array(positions, hidden),
        layers=[layer() for _ in range(layers)],
        final={"weight": array(hidden, around=1.0), "bias": array(hidden)},
        head={
            "bias": array(VOCABULARY),
            "dense.weight": array(hidden, hidden),
            "dense.bias": array(hidden),
            "layernorm.weight": array(hidden, around=1.0),
            "layernorm.bias": array(hidden),
        },
        token_types=array(token_types, hidden) if token_types else None,
    )


def fused(layer: dict[str, np.ndarray], kind: str, version: float, heads: list[int]) -> np.ndarray:
    """query_key_value of one rank, row by row in the order of that version."""
    q, k, v = (layer[f"{part}_{kind}"] for part in ("query", "key", "value"))
    size, rows = q.shape[1], []
    if version == 0:  # all queries, all keys, all values
        for part in (q, k, v):
            rows += [part[head][i] for head in heads for i in range(size)]
    elif version == 1.0:  # for each element of a head: its query, key, value
        rows += [part[head][i] for head in heads for i in range(size) for part in (q, k, v)]
    else:  # for each head: its queries, keys, values
        rows += [part[head][i] for head in heads for part in (q, k, v) for i in range(size)]
    return np.stack(rows)


def our_tensors(weights: Weights) -> dict[str, torch.Tensor]:
    """The model under the names of proteinlm.network.model.ProteinBert, the vocabulary not padded."""
    tensors = {"word_embeddings.weight": weights.word, "position_embeddings.weight": weights.position}
    every_head = list(range(weights.heads))
    for i, layer in enumerate(weights.layers):
        for kind in ("weight", "bias"):
            tensors |= {
                f"layers.{i}.input_layernorm.{kind}": layer[f"norm1_{kind}"],
                f"layers.{i}.attention.query_key_value.{kind}": fused(layer, kind, 3.0, every_head),
                f"layers.{i}.attention.dense.{kind}": layer[f"dense_{kind}"],
                f"layers.{i}.post_attention_layernorm.{kind}": layer[f"norm2_{kind}"],
                f"layers.{i}.mlp.dense_h_to_4h.{kind}": layer[f"up_{kind}"],
                f"layers.{i}.mlp.dense_4h_to_h.{kind}": layer[f"down_{kind}"],
            }
    tensors |= {f"final_layernorm.{kind}": weights.final[kind] for kind in ("weight", "bias")}
    tensors |= {f"lm_head.{name}": value for name, value in weights.head.items()}
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()}


def hf_state(weights: Weights) -> dict[str, torch.Tensor]:
    """The same model under the names of Hugging Face's MegatronBertForMaskedLM."""
    types_ = np.zeros((2, weights.hidden), np.float32) if weights.token_types is None else weights.token_types
    state = {
        "bert.embeddings.word_embeddings.weight": weights.word,
        "bert.embeddings.position_embeddings.weight": weights.position,
        "bert.embeddings.token_type_embeddings.weight": types_,
        "cls.predictions.bias": weights.head["bias"],
        "cls.predictions.decoder.weight": weights.word,
        "cls.predictions.decoder.bias": weights.head["bias"],
    }
    for kind in ("weight", "bias"):
        state[f"bert.encoder.ln.{kind}"] = weights.final[kind]
        state[f"cls.predictions.transform.dense.{kind}"] = weights.head[f"dense.{kind}"]
        state[f"cls.predictions.transform.LayerNorm.{kind}"] = weights.head[f"layernorm.{kind}"]
        for i, layer in enumerate(weights.layers):
            prefix = f"bert.encoder.layer.{i}"
            for part in ("query", "key", "value"):
                array = layer[f"{part}_{kind}"]
                state[f"{prefix}.attention.self.{part}.{kind}"] = array.reshape(weights.hidden, *array.shape[2:])
            state[f"{prefix}.attention.ln.{kind}"] = layer[f"norm1_{kind}"]
            state[f"{prefix}.attention.output.dense.{kind}"] = layer[f"dense_{kind}"]
            state[f"{prefix}.ln.{kind}"] = layer[f"norm2_{kind}"]
            state[f"{prefix}.intermediate.dense.{kind}"] = layer[f"up_{kind}"]
            state[f"{prefix}.output.dense.{kind}"] = layer[f"down_{kind}"]
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}


def write_megatron(
    directory: Path,
    weights: Weights,
    tp: int = 1,
    pp: int = 1,
    version: float = 3.0,
    *,
    name: str = "iter_0001000",
    tracker: str | None = "1000",
    transformer: str = "transformer",
    attention: str = "attention",
    dtype: torch.dtype = torch.float32,
    chunks: int = 1,
    args: dict | None = None,
    no_args: bool = False,
    optimizer: bool = False,
    old_loss_scaler: bool = False,
    change=None,
) -> Path:
    """Write the checkpoint; returns the directory of its ranks.

    chunks: model chunks a rank of an interleaved pipeline holds. change(content, tp, pp): alters a rank's dict just
    before it is saved, for the tests that damage something.
    """
    for t in range(tp):
        for p in range(pp):
            content = {"args": _args(weights, tp, pp, dtype, args or {}), "iteration": 1000}
            if no_args:
                del content["args"]
            if version:
                content["checkpoint_version"] = version
            places = [(chunk * pp + p, f"model{chunk}" if chunks > 1 else "model") for chunk in range(chunks)]
            for stage, key in places:
                cut = Cut(weights, t, tp, stage, pp * chunks, version, transformer, attention, dtype)
                content[key] = cut.model()
            content["lr_scheduler"] = {"num_steps": 1000}
            content["rng_state"] = torch.arange(8, dtype=torch.uint8)
            if optimizer:
                content["optimizer"] = {"state": {0: {"exp_avg": torch.ones(64, dtype=torch.float32)}}}
            if change:
                change(content, t, p)
            rank = f"mp_rank_{t:02d}" if pp == 1 else f"mp_rank_{t:02d}_{p:03d}"
            (directory / name / rank).mkdir(parents=True)
            _save(content, directory / name / rank / "model_optim_rng.pt", old_loss_scaler)
    if tracker is not None:
        (directory / "latest_checkpointed_iteration.txt").write_text(tracker)
    return directory / name


def _save(content: dict, path: Path, old_loss_scaler: bool) -> None:
    """torch.save; old_loss_scaler: with an object of the class that very old files pickle in `optimizer`."""
    if not old_loss_scaler:
        torch.save(content, path)
        return
    modules = ["megatron", "megatron.fp16", "megatron.fp16.loss_scaler"]
    for module in modules:
        sys.modules[module] = types.ModuleType(module)
    try:
        scaler = type("DynamicLossScaler", (), {"__module__": modules[-1]})
        sys.modules[modules[-1]].DynamicLossScaler = scaler
        instance = scaler()
        instance.cur_scale = 65536.0
        torch.save(content | {"optimizer": {"loss_scaler": instance}}, path)
    finally:
        for module in modules:
            del sys.modules[module]


def _args(weights: Weights, tp: int, pp: int, dtype: torch.dtype, changes: dict) -> argparse.Namespace:
    values = {
        "num_layers": len(weights.layers),
        "hidden_size": weights.hidden,
        "num_attention_heads": weights.heads,
        "max_position_embeddings": len(weights.position),
        "padded_vocab_size": padded(tp),
        "make_vocab_size_divisible_by": 128,
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "layernorm_epsilon": 1e-12,
        "bias_gelu_fusion": True,
        "openai_gelu": False,
        "onnx_safe": None,
        "fp16": dtype == torch.float16,
        "params_dtype": dtype,
        "tokenizer_type": "BertWordPieceCase",
        "consumed_train_samples": 128000,
        "seed": 1234,
        "apply_residual_connection_post_layernorm": False,
    }
    values |= changes
    return argparse.Namespace(**{name: value for name, value in values.items() if value is not KeyError})


def padded(tp: int) -> int:
    """Rows of the word embedding over all ranks."""
    multiple = 128 * tp
    return (VOCABULARY + multiple - 1) // multiple * multiple


@dataclass(frozen=True)
class Cut:
    """One model chunk of one rank."""

    weights: Weights
    rank: int
    ranks: int
    stage: int
    stages: int
    version: float
    transformer: str
    attention: str
    dtype: torch.dtype

    def model(self) -> dict:
        language: dict = {}
        if self.stage == 0:
            language["embedding"] = {
                "word_embeddings": {"weight": self._tensor(self._vocabulary(self.weights.word))},
                "position_embeddings": {"weight": self._tensor(self.weights.position)},
            }
            if self.weights.token_types is not None:
                language["embedding"]["tokentype_embeddings"] = {"weight": self._tensor(self.weights.token_types)}
        language[self.transformer] = self._layers()
        model: dict = {"language_model": language}
        if self.stage == self.stages - 1:
            for kind in ("weight", "bias"):
                language[self.transformer][f"final_layernorm.{kind}"] = self._tensor(self.weights.final[kind])
            head = dict(self.weights.head)
            head["bias"] = self._vocabulary(head["bias"])
            model["lm_head"] = {name: self._tensor(value) for name, value in head.items()}
            if self.stages > 1:
                model["word_embeddings_for_head"] = {"weight": self._tensor(self._vocabulary(self.weights.word))}
        return model

    def _layers(self) -> dict[str, torch.Tensor]:
        count = len(self.weights.layers) // self.stages
        per_rank = self.weights.heads // self.ranks
        heads = [self.rank * per_rank + i for i in range(per_rank)]
        entries = {}
        for n, layer in enumerate(self.weights.layers[self.stage * count : (self.stage + 1) * count]):
            parts = {
                "input_layernorm.weight": layer["norm1_weight"],
                "input_layernorm.bias": layer["norm1_bias"],
                f"{self.attention}.query_key_value.weight": fused(layer, "weight", self.version, heads),
                f"{self.attention}.query_key_value.bias": fused(layer, "bias", self.version, heads),
                f"{self.attention}.dense.weight": self._part(layer["dense_weight"], 1),
                f"{self.attention}.dense.bias": layer["dense_bias"],
                "post_attention_layernorm.weight": layer["norm2_weight"],
                "post_attention_layernorm.bias": layer["norm2_bias"],
                "mlp.dense_h_to_4h.weight": self._part(layer["up_weight"], 0),
                "mlp.dense_h_to_4h.bias": self._part(layer["up_bias"], 0),
                "mlp.dense_4h_to_h.weight": self._part(layer["down_weight"], 1),
                "mlp.dense_4h_to_h.bias": layer["down_bias"],
            }
            entries |= {f"layers.{n}.{name}": self._tensor(value) for name, value in parts.items()}
        return entries

    def _vocabulary(self, array: np.ndarray) -> np.ndarray:
        whole = np.full((padded(self.ranks), *array.shape[1:]), PADDING, np.float32)
        whole[:VOCABULARY] = array
        return self._part(whole, 0)

    def _part(self, array: np.ndarray, axis: int) -> np.ndarray:
        return np.split(array, self.ranks, axis)[self.rank]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array)).to(self.dtype)
