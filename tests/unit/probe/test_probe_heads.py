"""Heads of probes against their publishers' architectures in plain torch, against scikit-learn, and without padding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from probe.probes import training
from probe.probes.data import KNOWN, Target
from probe.probes.heads import CNN, FNN, MLP, PROTEIN_HEADS, RESIDUE_HEADS, LightAttention, load_head, padded
from probe.probes.training import Pooled, Residues, fit, predict
from proteinlm.errors import InputError

WIDTH = 12
STATES = {name: KNOWN[name][0] for name in ("ss3", "ss8", "disorder")}
PLACES = {name: KNOWN[name][0] for name in ("location", "membrane")}


def protein(length, seed=0):
    return torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(seed))


class SecStructCNN(nn.Module):
    """bio_embeddings' class, written out."""

    def __init__(self):
        super().__init__()
        options = {"kernel_size": (7, 1), "padding": (3, 0)}
        self.elmo_feature_extractor = nn.Sequential(nn.Conv2d(WIDTH, 32, **options), nn.ReLU(), nn.Dropout(0.25))
        self.dssp3_classifier = nn.Sequential(nn.Conv2d(32, 3, **options))
        self.dssp8_classifier = nn.Sequential(nn.Conv2d(32, 8, **options))
        self.diso_classifier = nn.Sequential(nn.Conv2d(32, 2, **options))

    def forward(self, x):
        x = self.elmo_feature_extractor(x)
        return self.dssp3_classifier(x), self.dssp8_classifier(x), self.diso_classifier(x)


class SubCellFNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(WIDTH, 32), nn.Dropout(0.25), nn.ReLU())
        self.loc_classifier, self.mem_classifier = nn.Linear(32, 10), nn.Linear(32, 2)

    def forward(self, x):
        out = self.layer(x)
        return self.loc_classifier(out), self.mem_classifier(out)


@pytest.fixture
def published(tmp_path):
    """(ProtTrans' CNN with random weights, its checkpoint)."""
    torch.manual_seed(5)
    peer = SecStructCNN().eval()
    torch.save({"state_dict": peer.state_dict(), "epoch": 3}, tmp_path / "secstruct_checkpoint.pt")
    return peer, tmp_path / "secstruct_checkpoint.pt"


@torch.no_grad()
def test_prottrans_cnn_loads_and_computes_the_same(published):
    peer, path = published
    head = CNN(WIDTH, STATES).eval()
    load_head(head, path)
    assert set(head.state_dict()) == set(peer.state_dict())
    x = protein(30).double()
    expected = peer.double()(x.T[None, :, :, None])
    logits = head.double()(*padded([x]))
    for name, value in zip(STATES, expected, strict=True):
        assert torch.allclose(logits[name][0], value[0, :, :, 0].T, atol=1e-12)
        assert not torch.allclose(logits[name][0], value[0, :, :, 0].T.flip(1), atol=1e-3)  # another order of classes
    one = CNN(WIDTH, {"ss3": STATES["ss3"]}).eval()
    load_head(one, path)  # what a data set has no labels of is left alone
    assert torch.equal(one.double()(*padded([x]))["ss3"], logits["ss3"])


@torch.no_grad()
def test_prottrans_fnn_loads_and_computes_the_same(tmp_path):
    peer = SubCellFNN().eval()
    torch.save({"state_dict": peer.state_dict()}, tmp_path / "subcell_checkpoint.pt")
    head = FNN(WIDTH, PLACES).eval()
    load_head(head, tmp_path / "subcell_checkpoint.pt")
    x = protein(4)
    assert all(map(torch.equal, head(x).values(), peer(x)))
    assert (len(PLACES["location"]), PLACES["location"][0], PLACES["location"][-1]) == (
        10,
        "Cell.membrane",
        "Extracellular",
    )


