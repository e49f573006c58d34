"""What a line of metrics.jsonl reports of the steps since the last one: mean losses, and seconds."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tiny_runs import steps, trainer

from pretrain import interval
from pretrain import trainer as trainer_module
from pretrain.data.indexed import IndexedDataset
from pretrain.interval import unigram_entropy
from pretrain.parallel.tensor import vocabulary_parallel_num_correct
from proteinlm.loss import IGNORE, num_correct

PLAIN = ("--hidden-dropout", "0", "--attention-dropout", "0", "--eval-interval", "100")


def test_a_line_has_the_mean_over_its_interval(prefix, tmp_path, monkeypatch):
    """Sum over residues, not the mean of the steps' means; everything else is the last step's, to the last bit."""
    every = trainer(prefix, tmp_path / "every", "--train-iters", "6", *PLAIN)
    residues, add = [], every.interval.add
    monkeypatch.setattr(every.interval, "add", lambda counts, values: (residues.append(counts), add(counts, values)))
    every.run()
    third = trainer(prefix, tmp_path / "third", "--train-iters", "6", "--log-interval", "3", *PLAIN)
    third.run()
    single = steps(tmp_path / "every")
    for line, last in zip(steps(tmp_path / "third"), (3, 6), strict=True):
        for loss, number in interval.MEANS.items():
            counts = [getattr(c, number) for c in residues[last - 3 : last]]
            assert len(set(counts)) > 1
            expected = np.average([one[loss] for one in single[last - 3 : last]], weights=counts)
            assert line[loss] == pytest.approx(expected, rel=1e-12) and line[loss] != single[last - 1][loss]
        for name in ("grad_norm", "learning_rate", "consumed_tokens"):
            assert line[name] == single[last - 1][name]


def test_the_loss_on_mask_alone_is_that_of_the_places_shown_as_mask(prefix, tmp_path):
    run = trainer(prefix, tmp_path, "--train-iters", "1", *PLAIN)
    micro_batches = next(iter(run._loader()))
    with torch.no_grad():  # untrained it would name no residue at all
        run.model[0].lm_head.bias[micro_batches[0].labels.mode().values.clamp(min=0)] += 9
    each, is_mask, right = [], [], []
    with torch.no_grad():
        for batch in micro_batches:
            labelled = batch.labels >= 0
            logits = run.step.logits(batch)
            each.append(F.cross_entropy(logits, batch.labels, reduction="none")[labelled])
            right.append((logits.argmax(-1) == batch.labels)[labelled])
            is_mask.append((batch.tokens.flatten()[batch.masked_positions] == run.tokenizer.mask_id)[labelled])
    each, is_mask = torch.cat(each).double(), torch.cat(is_mask)
    report = run.train_step(micro_batches).read()
    counts, values = report.counts, report.values
    assert (counts.masked, counts.shown_mask) == (len(each), int(is_mask.sum())) and 0.5 < is_mask.double().mean() < 1
    assert values["lm_loss"] == pytest.approx(float(each.mean()), abs=1e-6)
    assert values["mask_loss"] == pytest.approx(float(each[is_mask].mean()), abs=1e-6)
    assert abs(values["mask_loss"] - values["lm_loss"]) > 1e-5
    right = torch.cat(right).double()
    assert values["mask_accuracy"] == float(right[is_mask].mean()) != float(right.mean())


def test_accuracy_over_a_cut_vocabulary(monkeypatch):
    """Two ranks as two threads; without their exchange each would name its own best token."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(300, 8, generator=generator), torch.randint(0, 8, (300,), generator=generator)
    labels[::7] = IGNORE
    barrier, sent = threading.Barrier(2), {}

    def exchange(value, operation, group):
        sent[group] = value.clone()
        barrier.wait(10)
        both = torch.stack([sent[0], sent[1]])
        barrier.wait(10)
        value.copy_(both.amax(0) if operation == dist.ReduceOp.MAX else both.amin(0))

    def counted(rank):
        return vocabulary_parallel_num_correct(rank, 4 * rank)(logits[:, 4 * rank : 4 * rank + 4], labels).item()

    expected = (logits.argmax(1) == labels).sum().item()
    assert num_correct(logits, labels).item() == expected > 20
    monkeypatch.setattr(dist, "all_reduce", exchange)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(counted, (0, 1))) == [expected] * 2
    monkeypatch.setattr(dist, "all_reduce", lambda *arguments: None)
    assert counted(0) + counted(1) != expected


def test_unigram_entropy_is_that_of_the_training_proteins(prefix, tmp_path):
    run = trainer(prefix, tmp_path, "--train-iters", "1", *PLAIN)
    shard = IndexedDataset(prefix)
    counts = np.bincount(np.concatenate([shard.read(number) for number in range(540)]))  # of 600, --split 90,10,0
    shares = counts[counts > 0] / counts.sum()
    assert unigram_entropy(run.train_data) == pytest.approx(-(shares * np.log(shares)).sum(), abs=0.02)
    run.run()
    assert steps(tmp_path)[0]["unigram_entropy"] == unigram_entropy(run.train_data)


def test_seconds_cover_the_wait_for_data_and_not_evaluation_or_saving(prefix, tmp_path, monkeypatch):
    """On a clock that only moves where the test says."""
    now = [0.0]

    def taking(seconds, action):
        def call(*arguments):
            now[0] += seconds
            return action(*arguments)

        return call

    class Slow(trainer_module.PackedLoader):
        def __iter__(self):
            return map(taking(1.0, list), super().__iter__())

    monkeypatch.setattr(interval, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(trainer_module, "PackedLoader", Slow)
    run = trainer(
        prefix, tmp_path, "--train-iters", "4", "--save-interval", "1", "--log-interval", "2", *PLAIN[:-1], "1"
    )
    for place, name, seconds in (
        (run, "train_step", 0.5), (run, "advance", 0.25),
        (run, "evaluate", 20.0), (run.saver, "save", 30.0),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, taking(seconds, getattr(place, name)))
    run.run()
    first, second = steps(tmp_path)
    assert first["seconds"] == second["seconds"] == 2 * 1.75
    assert second["tokens_per_second"] == 2 * 8 * 64 / second["seconds"]


def test_a_step_that_is_not_finite_is_in_no_mean(prefix, tmp_path):
    run = trainer(prefix, tmp_path, "--train-iters", "1", *PLAIN)
    report = run.train_step(next(iter(run._loader()))).read()
    run.interval.add(report.counts, report.values | {"lm_loss": math.nan, "mask_loss": math.nan, "mask_accuracy": 1.0})
    assert all(residues == 0 for _, residues in run.interval.means.values())
    run.interval.add(report.counts, report.values)
    assert all(mean == report.values[name] for name, (mean, _) in run.interval.means.items())
