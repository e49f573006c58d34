"""Batches are the same whatever the workers, ranks, micro-batches and restarts, and workers come and go cleanly."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import time
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_shards import TOKENIZER, dataset, random_proteins, same, same_content, write

from pretrain.data.blending import BlendedDataset, build_datasets
from pretrain.data.loader import SHUTDOWN_GRACE_S, PackedLoader, default_workers
from proteinlm.errors import InputError

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> str:
    return write(tmp_path_factory.mktemp("shard") / "a", random_proteins(300, seed=1))


def steps(data, count, micro_batch_size=4, size=8, **options) -> list:
    schedule = size if callable(size) else lambda consumed: size
    return list(islice(PackedLoader(data, micro_batch_size, schedule, **options), count))


@pytest.fixture(scope="module")
def blend(tmp_path_factory, shard) -> BlendedDataset:
    other = write(tmp_path_factory.mktemp("shard") / "b", random_proteins(200, seed=2, longest=100))
    return BlendedDataset([(0.7, dataset(shard)), (0.3, dataset(other))], seed=3)


def test_batches_do_not_depend_on_workers(blend):
    plain = steps(blend, 40)  # 320 samples: several epochs of both shards
    for workers in (1, 2):
        others = steps(blend, 40, num_workers=workers, start_method="fork")
        assert all(same(a, b) for x, y in zip(plain, others, strict=True) for a, b in zip(x, y, strict=True))
    assert not same(plain[0][0], plain[1][0])


def test_batches_are_the_ones_they_have_always_been(tmp_path):
    """A resumed run must get the data that it would have got; the checksum was taken at commit 8ca5df3."""
    letters = TOKENIZER.encode("ACDEFGHIKLMNPQRSTVWY")
    proteins = [letters[(np.arange(5 + 37 * i % 90) * (i + 3) + i) % 20] for i in range(200)]
    data = dataset(write(tmp_path / "a", proteins))
    checksum = 0
    for batch in itertools.chain(*steps(data, 60)):  # three epochs, cropped proteins among them
        for field in ("tokens", "position_ids", "cu_seqlens", "masked_positions", "labels"):
            checksum = zlib.crc32(getattr(batch, field).numpy().astype("<i8"), checksum)
    assert (data.num_cropped, len(data)) == (69, 146) and checksum == 1365785154


def test_a_cpu_needs_no_worker_processes():
    assert default_workers(torch.device("cpu")) == 0 < default_workers(torch.device("cuda"))


def test_batches_do_not_depend_on_the_micro_batch_size(blend):
    plain = steps(blend, 6)
    for micro_batch_size in (1, 2, 8):
        cut = steps(blend, 6, micro_batch_size)
        assert [len(x) for x in cut] == [8 // micro_batch_size] * 6
        assert all(same_content(x, y) for x, y in zip(plain, cut, strict=True))
    assert not same_content(plain[0], steps(blend, 1, size=4)[0])


def test_ranks_share_a_global_batch(blend):
    plain = steps(blend, 6, micro_batch_size=2)
    ranks = [steps(blend, 6, micro_batch_size=2, dp_rank=rank, dp_size=2) for rank in range(2)]
    for step, *parts in zip(plain, *ranks, strict=True):
        interleaved = [batch for pair in zip(*parts, strict=True) for batch in pair]
        assert all(same(a, b) for a, b in zip(step, interleaved, strict=True))
    assert not same(ranks[0][0][0], ranks[1][0][0])


@pytest.mark.parametrize("consumed", [8, 24, 104])
def test_a_restart_goes_on_where_the_run_was(blend, consumed):
    plain = steps(blend, 16)
    resumed = steps(blend, 16 - consumed // 8, consumed_samples=consumed)
    assert all(same_content(a, b) for a, b in zip(plain[consumed // 8 :], resumed, strict=True))
    assert not same_content(plain[0], resumed[0])


def test_the_batch_size_may_grow(blend):
    def schedule(consumed):
        return 4 if consumed < 8 else 8

    grown = steps(blend, 4, size=schedule)
    assert [sum(len(b.tokens) for b in step) for step in grown] == [4, 4, 8, 8]
    flat = [batch for step in grown for batch in step]
    assert same_content(flat, [batch for step in steps(blend, 3) for batch in step])
    assert same_content(grown[2], steps(blend, 1, size=schedule, consumed_samples=8)[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_size_that_does_not_divide_is_refused_when_it_comes(blend, workers):
    options = {"num_workers": workers, "start_method": "fork"}
    message = r"global batch size 6 \(at {} consumed samples\) must be a multiple of 8 = micro-batch-size 4 x .* 2"
    with pytest.raises(InputError, match=message.format(0)):
        PackedLoader(blend, 4, lambda consumed: 6, dp_size=2)
    loader = iter(PackedLoader(blend, 4, lambda consumed: 8 if consumed < 24 else 6, dp_size=2, **options))
    assert len(list(islice(loader, 3))) == 3  # reading ahead does not bring it forward
    with pytest.raises(InputError, match=message.format(24)):
        next(loader)


def test_num_samples_bounds_the_whole_run(blend):
    assert len(steps(blend, 99, num_samples=24)) == 3
    assert len(steps(blend, 99, num_samples=31)) == 3  # a step that would pass the bound is not taken
    assert len(steps(blend, 99, num_samples=24, consumed_samples=16)) == 1
    assert steps(blend, 99, num_samples=24, consumed_samples=24) == []


@pytest.mark.parametrize("option", [{"micro_batch_size": 0}, {"num_workers": -1}, {"prefetch": 0}])
def test_wrong_loader_numbers(blend, option):
    with pytest.raises(InputError, match="must be at least"):
        PackedLoader(blend, **({"micro_batch_size": 4} | option), batch_schedule=lambda consumed: 8)


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_random_state_of_the_model_alone(blend, workers):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    steps(blend, 2, num_workers=workers, start_method="fork")
    assert torch.equal(torch.get_rng_state(), before)


def test_pinning_makes_tensors_of_what_a_worker_sent(blend, monkeypatch):
    """Pinned memory itself needs a GPU; that every array gets there does not."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    batch = steps(blend, 1)[0][0]
    sent = batch._map(torch.Tensor.numpy)
    assert isinstance(sent.tokens, np.ndarray) and same(sent.pin_memory(), batch) and same(batch.to("cpu"), batch)