def test_a_checkpoint_that_does_not_fit_is_named(published, tmp_path):
    peer, path = published
    for head, message in (
        (CNN(WIDTH + 1, STATES), r"elmo_feature_extractor.0.weight has shape \[32, 12, 7, 1\], these embeddings need"),
        (CNN(WIDTH, {"ss3": tuple("abcd")}), "ss3_classifier.0.weight is missing"),
        (FNN(WIDTH, PLACES), "missing; should be a checkpoint of FNN"),
    ):
        with pytest.raises(InputError, match=message):
            load_head(head, path)
    state = peer.state_dict()
    for change, message in (
        ({"dssp3_classifier.0.bias": torch.tensor([1.0, torch.nan, 0])}, "bias has a number that is not finite"),
        ({"layer.9.weight": torch.zeros(1)}, "layer.9.weight is no part of CNN"),
        ({"dssp3_classifier.0.bias": "text"}, "no state_dict of tensors"),
    ):
        torch.save({"state_dict": state | change}, tmp_path / "changed.pt")
        with pytest.raises(InputError, match=message):
            load_head(CNN(WIDTH, STATES), tmp_path / "changed.pt")
    torch.save({"state_dict": state, "run": eval}, tmp_path / "code.pt")
    with pytest.raises(InputError, match="eval"):
        load_head(CNN(WIDTH, STATES), tmp_path / "code.pt")


class Unmasked(LightAttention):
    """The published code, whose maximum runs over padding too."""

    def features(self, x, mask):
        o = self.feature_convolution(x.transpose(1, 2))
        attention = self.attention_convolution(x.transpose(1, 2)).masked_fill(~mask[:, None], -1e9).softmax(-1)
        return self.linear(torch.cat([(o * attention).sum(-1), o.max(-1).values], 1))


@torch.no_grad()
@pytest.mark.parametrize("make", [*(r.make for r in RESIDUE_HEADS.values()), LightAttention, Unmasked])
def test_batch_mates_do_not_matter(make):
    torch.manual_seed(0)
    head = make(WIDTH, STATES).double().eval()
    for parameter in head.parameters():
        parameter.normal_()
    short, long = protein(5).double(), protein(40, 1).double()
    alone, together = head(*padded([short])), head(*padded([short, long]))
    for name in STATES:
        own = together[name][:1, :5] if together[name].dim() == 3 else together[name][:1]
        assert torch.allclose(own, alone[name], rtol=1e-9, atol=1e-9) == (make is not Unmasked)


@torch.no_grad()
def test_light_attention_of_a_whole_batch_is_the_published_code():
    torch.manual_seed(1)
    head = LightAttention(WIDTH, PLACES).eval()
    peer = Unmasked(WIDTH, PLACES).eval()
    peer.load_state_dict(head.state_dict())
    batch = padded([protein(9), protein(9, 1)])
    assert torch.allclose(head(*batch)["location"], peer(*batch)["location"], atol=1e-6)


# ---- training


class Kept:
    """Embeddings in memory."""

    width = WIDTH

    def __init__(self, rows):
        self.rows, self.lengths = rows, np.array([len(row) for row in rows])

    def residues(self, i, layer=-1):
        return self.rows[i].numpy()


@pytest.fixture
def residues():
    """(inputs, targets) of 20 proteins; a residue's class is the sign of its first numbers; every third is unknown."""
    rows = [protein(4 + i % 5, i) for i in range(20)]
    labels = [(2 * (row[:, 0] > 0) + (row[:, 1] > 0)).numpy().astype(np.int16) % 3 for row in rows]
    for own in labels:
        own[2::3] = -1
    return Kept(rows), {"ss3": Target("ss3", STATES["ss3"], labels)}


def trained(head, vectors, targets, seed=0, epochs=6, **options):
    torch.manual_seed(seed)
    made = RESIDUE_HEADS[head].make(WIDTH, {name: target.classes for name, target in targets.items()})
    recipe = replace(RESIDUE_HEADS[head], epochs=epochs, batch_size=8, learning_rate=3e-3)
    outcome = fit(
        made, recipe, Residues(vectors), targets, np.arange(15), np.arange(15, 20), seed=seed, quiet=True, **options
    )
    return made, outcome


