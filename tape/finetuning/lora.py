"""LoRA (Hu et al. 2021) on the linear layers of an encoder, through `peft`: W stays, a low-rank update is trained.

    add_lora(model, rank=8, alpha=16, dropout=0.0)      in place; only the updates and the head take gradients
    with merged(model):
        model.save_pretrained(directory)                an ordinary TAPE directory: W + alpha / rank * B A

What must hold: the update starts at 0, so an untrained model is the base; `merged` leaves the model as it was, bit for
bit (it never adds and subtracts in place). A 3B encoder in fp32 takes 12 GB and AdamW's state for all of it 24 GB more,
its gradients 12 GB; with rank 8 both are a few hundred times smaller.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from proteinlm.errors import InputError
from tape.finetuning.layers import encoder_name

MARK = "lora_"  # in the names of peft's parameters


def add_lora(model: nn.Module, rank: int, alpha: float | None = None, dropout: float = 0.0) -> None:
    """Put updates of rank `rank`, scaled by alpha / rank (default alpha: 2 rank), beside the encoder's linear layers.

    Initial weights of A come from torch's global generator, B is 0.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError(f"--lora needs the package peft ({error}); install this project's extra [lora]") from None
    prefix = encoder_name(model) + "."
    linear = {name: part for name, part in model.named_modules() if type(part) is nn.Linear and name.startswith(prefix)}
    if not linear:
        raise InputError(f"--lora {rank}: the encoder of {type(model).__name__} has no linear layers")
    widest = max(max(part.weight.shape) for part in linear.values())
    if rank > widest:
        raise InputError(f"--lora {rank}: the encoder's widest layer has {widest}; should be a small number, such as 8")
    alpha = 2 * rank if alpha is None else alpha
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(linear), bias="none")
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(MARK in name or not name.startswith(prefix))


def lora_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer with an update; {} for a model without."""
    return {name: part for name, part in model.named_modules() if hasattr(part, "lora_A")}


@contextlib.contextmanager
def merged(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, the model's layers are plain ones on the CPU with the updates added to their weights."""
    layers = lora_layers(model)
    try:
        for name, layer in layers.items():
            _replace(model, name, _plain(layer))
        yield model
    finally:
        for name, layer in layers.items():
            _replace(model, name, layer)


@torch.no_grad()
def _plain(layer: nn.Module) -> nn.Linear:
    base = layer.base_layer
    plain = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
    weight = base.weight
    for adapter in layer.active_adapters:
        weight = weight + layer.get_delta_weight(adapter)
    plain.weight = nn.Parameter(weight.cpu(), requires_grad=False)
    if base.bias is not None:
        plain.bias = nn.Parameter(base.bias.detach().cpu(), requires_grad=False)
    return plain


def _replace(model: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, part)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What a resumed run needs of the weights: everything, but with LoRA only what is trained, and the buffers."""
    state = model.state_dict()
    if not lora_layers(model):
        return state
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in state.items() if name not in frozen}


@torch.no_grad()
def load_trained_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """The opposite of `trained_state`; a name or shape too many or too few is a ValueError."""
    own = trained_state(model)
    if own.keys() != state.keys():
        raise ValueError(f"{sorted(own.keys() ^ state.keys())[0]} is on one side only")
    for name, value in own.items():
        if value.shape != state[name].shape:
            raise ValueError(f"{name} has shape {list(state[name].shape)}, not {list(value.shape)}")
        value.copy_(state[name])
