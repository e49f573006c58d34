"""The names of ProteinBert's tensors in files: what a table of them can do, and TAPE's. No files here.

What must hold: to TAPE's names and back gives every tensor bit for bit (tests). Names are those of the original
project's TAPE fork, a pre-LN BERT; the fused query_key_value has rows [heads, 3, head size], as in proteinlm.network.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from proteinlm.network.config import ModelConfig
from proteinlm.network.model import ProteinBert

FUSED = "layers.#.attention.query_key_value"


@dataclass(frozen=True)
class TensorNames:
    """The names of ProteinBert's tensors in files that keep query, key and value apart. # is the number of a layer."""

    modules: Mapping[str, str]  # module of ProteinBert -> name in the file, each for .weight and .bias
    query_key_value: tuple[str, str, str]

    def rename(self, state: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
        """ProteinBert's names -> the file's; the rows of query_key_value are [heads, 3, size]. Unknown names stay."""
        tensors = {}
        for name, value in state.items():
            module, number, kind = _split(name)
            if module == FUSED:
                split = value.view(heads, 3, -1, *value.shape[1:])
                for i, part in enumerate(self.query_key_value):
                    tensors[_join(part, number, kind)] = split[:, i].flatten(0, 1)
            else:
                tensors[_join(self.modules.get(module, module), number, kind)] = value
        return tensors

    def restore(self, tensors: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
        """The file's names -> ProteinBert's; `tensors` is used up. Incomplete input stays so, unknown names stay."""
        state, modules = {}, {there: module for module, there in self.modules.items()}
        for name in list(tensors):
            module, number, kind = _split(name)
            if module == self.query_key_value[0]:
                names = [_join(part, number, kind) for part in self.query_key_value]
                if all(part in tensors for part in names):
                    parts = [tensors.pop(part) for part in names]
                    split = [part.reshape(heads, -1, *part.shape[1:]) for part in parts]
                    state[_join(FUSED, number, kind)] = torch.stack(split, 1).flatten(0, 2)
            elif module not in self.query_key_value:
                state[_join(modules.get(module, module), number, kind)] = tensors.pop(name)
        return state

    def expected(self, config: ModelConfig, lm_head: bool) -> dict[str, Tensor]:
        """Meta tensors of `ProteinBert(config, lm_head)` under the file's names; copies of tied ones are not there."""
        return self.rename(tensors_without_memory(config, lm_head), config.num_attention_heads)


TAPE_NAMES = TensorNames(
    {
        "word_embeddings": "bert.embeddings.word_embeddings",
        "position_embeddings": "bert.embeddings.position_embeddings",
        "rotary_embeddings": "bert.embeddings.rotary_embeddings",
        "embedding_layernorm": "bert.embeddings.input_ln",
        "layers.#.input_layernorm": "bert.encoder.layer.#.input_ln",
        "layers.#.attention.dense": "bert.encoder.layer.#.attention.dense",
        "layers.#.post_attention_layernorm": "bert.encoder.layer.#.post_attn_ln",
        "layers.#.attention.q_layernorm": "bert.encoder.layer.#.attention.q_ln",
        "layers.#.attention.k_layernorm": "bert.encoder.layer.#.attention.k_ln",
        "layers.#.mlp.dense_h_to_4h_gate": "bert.encoder.layer.#.mlp.dense_h_4h_gate",
        "layers.#.mlp.dense_h_to_4h": "bert.encoder.layer.#.mlp.dense_h_4h",
        "layers.#.mlp.dense_4h_to_h": "bert.encoder.layer.#.mlp.dense_4h_h",
        "final_layernorm": "bert.encoder.final_ln",
        "lm_head.dense": "mlm.transform.dense",
        "lm_head.layernorm": "mlm.transform.LayerNorm",
        "lm_head": "mlm",
        "lm_head.decoder": "mlm.decoder",
    },
    tuple(f"bert.encoder.layer.#.attention.self.{part}" for part in ("query", "key", "value")),
)
WORDS, DECODER = "bert.embeddings.word_embeddings.weight", "mlm.decoder.weight"  # one matrix, written twice
TOKEN_TYPES = "bert.embeddings.token_type_embeddings.weight"
FINAL_NORM = "bert.encoder.final_ln."
UNUSED = "bert.bert_tail_dense."  # in every file of the original, random and used by nothing there


def from_tape(tensors: Mapping[str, Tensor], config: ModelConfig) -> tuple[dict[str, Tensor], list[str]]:
    """TAPE's names -> (ProteinBert's, what was left out or changed, one sentence each).

    Incomplete input stays incomplete and unknown names stay as they are, for the caller (strict loading) to report.
    Token types: TAPE adds row 0 at every position, so it is added to the position embedding here.
    """
    tensors, notes = dict(tensors), []
    if unused := [name for name in tensors if name.startswith(UNUSED)]:
        notes.append(f"{', '.join(unused)} left out deliberately: random and unused in the original too")
    final_norm = [name for name in tensors if name.startswith(FINAL_NORM) and not config.final_layernorm]
    if final_norm:
        notes.append("encoder.final_ln.* left out, for config.json has final_layernorm false")
    types = tensors.pop(TOKEN_TYPES, None)
    for name in (*unused, *final_norm):
        del tensors[name]
    state = TAPE_NAMES.restore(tensors, config.num_attention_heads)
    if types is not None and types[:1].any() and "position_embeddings.weight" in state:
        state["position_embeddings.weight"] = state["position_embeddings.weight"] + types[0]
        notes.append("token type 0 is not zero; it was added to every position embedding, which is the same")
    return state, notes


def tensors_without_memory(config: ModelConfig, lm_head: bool) -> dict[str, Tensor]:
    """The tensors of `ProteinBert(config, lm_head)` by name, on the meta device: its parameters, and rope's buffer.

    Layers are made one by one, so a caller first refuses a config that claims more of them than its file can hold.
    """
    with torch.device("meta"):
        return ProteinBert(config, lm_head).state_dict()


def _split(name: str) -> tuple[str, str, str]:
    """layers.3.mlp.dense_4h_to_h.bias -> ("layers.#.mlp.dense_4h_to_h", "3", "bias")."""
    module, _, kind = name.rpartition(".")
    number = re.search(r"(?<=\.)\d+(?=\.)", module)
    return (module, "", kind) if number is None else (module.replace(f".{number[0]}.", ".#.", 1), number[0], kind)


def _join(module: str, number: str, kind: str) -> str:
    return f"{module.replace('#', number)}.{kind}" if module else kind
