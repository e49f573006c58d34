"""Hugging Face's ESM-2, ESM-1b and ESM C with random weights, in a tiny shape and evaluation mode. For tests.

peer = esm_model(num_hidden_layers=3)            # EsmForMaskedLM; with **ESM_1B in ESM-1b's form
peer = esmc_model(hidden_size=12)                # EsmcForMaskedLM

No weight is where it begins, and the inverse frequencies of ESM-2 are not those of the base, so that a loader which
leaves anything out computes something else.
"""

import pytest
import torch

from proteinlm.tokenizer import ESM_TOKENS

transformers = pytest.importorskip("transformers")

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
ESM_1B = {"position_embedding_type": "absolute", "emb_layer_norm_before": True, "max_position_embeddings": 66}


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int, spread: float) -> None:
    """Norms around 1, all else around 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_norm = "norm" in name.lower() and name.endswith("weight")
        parameter.copy_(1 + 0.3 * noise if is_norm else spread * noise)


def esm_config(**changes):
    """An EsmConfig of ESM-2's form."""
    values = {"vocab_size": len(ESM_TOKENS), "pad_token_id": 1, "mask_token_id": ESM_TOKENS.index("<mask>")}
    values |= {"position_embedding_type": "rotary", "token_dropout": True, "layer_norm_eps": 1e-5, "hidden_act": "gelu"}
    values |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "emb_layer_norm_before": False}
    return transformers.EsmConfig(**values | SHAPE | {"intermediate_size": 64} | changes, attn_implementation="eager")


def esm_model(seed: int = 0, spread: float = 0.25, **changes):
    """changes: keys of EsmConfig."""
    model = transformers.EsmForMaskedLM(esm_config(**changes))
    randomise(model, seed, spread)
    if model.esm.rotary_embeddings is not None:
        frequencies = model.esm.rotary_embeddings.inv_freq
        noise = torch.rand(frequencies.shape, generator=torch.Generator().manual_seed(seed))
        frequencies.copy_((frequencies * (0.6 + 0.3 * noise)).half())
    return model.eval()


def esmc_model(seed: int = 0, spread: float = 0.25, **changes):
    """changes: keys of EsmcConfig."""
    values = SHAPE | {"intermediate_size": 24} | changes
    model = transformers.EsmcForMaskedLM(transformers.EsmcConfig(**values, attn_implementation="eager"))
    randomise(model, seed, spread)
    return model.eval()
