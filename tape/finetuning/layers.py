"""Which layer of the encoder a parameter belongs to: learning rates that fall towards the input, and frozen layers.

A layer is known by the first number in a name below the encoder: `bert.encoder.layers.3.mlp...` is in layer 3, whatever
the model type. Names with `embed` come before layer 0; what is left (a last norm, a pooler) belongs to the top.

What must hold: with a decay of 1 every rate is 1, and the head's always is. Frozen parts take no gradient and stay in
evaluation mode (no dropout). Decay and names of depths follow ELECTRA (Clark et al. 2020): the head at 1, the last of L
layers at decay, layer i at decay ** (L - i), the embeddings at decay ** (L + 1).
"""

from collections.abc import Callable

from torch import nn

from proteinlm.errors import InputError


def encoder_name(model: nn.Module) -> str:
    """The attribute that holds the encoder: bert, lstm, resnet, onehot ..."""
    name = getattr(model, "base_model_prefix", "") or "bert"
    if not isinstance(getattr(model, name, None), nn.Module):
        raise InputError(f"{type(model).__name__} has no encoder named {name!r}; base_model_prefix should name it")
    return name


def layer_of(name: str) -> int | None:
    """Layer of a parameter or module named from the encoder down: -1 the embeddings, None above all layers."""
    parts = name.split(".")
    numbers = [part for part in parts if part.isdigit()]
    if numbers:
        return int(numbers[0])
    return -1 if any("embed" in part for part in parts) else None


def num_layers(model: nn.Module) -> int:
    """Layers of the encoder; 0 where it has none (onehot)."""
    encoder = getattr(model, encoder_name(model))
    layers = [layer_of(name) for name, _ in encoder.named_parameters()]
    return 1 + max((layer for layer in layers if layer is not None), default=-1)


def learning_rate_scales(model: nn.Module, layer_decay: float, encoder_scale: float) -> Callable[[str], float]:
    """A parameter's name -> factor on the learning rate, for proteinlm.optim.build_optimizer."""
    if layer_decay == 1.0 and encoder_scale == 1.0:
        return lambda name: 1.0
    prefix, total = encoder_name(model) + ".", num_layers(model)
    if layer_decay != 1.0 and not total:
        raise InputError(f"--layer_decay {layer_decay}: the encoder of {type(model).__name__} has no layers")

    def scale(name: str) -> float:
        if not name.startswith(prefix):
            return 1.0
        layer = layer_of(name.removeprefix(prefix))
        return encoder_scale * layer_decay ** (0 if layer is None else total - layer)

    return scale


def freeze(model: nn.Module, layers: int, encoder: bool) -> list[nn.Module]:
    """Take the gradient from the first `layers` layers and the embeddings, or from the whole encoder.

    Returns the modules that have to stay in evaluation mode.
    """
    if not layers and not encoder:
        return []
    name = encoder_name(model)
    part = getattr(model, name)
    if encoder:
        part.requires_grad_(False)
        return [part]
    total = num_layers(model)
    if layers > total:
        raise InputError(f"--freeze_layers {layers}: the encoder of {type(model).__name__} has {total} layers")

    def below(path: str) -> bool:
        layer = layer_of(path)
        return layer is not None and layer < layers

    for path, parameter in part.named_parameters():
        if below(path):
            parameter.requires_grad_(False)
    return [module for path, module in part.named_modules() if below(path)]
