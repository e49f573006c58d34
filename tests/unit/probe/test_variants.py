"""Scores of mutants: worked out by hand on a model whose logits are known, and against Hugging Face's models, one mask
at a time."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy_esm import ESM_1B, esm_model
from toy_huggingface import BERT_VOCABULARY, write_family

import proteinlm
from probe import variants
from probe.variants import passes
from probe.variants.mutations import AMINO_ACIDS, fitting_offset, name_of, parse_mutant
from probe.variants.passes import window_around
from proteinlm.encoder import Encoder
from proteinlm.errors import InputError
from proteinlm.tokenizer import ESM_TOKENS, TAPE_TOKENS, build_tokenizer

WILD = "MKTAYIAKQRQISFVKSHFSRQ"
MUTANTS = ["M1A", "A4W", "Q22C", "K2R:Y5F", "T3G:I6V:K16E", "A4C"]
CPU = torch.device("cpu")


class KnownLogits(torch.nn.Module):
    """Logits of a token: 1 for itself and 2 for the next one, which masks are not told apart from. All others are 0."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(num_layers=1, hidden_size=30, vocab_size=30, max_tokens=None)
        self.lm_head = torch.nn.Identity()

    def states_after(self, depths, tokens, positions, bounds):
        one_hot = torch.nn.functional.one_hot(tokens, 30).double()
        return [one_hot + 2 * one_hot.roll(-1, 0)] * len(depths)

    def lm_logits(self, states):
        return states


@pytest.fixture
def known():
    return Encoder(KnownLogits(), build_tokenizer("tape"), CPU, torch.float64, "known")


LOG_Z = math.log(28 + math.e + math.e**2)  # of a masked token: 28 letters, the mask, the next one


@pytest.mark.parametrize(
    ("method", "single", "double"),
    [  # C2D and C2D:D3A of ACDA
        ("wt-marginals", 2 - 1, (2 - 1) + (2 - 1)),
        ("masked-marginals", 2, 2 + 2),
        ("masked-marginals-together", 2, 0 + 2),
        ("mutant-marginals", 1 + 2, 1 + (1 + 2)),
        ("pll-difference", 2, 2),  # ADDA: D before D; ADAA: A before A
        ("pppl", -math.exp(-(2 - 4 * LOG_Z) / 4), -math.exp(-(2 - 4 * LOG_Z) / 4)),
        ("pppl-esm", 2 * (2 - LOG_Z), 2 * (2 - LOG_Z)),  # two residues, and of each the next letter
    ],
)
def test_a_score_is_the_one_worked_out_by_hand(known, method, single, double):
    scores = variants.score(known, "ACDA", ["C2D", "C2D:D3A"], method, quiet=True)
    assert scores == pytest.approx([single, double], abs=1e-12)
    nothing = variants.score(known, "ACDA", ["WT", "A1A"], method, quiet=True)
    if not method.startswith("pppl"):
        assert nothing == pytest.approx([0, 0], abs=1e-12)


def test_the_order_and_the_company_of_mutants_do_not_matter(known):
    together = variants.score(known, WILD, MUTANTS, batch_tokens=50, quiet=True)
    alone = [variants.score(known, WILD, [mutant], quiet=True)[0] for mutant in reversed(MUTANTS)]
    assert together == pytest.approx(alone[::-1], abs=1e-12)


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    """{name: (Hugging Face's model in fp64, our encoder of its directory in fp64)}"""
    result = {}
    for name, changes in (("esm2", {}), ("esm1b", ESM_1B)):
        model, directory = esm_model(**changes), tmp_path_factory.mktemp(name)
        model.save_pretrained(directory)
        encoder = proteinlm.load(directory, device="cpu")
        encoder.model.double()
        result[name] = model.double(), encoder
    return result


@pytest.fixture
def unrounded(monkeypatch):
    """Hugging Face's ESM without the rounding of queries and keys to fp32, which it does in fp64 too."""
    from transformers.models.esm import modeling_esm
    from transformers.models.esmc import modeling_esmc

    monkeypatch.setattr(modeling_esm, "apply_rotary_pos_emb", modeling_esmc.apply_rotary_pos_emb)


def log_probabilities(model, tokens, hidden=()):
    """[T, 33] of one protein's ids, those at the places `hidden` masked."""
    return masked_rows(model, tokens, [list(hidden)])[0]


def masked_rows(model, tokens, places):
    """[N, T, 33]: the protein once for each of N lists of places, which are masked in it."""
    ids = torch.tensor([tokens] * len(places))
    for row, hidden in zip(ids, places, strict=True):
        row[hidden] = ESM_TOKENS.index("<mask>")
    with torch.no_grad():
        return torch.log_softmax(model(ids, torch.ones_like(ids)).logits, -1)


def ids_of(protein):
    return [ESM_TOKENS.index(token) for token in ("<cls>", *protein, "<eos>")]


