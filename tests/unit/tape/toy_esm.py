"""Directories of Hugging Face's EsmForMaskedLM with random weights, and that model's own outputs. For tests.

peer = write_esm(root / "esm")                      # 2 layers x 16, 4 heads, rotary positions, token dropout
hidden, logits = peer_outputs(peer, "MKV")               # [layers + 1, residues + 2, h], [residues + 2, 33]
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from proteinlm.tokenizer import ESM_TOKENS, build_tokenizer

transformers = pytest.importorskip("transformers")

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
ESM2_8M = {"hidden_size": 320, "num_hidden_layers": 6, "num_attention_heads": 20, "intermediate_size": 1280}
ESM_1B = {"position_embedding_type": "absolute", "emb_layer_norm_before": True, "max_position_embeddings": 66}
TOKENIZER = build_tokenizer("esm")


@torch.no_grad()
def write_esm(directory: Path, seed: int = 0, **changes):
    """An EsmForMaskedLM in evaluation mode, saved in `directory`. No weight is where it begins, and the inverse
    frequencies are not those of the base, so that a loader which leaves anything out computes something else."""
    values = {"vocab_size": len(ESM_TOKENS), "pad_token_id": 1, "mask_token_id": 32, "max_position_embeddings": 1026}
    values |= {"position_embedding_type": "rotary", "token_dropout": True, "layer_norm_eps": 1e-5, "hidden_act": "gelu"}
    values |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "emb_layer_norm_before": False}
    config = transformers.EsmConfig(**values | TINY | changes)
    peer, generator = transformers.EsmForMaskedLM(config).eval(), torch.Generator().manual_seed(seed)
    for name, parameter in peer.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_norm = "norm" in name.lower() and name.endswith("weight")
        parameter.copy_(1 + 0.3 * noise if is_norm else config.hidden_size**-0.5 * noise)
    if peer.esm.rotary_embeddings is not None:
        frequencies = peer.esm.rotary_embeddings.inv_freq
        frequencies.copy_((frequencies * (0.6 + 0.3 * torch.rand(frequencies.shape, generator=generator))).half())
    peer.save_pretrained(directory)
    return peer


@torch.no_grad()
def peer_outputs(peer, residues: str, masked: int | None = None) -> tuple[Tensor, Tensor]:
    """(hidden states [layers + 1, L + 2, h], logits [L + 2, 33]) of one protein; the residue at `masked` is hidden."""
    ids = [TOKENIZER.cls_id, *TOKENIZER.encode(residues).tolist(), TOKENIZER.sep_id]
    if masked is not None:
        ids[masked + 1] = TOKENIZER.mask_id
    tokens = torch.tensor([ids])
    results = peer(tokens, attention_mask=torch.ones_like(tokens), output_hidden_states=True)
    return torch.cat(results.hidden_states), results.logits[0]
