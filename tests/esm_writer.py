"""Writes ESM-2 and ESM-1b with random weights as fair-esm keeps them, and as Hugging Face's classes save them.

The names are written out here, so that a wrong table in the code under test shows. Weights are a dict by fair-esm's
names without prefixes (facebookresearch/esm, esm/model/esm2.py and esm1.py).
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from toy_esm import ESM_1B, esm_config, transformers

LAYERS, HEADS, HIDDEN, FFN, POSITIONS, VOCABULARY, MASK = 2, 2, 8, 32, 40, 33, 32
KINDS = ("esm2", "esm1b")


def random_weights(kind: str = "esm2", seed: int = 0) -> dict[str, Tensor]:
    """All tensors of a model, with its contact regression; inverse frequencies rounded to fp16 and not the usual."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    def linear(name: str, rows: int, columns: int) -> dict[str, Tensor]:
        return {f"{name}.weight": draw(rows, columns), f"{name}.bias": draw(rows)}

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + draw(HIDDEN), f"{name}.bias": draw(HIDDEN)}

    weights = {"embed_tokens.weight": draw(VOCABULARY, HIDDEN)}
    if kind == "esm1b":
        weights |= {"embed_positions.weight": draw(POSITIONS + 2, HIDDEN), **norm("emb_layer_norm_before")}
        weights["embed_tokens.weight"][MASK] = 0
    frequencies = (0.5 + torch.rand(HIDDEN // HEADS // 2, generator=generator)).half().float()
    for i in range(LAYERS):
        layer = f"layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            weights |= linear(f"{layer}.self_attn.{part}", HIDDEN, HIDDEN)
        if kind == "esm2":
            weights[f"{layer}.self_attn.rot_emb.inv_freq"] = frequencies
        weights |= norm(f"{layer}.self_attn_layer_norm") | norm(f"{layer}.final_layer_norm")
        weights |= linear(f"{layer}.fc1", FFN, HIDDEN) | linear(f"{layer}.fc2", HIDDEN, FFN)
    weights |= norm("emb_layer_norm_after") | linear("lm_head.dense", HIDDEN, HIDDEN) | norm("lm_head.layer_norm")
    weights |= {"lm_head.weight": weights["embed_tokens.weight"], "lm_head.bias": draw(VOCABULARY)}
    return weights | linear("contact_head.regression", 1, LAYERS * HEADS)


def fair_arguments(kind: str) -> dict[str, object]:
    """What stands beside `model` in a file."""
    shape = {"encoder_layers": LAYERS, "encoder_embed_dim": HIDDEN, "encoder_attention_heads": HEADS}
    if kind == "esm2":
        return {"cfg": {"model": argparse.Namespace(token_dropout=True, **shape)}}
    rest = {"encoder_ffn_embed_dim": FFN, "max_positions": POSITIONS, "token_dropout": True, "final_bias": True}
    return {"args": argparse.Namespace(arch="roberta_large", **shape, **rest)}


def prefixed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as the training code names it."""
    names = {name: "encoder." if name.startswith("lm_head.") else "encoder.sentence_encoder." for name in weights}
    return {prefix + name: weights[name] for name, prefix in names.items()}


def write_fair(directory: Path, kind: str = "esm2", weights=None, contacts: bool = True, arguments=None) -> Path:
    """<kind>_t2.pt and its contact regression; returns the first."""
    weights = weights or random_weights(kind)
    directory.mkdir(parents=True, exist_ok=True)
    own = {name: value for name, value in weights.items() if not name.startswith("contact_head.")}
    path = directory / f"{kind}_t2.pt"
    torch.save((arguments or fair_arguments(kind)) | {"model": prefixed(own)}, path)
    if contacts:
        head = {name: value for name, value in weights.items() if name.startswith("contact_head.")}
        torch.save({"model": head}, directory / f"{kind}_t2-contact-regression.pt")
    return path


def peer(kind: str = "esm2", weights=None, **changes):
    """Hugging Face's EsmForMaskedLM with these weights, module by module, in evaluation mode."""
    values = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    values |= {"intermediate_size": FFN} | (ESM_1B if kind == "esm1b" else {})
    values |= {"max_position_embeddings": POSITIONS + 2}
    model = transformers.EsmForMaskedLM(esm_config(**values | changes))
    with torch.no_grad():
        fill(model, weights or random_weights(kind))
    return model.eval()


def fill(model, weights: dict[str, Tensor]) -> None:
    esm, head = model.esm, model.lm_head
    modules = {"embed_tokens": esm.embeddings.word_embeddings, "emb_layer_norm_after": esm.encoder.emb_layer_norm_after}
    modules |= {"lm_head.dense": head.dense, "lm_head.layer_norm": head.layer_norm, "lm_head": head}
    modules["contact_head.regression"] = esm.contact_head.regression
    if esm.rotary_embeddings is None:
        modules["embed_positions"] = esm.embeddings.position_embeddings
        modules["emb_layer_norm_before"] = esm.embeddings.layer_norm
    for i, layer in enumerate(esm.encoder.layer):
        own, name = layer.attention.self, f"layers.{i}"
        modules |= {f"{name}.self_attn.q_proj": own.query, f"{name}.self_attn.k_proj": own.key}
        modules |= {f"{name}.self_attn.v_proj": own.value, f"{name}.self_attn.out_proj": layer.attention.output.dense}
        modules |= {
            f"{name}.self_attn_layer_norm": layer.attention.LayerNorm,
            f"{name}.final_layer_norm": layer.LayerNorm,
        }
        modules |= {f"{name}.fc1": layer.intermediate.dense, f"{name}.fc2": layer.output.dense}
    for name, value in weights.items():
        module, _, kind = name.rpartition(".")
        if kind == "inv_freq":
            esm.rotary_embeddings.inv_freq.copy_(value)
        elif name != "lm_head.weight":  # tied
            getattr(modules[module], kind).copy_(value)


def write_hf(directory: Path, kind: str = "esm2", weights=None, **changes) -> Path:
    """config.json and model.safetensors with the names of EsmForMaskedLM's state dict."""
    from safetensors.torch import save_file

    model = peer(kind, weights, **changes)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.clone() for name, value in model.state_dict().items() if name != "lm_head.decoder.weight"}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    model.config.architectures = ["EsmForMaskedLM"]
    (directory / "config.json").write_text(json.dumps(model.config.to_dict()))
    return directory
