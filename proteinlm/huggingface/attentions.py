"""Attention maps of a model of `transformers`, taken from each attention module while it runs and let go at once.

The modules whose class is called ...Attention return their probabilities with eager attention, last in a tuple; a hook
hands them on and puts a stand-in into their place, so that no more than one layer's are in memory. What must hold: as
many layers give maps as the model has, or it is refused.

Legend: N tokens of the one protein, H heads.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from proteinlm.errors import InputError
from proteinlm.network.attention.maps import AttentionMaps, Reduce


def map_values(
    model: nn.Module, ids: Tensor, mask: Tensor, protein: int, own: slice, reduce: Reduce
) -> list[Tensor | None]:
    """`reduce` of each layer's maps of one protein. ids, mask [1, N]; protein: its number; own: its residues among N.

    InputError for a model whose attention has no map of every token by every token.
    """
    values, size = [], ids.shape[1]
    heads = getattr(model.config, "num_attention_heads", 0)
    # With these, transformers would keep the maps by its own hooks; without, modules return them only when asked.
    asked = not getattr(type(model), "_can_record_outputs", None)

    def take(module: nn.Module, _: tuple, output: object) -> object:
        weights = _weights_in(module, output, (heads, size))
        if weights is None:
            return output
        wide = weights.to(torch.promote_types(weights.dtype, torch.float32))
        with torch.autocast(wide.device.type, enabled=False):
            values.append(reduce(AttentionMaps(protein, len(values) * heads, wide, own)))
        return (*output[:-1], weights.new_zeros((0,) * 4))

    parts = [part for part in model.modules() if type(part).__name__.endswith("Attention")]
    with contextlib.ExitStack() as stack:
        stack.enter_context(eager(model))
        for part in parts:
            stack.callback(part.register_forward_hook(take).remove)
        model(input_ids=ids, attention_mask=mask, output_attentions=asked)
    if not heads or len(values) != model.config.num_hidden_layers:
        kind, layers = model.config.model_type, model.config.num_hidden_layers
        raise InputError(f"{kind}: {len(values)} of its {layers} layers give attention maps; should be all")
    return values


def _weights_in(module: nn.Module, output: object, shape: tuple[int, int]) -> Tensor | None:
    """[H, N, N] of what an attention module returned, if that is there. shape: H, N."""
    heads, size = shape
    # T5's may end with the position bias, which is no map.
    least = 3 if hasattr(module, "relative_attention_bias") or type(module).__name__ == "T5Attention" else 2
    if not isinstance(output, tuple) or len(output) < least or not isinstance(output[-1], Tensor):
        return None
    weights = output[-1]
    if weights.shape == (1, heads, size, size):
        return weights[0]
    return weights[:, :, 0].permute(2, 0, 1) if weights.shape == (size, size, 1, heads) else None  # XLNet's


@contextlib.contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Attention written out, which alone has maps; afterwards as it was."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
