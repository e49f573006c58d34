"""The contact regression against scikit-learn and Hugging Face; shares, floors and the table worked out by hand."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from toy_chains import write_chains
from toy_esm import ESM_1B, esm_model

import proteinlm
from probe.contacts import fitting, floors, heads, scoring
from probe.contacts.chains import Chain, Chains, in_parts
from probe.contacts.heads import HeadShares, map_sums
from probe.contacts.view import _Lines
from proteinlm.encoder import make_stream
from proteinlm.errors import InputError
from proteinlm.network.attention.maps import AttentionMaps
from tape import metrics
from tape.inference.parts import PartStore


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(Hugging Face's model, the same as an Encoder), both in fp64, and chains for training and test."""
    root = tmp_path_factory.mktemp("contacts")
    peer = esm_model(**ESM_1B)
    peer.save_pretrained(root / "esm")
    encoder = proteinlm.load(root / "esm", device="cpu")
    encoder.model.double()
    train = Chains(write_chains(root / "train.lmdb", 6), "train")
    test = Chains(write_chains(root / "test.lmdb", 9, seed=50), "test")
    return peer.double(), encoder, train, test


def opened(path, **settings):
    return PartStore(path, settings)


def peer_features(peer, encoder, chain):
    """[P, M] as transformers' own functions make them of its attentions."""
    from transformers.models.esm.modeling_esm import average_product_correct, symmetrize

    tokens = torch.from_numpy(make_stream([chain.sequence], encoder.tokenizer).tokens)[None]
    with torch.no_grad():
        maps = torch.cat(peer(tokens, output_attentions=True).attentions, 1)[0, :, 1:-1, 1:-1]
    maps = average_product_correct(symmetrize(maps))
    first, second, _ = chain.pairs
    return maps[:, first, second].T.numpy()


def by_scikit_learn(rows, labels, **changes):
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = {"penalty": "l1", "C": 0.15, "solver": "liblinear", "random_state": 0} | changes
        return LogisticRegression(**values).fit(rows, labels)


class Planted(list):
    """Chains in contact where two of the maps, corrected, are large: something to be found."""

    path = "planted"

    def __init__(self, peer, encoder, chains):
        for chain in (chains[i] for i in range(len(chains))):
            first, second, _ = chain.pairs
            signal = peer_features(peer, encoder, chain)[:, [1, 6]].sum(1)
            labels = np.where(chain.labels == 1, np.int8(0), chain.labels)
            labels[first, second] = labels[second, first] = signal > np.quantile(signal, 0.9)
            self.append(Chain(chain.name, chain.sequence, labels))


def test_a_limit_draws_chains_at_random_and_always_the_same(tmp_path):
    path = write_chains(tmp_path / "c.lmdb", 12)
    whole, few, again = (Chains(path, "test") for _ in range(3))
    few.draw(4), again.draw(4)
    names = [few[i].name for i in range(len(few))]
    assert names == [again[i].name for i in range(4)] != [whole[i].name for i in range(4)]
    places = [[whole[i].name for i in range(12)].index(name) for name in names]
    assert places == sorted(places) and few[0].sequence == whole[places[0]].sequence
    assert few.named(names[1]).name == names[1] and few.identity() != whole.identity()


def test_fit_is_scikit_learn_s_on_hugging_face_s_attentions(world):
    peer, encoder, train, _ = world
    planted = Planted(peer, encoder, train)
    regression, report = fitting.fit(encoder, planted, seed=0, number=5, quiet=True)
    drawn = [chain for chain in planted if chain.name in report["chains"]]
    assert len(drawn) == 5
    rows = np.concatenate([peer_features(peer, encoder, chain) for chain in drawn])
    labels = np.concatenate([chain.pairs[2] for chain in drawn])
    own, own_labels = fitting.training_rows(encoder, drawn, quiet=True)
    assert own.dtype == np.float64 and np.abs(own - rows).max() < 1e-10 and (own_labels == labels).all()
    expected = by_scikit_learn(rows, labels)
    assert np.abs(expected.coef_).max() > 0.1 and report["maps_used"] == np.count_nonzero(expected.coef_)
    assert regression.weight.numpy() == pytest.approx(expected.coef_, abs=1e-10)
    assert regression.bias.numpy() == pytest.approx(expected.intercept_, abs=1e-10)
    for changes in ({"penalty": "l2"}, {"C": 1.0}):
        other = by_scikit_learn(rows, labels, **changes)
        assert np.abs(other.coef_ - expected.coef_).max() > 1e-2, changes
    assert (report["pairs"], report["contacts"]) == (len(labels), labels.sum())


