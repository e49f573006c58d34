"""Hugging Face's ESM models with random weights, ours with the same ones, and proteins in the forms that both take."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from toy_esm import esm_model, esmc_model

from proteinlm.loss import IGNORE, masked_lm_loss
from proteinlm.model_dir.esm.names import ESM_NAMES, ESMC_NAMES
from proteinlm.model_dir.files import ModelFiles
from proteinlm.model_dir.load import READERS
from proteinlm.network.model import ProteinBert

CLS, PAD, EOS, MASK = 0, 1, 2, 32
EXACT, VISIBLE = 1e-10, 1e-4  # a tolerance, and what a mistake exceeds
NAMES = {"esm": ESM_NAMES, "esmc": ESMC_NAMES}
OTHERWISE = {"lm_head.decoder.bias": "lm_head.bias"}
SHAPES = [(1, 1, 2), (2, 3, 4), (4, 5, 6), (3, 2, 16)]  # layers, heads, head size


def esm_peer(layers: int, heads: int, head_size: int, dtype=torch.float64, **changes):
    """An EsmForMaskedLM of that shape, every weight far from where it begins."""
    return esm_model(**shape(layers, heads, head_size) | changes).to(dtype)


def esmc_peer(layers: int, heads: int, head_size: int, dtype=torch.float64, **changes):
    """An EsmcForMaskedLM of that shape."""
    return esmc_model(**shape(layers, heads, head_size) | changes).to(dtype)


def shape(layers: int, heads: int, head_size: int) -> dict[str, float]:
    sizes = {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": heads * head_size}
    return sizes | {"intermediate_size": 3 * heads, "spread": 0.4}


def opened(peer) -> ModelFiles:
    """What proteinlm.load reads of the directory that Hugging Face writes of the peer."""
    with tempfile.TemporaryDirectory() as directory:
        peer.save_pretrained(directory)
        return READERS[peer.config.model_type](Path(directory))


def same_network(peer, **changes) -> ProteinBert:
    """The peer's weights in our network. changes: to its configuration, for what must not agree."""
    files = opened(peer)
    model = ProteinBert(replace(files.config, **changes)).to(next(peer.parameters()).dtype).eval()
    model.load_state_dict(files.state)
    return model


def proteins(lengths=(7, 1, 30, 12, 2, 19), masked=(0, 1, 9, 3, 0, 18), seed=1) -> list[Tensor]:
    """`<cls> residues <eos>` of each protein as ids, `masked` of its residues the mask token."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for length, count in zip(lengths, masked, strict=True):
        ids = torch.randint(4, 31, (length,), generator=generator)
        ids[torch.randperm(length, generator=generator)[:count]] = MASK
        result.append(torch.cat((torch.tensor([CLS]), ids, torch.tensor([EOS]))))
    return result


def packed(tokens: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens [T], positions [T], bounds int32 [B + 1]) of one stream."""
    sizes = torch.tensor([0, *map(len, tokens)])
    return torch.cat(tokens), torch.cat([torch.arange(len(ids)) for ids in tokens]), sizes.cumsum(0).int()


def padded(tokens: list[Tensor], value: int = PAD) -> tuple[Tensor, Tensor]:
    """(tokens [B, longest], attention mask) for Hugging Face."""
    ids = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=value)
    lengths = torch.tensor([len(protein) for protein in tokens])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def peer_outputs(peer, tokens: list[Tensor], batch: bool) -> list[list[Tensor]]:
    """For each protein its L + 1 hidden states [T, h] and its logits [T, V], run alone or in one padded batch."""
    inputs = [padded(tokens)] if batch else [padded([protein]) for protein in tokens]
    rows = []
    with torch.no_grad():
        for ids, mask in inputs:
            outputs = peer(ids, attention_mask=mask, output_hidden_states=True)
            values = [*outputs.hidden_states, outputs.logits]
            rows += [[value[i, : mask[i].sum()] for value in values] for i in range(len(ids))]
    return rows


def our_outputs(model: ProteinBert, tokens: list[Tensor]) -> list[list[Tensor]]:
    """The same of ours, all proteins packed in one stream."""
    with torch.no_grad():
        states = model.hidden_states(*packed(tokens))
        values = [*states, model.lm_logits(states[-1])]
    sizes = [len(protein) for protein in tokens]
    return [list(parts) for parts in zip(*(value.split(sizes) for value in values), strict=True)]


def difference(outputs: list[list[Tensor]], expected: list[list[Tensor]]) -> float:
    """The largest, over all proteins and all that was computed of them."""
    pairs = [pair for rows in zip(outputs, expected, strict=True) for pair in zip(*rows, strict=True)]
    assert all(a.shape == b.shape for a, b in pairs)
    return max(float((a - b).abs().max()) for a, b in pairs)


def labelled(tokens: list[Tensor]) -> list[Tensor]:
    """A random residue to predict at every mask token, and at some places that training left or replaced."""
    generator = torch.Generator().manual_seed(5)
    labels = []
    for protein in tokens:
        predicted = (protein == MASK) | (torch.rand(len(protein), generator=generator) < 0.1)
        predicted[[0, -1]] = False
        labels.append(torch.where(predicted, torch.randint(4, 24, protein.shape, generator=generator), IGNORE))
    return labels


def our_step(model: ProteinBert, tokens: list[Tensor], labels: list[Tensor]) -> tuple[float, dict[str, Tensor]]:
    """(mean loss over the labels, gradients by name) of a step of training."""
    labels = torch.cat(labels)
    places = (labels != IGNORE).nonzero().flatten()
    loss = masked_lm_loss(model.train()(*packed(tokens), places), labels[places]) / len(places)
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def peer_step(peer, tokens: list[Tensor], labels: list[Tensor]) -> tuple[float, dict[str, Tensor]]:
    """The same of the peer, its gradients under our names."""
    ids, mask = padded(tokens)
    peer.train().zero_grad()
    outputs, labels = peer(ids, attention_mask=mask), padded(labels, IGNORE)[0]
    # Not `outputs.loss`: for ESM C transformers rounds the logits to fp32 before it.
    loss = F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    loss.backward()
    gradients = {name: weight.grad for name, weight in peer.named_parameters() if weight.grad is not None}
    gradients = NAMES[peer.config.model_type].restore(gradients, peer.config.num_attention_heads)
    return loss.item(), {OTHERWISE.get(name, name): gradient for name, gradient in gradients.items()}


def step_difference(step, expected) -> tuple[float, float]:
    """Of the losses, and the largest of the gradients."""
    assert step[1].keys() == expected[1].keys()
    return abs(step[0] - expected[0]), max(float((step[1][name] - expected[1][name]).abs().max()) for name in step[1])


# ---- mistakes that many make


def turn_neighbours(x, turns):
    """GPT-J's form of the rotation: features 2 i and 2 i + 1 turn."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns).flatten(-2)


def swap_norms(model):
    for layer in model.layers.values():
        layer.input_layernorm, layer.post_attention_layernorm = layer.post_attention_layernorm, layer.input_layernorm
