"""Balanced groups, stages of length and masking: by hand, as a pure function of the sample, and as runs."""

import zlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from tiny_runs import losses, trainer, weights
from tiny_shards import MASK, TOKENIZER, dataset, original, proteins_of, random_proteins, same, same_content, write

from pretrain.data.blending import build_datasets
from pretrain.data.clustering import cluster, links
from pretrain.data.dataset import PackedDataset
from pretrain.data.groups import Balance, GroupSampler, groups_path, read_groups, write_groups
from pretrain.data.indexed import IndexedDataset
from pretrain.data.loader import PackedLoader
from pretrain.data.preprocess import main as preprocess
from pretrain.data.stages import Sampling, parse_stages
from proteinlm.errors import InputError

SIZES = (200, 40, 10, 1, 1, 1)  # proteins of each group


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> str:
    prefix = write(tmp_path_factory.mktemp("shard") / "a", random_proteins(sum(SIZES), seed=1))
    groups = np.repeat(np.arange(len(SIZES)), SIZES)
    write_groups(prefix, np.random.default_rng(0).permutation(groups))
    return prefix


def build(shard: str, **options):
    return build_datasets([shard], "1,0,0", TOKENIZER, 64, 0.15, 1, Sampling(**options))[0]


def balanced(shard: str, **options) -> PackedDataset:
    return build(shard, balance=Balance(**options))


# ---- groups


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        (Balance(0.0), (1, 1, 1, 1, 1, 1)),
        (Balance(0.5), (14.142, 6.325, 3.162, 1, 1, 1)),
        (Balance(1.0, 30), (30, 30, 10, 1, 1, 1)),
        (Balance(0.5, 5), (5, 5, 3.162, 1, 1, 1)),
    ],
)
def test_how_much_of_each_group_an_epoch_sees(balance, expected):
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(len(SIZES)), SIZES))
    sampler = GroupSampler(groups, balance, 1)
    draws = [sampler.draw(epoch) for epoch in range(60)]
    for draw in draws:
        assert len(np.unique(draw)) == len(draw)
        counts = np.bincount(groups[draw], minlength=len(SIZES))
        assert (np.abs(counts - expected) < 1).all()
    mean = np.bincount(groups[np.concatenate(draws)], minlength=len(SIZES)) / 60
    assert mean == pytest.approx(expected, abs=0.02)


def test_members_take_turns():
    """Every member of a group is seen k times before one is seen k + 2 times, and another seed has another order."""
    groups = np.repeat(np.arange(2), (50, 3))
    sampler, seen = GroupSampler(groups, Balance(0.5), 1), np.zeros(53, int)
    for epoch in range(40):
        seen[sampler.draw(epoch)] += 1
        assert np.ptp(seen[:50]) <= 1 and np.ptp(seen[50:]) <= 1
    assert not np.array_equal(sampler.draw(0), GroupSampler(groups, Balance(0.5), 2).draw(0))
    assert not np.array_equal(sampler.draw(0), sampler.draw(1))


def test_epochs_of_whole_proteins_each_once(shard):
    data, groups = balanced(shard, temperature=0.5), read_groups(shard, sum(SIZES))
    indexed = IndexedDataset(shard)
    number = {tuple(indexed.read(i).tolist()): i for i in range(len(indexed))}
    first, epochs = 0, []
    for epoch in range(3):
        data.locate(first)
        rows = data._ends[epoch] - first
        epochs.append([number[p] for n in range(first, first + rows) for p in proteins_of(data.sample(n))])
        assert Counter(epochs[-1]) == Counter(data._sampler.draw(epoch).tolist())
        first += rows
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 3
    assert np.bincount(groups[epochs[0]])[3:].tolist() == [1, 1, 1]
    assert len(data) == data._ends[0] < len(dataset(shard))