def test_unresolved_residues_and_near_pairs_are_no_rows(world):
    """Of 30 residues 3, 4 and 20 are missing: pairs of the other 27 that are 6 or more apart, counted."""
    chain = world[2][0]
    first, second, contact = chain.pairs
    seen = [i for i in range(30) if i not in (3, 4, 20)]
    expected = [(i, j) for i, j in itertools.combinations(seen, 2) if j - i >= 6]
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == expected
    assert 0 < contact.sum() < len(contact)


def test_chains_of_a_fit_are_drawn_by_the_seed(world):
    train = world[2]
    draws = {tuple(fitting.choose(100, 20, seed)) for seed in range(5)}
    assert len(draws) == 5 and all(len(set(draw)) == 20 for draw in draws)
    with pytest.raises(InputError, match="6 chains; the fit draws 7"):
        fitting.fit(world[1], train, number=7, quiet=True)


def shares(layers=2):
    sums = {name: np.ones((layers, 2)) for name in heads.SUMS}
    return HeadShares(sums, (100, 10, 50), 0.3, 1)


def test_share_on_contacts_worked_out_by_hand():
    """provis counts weights >= .3, each as one: here 3, of them 1 on the contact, which has 0.9 of the mass 2.2."""
    maps = torch.tensor([[[0.3, 0.5, 0.1], [0.9, 0.0, 0.0], [0.2, 0.1, 0.1]]])
    contact = torch.zeros(3, 3, dtype=torch.bool)
    contact[1, 0] = contact[2, 0] = True
    scored = torch.ones(3, 3, dtype=torch.bool).fill_diagonal_(False)
    above, above_on, above_scored, mass, mass_on, mass_scored = map_sums(maps, contact, scored, 0.3)[:, 0].tolist()
    assert (above, above_on, above_scored) == (3, 1, 2)
    assert (mass, mass_on, mass_scored) == pytest.approx((2.2, 1.1, 1.8), abs=1e-6)
    few = shares()
    assert np.isnan(few.share).all() and few.weighted == pytest.approx(1.0)  # one weight is too few to judge a head
    few.sums["above"][0, 1], few.sums["above_on_contacts"][0, 1] = 100, 25
    assert few.share[0, 1] == 0.25 and few.background == 0.1 and few.scored_background == 0.2
    assert few.report()["share"] == [[None, 0.25], [None, None]]


def test_shares_are_those_of_all_maps_at_once(world, tmp_path):
    peer, encoder, _, test = world
    own = heads.attention_on_contacts(encoder, test, opened(tmp_path / "h.json"), 0.1, quiet=True)
    above, on = np.zeros((2, 4)), np.zeros((2, 4))
    for chain in (test[i] for i in range(len(test))):
        tokens = torch.from_numpy(make_stream([chain.sequence], encoder.tokenizer).tokens)[None]
        with torch.no_grad():
            maps = torch.stack(peer(tokens, output_attentions=True).attentions)[:, 0, :, 1:-1, 1:-1].numpy()
        above += (maps >= 0.1).sum((2, 3))
        on += ((maps >= 0.1) & (chain.labels == 1)).sum((2, 3))
    assert (own.sums["above"] == above).all() and (own.sums["above_on_contacts"] == on).all()
    assert on.sum() > 50 and own.background == sum((test[i].labels == 1).sum() for i in range(9)) / own.pairs[0]


def labels_of(length, contacts):
    labels = np.zeros((length, length), np.int8)
    near = abs(np.subtract.outer(np.arange(length), np.arange(length))) < 6
    for i, j in contacts:
        labels[i, j] = labels[j, i] = 1
    labels[near] = metrics.IGNORE
    return labels


def test_distance_alone_worked_out_by_hand():
    """L = 20: P@L/5 takes the 4 first pairs 6 apart, (0, 6) ... (3, 9), of which 2 touch; the 9th contact is at 12."""
    labels = labels_of(20, [(1, 7), (3, 9), (10, 16), (2, 14)])
    values = dict(zip(scoring.NAMES, scoring.precisions(floors.separation_scores(20), labels), strict=True))
    assert values["precision_at_l5"] == values["precision_at_l5_short"] == 0.5
    assert values["precision_at_l"] == 3 / 20  # the 14 pairs 6 apart and 6 that are 7 apart
    assert values["precision_at_l5_medium"] == 0.25  # (0, 12) ... (3, 15)
    assert np.isnan(values["precision_at_l5_long"])  # no pair is 24 apart