def parts(mutant):
    """(place among the tokens, wild type's id, mutant's id) of each mutation."""
    return [(int(one[1:-1]), ESM_TOKENS.index(one[0]), ESM_TOKENS.index(one[-1])) for one in mutant.split(":")]


def changed(mutant):
    ids = ids_of(WILD)
    for place, _, letter in parts(mutant):
        ids[place] = letter
    return ids


def one_at_a_time(model, mutant, method, shift=0):
    """The definitions, written with Hugging Face's model. shift: of the mask, for what must not agree."""
    wild, mine, sites = ids_of(WILD), changed(mutant), parts(mutant)
    if method in ("pppl", "pll-difference", "pppl-esm"):
        # fair-esm's examples/variant-prediction/predict.py masks token i and asks for sequence[i], i in 1 ... L - 2
        last, ahead = (len(WILD) - 1, 1) if method == "pppl-esm" else (len(WILD) + 1, 0)

        def likelihood(ids):
            rows = masked_rows(model, ids, [[i] for i in range(1, last)])
            return sum(float(rows[i - 1, i, ids[i + ahead]]) for i in range(1, last))

        if method == "pll-difference":
            return likelihood(mine) - likelihood(wild)
        return likelihood(mine) if method == "pppl-esm" else -math.exp(-likelihood(mine) / len(WILD))
    total = 0.0
    for place, before, after in sites:
        hidden = {"wt-marginals": [], "mutant-marginals": [], "masked-marginals": [place + shift]}
        hidden["masked-marginals-together"] = [p + shift for p, _, _ in sites]
        ids = mine if method == "mutant-marginals" else wild
        row = log_probabilities(model, ids, hidden[method])[place]
        total += float(row[after] - row[before])
    return total


@pytest.mark.parametrize("method", variants.METHODS)
def test_scores_are_those_of_hugging_face_one_mask_at_a_time(peers, unrounded, method):
    model, encoder = peers["esm2"]
    scores = variants.score(encoder, WILD, MUTANTS, method, batch_tokens=100, quiet=True)
    expected = [one_at_a_time(model, mutant, method) for mutant in MUTANTS]
    assert scores == pytest.approx(expected, abs=1e-10)
    others = {"pppl": "pppl-esm", "pppl-esm": "pll-difference", "pll-difference": "pppl-esm"}
    other = others.get(method, "mutant-marginals" if method == "wt-marginals" else "wt-marginals")
    assert abs(scores - [one_at_a_time(model, mutant, other) for mutant in MUTANTS]).max() > 1e-3


def test_a_mask_at_the_neighbour_is_seen(peers, unrounded):
    model, encoder = peers["esm2"]
    scores = variants.score(encoder, WILD, MUTANTS[1:2], quiet=True)
    assert abs(scores[0] - one_at_a_time(model, MUTANTS[1], "masked-marginals", shift=1)) > 1e-3


@pytest.mark.parametrize("name", ["esm2", "esm1b"])
def test_a_window_is_cut_as_proteingym_cuts_it(peers, unrounded, name):
    model, encoder = peers[name]
    scores = variants.score(encoder, WILD, MUTANTS, window=10, quiet=True)
    ids, size, expected = ids_of(WILD), len(WILD) + 2, []
    for mutant in MUTANTS:
        total = 0.0
        for place, before, after in parts(mutant):
            # five tokens to the left and four to the right; at the ends the ten first and the ten last
            begin = min(max(place - 5, 0), size - 10)
            row = log_probabilities(model, ids[begin : begin + 10], [place - begin])[place - begin]
            total += float(row[after] - row[before])
        expected.append(total)
    assert scores == pytest.approx(expected, abs=1e-10)
    assert abs(scores - variants.score(encoder, WILD, MUTANTS, window=0, quiet=True)).max() > 1e-3


@pytest.mark.parametrize(
    ("place", "span"),
    [
        (0, (0, 1024)),
        (511, (0, 1024)),
        (512, (0, 1024)),
        (513, (1, 1025)),
        (1487, (975, 1999)),
        (1488, (976, 2000)),
        (1999, (976, 2000)),
    ],
)
def test_windows_of_a_long_protein(place, span):
    assert window_around(place, 2000, 1024) == span
    assert window_around(place, 1024, 1024) == (0, 1024)


@pytest.mark.parametrize("method", ["wt-marginals", "masked-marginals-together", "pll-difference"])
def test_windows_serve_every_score(known, method):
    """The known model looks at the next token only, which a window has but at the protein's last residue's."""
    near = variants.score(known, WILD, MUTANTS, method, window=8, quiet=True)
    assert near == pytest.approx(variants.score(known, WILD, MUTANTS, method, window=0, quiet=True), abs=1e-9)


