"""Alignments, weights, mutual information and mean-field couplings: worked by hand, against a plain recursion over all
alignments, scikit-learn, and models whose couplings are known; each beside what is wrong on purpose."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score
from toy_chains import relatives

from probe.contacts.coevolution import alignment, couplings, families
from probe.contacts.coevolution.alignment import GAP, SUBSTITUTION, align, codes_of, expectation
from probe.names import AMINO_ACIDS
from proteinlm.errors import InputError


def letters(row):
    return "".join("-" if code == GAP else AMINO_ACIDS[code] for code in row)


@pytest.mark.parametrize(
    ("query", "member", "row", "score"),
    [
        # W with W 11, C with C 9: half a motif has 31, all of it 62; a gap of k residues takes 11 + k.
        ("WCWKKKKKWCW", "WCWWCW", "WCW-----WCW", 62 - 16),
        ("WCWWCW", "WCWKKKKKWCW", "WCWWCW", 62 - 16),
        ("WCW" + "K" * 30 + "WCWC", "WCWWCWC", "-" * 33 + "WCWC", 40),  # 71 - 41 is less than the longer half alone
        ("WCXW", "WCXW", "WC-W", 31 - 1),
        ("WCW", "wcw", "WCW", 31),
        ("AAA", "WWW", "---", 0),
    ],
)
def test_alignments_worked_out_by_hand(query, member, row, score):
    rows, scores = align(codes_of(query), [codes_of(member)])
    assert (letters(rows[0]), scores[0]) == (row, score)


def best_of_all(query, member, opening=11):
    """Over all local alignments: pairs (i, j), each behind the last, every gap at its price whatever its length."""
    sizes = np.arange(len(query) + len(member))
    price = (opening + sizes) * (sizes > 0)
    best = np.zeros((len(query), len(member)))
    for i, j in itertools.product(range(len(query)), range(len(member))):
        behind = best[:i, :j] - price[:i][::-1, None] - price[:j][::-1]
        best[i, j] = SUBSTITUTION[query[i], member[j]] + max(0, behind.max(initial=0))
    return max(0, best.max())


def test_no_alignment_is_better_and_each_has_the_score_that_is_told():
    """A member of 20 different letters tells where each letter of its row is from, so that the row can be scored."""
    rng = np.random.default_rng(0)
    base = rng.permutation(20).astype(np.uint8)
    query = np.insert(base, 11, rng.integers(0, 20, 3))
    members = [rng.permutation(20).astype(np.uint8)[: rng.integers(8, 21)] for _ in range(15)]
    for n in range(3, 18):
        members.append(np.delete(base, range(n, n + 1 + n % 3)))
        members.append(np.insert(base[:18], [n] * (1 + n % 2), base[18 : 19 + n % 2]))
    rows, scores = align(query, members)
    expected = [best_of_all(query, member) for member in members]
    assert scores.tolist() == expected
    assert [best_of_all(query, member, opening=10) for member in members] != expected
    gapped = np.zeros(2, int)
    for row, member, score in zip(rows, members, scores, strict=True):
        columns = np.flatnonzero(row != GAP)
        places = np.array([member.tolist().index(row[column]) for column in columns])
        assert (np.diff(places) > 0).all()
        steps = np.stack([np.diff(columns), np.diff(places)]) - 1
        gapped += (steps > 0).any(1)
        price = (11 * (steps > 0) + steps).sum()
        assert SUBSTITUTION[query[columns], member[places]].sum() - price == score
    assert gapped.min() >= 5  # deletions, insertions


def test_the_order_and_the_lengths_of_others_do_not_matter():
    rng = np.random.default_rng(1)
    members = [rng.integers(0, 20, size).astype(np.uint8) for size in (5, 900, 40, 41, 1, 300) * 20]
    query = members[3]
    rows, scores = align(query, members)
    for place in (0, 1, 3, 4, 5):
        alone = align(query, [members[place]])
        assert scores[place] == alone[1][0] and (rows[place] == alone[0][0]).all()
    assert (rows[3] == query).all() and align(query, [])[0].shape == (0, 41)


def test_long_proteins_have_wider_numbers(monkeypatch):
    rng = np.random.default_rng(2)
    query = rng.integers(0, 20, 60).astype(np.uint8)
    members = [np.delete(query, slice(n, n + 9)) for n in (5, 20, 40)]
    rows, scores = align(query, members)
    assert alignment.LARGEST_16 * (SUBSTITUTION.max() + alignment.EXTEND) < np.iinfo(np.int16).max
    monkeypatch.setattr(alignment, "LARGEST_16", 10)
    wide = align(query, members)
    assert (wide[0] == rows).all() and (wide[1] == scores).all() and scores.min() > 100


def test_expectation_is_blast_s():
    """BLAST prints `43.1 bits (100)` of BLOSUM62 with 11 and 1; E is m n 2^-bits."""
    (value,) = expectation(np.array([100]), 250, np.array([400]))
    assert value == pytest.approx(250 * 400 * 2**-43.1, rel=0.03)


def test_weights_worked_out_by_hand():
    rows = np.array([[1, 2, 3, 4, 5], [1, 2, 3, 4, 9], [1, 2, 3, 8, 8], [GAP] * 5], np.uint8)
    assert couplings.sequence_weights(rows).tolist() == [0.5, 0.5, 1, 1]  # four of five agree, three of five do not
    assert couplings.sequence_weights(rows, 0.6).tolist() == [1 / 3] * 3 + [1]
    wide = np.random.default_rng(0).integers(0, 2, (40, 600)).astype(np.uint8)
    wide[20:30] = wide[20]
    wide[20:30, :100] ^= 1 - np.eye(10, 100, dtype=np.uint8)
    alike = (wide[:, None] == wide[None]).mean(-1) >= 0.8
    assert couplings.sequence_weights(wide) == pytest.approx(1 / alike.sum(1)) and alike.sum() > 100


def test_the_correction_worked_out_by_hand():
    """Means over the others: 1.5, 2, 2.5; over all: 2."""
    scores = np.array([[9, 1, 2], [1, 9, 3], [2, 3, 9]])
    expected = [[0, -0.5, 0.125], [-0.5, 0, 0.5], [0.125, 0.5, 0]]
    assert couplings.corrected(scores) == pytest.approx(np.array(expected))


def dependent(number=400, seed=0):
    """Rows whose column 1 follows column 0, column 2 follows 1, and column 3 nothing; some gaps."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 20, (number, 4))
    for column in (1, 2):
        rows[:, column] = np.where(rng.random(number) < 0.6, rows[:, column - 1], rows[:, column])
    rows[rng.random(rows.shape) < 0.05] = GAP
    return rows.astype(np.uint8)