def test_a_sample_depends_on_nothing_but_its_number(shard):
    """In whatever order samples are asked for, and by a dataset that begins in the middle: what a resumed run is."""
    for options in ({"balance": Balance(0.3, 9)}, {"longest": ((20, 7), (40, 18)), "balance": Balance(0.5)}):
        forward, numbers = build(shard, **options), list(range(60))
        expected = [forward.sample(n) for n in numbers]
        for order in (numbers[::-1], [47, 3, 52, 0, 19]):
            other = build(shard, **options)
            for n in order:
                assert np.array_equal(other.sample(n).tokens, expected[n].tokens), (options, n)


def test_balanced_rows_do_not_depend_on_workers_or_ranks(shard):
    data = balanced(shard, temperature=0.4)
    expected = [step for step, _ in zip(PackedLoader(data, 8, lambda _: 8), range(6), strict=False)]
    fresh = balanced(shard, temperature=0.4)
    late = PackedLoader(fresh, 8, lambda _: 8, consumed_samples=24, num_workers=1, start_method="fork")
    assert all(same(a[0], b[0]) for a, b in zip(expected[3:], late, strict=False))
    ranks = [iter(PackedLoader(fresh, 2, lambda _: 8, dp_rank=rank, dp_size=2)) for rank in (0, 1)]
    for step in expected:
        parts = [next(rank) for rank in ranks]
        assert same_content(step, [part[j] for j in (0, 1) for part in parts])


def test_off_is_bit_for_bit_the_order_of_before(tmp_path):
    """Recorded before there were groups and stages."""
    prefix = write(tmp_path / "a", random_proteins(300, seed=1))
    for data in (dataset(prefix), PackedDataset(*_arguments(prefix), balance=Balance())):
        crc = 0
        for n in [*range(40), 2 * len(data) + 3]:
            row = data.sample(n)
            for array in (row.tokens, row.labels, row.masked_positions):
                crc = zlib.crc32(array.astype("<i8").tobytes(), crc)
        assert (len(data), crc) == (172, 0x5BE137B0)


def _arguments(prefix: str) -> tuple:
    indexed = IndexedDataset(prefix)
    return indexed, (0, len(indexed)), TOKENIZER, 64, 0.15, 1, True