def test_pairs_of_amino_acids_worked_out_by_hand(monkeypatch):
    """A...C 6 apart touch 3 times of 4, all others never of 6; with a prior of 10 of the rate 3/10, and in bits."""
    chains = [Chain("x", "AGGGGGC", labels_of(7, [(0, 6)])) for _ in range(3)]
    chains += [Chain("y", "CGGGGGA", labels_of(7, []))] + [Chain("z", "GGGGGGG", labels_of(7, []))] * 6
    monkeypatch.setattr(floors, "PRIOR", 10.0)
    table = floors.PairTable.count(chains)
    scores = table.scores("CGGGGGAG")
    share = (3 + 10 * 0.3) / (4 + 10)
    assert scores[0, 6] == scores[6, 0] == pytest.approx(np.log(share / (1 - share)))
    share = 3 / 16
    assert table.scores("GGGGGGG")[0, 6] == pytest.approx(np.log(share / (1 - share)))
    bits = table.information()["short"]
    expected = 0.3 * np.log2(0.3 / (0.4 * 0.3)) + 0.1 * np.log2(0.1 / (0.4 * 0.7)) + 0.6 * np.log2(0.6 / (0.6 * 0.7))
    assert bits == {"bits": pytest.approx(expected), "by_chance": pytest.approx(1 / (20 * np.log(2))), "pairs": 10}
    assert table.information()["long"] == {"bits": 0.0, "by_chance": 0.0, "pairs": 0}


def test_the_table_is_of_these_precisions(world, tmp_path, monkeypatch):
    """Every arm's mean is that of tape.metrics over the chains, seeds count as one, and differences are paired."""
    _, encoder, train, test = world
    monkeypatch.setattr(scoring, "RESAMPLES", 200)
    twin = proteinlm.load(encoder.source, device="cpu")
    with torch.no_grad():
        for parameter in twin.model.parameters():
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    words = {"train": train, "twin": twin, "seeds": (0, 1), "number": 4, "quiet": True}
    result, regressions = scoring.evaluate(encoder, test, opened(tmp_path / "a.json"), **words)
    chains = [test[i] for i in range(len(test))]
    per_seed = []
    for regression in regressions:
        pairs = [(scoring.logits_of(encoder, [regression], c.sequence)[0], c.labels) for c in chains]
        per_seed.append(metrics.mean_over_proteins(metrics.precision_table(pairs)["precision_at_l5"])[0])
    arms = result["arms"]
    assert list(arms) == ["pretrained", "random", "separation", "residue_pairs"]
    assert arms["pretrained"]["precision_at_l5"]["value"] == pytest.approx(np.mean(per_seed))
    assert result["by_seed"]["pretrained"]["precision_at_l5"] == pytest.approx(per_seed)
    gap = result["differences"]["minus_separation"]["precision_at_l"]
    one, two = (arms[arm]["precision_at_l"]["value"] for arm in ("pretrained", "separation"))
    assert gap["value"] == pytest.approx(one - two) and gap["low"] <= gap["value"] <= gap["high"]
    assert result["proteins_left_out"]["precision_at_l5_short"] == 0
    assert [fit["seed"] for fit in result["fits"]["random"]] == [0, 1]
    maps = [proteinlm.network.contacts.ContactRegression(*parts) for parts in ((r.weight, r.bias) for r in regressions)]
    encoder.set_contacts(maps[1])
    (own,) = encoder.contacts(chains[0].sequence, quiet=True)
    logits = scoring.logits_of(encoder, regressions, chains[0].sequence)
    assert own == pytest.approx(1 / (1 + np.exp(-logits[1])), abs=1e-12)
    assert abs(logits[0] - logits[1]).max() > 1e-3
    text = scoring.table_text(arms)
    assert f"{100 * one:.2f} [" in text and "long >= 24 P@L/5" in text


def test_a_killed_run_goes_on(world, tmp_path):
    """Stopped in the middle, the second start makes what is missing alone, and ends in the numbers of a whole run."""
    test, calls = world[3], []

    def work(chain):
        calls.append(chain.name)
        if len(calls) == 9 and stops:
            raise KeyboardInterrupt
        return {"n": np.array(len(chain.sequence))}

    stops = True
    with pytest.raises(KeyboardInterrupt):
        in_parts(opened(tmp_path / "x.json"), test, work, quiet=True)
    stops = False
    values = in_parts(opened(tmp_path / "x.json"), test, work, quiet=True)
    assert calls == [f"c{n}" for n in range(9)] + ["c8"]
    assert values["n"].tolist() == [30 + n % 5 for n in range(9)]


def test_the_lines_of_a_page_are_the_strongest_weights(monkeypatch):
    maps = torch.zeros(1, 5, 5)
    maps[0, 1:4, 1:4] = torch.tensor([[0.1, 0.7, 0.0], [0.2, 0.3, 0.5], [0.0, 1.0, 0.0]])
    contact = np.zeros((3, 3), bool)
    contact[0, 1] = contact[1, 0] = True
    monkeypatch.setattr("probe.contacts.view.MOST_LINES", 4)
    lines = _Lines(1, 3, contact)
    lines.add(AttentionMaps(0, 0, maps, slice(1, 4)))
    assert lines.places[0].tolist() == [[2, 1], [0, 1], [1, 2], [1, 1]]
    assert lines.weights[0].tolist() == [255, 178, 128, 76] and lines.shares[0] == pytest.approx(0.9 / 2.8)
