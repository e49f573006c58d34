"""PortableModel <-> fair-esm's .pt files, which `esm.pretrained.load_model_and_alphabet("DIR/esm2_t6.pt")` opens.

Read by `proteinlm/model_dir/esm/fair_esm.py`. fair-esm judges a file by its name (`esm2...` or not) and wants the file
of the contact regression beside it.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from converter.formats import Format, ReadOptions, WriteOptions
from converter.huggingface.esm import to_esm
from converter.model import PortableModel, portable, require_options, rounded_contacts, with_lm_head
from proteinlm.errors import InputError
from proteinlm.model_dir.contact_head import contact_tensors, no_contacts
from proteinlm.model_dir.esm.common import EPSILON, INV_FREQ
from proteinlm.model_dir.esm.fair_esm import CONTACT_ENDING, fair_esm_file, is_fair_esm, read_fair_esm
from proteinlm.model_dir.esm.names import FAIR_DECODER, FAIR_LAYER_INV_FREQ, FAIR_NAMES
from proteinlm.model_dir.weights import stored_dtype
from proteinlm.network.config import ModelConfig
from proteinlm.tokenizer import ESM_TOKENS

WHO = "fair-esm"
INSIDE, OUTSIDE = "encoder.sentence_encoder.", "encoder."  # the LM head's names begin with the second


def recognises_fair_esm(path: Path) -> bool:
    file = fair_esm_file(path)
    return file is not None and is_fair_esm(file)


def read_fair(path: Path, options: ReadOptions) -> PortableModel:
    return portable(read_fair_esm(path), str(path))


def prepare_fair(model: PortableModel, options: WriteOptions) -> PortableModel:
    """The model as `write_fair` stores it: as ESM-2 where positions are rotary, else as ESM-1b."""
    model = with_lm_head(to_esm(model, WHO))
    require_options(model, {"layernorm_epsilon": EPSILON, "untie_embeddings_and_output_weights": False}, WHO)
    if model.config.position_embedding_type == "rope":
        only = {"embedding_layernorm": False, "ffn_hidden_size": 4 * model.config.hidden_size}
        require_options(model, only, f"{WHO}'s ESM-2")
    else:
        require_options(model, {"token_dropout": True}, f"{WHO}'s ESM-1b")
        if model.tensors["word_embeddings.weight"][ESM_TOKENS.index("<mask>")].any():
            raise InputError(f"{model.origin}: its row of <mask> is not zero, and {WHO} sets ESM-1b's to zero")
    return model.with_config(hidden_dropout=0.0, attention_dropout=0.0)


def write_fair(model: PortableModel, directory: Path, options: WriteOptions) -> None:
    """<name>.pt, and <name>-contact-regression.pt."""
    name = f"{'esm2' if model.config.position_embedding_type == 'rope' else 'esm1b'}_t{model.config.num_layers}"
    rounded = {key: tensor.to(stored_dtype(key, tensor, options.dtype)) for key, tensor in model.tensors.items()}
    content = _arguments(model.config) | {"model": _state(rounded, model.config)}
    torch.save(content, directory / f"{name}.pt")
    head = rounded_contacts(model.contact_head or no_contacts(model.config, model.dtype), options.dtype)
    torch.save({"model": contact_tensors(head)}, directory / f"{name}{CONTACT_ENDING}")


def _state(tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """fair-esm's names with the prefixes of its training code; tied and repeated tensors share their memory."""
    names = FAIR_NAMES.rename(tensors, config.num_attention_heads)
    inv_freq = names.pop(INV_FREQ, None)
    if inv_freq is not None:
        names |= {f"layers.{i}{FAIR_LAYER_INV_FREQ}": inv_freq for i in range(config.num_layers)}
    names[FAIR_DECODER] = tensors["word_embeddings.weight"]
    return {(OUTSIDE if name.startswith("lm_head.") else INSIDE) + name: value for name, value in names.items()}


def _arguments(config: ModelConfig) -> dict[str, object]:
    """What fair-esm builds the model from."""
    shape = {"encoder_layers": config.num_layers, "encoder_embed_dim": config.hidden_size}
    shape |= {"encoder_attention_heads": config.num_attention_heads, "token_dropout": config.token_dropout}
    if config.position_embedding_type == "rope":
        return {"cfg": {"model": argparse.Namespace(**shape)}}
    rest = {"arch": "roberta_large", "encoder_ffn_embed_dim": config.ffn_hidden_size}
    return {"args": argparse.Namespace(**shape, **rest, max_positions=config.max_position_embeddings)}


FAIR_ESM = Format("fair-esm", recognises_fair_esm, read_fair, prepare_fair, write_fair, reads_files=True)