def test_a_shard_without_groups_and_damaged_ones_are_refused_by_name(tmp_path):
    prefix = write(tmp_path / "a", random_proteins(20, seed=1))
    assert len(build(prefix)) and len(balanced(prefix))
    with pytest.raises(InputError, match=r"a\.groups\.npy: no such file.*--group-by or --cluster"):
        balanced(prefix, cap=3)
    write_groups(prefix, np.zeros(19))
    with pytest.raises(InputError, match=r"a\.groups\.npy: damaged \(int32 \[19\]; int32 \[20\] .* 20 sequences"):
        balanced(prefix, cap=3)
    write_groups(prefix, np.full(20, -1))
    with pytest.raises(InputError, match="group -1 is below 0"):
        balanced(prefix, cap=3)
    (tmp_path / "a.groups.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match=r"a\.groups\.npy: damaged .*; preprocess again"):
        balanced(prefix, cap=3)
    write(tmp_path / "a", random_proteins(20, seed=2))  # other proteins under the name
    assert not (tmp_path / "a.groups.npy").exists()


# ---- preprocess


FASTA = ">a PF00001 x\nMKV\n>empty PF00009\n\n>b\nMKVLL\n>c PF00002\nAC\n>d PF00001\nMKA\n>e\nDDD\n"


@pytest.mark.parametrize("workers", [1, 2])
def test_groups_from_headers(workers, tmp_path, capsys):
    (tmp_path / "x.fasta").write_text(FASTA)
    arguments = ["--input", str(tmp_path / "x.fasta"), "--output-prefix", str(tmp_path / "o")]
    prefix = str(tmp_path / "o_text_document")
    for rule in ("pfam", r"PF0000(\d)"):
        assert preprocess([*arguments, "--group-by", rule, "--workers", str(workers)]) == 0
        assert read_groups(prefix, 5).tolist() == [0, 1, 2, 0, 3]
    assert "4, 3 of one protein; the largest has 2" in capsys.readouterr().out
    write_groups(prefix, np.array([0, 1, 2, 0, 4]))
    with pytest.raises(InputError, match=r"groups\.npy: damaged, or of another run: not the groups .*summary"):
        read_groups(prefix, 5)
    preprocess([*arguments, "--group-by", "pfam", "--max-length", "3"])
    assert read_groups(prefix, 4).tolist() == [0, 1, 0, 2]
    preprocess(arguments)
    assert not (tmp_path / "o_text_document.groups.npy").exists()
    with pytest.raises(InputError, match="nor a regular expression"):
        preprocess([*arguments, "--group-by", "(PF"])
    (tmp_path / "y.txt").write_text("MKV\n")
    with pytest.raises(InputError, match="--group-by reads FASTA headers, this is text"):
        preprocess(["--input", str(tmp_path / "y.txt"), "--output-prefix", str(tmp_path / "o"), "--group-by", "pfam"])


def relatives(families: int, members: int, changes: int, seed: int = 0) -> list[str]:
    """Members differ from their family's own random protein of 120 residues in `changes` places."""
    rng, letters = np.random.default_rng(seed), np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    proteins = []
    for _ in range(families):
        ancestor = rng.choice(letters, 120)
        for _ in range(members):
            member = ancestor.copy()
            member[rng.choice(120, changes, replace=False)] = rng.choice(letters, changes)
            proteins.append("".join(member))
    return proteins


def _cluster(proteins: list[str]) -> np.ndarray:
    letters = np.frombuffer("".join(proteins).encode(), np.uint8)
    return cluster(letters, np.array([len(protein) for protein in proteins]))


def test_clusters_are_the_families_and_strangers_stay_alone():
    groups = _cluster(relatives(20, 5, changes=2))
    assert groups.dtype == np.int32
    together = np.bincount(groups)
    assert all(len(set(groups[i : i + 5].tolist()) - set(groups[:i].tolist())) for i in range(0, 100, 5))
    assert len(together) < 30  # of 20 families; a member may have lost all hashes that are looked at
    strangers = _cluster(relatives(60, 1, changes=0, seed=1))
    assert len(np.unique(strangers)) == 60
    assert _cluster(["MK", "MK", "A" * 300, "A" * 290]).tolist() == [0, 1, 2, 3]  # too short; one k-mer is no relation


def test_links_need_two_shared_hashes_and_point_to_the_longest():
    hashes = np.array([1, 1, 2, 2, 2, 3], np.uint64)
    proteins, lengths = np.array([0, 1, 0, 1, 2, 2]), np.array([5, 9, 7])
    centres, members = links(hashes, proteins, lengths)
    assert (centres.tolist(), members.tolist()) == ([1], [0])


def test_preprocess_clusters_the_same_in_every_vocabulary(tmp_path, capsys):
    path, written = tmp_path / "x.fasta", []
    path.write_text("".join(f">{i}\n{protein}\n" for i, protein in enumerate(relatives(6, 4, 2))))
    for vocabulary in ("iupac", "esm"):
        preprocess(
            ["--input", str(path), "--output-prefix", str(tmp_path / "o"), "--cluster", "--tokenizer-type", vocabulary]
        )
        written.append(read_groups(str(tmp_path / "o_text_document"), 24).tolist())
    assert written[0] == written[1] and len(set(written[0])) < 24
    with pytest.raises(SystemExit):
        preprocess(["--input", str(path), "--output-prefix", "o", "--cluster", "--group-by", "pfam"])


# ---- stages


def test_stages_by_hand():
    assert (
        parse_stages("--x", ["70:12", "128:30"], int)
        == parse_stages("--x", ["70:12 128:30"], int)
        == ((70, 12), (128, 30))
    )
    for words, message in (
        (["70"], "70 is not VALUE:SAMPLES"),
        (["a:3"], "a:3 is not"),
        (["0:3"], "must be above 0"),
        (["5:3", "6:3"], "6:3: it must end after"),
    ):
        with pytest.raises(InputError, match=message):
            parse_stages("--x", words, int)


def test_length_stages(shard):
    data, plain = build(shard, longest=((20, 7), (40, 18))), build(shard)
    longest = [max(len(p) for p in proteins_of(data.sample(n))) for n in range(40)]
    assert max(longest[:7]) <= 20 < max(longest[7:18]) <= 40 < max(longest[18:])
    for n in range(30):  # then the corpus from its beginning, as without stages
        assert np.array_equal(original(data.sample(18 + n)), original(plain.sample(n)))
    with pytest.raises(InputError, match="--seq-length-rampup 2 leaves no protein of"):
        build(shard, longest=((2, 7),))


def test_mask_stages(shard):
    data, plain = build(shard, mask_prob=((0.5, 4), (0.3, 9)), mask_only=6), build(shard)
    for n in range(15):
        row, reference = data.sample(n), plain.sample(n)
        assert np.array_equal(original(row), original(reference))
        prob = 0.5 if n < 4 else 0.3 if n < 9 else 0.15
        assert len(row.labels) == round(prob * row.num_real_tokens)
        shown = row.tokens[row.masked_positions]
        assert (shown == MASK).all() == (n < 6)
        if n >= 9:
            assert np.array_equal(row.tokens, reference.tokens)
    shapes = {
        batch.labels.shape
        for step, _ in zip(PackedLoader(data, 4, lambda _: 4), range(4), strict=False)
        for batch in step
    }
    assert shapes == {(4 * 32,)}  # one for the whole run


# ---- runs


FLAGS = (
    *("--seq-length-rampup", "20:16", "40:36", "--mask-prob-rampup", "0.3:24", "--mask-only-samples", "12"),
    *("--group-temperature", "0.5", "--train-iters", "8"),
)


def test_a_run_resumed_in_the_middle_of_a_stage_is_the_run(shard, tmp_path):
    whole = trainer(shard, tmp_path / "whole", *FLAGS)
    whole.run()
    trainer(shard, tmp_path / "cut", *FLAGS, "--exit-interval", "3").run()
    cut = trainer(shard, tmp_path / "cut", *FLAGS, "--load", str(tmp_path / "cut"))
    assert cut.resumed == 3
    cut.run()
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert (weights(cut) == weights(whole)).all()


def test_another_draw_is_refused_on_resume_and_other_groups_too(shard, tmp_path):
    start = ("--train-iters", "2", "--group-cap", "9", "--exit-interval", "1")
    trainer(shard, tmp_path / "run", *start).run()
    load = ("--load", str(tmp_path / "run"), "--train-iters", "2")
    for flags, message in (
        (["--group-cap", "10"], "group-cap 9, this run asks for 10"),
        ([], "group-cap 9, this run asks for None"),
        (["--group-cap", "9", "--seq-length-rampup", "20:16"], "seq-length-rampup .*20:16"),
    ):
        with pytest.raises(InputError, match=message):
            trainer(shard, tmp_path / "again", *load, *flags)
    groups = read_groups(shard, sum(SIZES)).copy()
    try:
        write_groups(shard, groups[::-1])
        with pytest.raises(InputError, match="other proteins in the files"):
            trainer(shard, tmp_path / "again", *load, "--group-cap", "9")
    finally:
        write_groups(shard, groups)
    assert groups_path(shard).endswith(".groups.npy")


def test_a_checkpoint_from_before_the_options_counts_as_without_them(shard, tmp_path):
    from pretrain.checkpoint.state import RunState

    run = trainer(shard, tmp_path / "run", "--train-iters", "2", "--group-cap", "9")
    meta = run.state.meta()
    meta["config"]["data"] = {
        k: v for k, v in meta["config"]["data"].items() if not k.startswith(("group", "mask_only"))
    }
    with pytest.raises(InputError, match="group-cap None, this run asks for 9"):
        RunState._check_data(run.state, meta, "x")
    data = replace(run.config.data, group_cap=None)
    run.state.config = replace(run.config, data=data)
    assert RunState._check_data(run.state, meta, "x") == []
