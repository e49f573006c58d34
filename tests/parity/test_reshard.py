"""A run saved by some processes goes on with others: bit for bit in the same layout, else to 1e-10 (in float64)."""

import itertools
import shutil
from pathlib import Path

import parity_jobs as jobs
import parity_layouts
import pytest
import torch

from pretrain.checkpoint import files as checkpoint

pytestmark = pytest.mark.slow

LAYOUTS = {"one": (1, []), **parity_layouts.LAYOUTS}
TOTAL, FIRST = 3, 1
# Each goes on for one iteration where the one before it stopped.
CHAIN = ["one", "fsdp2-tp2-sp", "pp4", "fsdp2-pp2", "dp2", "dp2-pp2-tp2", "one"]


def run(
    ranks, corpus, folder: Path, layout: str, *more: str, total=TOTAL, stop_at=None, load=None, prepare=None
) -> list[dict]:
    size, flags = LAYOUTS[layout]
    flags = [*corpus, "--save", str(folder), *flags, *more]
    return ranks.run(size, jobs.run_and_resume, flags, total, stop_at, load and str(load), prepare)


@pytest.fixture(scope="module")
def chain(ranks, corpus, tmp_path_factory) -> list[tuple[Path, dict]]:
    """(where its checkpoint is, what it returned) of each of CHAIN."""
    done: list[tuple[Path, dict]] = []
    for iteration, layout in enumerate(CHAIN, 1):
        load = done[-1][0] if done else None
        folder = tmp_path_factory.mktemp(layout)
        answers = run(ranks, corpus, folder, layout, total=len(CHAIN), stop_at=iteration, load=load)
        done.append((folder, answers[0]))
    return done


@pytest.fixture(scope="module")
def uninterrupted(ranks, corpus, tmp_path_factory):
    """(where the checkpoint is, the state) of a run of one process that stops after so many iterations."""

    def stopped_at(iteration: int) -> tuple[Path, dict[str, torch.Tensor]]:
        folder = tmp_path_factory.mktemp("whole")
        answer = run(ranks, corpus, folder, "one", total=len(CHAIN), stop_at=iteration)[0]
        return folder, answer["state"]

    return stopped_at


@pytest.mark.parametrize(("source", "target"), list(itertools.pairwise(CHAIN)))
def test_any_layout_goes_on_where_another_stopped(source, target, chain, uninterrupted):
    iteration = list(itertools.pairwise(CHAIN)).index((source, target)) + 2
    actual, expected = chain[iteration - 1][1], uninterrupted(iteration)[1]
    assert actual["began"] == iteration - 1 and set(actual["state"]) == set(expected)
    wrong = {
        name: float((actual["state"][name] - value).abs().max())
        for name, value in expected.items()
        if not torch.allclose(actual["state"][name], value, rtol=0, atol=1e-10)
    }
    assert not wrong


@pytest.mark.parametrize("layout", ["fsdp2-tp2-sp", "dp2-pp2"])
def test_muon_goes_on_in_another_layout(layout, ranks, flags_of, tmp_path):
    flags = flags_of("muon")
    whole = run(ranks, flags, tmp_path / "whole", "one")[0]["state"]
    run(ranks, flags, tmp_path / "half", layout, stop_at=FIRST)
    last = run(ranks, flags, tmp_path / "last", "one", load=tmp_path / "half")[0]
    assert last["began"] == FIRST and any("momentum_buffer" in name for name in whole)
    assert all(torch.allclose(last["state"][n], value, rtol=0, atol=1e-10) for n, value in whole.items())
    afresh = run(ranks, flags, tmp_path / "afresh", "one", "--no-load-optim", load=tmp_path / "half")[0]["state"]
    assert not all(torch.allclose(afresh[n], value, rtol=0, atol=1e-6) for n, value in whole.items())