@pytest.mark.parametrize("head", RESIDUE_HEADS)
def test_scaled_inputs_make_the_units_of_an_embedding_irrelevant(residues, head):
    """Or the small numbers of a network with random weights would be a handicap."""
    vectors, targets = residues
    small, train, losses = Kept([3 + row / 100 for row in vectors.rows]), np.arange(15), []
    for rows, scaled in ((vectors, True), (small, True), (small, False)):
        inputs = Residues(rows)
        inputs.scale = training.scale_of(inputs, train) if scaled else None
        torch.manual_seed(0)
        made = RESIDUE_HEADS[head].make(WIDTH, {"ss3": STATES["ss3"]})
        recipe = replace(RESIDUE_HEADS[head], epochs=3, batch_size=8, learning_rate=3e-3)
        losses.append(fit(made, recipe, inputs, targets, train, np.arange(15, 20), quiet=True).loss)
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)
    assert abs(losses[2] - losses[0]) > 0.01


def test_a_batch_of_one_is_not_left_out():
    """BatchNorm needs two proteins: of 3 + 1 all four are in one batch; other heads take them as they come."""
    batches = [np.array([2]), np.array([0, 1, 3])]
    classes = {"ss3": STATES["ss3"]}
    assert [own.tolist() for own in training._joined(LightAttention(WIDTH, classes), batches)] == [[0, 1, 3, 2]]
    assert training._joined(CNN(WIDTH, classes), batches) is batches


def test_targets_of_like_names_have_outputs_of_their_own():
    names = MLP(
        WIDTH, {"a-b": tuple("xy"), "a_b": tuple("xyz"), "location": PLACES["location"], "loc": tuple("xy")}
    ).names
    assert len(set(names.values())) == 4 and names["location"] == "loc_classifier"


@pytest.mark.parametrize("head", RESIDUE_HEADS)
def test_heads_learn_and_a_seed_repeats(residues, head):
    made, outcome = trained(head, *residues)
    again, _ = trained(head, *residues)
    other, _ = trained(head, *residues, seed=1, epochs=1)
    assert all(map(torch.equal, made.state_dict().values(), again.state_dict().values()))
    assert not torch.equal(next(made.parameters()), next(other.parameters()))
    untrained = trained(head, *residues, epochs=1)[1].loss
    assert outcome.loss < untrained and outcome.best <= outcome.epochs == 6


def test_unknown_residues_are_not_trained_on(residues):
    vectors, targets = residues
    made, _ = trained("mlp", vectors, targets, epochs=2)
    unknown = [torch.from_numpy(labels == -1) for labels in targets["ss3"].labels]
    rows = [torch.where(own[:, None], 1e3 * row, row) for row, own in zip(vectors.rows, unknown, strict=True)]
    same, _ = trained("mlp", Kept(rows), targets, epochs=2)
    assert all(map(torch.equal, made.state_dict().values(), same.state_dict().values()))
    rows = [torch.where(own[:, None], row, 1.1 * row) for row, own in zip(vectors.rows, unknown, strict=True)]
    other, _ = trained("mlp", Kept(rows), targets, epochs=2)
    assert not torch.equal(next(made.parameters()), next(other.parameters()))


def test_a_killed_training_goes_on(residues, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    whole, outcome = trained("cnn", *residues)
    epochs, run = [], training._epoch

    def killed(*arguments):
        if len(epochs) == 3:
            raise KeyboardInterrupt
        epochs.append(0)
        run(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "_epoch", killed)
        trained("cnn", *residues, saved=tmp_path / "head.training")
    monkeypatch.setattr(training, "_epoch", lambda *arguments: epochs.append(1) or run(*arguments))
    resumed, later = trained("cnn", *residues, saved=tmp_path / "head.training")
    assert epochs == [0] * 3 + [1] * 3 and (later.best, later.loss) == (outcome.best, outcome.loss)
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))