def test_mutual_information_is_scikit_learn_s():
    rows, ones = dependent(), np.ones(400)
    own = couplings.mutual_information(rows, ones, added=0, apc=False)
    for i, j in itertools.combinations(range(4), 2):
        both = (rows[:, i] != GAP) & (rows[:, j] != GAP)
        expected = pytest.approx(mutual_info_score(rows[both, i], rows[both, j]), abs=1e-10)
        assert own[i, j] == expected and own[j, i] == expected
        assert abs(own[i, j] - mutual_info_score(rows[:, i], rows[:, j])) > 1e-3  # gaps as a letter
    weights = np.random.default_rng(3).integers(1, 4, 400)
    weighted = couplings.mutual_information(rows, weights, added=0, apc=False)
    repeated = couplings.mutual_information(rows.repeat(weights, 0), np.ones(weights.sum()), added=0, apc=False)
    assert weighted == pytest.approx(repeated) and np.abs(weighted - own).max() > 1e-3
    smooth = couplings.mutual_information(rows, ones, apc=False)
    joint = np.full((20, 20), 0.05)
    both = (rows[:, 0] != GAP) & (rows[:, 1] != GAP)
    np.add.at(joint, (rows[both, 0], rows[both, 1]), 1)
    joint /= joint.sum()
    expected = (joint * np.log(joint / np.outer(joint.sum(1), joint.sum(0)))).sum()
    assert smooth[0, 1] == pytest.approx(expected)


def world_of_three(strength, links, seed=0):
    """(every row of three columns, its probability, couplings [3, 21, 3, 21]) of a pairwise model."""
    rng = np.random.default_rng(seed)
    rows = np.array(list(itertools.product(range(21), repeat=3)), np.uint8)
    pairs, energy = np.zeros((3, 21, 3, 21)), np.zeros(len(rows))
    for i, j in links:
        own = rng.normal(size=(21, 21)) * strength
        own -= own.mean(0) + own.mean(1)[:, None] - own.mean()
        pairs[i, :, j], pairs[j, :, i] = own, own.T
        energy += own[rows[:, i], rows[:, j]]
    return rows, np.exp(energy) / np.exp(energy).sum(), pairs


def test_couplings_of_a_model_that_is_known():
    """Weak couplings come back as they are, in the gauge in which those of the gap are 0."""
    rows, shares, pairs = world_of_three(0.05, [(0, 1), (1, 2)])
    own = couplings.couplings(rows, shares, pseudocount=0)
    true = pairs - pairs[:, -1:] - pairs[..., -1:] + pairs[:, -1:, :, -1:]
    for i, j in [(0, 1), (1, 2), (0, 2)]:
        expected = true[i, :-1, j, :-1]
        assert np.abs(own[i, :, j] - expected).max() < 0.08 * np.abs(true).max()
        if j == i + 1:
            assert np.corrcoef(own[i, :, j].ravel(), expected.ravel())[0, 1] > 0.99
            assert np.corrcoef(own[i, :, j].T.ravel(), expected.ravel())[0, 1] < 0.6
    norms = couplings.strengths(own)
    assert norms[0, 1] == pytest.approx(np.linalg.norm(pairs[0, :-1, 1, :-1]), rel=0.05)
    assert norms == pytest.approx(norms.T)


