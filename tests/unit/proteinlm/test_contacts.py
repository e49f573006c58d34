"""Contacts from attention maps against Hugging Face's `EsmForMaskedLM.predict_contacts`, their memory, their edges."""

import weakref
from collections import Counter

import pytest
import torch
from esm_peers import esm_peer, packed, padded, proteins, same_network
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy_esm import ESM_1B

from proteinlm.network import contacts
from proteinlm.network.attention import maps as attention_maps
from proteinlm.network.contacts import ContactRegression, contact_probabilities

SHAPE = (3, 5, 4)


def regression_of(peer) -> ContactRegression:
    head = peer.esm.contact_head.regression
    return ContactRegression(head.weight.detach(), head.bias.detach())


def peer_contacts(peer, tokens, batch):
    """[L, L] of each protein, cut out of the padded maps of a batch where it is one."""
    inputs = [padded(tokens)] if batch else [padded([protein]) for protein in tokens]
    with torch.no_grad():
        maps = [own for ids, mask in inputs for own in peer.predict_contacts(ids, mask)]
    return [own[: len(ids) - 2, : len(ids) - 2] for own, ids in zip(maps, tokens, strict=True)]


@torch.no_grad()
def difference(model, regression, tokens, expected):
    maps = contact_probabilities(model, regression, *packed(tokens))
    assert [own.shape for own in maps] == [own.shape for own in expected]
    return max(float((own - other).abs().max()) for own, other in zip(maps, expected, strict=True))


@pytest.mark.parametrize("form", [{}, ESM_1B, {"token_dropout": False}], ids=["esm2", "esm1b", "no token dropout"])
@pytest.mark.parametrize("batch", [False, True], ids=["one by one", "padded batch"])
def test_equal_to_predict_contacts(form, batch, unrounded, monkeypatch):
    peer, tokens = esm_peer(*SHAPE, **form), proteins()
    model, regression, expected = same_network(peer), regression_of(peer), peer_contacts(peer, tokens, batch)
    assert max(float(own.max() - own.min()) for own in expected) > 0.1  # they differ from residue to residue
    assert difference(model, regression, tokens, expected) < 1e-10
    monkeypatch.setattr(
        attention_maps, "MAX_SCORES", 2000
    )  # two heads at a time of the longest, all five of the others
    assert difference(model, regression, tokens, expected) < 1e-10


def written_out(corrected, cut_first):
    """What `contacts.weighted_sum` does, map by map; both arguments true: as Hugging Face."""

    def sum_of(some, weights):
        maps = some.residues if cut_first else some.weights
        maps = maps + maps.transpose(1, 2)
        if corrected:
            maps = maps - maps.sum(-1, True) * maps.sum(-2, True) / maps.sum((-2, -1), True)
        return torch.tensordot(weights, maps if cut_first else maps[:, 1:-1, 1:-1], 1)

    return sum_of


def test_each_mistake_would_show(unrounded, monkeypatch):
    peer, tokens = esm_peer(*SHAPE), proteins()
    model, regression, expected = same_network(peer), regression_of(peer), peer_contacts(peer, tokens, batch=True)
    by_head = regression.weight.view(SHAPE[0], SHAPE[1]).T.reshape(1, -1)
    assert difference(model, ContactRegression(by_head, regression.bias), tokens, expected) > 1e-2
    assert difference(model, ContactRegression(regression.weight, -regression.bias), tokens, expected) > 1e-2
    for corrected, cut_first in ((True, True), (False, True), (True, False)):
        monkeypatch.setattr(contacts, "weighted_sum", written_out(corrected, cut_first))
        right = corrected and cut_first
        assert (difference(model, regression, tokens, expected) < (1e-10 if right else 1e-2)) == right


def test_where_nothing_attends_to_residues():
    """One residue: its map corrected is 0, and the bias is left. Attention that underflows: 0 / 0 there, 0 here."""
    from transformers.models.esm.modeling_esm import average_product_correct

    peer, tokens = esm_peer(*SHAPE), proteins((1,), (0,))
    regression = regression_of(peer)
    assert difference(same_network(peer), regression, tokens, [regression.bias.sigmoid().view(1, 1)]) < 1e-12
    weights = torch.zeros(2, 5, 5)
    weights[:, :, 0] = 1.0  # <cls> gets it all
    maps = attention_maps.AttentionMaps(0, 0, weights, slice(1, 4))
    assert torch.equal(contacts.weighted_sum(maps, torch.ones(1, 2)), torch.zeros(1, 3, 3))
    assert average_product_correct(torch.zeros(1, 3, 3)).isnan().all()


class LiveMemory(TorchDispatchMode):
    """The most bytes that the tensors made meanwhile held at one time."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.holders = Counter()  # tensors of each storage

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key, size = storage.data_ptr(), storage.nbytes()
                self.now += 0 if self.holders[key] else size
                self.holders[key] += 1
                self.peak = max(self.peak, self.now)
                weakref.finalize(tensor, self.release, key, size)
        return result

    def release(self, key, size):
        self.holders[key] -= 1
        self.now -= 0 if self.holders[key] else size


@torch.no_grad()
def test_maps_are_not_all_in_memory(monkeypatch):
    """At most one layer's, or one head's, and softmax's copy of them; Hugging Face holds every one."""
    layers, heads, tokens = 12, 5, proteins((200,), (0,))
    peer = esm_peer(layers, heads, 4)
    model, regression, map_bytes = same_network(peer), regression_of(peer), 202 * 202 * 8

    def peak(function, *arguments):
        with LiveMemory() as memory:
            function(*arguments)
        return memory.peak / map_bytes

    assert peak(contact_probabilities, model, regression, *packed(tokens)) < 2 * heads + 6
    monkeypatch.setattr(attention_maps, "MAX_SCORES", 1)
    assert peak(contact_probabilities, model, regression, *packed(tokens)) < 2 + 6
    assert peak(peer.predict_contacts, *padded(tokens)) > layers * heads  # the measure sees what it should