def test_protbert_has_its_own_tokens_around_a_window(tmp_path):
    from transformers import BertForMaskedLM

    directory = write_family("ProtBert", tmp_path / "protbert")
    encoder, model = proteinlm.load(directory, device="cpu"), BertForMaskedLM.from_pretrained(directory).eval()
    for window, begin, end in ((0, 0, len(WILD)), (10, 6, 14)):  # site 10: four residues before it, three after
        (score,) = variants.score(encoder, WILD, ["Q11W"], window=window, quiet=True)
        tokens = ["[CLS]", *WILD[begin:10], "[MASK]", *WILD[11:end], "[SEP]"]
        with torch.no_grad():
            row = model(torch.tensor([[BERT_VOCABULARY.index(token) for token in tokens]])).logits[0, 11 - begin]
        expected = row[BERT_VOCABULARY.index("W")] - row[BERT_VOCABULARY.index("Q")]
        assert score == pytest.approx(float(expected), abs=1e-4)


def test_a_scan_is_the_scores_of_all_mutants_and_encoders_are_averaged(peers):
    encoders = [encoder for _, encoder in peers.values()]
    table = variants.scan(encoders, "MKTAY", quiet=True)
    parts = [variants.scan(encoder, "MKTAY", quiet=True) for encoder in encoders]
    assert table.shape == (5, 20) and table == pytest.approx(np.mean(parts, axis=0))
    assert table[2, AMINO_ACIDS.index("T")] == 0
    names = [f"{wild}{i + 8}{letter}" for i, wild in enumerate("MKTAY") for letter in AMINO_ACIDS]
    assert parts[0].ravel() == pytest.approx(variants.score(encoders[0], "MKTAY", names, offset=8, quiet=True))


@pytest.mark.parametrize(("method", "batch"), [("masked-marginals", 60), ("pppl", 800)])
def test_a_killed_run_goes_on_and_ends_in_the_same_bits(peers, tmp_path, monkeypatch, method, batch):
    _, encoder = peers["esm2"]
    monkeypatch.setattr(passes, "SAVE_SECONDS", 0.0)
    options = {"method": method, "batch_tokens": batch, "quiet": True}
    expected = variants.score(encoder, WILD, MUTANTS, **options)
    whole, counted = encoder.logits_at, itertools.count()

    def killed(*inputs):
        if next(counted) == 2:
            raise KeyboardInterrupt
        return whole(*inputs)

    monkeypatch.setattr(encoder, "logits_at", killed)
    with pytest.raises(KeyboardInterrupt):
        variants.score(encoder, WILD, MUTANTS, saved=tmp_path / "saved", **options)
    batches = []
    monkeypatch.setattr(encoder, "logits_at", lambda *inputs: batches.append(1) or whole(*inputs))
    assert variants.score(encoder, WILD, MUTANTS, saved=tmp_path / "saved", **options).tobytes() == expected.tobytes()
    resumed = len(batches)
    batches.clear()
    variants.score(encoder, WILD, MUTANTS[::-1], saved=tmp_path / "saved", **options)  # other work: from the beginning
    assert resumed == len(batches) - 2


@pytest.mark.parametrize(
    ("mutant", "error"),
    [
        ("K1A", "replaces K, but the wild type has M at 1"),
        ("M0A", "is at position 0; the 22 residues of the wild type are 1 to 22"),
        ("M1B", "puts in 'B'; should be one of the 20"),
        ("M1*", "puts in '\\*'"),
        ("M1", "is no mutation; should be as A24C"),
        ("M1A;K2A", "is no mutation"),
        ("M1A:M1C", "changes one position twice"),
        ("", "is no mutation"),
    ],
)
def test_what_is_no_mutation_of_the_wild_type_is_refused(known, mutant, error):
    with pytest.raises(InputError, match=error):
        variants.score(known, WILD, [mutant])


def test_other_mistakes_are_one_line(known):
    with pytest.raises(InputError, match="did you mean masked-marginals"):
        variants.score(known, WILD, MUTANTS, "masked-marginal")
    with pytest.raises(InputError, match="window 2: should be 4 tokens or more"):
        variants.score(known, WILD, MUTANTS, window=2)
    with pytest.raises(InputError, match="'J' at position 2"):
        variants.score(known, "MJ", ["M1A"])
    known.model.lm_head = None
    with pytest.raises(InputError, match="no usable masked-LM head"):
        variants.score(known, WILD, MUTANTS)


def test_names_and_offsets():
    wild = variants.mutations.WildType("P", WILD, 24)
    assert name_of(parse_mutant("k25r:M24A", wild, ""), 24) == "M24A:K25R"
    assert fitting_offset(["M24A", "K25R:T26A", "Y28A", "I29A"], WILD) == 24
    assert fitting_offset(["M24A"], WILD) is None
    assert TAPE_TOKENS.index("A") == 5  # the vocabulary of the known model has A, and 30 tokens
