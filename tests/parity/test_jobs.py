"""`python -m pretrain` under torchrun: one history whatever the layout, overflow, preemption, silence of a peer."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import parity_jobs as jobs
import pytest
from parity_layouts import FSDP, PP, TP, TWO

from pretrain.checkpoint import files as checkpoint

pytestmark = pytest.mark.slow


def torchrun(python: Path, processes: int, flags: list[str], **options) -> subprocess.Popen:
    start = [str(python), "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "0"]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    words = [*start, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "pretrain", *jobs.TINY, *flags]
    return subprocess.Popen(words, env=environment, start_new_session=True, **options)


def lines(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_history_is_the_same_in_every_layout(ranks, corpus, tmp_path):
    """fp32, 6 iterations: losses, norms and counters of metrics.jsonl; only one process writes."""
    layouts = {"one": (1, []), "fsdp2-pp2": (4, [*PP, *FSDP]), "dp2-tp2": (4, [*TP, *TWO])}
    histories = {}
    for name, (size, flags) in layouts.items():
        flags = [*corpus, "--save", str(tmp_path / name), "--train-iters", "6", "--eval-interval", "3", *flags]
        assert set(ranks.run(size, jobs.run_in_fp32, flags)) == {"completed"}
        histories[name] = lines(tmp_path / name)
    assert len(histories["one"]) == 8
    for name, history in histories.items():
        for actual, expected in zip(history, histories["one"], strict=True):
            for key in ("lm_loss", "valid_loss", "grad_norm"):
                assert actual.get(key) == pytest.approx(expected.get(key), abs=1e-5), name
            for key in ("consumed_tokens", "consumed_proteins", "consumed_train_samples", "valid_masked"):
                assert actual.get(key) == expected.get(key), name


@pytest.mark.parametrize("flags", [[*PP, *FSDP], [*PP, *TP, *TWO]])
def test_one_overflow_skips_the_step_everywhere(flags, ranks, corpus, tmp_path):
    """The last process alone gets a gradient that is not finite: no process steps, all halve the loss scale."""
    answers = ranks.run(4, jobs.overflow_in_one_process, [*corpus, "--save", str(tmp_path), "--fp16", *flags])
    for moved, scales in answers:
        assert moved == [False, True]
        assert scales[0] == 2 * scales[1] == 2 * scales[2]


def test_bf16_follows_fp32_in_a_pipeline_with_tensor_parallelism(ranks, corpus, tmp_path):
    plain = ranks.run(1, jobs.losses_in_fp32, [*corpus, "--save", str(tmp_path)])[0]
    half = ranks.run(4, jobs.losses_in_fp32, [*corpus, "--save", str(tmp_path), "--bf16", *PP, *TP, *TWO])[0]
    assert half == pytest.approx(plain, abs=5e-2) and half != plain


def test_gradients_can_travel_in_bf16(ranks, corpus, tmp_path):
    """Close to fp32's, and not the same: the option does something, with and without FSDP2."""
    plain = ranks.run(2, jobs.losses_in_fp32, [*corpus, "--save", str(tmp_path)])[0]
    for flags in ([], FSDP):
        half = ranks.run(2, jobs.losses_in_fp32, [*corpus, "--save", str(tmp_path), "--grad-reduce-in-bf16", *flags])[0]
        assert half == pytest.approx(plain, abs=2e-2) and half[0] == pytest.approx(plain[0], abs=1e-6) and half != plain


def test_sigterm_saves_on_every_process_and_says_so(corpus, tmp_path, python):
    """Sent to torchrun, which passes it on; the run goes on from there in one process."""
    flags = [*corpus, "--save", str(tmp_path), "--train-iters", "100000", *PP]
    job = torchrun(python, 2, flags, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while len(lines(tmp_path)) < 2:
            assert time.monotonic() < deadline and job.poll() is None
            time.sleep(0.1)
        job.send_signal(signal.SIGTERM)
        job.wait(60)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    reason = json.loads((tmp_path / "exit_reason.json").read_text())
    assert reason["reason"] == "preempted"
    assert checkpoint.latest_iteration(tmp_path) == reason["iteration"] >= 2


def test_a_silent_peer_ends_the_run(ranks, corpus, tmp_path):
    """One process stops taking part: the other fails within --distributed-timeout-minutes."""
    flags = [*corpus, "--save", str(tmp_path), "--distributed-timeout-minutes", "0.05"]
    waited, error = ranks.run(2, jobs.fall_silent, flags)[0]
    assert 2 < waited < 60 and "imed out" in error