def test_a_batch_in_pieces_gives_the_same_weights(residues, monkeypatch):
    monkeypatch.setattr("probe.probes.heads.DROPOUT", 0.0)
    whole, _ = trained("cnn", *residues, epochs=2)
    sizes, pieces = [], training._pieces
    monkeypatch.setattr(training, "PIECE_NUMBERS", 200)
    monkeypatch.setattr(training, "_pieces", lambda *a: [sizes.append(len(p)) or p for p in pieces(*a)])
    cut, _ = trained("cnn", *residues, epochs=2)
    assert min(sizes) >= 2 and max(sizes) <= 4
    for a, b in zip(whole.state_dict().values(), cut.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    places = np.array([3, 0, 11])
    predicted = predict(whole, Residues(residues[0]), ["ss3"], places)["ss3"]
    for i, own in zip(places, predicted, strict=True):
        assert own.tolist() == whole(*padded([residues[0].rows[i]]))["ss3"].argmax(-1)[0].tolist()


def test_early_stopping_keeps_the_best_weights(residues):
    vectors, targets = residues
    shuffled = [labels.copy() for labels in targets["ss3"].labels]
    for i in range(15, 20):  # the held-out part contradicts train, so that learning makes it worse
        shuffled[i] = np.where(shuffled[i] == -1, -1, (shuffled[i] + 1) % 3).astype(np.int16)
    made, outcome = trained("mlp", vectors, {"ss3": replace(targets["ss3"], labels=shuffled)}, epochs=50)
    assert outcome.epochs == outcome.best + RESIDUE_HEADS["mlp"].patience < 50
    loss = training.held_out_loss(
        made,
        Residues(vectors),
        {"ss3": replace(targets["ss3"], labels=shuffled)},
        np.arange(15, 20),
        torch.device("cpu"),
    )
    assert loss == pytest.approx(outcome.loss)


def test_logistic_regression_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    x = rng.normal(3, [1, 20, 0.1, 0], (300, 4)).astype(np.float32)  # the last one never changes
    scaled = StandardScaler().fit_transform(x)
    labels = (scaled[:, :3] + rng.gumbel(size=(300, 3))).argmax(1).astype(np.int16)
    target = {"y": Target("y", tuple("abc"), labels)}
    recipe = replace(PROTEIN_HEADS["logistic"], learning_rate=0.1, epochs=120, patience=120, batch_size=300)
    head = recipe.make(4, {"y": tuple("abc")})
    inputs, everyone = Pooled(x), np.arange(300)
    inputs.scale = training.scale_of(inputs, everyone)
    fit(head, recipe, inputs, target, everyone, everyone, quiet=True)
    assert torch.allclose(inputs.of(everyone)[0], torch.from_numpy(scaled).float(), atol=1e-4)
    peer = LogisticRegression(C=1e6, tol=1e-8, max_iter=1000).fit(scaled, labels)
    probabilities = head(inputs.of(everyone)[0])["y"].softmax(-1).detach().numpy()
    assert abs(probabilities - peer.predict_proba(scaled)).max() < 5e-3
    untrained = recipe.make(4, {"y": tuple("abc")})(torch.from_numpy(scaled).float())["y"].softmax(-1).detach().numpy()
    assert abs(untrained - peer.predict_proba(scaled)).max() > 0.1
    published = PROTEIN_HEADS["logistic"]
    assert (published.learning_rate, published.batch_size, published.epochs, published.patience) == (1e-3, 64, 10, 5)


def test_two_targets_are_trained_together_and_unknown_is_ignored():
    x, rng = protein(64).numpy(), np.random.default_rng(0)
    location, membrane = (x[:, 0] > 0).astype(np.int16), (x[:, 1] > 0).astype(np.int16)
    membrane[::2] = -1
    noise = np.where(membrane == -1, -1, rng.integers(0, 2, 64)).astype(np.int16)
    weights = []
    for own in (membrane, membrane, noise):
        torch.manual_seed(0)
        head, recipe = FNN(WIDTH, PLACES), replace(PROTEIN_HEADS["fnn"], epochs=3)
        targets = {name: Target(name, PLACES[name], y) for name, y in (("location", location), ("membrane", own))}
        fit(head, recipe, Pooled(x), targets, np.arange(48), np.arange(48, 64), quiet=True)
        weights.append(head.layer[0].weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])  # they share the layer
    none = {"membrane": Target("membrane", PLACES["membrane"], np.full(64, -1, np.int16))}
    assert training.held_out_loss(head, Pooled(x), none, np.arange(64), torch.device("cpu")) == 0
