"""The models that are compared: ours in ProteinLM's and ESM-2's shapes, and Hugging Face's with the same weights."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import proteinlm
from benchmarks.comparison import SHAPES, esm2
from converter.names import HF_NAMES, HF_TIED, HF_TOKEN_TYPES
from proteinlm.network.config import ModelConfig
from proteinlm.network.model import ProteinBert, initialize
from proteinlm.tokenizer import Tokenizer, build_tokenizer

# layers, hidden size, heads, width inside the MLP: pretrain/configs/proteinlm_*.yaml
PROTEINLM_SHAPES = {
    "tiny": (2, 32, 4, 128),
    "2m": (4, 192, 6, 704),
    "8m": (6, 320, 20, 1280),
    "35m": (12, 480, 20, 1920),
    "200m": (16, 1024, 16, 4096),
    "3b": (36, 2560, 40, 10240),
}
FAMILIES = {"esm2": (SHAPES, "esm"), "proteinlm": (PROTEINLM_SHAPES, "iupac")}  # shapes, vocabulary


@dataclass(frozen=True)
class Weights:
    """A network and its weights, under `ProteinBert`'s names. peer: what Hugging Face calls it, with these weights."""

    config: ModelConfig
    tokenizer: Tokenizer
    state: Mapping[str, Tensor]
    peer: nn.Module | None


def esm2_weights(shape: Sequence[int]) -> Weights:
    """Random, drawn by transformers and read by this project. shape: layers, hidden size, heads, perhaps the MLP's."""
    peer = esm2(*shape)
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        model = proteinlm.load(folder, device="cpu").model
    return Weights(model.config, build_tokenizer("esm"), model.state_dict(), peer)


def proteinlm_weights(shape: Sequence[int], positions: int, dropout: float, with_peer: bool) -> Weights:
    """Random. One activation, the tanh form, in MLP and head, as Hugging Face's MegatronBert has it."""
    layers, width, heads, inner = shape
    config = ModelConfig(
        width, layers, heads, positions, ffn_hidden_size=inner, lm_head_act="gelu_new", hidden_dropout=dropout,
        attention_dropout=dropout, layernorm_epsilon=1e-12,
    )  # fmt: skip
    model = ProteinBert(config)
    initialize(model, 0)
    state = model.state_dict()
    return Weights(config, build_tokenizer("iupac"), state, megatron_bert(config, state) if with_peer else None)


def megatron_bert(config: ModelConfig, state: Mapping[str, Tensor]) -> nn.Module:
    """transformers' MegatronBertForMaskedLM with the same weights; its attention is eager, the only one that it has."""
    from transformers import MegatronBertConfig, MegatronBertForMaskedLM

    padded = ("word_embeddings.weight", "lm_head.bias")
    ours = {name: tensor[: config.vocab_size] if name in padded else tensor for name, tensor in state.items()}
    peer = MegatronBertForMaskedLM(
        MegatronBertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.ffn_hidden_size,
            hidden_act=config.hidden_act,
            hidden_dropout_prob=config.hidden_dropout,
            attention_probs_dropout_prob=config.attention_dropout,
            max_position_embeddings=config.max_position_embeddings,
            layer_norm_eps=config.layernorm_epsilon,
        )
    )
    copies = {original: copy for copy, original in HF_TIED.items()}
    names = HF_NAMES.rename(ours, config.num_attention_heads)
    names |= {copies[name]: tensor for name, tensor in names.items() if name in copies}
    names[HF_TOKEN_TYPES] = torch.zeros(2, config.hidden_size)
    missing, unexpected = peer.load_state_dict(names, strict=False)
    assert not unexpected and all("position_ids" in name for name in missing), (missing, unexpected)
    return peer