def children_but(others: set) -> list:
    """This process's children that were not there before (other tests may keep processes of their own)."""
    return [child for child in multiprocessing.active_children() if child not in others]


def test_workers_are_gone_when_the_loop_is_left(blend):
    others = set(multiprocessing.active_children())
    for _ in PackedLoader(blend, 4, lambda consumed: 8, num_workers=2, start_method="fork"):
        assert len(children_but(others)) == 2
        break
    assert children_but(others) == []


def test_workers_outlive_the_signals_of_a_job(blend):
    """Ctrl-C and a scheduler's SIGTERM reach every process of a job; the main one decides when it stops."""
    others = set(multiprocessing.active_children())
    loader = iter(PackedLoader(blend, 4, lambda consumed: 8, num_workers=1, start_method="fork"))
    expected = steps(blend, 12)
    first = [next(loader)]
    (worker,) = children_but(others)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    got = first + list(islice(loader, 11))
    loader.close()
    assert all(same_content(a, b) for a, b in zip(expected, got, strict=True))
    assert not worker.is_alive()


SCRIPT = """
import os, sys, time
from pretrain.data.blending import build_datasets
from pretrain.data.loader import PackedLoader
from proteinlm.tokenizer import build_tokenizer
def main():
    train, _, _ = build_datasets([sys.argv[1]], "1,0,0", build_tokenizer("iupac"), 64, 0.15, 1)
    steps = iter(PackedLoader(train, 4, lambda consumed: 8, num_workers=1))  # a name that the traceback keeps alive
    for step in steps:
        print(step[0].tokens.sum().item(), time.time(), flush=True)
        if len(sys.argv) > 2:
            raise RuntimeError("the run died")
        break
if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_spawned_workers_and_a_run_that_dies(tmp_path, shard, python):
    """A fresh interpreter a worker; and after an exception the process is gone at once, with its own message."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    train = build_datasets([shard], "1,0,0", TOKENIZER, 64, 0.15, 1)[0]
    expected = steps(train, 1)[0][0].tokens.sum().item()
    for extra, status in (([], 0), (["die"], 1)):
        command = [python, script, shard, *extra]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        ended = time.time()
        assert done.returncode == status, done.stderr
        total, left_at = done.stdout.split()
        assert int(total) == expected
        assert ("the run died" in done.stderr) == bool(extra)
        assert ended - float(left_at) < SHUTDOWN_GRACE_S / 2  # nobody waited for a worker to give up by itself