def test_strengths_do_not_depend_on_the_gauge():
    rng = np.random.default_rng(0)
    pairs = world_of_three(1.0, [(0, 1), (0, 2), (1, 2)])[2]
    moved = pairs + rng.normal(size=(3, 21, 3, 1)) + rng.normal(size=(3, 1, 3, 21))
    moved = moved - moved[:, -1:] - moved[..., -1:] + moved[:, -1:, :, -1:]
    norms = couplings.strengths(moved[:, :-1, :, :-1])
    assert norms[0, 1] == pytest.approx(np.linalg.norm(pairs[0, :-1, 1, :-1]))
    assert norms[0, 1] != pytest.approx(np.linalg.norm(moved[0, :-1, 1, :-1]), rel=0.1)


def test_direct_couplings_see_through_what_mutual_information_does_not():
    """0 - 1 - 2 in a chain: of the pair at its ends mutual information has much, couplings next to nothing."""
    rows, shares, _ = world_of_three(1.0, [(0, 1), (1, 2)])
    information = couplings.mutual_information(rows, shares, added=0, apc=False)
    norms = couplings.strengths(couplings.couplings(rows, shares, pseudocount=0))
    assert information[0, 2] > 0.2**2 * information[0, 1]  # it goes with the square of a coupling
    assert norms[0, 2] < 0.05 * norms[0, 1]


def test_covariances_without_an_inverse_are_refused():
    with pytest.raises(ValueError, match="pseudocount above 0"):
        couplings.couplings(np.zeros((4, 3), np.uint8), np.ones(4), pseudocount=0)
    flat = couplings.direct_couplings(np.zeros((4, 3), np.uint8), np.ones(4))
    assert np.isfinite(flat).all()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(path, the chain): 40 members like its residues 31 to 110, 30 of another family, some of none."""
    rng = np.random.default_rng(5)
    chain, other = ("".join(rng.choice(list(AMINO_ACIDS), 140)) for _ in range(2))
    lines = [f">m{n} PF00001\n{own}\n" for n, own in enumerate(relatives(chain[30:110], 40, rng))]
    lines += [f">o{n} PF00002 other\n{own}\n" for n, own in enumerate(relatives(other, 30, rng))]
    lines += [f">n{n}\n{own}\n" for n, own in enumerate(relatives(chain, 5, rng))]
    path = tmp_path_factory.mktemp("families") / "corpus.fasta"
    path.write_text("".join(rng.permutation(lines)))
    return str(path), chain


def test_a_chain_is_found_in_its_family_and_a_shuffled_one_in_none(corpus, monkeypatch):
    path, chain = corpus
    shuffled = "".join(np.random.default_rng(0).permutation(list(chain)))
    near, sizes = families.find_near([chain, shuffled], path, quiet=True)
    assert dict(sizes) == {"PF00001": 40, "PF00002": 30} and near[0]["PF00001"] > 30 and not near[1]
    assert families.choose_family(near[0], sizes, 40) == "PF00001"
    assert families.choose_family(near[0], sizes, 41) is families.choose_family(near[1], sizes, 1) is None
    members = families.Members(path, sizes)
    assert len(members["PF00001"]) == 40 and {len(member) for member in members["PF00001"]} == {80}
    own = families.align_family(chain, members["PF00001"], 40)
    assert (own.begin, own.end) == pytest.approx((30, 110), abs=3) and len(own.rows) == 41
    assert letters(own.rows[0]) == chain[own.begin : own.end]
    agree = (own.rows[1:] == own.rows[0]).mean()
    assert 0.6 < agree < 0.75  # 65% of the letters were left as they were
    assert families.align_family(chain, members["PF00001"], 41) is None
    assert families.align_family(shuffled, members["PF00001"], 1) is None
    assert families.align_family(chain, members["PF00002"], 1) is None
    monkeypatch.setattr(families, "MOST", 7)
    few = families.Members(path, sizes)["PF00001"]
    assert [own.tolist() for own in few] == [own.tolist() for own in members["PF00001"][:7]]


def test_a_corpus_without_families_is_refused(tmp_path):
    (tmp_path / "plain.fasta").write_text(">P1 a protein\nMKV\n")
    with pytest.raises(InputError, match=r"plain\.fasta: no header names a Pfam family"):
        families.find_near(["MKV"], str(tmp_path / "plain.fasta"), quiet=True)
