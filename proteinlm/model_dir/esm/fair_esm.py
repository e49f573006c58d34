"""fair-esm's own files: esm2_t6_8M_UR50D.pt, esm1b_t33_650M_UR50S.pt, and the contact regression beside each.

What such a file holds (facebookresearch/esm, esm/pretrained.py at 2b36991): a dict of `model`, a state dict, and of
`cfg` (ESM-2) or `args` (ESM-1b, ESM-1v), a namespace. `<name>-contact-regression.pt` has the rest of the state dict and
may be missing. What must hold: both are opened by the safe reader; the network is the one that fair-esm would build.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from proteinlm.errors import InputError
from proteinlm.model_dir.config import FLAG, SIZE, check_values, model_config_of
from proteinlm.model_dir.contact_head import CONTACTS, expected_contacts, take_contacts
from proteinlm.model_dir.esm.common import EPSILON, FIRST_POSITION, INV_FREQ, same_inv_freq
from proteinlm.model_dir.esm.names import FAIR_DECODER, FAIR_LAYER_INV_FREQ, FAIR_NAMES, FAIR_PREFIX, FAIR_WORDS
from proteinlm.model_dir.files import ModelFiles, check_tensors, count_not_finite, same
from proteinlm.model_dir.find import CONTACT_ENDING, fair_esm_file
from proteinlm.network.config import ModelConfig
from proteinlm.tokenizer import ESM_TOKENS, build_tokenizer
from proteinlm.untrusted.safe_load import StandIn, safe_torch_load

# What fair-esm builds whatever the file says.
ALWAYS = {
    "vocab_size": len(ESM_TOKENS),
    "mask_token_id": ESM_TOKENS.index("<mask>"),
    "layer_norm_eps": EPSILON,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
POSITIONS = 1026  # of ESM-2 in Hugging Face's files; nothing computes with it, and it was trained on 1,024 tokens
OTHER_NETWORKS = {
    "protein_bert_base": "ESM-1, with sinusoidal positions and a bias of keys and values",
    "msa_transformer": "an MSA Transformer",
}


def is_fair_esm(path: Path) -> bool:
    """Whether a file is fair-esm's, judged by what is in it."""
    try:
        content = safe_torch_load(path, mmap=True)
    except InputError:
        return False
    return isinstance(content, Mapping) and ("cfg" in content or "arch" in (_plain(content.get("args")) or {}))


def read_fair_esm(path: Path) -> ModelFiles:
    """ESM-2, ESM-1b or ESM-1v, and its contact regression where that is."""
    file = fair_esm_file(path) or path
    content = safe_torch_load(file, mmap=True)
    if not isinstance(content, Mapping) or not {"cfg", "args"} & set(content) or "model" not in content:
        raise InputError(f"{file}: not fair-esm's; a dict of model, and of cfg or args, was expected")
    tensors, notes = _tensors(content["model"], file), []
    values = _arguments(content, file)
    config = _esm2_config(values, file) if "cfg" in content else _esm1b_config(values, tensors, file)
    if config.num_layers > len(tensors):
        raise InputError(f"{file}: its {len(tensors)} tensors cannot be the {config.num_layers} layers that it claims")
    tensors |= _contact_tensors(file)
    if config.position_embedding_type == "rope":
        _one_inv_freq(tensors, config, file)
    else:
        _clear_mask_row(tensors, notes)
    decoder = tensors.pop(FAIR_DECODER, None)
    expected = FAIR_NAMES.expected(config, lm_head=True) | expected_contacts(tensors, config)
    check_tensors(tensors, expected, file, who_needs="its arguments give")
    not_finite = count_not_finite(tensors)
    if decoder is None or not same(decoder, tensors[FAIR_WORDS]):
        raise InputError(f"{file}: {FAIR_DECODER} is not {FAIR_WORDS}, and fair-esm has one matrix for both")
    contact_head = take_contacts(tensors)
    state = FAIR_NAMES.restore(tensors, config.num_attention_heads)
    notes = [f"{file}: {note}" for note in notes]
    return ModelFiles(config, build_tokenizer("esm"), state, tuple(notes), file, not_finite, contact_head)


# ---- arguments


def _arguments(content: Mapping, file: Path) -> dict[str, object]:
    """cfg["model"] or args as a dict of names; the prefix `encoder_` of either is removed."""
    values = _plain(content.get("cfg", content.get("args")))
    if "cfg" in content and values is not None:
        values = _plain(values.get("model"))
    if values is None:
        raise InputError(f"{file}: its cfg or args is not a namespace of options")
    return {name.removeprefix("encoder_"): _scalar(value) for name, value in values.items()}


def _scalar(value: object) -> object:
    """A number or a short text, as messages show it; what is neither becomes its kind's name."""
    value = value if isinstance(value, str | int | float | None) else type(value).__name__
    return value[:40] if isinstance(value, str) else value


def _plain(value: object) -> dict[str, object] | None:
    """A namespace, a dict or omegaconf's dict (which comes as a stand-in) as a dict by name; None for all else."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, StandIn) and isinstance(value.state, Mapping):
        content = value.state.get("_content")
        value = {key: _leaf(node) for key, node in content.items()} if isinstance(content, Mapping) else None
    return value if isinstance(value, dict) and all(isinstance(key, str) for key in value) else None


def _leaf(node: object) -> object:
    """The value that one of omegaconf's nodes holds, or the node where it is a dict itself."""
    state = node.state if isinstance(node, StandIn) else None
    return state["_val"] if isinstance(state, Mapping) and "_val" in state else node