@pytest.mark.parametrize(
    ("shape", "layout"),
    [("esm2", "dp2"), ("esm2", "pp2"), ("esm2", "tp2-sp"), ("esmc", "fsdp2"), ("esmc", "dp2-pp2-tp2")],
)
def test_stored_frequencies_go_through_every_layout(shape, layout, ranks, flags_of, tmp_path):
    """One process, an iteration; the layout, one more; one process to the end. What rotates is never made anew."""
    flags, prepare = flags_of(shape), jobs.round_frequencies
    whole = run(ranks, flags, tmp_path / "whole", "one", prepare=prepare)[0]["state"]
    run(ranks, flags, tmp_path / "one", "one", stop_at=FIRST, prepare=prepare)
    run(ranks, flags, tmp_path / "other", layout, stop_at=FIRST + 1, load=tmp_path / "one")
    last = run(ranks, flags, tmp_path / "last", "one", load=tmp_path / "other")[0]
    name = "rotary_embeddings.inv_freq"
    assert last["began"] == FIRST + 1 and torch.equal(last["state"][name], whole[name])
    assert all(torch.allclose(last["state"][n], value, rtol=0, atol=1e-10) for n, value in whole.items())
    fresh = run(ranks, flags, tmp_path / "fresh", "one")[0]["state"]
    assert all((fresh[n] - whole[n]).abs().max() > 1e-4 for n in (name, "word_embeddings.weight"))


@pytest.mark.parametrize(("layout", "more"), [("fsdp2-pp2", []), ("tp2-sp", ["--async-save"])])
def test_the_same_layout_goes_on_bit_for_bit(layout, more, ranks, corpus, tmp_path):
    """With dropout, so that every process's generators count; resuming without them is the control."""
    flags = ["--hidden-dropout", "0.1", "--attention-dropout", "0.1", "--save-interval", "2", *more]
    whole = run(ranks, corpus, tmp_path / "whole", layout, *flags)
    half = tmp_path / "half"
    run(ranks, corpus, half, layout, *flags, stop_at=FIRST)
    copied = shutil.copytree(half, tmp_path / "copied")
    resumed = run(ranks, corpus, half, layout, *flags, load=half)
    for actual, expected in zip(resumed, whole, strict=True):
        assert torch.equal(actual["dropout"], expected["dropout"])
        assert all(torch.equal(actual["state"][name], value) for name, value in expected["state"].items())
    assert (half / "metrics.jsonl").read_text().count("lm_loss") == TOTAL
    if not more:
        control = run(ranks, corpus, tmp_path / "control", layout, *flags, "--no-load-rng", load=copied)[0]
        assert any(not torch.equal(control["state"][name], value) for name, value in whole[0]["state"].items())


def test_one_process_reads_what_eight_wrote(chain, uninterrupted):
    """What the converter reads: every tensor by name, shapes whole, equal to what the run held."""
    iteration = CHAIN.index("dp2-pp2-tp2") + 1
    folders = chain[iteration - 1][0], uninterrupted(iteration)[0]
    tensors, alone = (checkpoint.read_model_tensors(folder) for folder in folders)
    assert set(tensors) == set(alone)
    for name, value in alone.items():
        assert torch.allclose(tensors[name], value, rtol=0, atol=1e-10), name


def test_a_broken_shard_is_named_and_the_last_good_iteration_offered(ranks, corpus, tmp_path):
    folder = tmp_path / "run"
    run(ranks, corpus, folder, "pp2", "--save-interval", "1", stop_at=2)
    shard = sorted((folder / "iter_0000002").glob("__*.distcp"))[-1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AssertionError, match=rf"{shard.name}.*truncated[^\n]*newest complete one is iteration 1"):
        run(ranks, corpus, tmp_path / "new", "pp2", load=folder)
    shard.unlink()
    with pytest.raises(AssertionError, match=rf"{shard.name} is missing[^\n]*newest complete one is iteration 1"):
        run(ranks, corpus, tmp_path / "new", "pp2", load=folder)