def _sizes(values: Mapping, names: Mapping[str, str], file: Path) -> dict[str, int]:
    """{key of config.json: size} of {key: name in the file}."""
    absent = next((name for name in names.values() if name not in values), None)
    if absent is not None:
        raise InputError(f"{file}: its arguments lack {absent}; a positive whole number is needed")
    check_values(values, names.values(), str(file), dict.fromkeys(names.values(), SIZE))
    return {key: values[name] for key, name in names.items()}


SHAPE = {"num_hidden_layers": "layers", "hidden_size": "embed_dim", "num_attention_heads": "attention_heads"}


def _esm2_config(values: Mapping, file: Path) -> ModelConfig:
    sizes = _sizes(values, SHAPE, file)
    rest = {"intermediate_size": 4 * sizes["hidden_size"], "max_position_embeddings": POSITIONS}
    rest |= {"position_embedding_type": "rope", "token_dropout": _token_dropout(values, file)}
    return model_config_of(ALWAYS | sizes | rest, str(file))


def _esm1b_config(values: Mapping, tensors: Mapping[str, Tensor], file: Path) -> ModelConfig:
    if values.get("arch") != "roberta_large":
        arch = values.get("arch")
        what = OTHER_NETWORKS.get(arch) if isinstance(arch, str) else None
        raise InputError(
            f"{file}: arch {ascii(arch)[:40]} is {what or 'another network'}; ESM-2, ESM-1b and ESM-1v can be opened"
        )
    names = {"intermediate_size": "ffn_embed_dim", "max_position_embeddings": "max_positions"}
    rest = {
        "position_embedding_type": "learned_absolute",
        "position_offset": FIRST_POSITION,
        "embedding_layernorm": any(name.startswith("emb_layer_norm_before.") for name in tensors),
        "token_dropout": _token_dropout({"token_dropout": False} | dict(values), file),
    }
    return model_config_of(ALWAYS | _sizes(values, SHAPE | names, file) | rest, str(file))


def _token_dropout(values: Mapping, file: Path) -> bool:
    if "token_dropout" not in values:
        raise InputError(f"{file}: its arguments lack token_dropout; true or false is needed")
    check_values(values, ["token_dropout"], str(file), {"token_dropout": FLAG})
    return values["token_dropout"]


# ---- tensors


def _tensors(model: object, file: Path) -> dict[str, Tensor]:
    """A state dict without the prefixes of the training code."""
    if not isinstance(model, Mapping) or not all(isinstance(name, str) for name in model):
        raise InputError(f"{file}: its model is not a state dict (name -> tensor)")
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.items():
        short = FAIR_PREFIX.sub("", name, count=1)
        if not isinstance(tensor, Tensor):
            raise InputError(f"{file}: {name[:80]} is a {type(tensor).__name__}, not a tensor")
        if short in tensors:
            raise InputError(f"{file}: {short[:80]} is there twice, with and without its prefix")
        tensors[short] = tensor
    return tensors


def _contact_tensors(file: Path) -> dict[str, Tensor]:
    """What `<name>-contact-regression.pt` beside the file adds; nothing where it is missing."""
    path = file.with_name(file.stem + CONTACT_ENDING)
    if not path.exists() and not path.is_symlink():
        return {}
    content = safe_torch_load(path)
    if not isinstance(content, Mapping) or "model" not in content:
        raise InputError(f"{path}: not a contact regression of fair-esm; a dict of model was expected")
    tensors = _tensors(content["model"], path)
    other = next((name for name in tensors if not name.startswith(CONTACTS)), None)
    numbers = next((name for name, tensor in tensors.items() if not tensor.is_floating_point()), None)
    if numbers is not None:
        raise InputError(f"{path}: {numbers[:80]} holds {tensors[numbers].dtype}, not floating-point numbers")
    if other is not None:
        raise InputError(f"{path}: {other[:80]} is no part of a contact regression ({CONTACTS}weight and .bias)")
    return tensors


def _one_inv_freq(tensors: dict[str, Tensor], config: ModelConfig, file: Path) -> None:
    """The inverse frequencies, which the file has once a layer, as the model has them."""
    names = [f"layers.{i}{FAIR_LAYER_INV_FREQ}" for i in range(config.num_layers)]
    absent = next((name for name in names if name not in tensors), None)
    if absent is not None:
        raise InputError(f"{file}: {absent} is missing; ESM-2 has inverse frequencies in every layer")
    tensors[INV_FREQ] = same_inv_freq({name: tensors.pop(name) for name in names}, file)


def _clear_mask_row(tensors: dict[str, Tensor], notes: list[str]) -> None:
    """fair-esm sets ESM-1b's row of <mask> to zero when it loads; the decoder is the same matrix."""
    row, changed = ESM_TOKENS.index("<mask>"), False
    for name in (FAIR_WORDS, FAIR_DECODER):
        if name in tensors and tensors[name].dim() == 2 and tensors[name][row : row + 1].any():
            changed, tensors[name] = True, tensors[name].clone()
            tensors[name][row] = 0.0
    if changed:
        notes.append("the row of <mask> was set to zero, as fair-esm does when it loads ESM-1b")
