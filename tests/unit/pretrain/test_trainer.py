"""The training loop on a corpus small enough to follow: resume, accumulation, overflow, preemption, learning."""

import json
import math
import signal
import subprocess
import time

import pytest
import torch
from tiny_runs import MODEL, lines, losses, steps, trainer, weights

from pretrain.checkpoint import files as checkpoint
from proteinlm.errors import InputError
from proteinlm.files import write_json
from proteinlm.untrusted.json_files import read_json


def test_a_resumed_run_is_bit_identical_to_the_uninterrupted_one(prefix, tmp_path):
    """With dropout, so that the generators count; the negative control resumes without them."""
    common = ("--train-iters", "6", "--eval-interval", "4", "--eval-iters", "0")
    whole = trainer(prefix, tmp_path / "a", *common)
    whole.run()
    half = tmp_path / "b"
    assert trainer(prefix, half, *common, "--exit-interval", "3").run() == "exit-interval"
    resumed = trainer(prefix, half, *common, "--load", str(half))
    assert resumed.counters.iteration == 3
    resumed.run()
    assert torch.equal(weights(resumed), weights(whole))
    assert losses(half) == losses(tmp_path / "a")
    third = checkpoint.checkpoint_name(3)
    (half / checkpoint.TRACKER).write_text("3")
    control = trainer(prefix, half, *common, "--load", str(half), "--no-load-rng")
    control.run()
    assert not torch.equal(weights(control), weights(whole)), third


def test_accumulation_does_not_change_the_step(prefix, tmp_path):
    """Micro-batches of 1, 4 and 8 rows: the same loss, norm and weights up to fp32 rounding."""
    results = []
    for size in (1, 4, 8):
        flags = (
            "--train-iters",
            "3",
            "--micro-batch-size",
            str(size),
            "--hidden-dropout",
            "0",
            "--attention-dropout",
            "0",
        )
        run = trainer(prefix, tmp_path / str(size), *flags, "--eval-interval", "1000")
        run.run()
        results.append((losses(tmp_path / str(size)), weights(run)))
    for other_losses, other_weights in results[1:]:
        assert other_losses == pytest.approx(results[0][0], abs=1e-6)
        torch.testing.assert_close(other_weights, results[0][1], rtol=0, atol=1e-4)


def test_it_learns_what_only_context_can_tell(prefix, tmp_path):
    """The unigram entropy is about ln 20 = 3.0 nats; repeating motifs are nearly certain given the neighbours."""
    flags = ("--train-iters", "120", "--lr", "8e-3", "--hidden-dropout", "0", "--attention-dropout", "0")
    run = trainer(prefix, tmp_path, *flags, "--eval-interval", "120", "--eval-iters", "0", "--lr-warmup-iters", "10")
    run.run()
    final = [line for line in lines(tmp_path) if "valid_loss" in line][-1]
    assert final["valid_loss"] < 1.5
    assert final["valid_perplexity"] == pytest.approx(math.exp(final["valid_loss"]))
    assert losses(tmp_path)[0] > 2.9


def test_log_lines_have_the_promised_fields(prefix, tmp_path):
    trainer(prefix, tmp_path, "--train-iters", "2", "--tensorboard-dir", str(tmp_path / "tb")).run()
    line = lines(tmp_path)[0]
    for field in (
        "iteration", "lm_loss", "grad_norm", "learning_rate", "loss_scale", "consumed_train_samples",
        "tokens_per_second", "real_tokens_per_second", "mfu",
    ):  # fmt: skip
        assert field in line, field
    assert line["consumed_train_samples"] == 8 and line["mfu"] is None
    assert 0.9 < line["real_tokens_per_second"] / line["tokens_per_second"] <= 1.0
    assert list((tmp_path / "tb").glob("events.*"))
    assert json.loads((tmp_path / "exit_reason.json").read_text()) == {"reason": "completed", "iteration": 2}


def test_a_non_finite_loss_never_steps_the_weights(prefix, tmp_path, monkeypatch):
    run = trainer(prefix, tmp_path, "--train-iters", "2", "--log-interval", "50")
    before = weights(run)
    honest = run.step.loss
    monkeypatch.setattr(run.step, "loss", lambda logits, labels: honest(logits, labels) * math.nan)
    run.run()
    assert torch.equal(weights(run), before)
    assert [line["skipped"] for line in steps(tmp_path)] == [True, True]
    assert steps(tmp_path)[-1]["lm_loss"] is None and run.counters.skipped_iterations == 2


def test_fp16_overflow_skips_the_step_and_lowers_the_scale(prefix, tmp_path):
    flags = ("--train-iters", "4", "--fp16", "--initial-loss-scale", str(2.0**40), "--hysteresis", "1")
    run = trainer(
        prefix, tmp_path, *flags, "--eval-interval", "1000", "--hidden-dropout", "0", "--attention-dropout", "0"
    )
    before = weights(run)
    run.run()
    scales = [line["loss_scale"] for line in steps(tmp_path)]
    assert scales == [2.0**40, 2.0**39, 2.0**38, 2.0**37] and torch.equal(weights(run), before)
    meta = checkpoint.load_meta(tmp_path)[1]
    assert meta["loss_scaler"]["scale"] == 2.0**36


@pytest.mark.parametrize("dtype", ["--bf16", "--fp16"])
def test_half_precision_follows_fp32(prefix, tmp_path, dtype):
    """The first steps' losses agree within the rounding of an 8-bit (bf16) or 11-bit (fp16) mantissa."""
    flags = ("--train-iters", "4", "--hidden-dropout", "0", "--attention-dropout", "0", "--eval-interval", "1000")
    trainer(prefix, tmp_path / "fp32", *flags).run()
    trainer(prefix, tmp_path / "half", *flags, dtype, "--initial-loss-scale", "1024").run()
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "fp32"), abs=2e-2)


def test_evaluation_is_over_the_whole_split_and_the_same_for_any_micro_batch(prefix, tmp_path):
    results = []
    for size in ("2", "8"):
        flags = ("--train-iters", "1", "--micro-batch-size", size, "--valid-data-path", f"again={prefix}")
        run = trainer(prefix, tmp_path / size, *flags, "--eval-iters", "0")
        results.append([run.evaluate(dataset) for dataset in run.valid_sets.values()])
        assert list(run.valid_sets) == ["valid", "again"]
    for one, other in zip(*results, strict=True):
        assert one.masked == other.masked and one == pytest.approx(other, abs=1e-6)
    assert results[0][1][1] > 5 * results[0][0][1]


def test_eval_iters_cuts_what_the_split_holds_out_and_nothing_else(prefix, tmp_path):
    common = ("--train-iters", "1", "--micro-batch-size", "8", "--eval-iters", "1")
    flags = ("--split", "1,0,0", "--valid-data-path", f"valid={prefix}")
    whole = trainer(prefix, tmp_path / "named", *common, *flags)
    cut = trainer(prefix, tmp_path / "split", *common, "--split", "50,50,0")
    for run in (whole, cut):
        run.run()
    residues = [run.evaluate(run.valid_sets["valid"])[1] for run in (whole, cut)]
    logged = [lines(tmp_path / name)[-1]["valid_masked"] for name in ("named", "split")]
    assert logged[0] == residues[0] and logged[1] < residues[1] / 2


def test_a_validation_set_in_a_folder_whose_name_has_an_equals_sign(prefix, tmp_path):
    folder = tmp_path / "lr=1"
    folder.mkdir()
    for suffix in (".bin", ".idx"):
        (folder / f"heldout{suffix}").symlink_to(prefix + suffix)
    run = trainer(prefix, tmp_path, "--train-iters", "1", "--valid-data-path", f"{folder}/heldout")
    assert list(run.valid_sets) == ["valid", "heldout"]


@pytest.mark.slow
def test_recompute_and_workers_change_nothing(prefix, tmp_path):
    plain = trainer(prefix, tmp_path / "plain", "--train-iters", "3", "--eval-interval", "1000")
    plain.run()
    other = trainer(
        prefix, tmp_path / "other", "--train-iters", "3", "--eval-interval", "1000",
        "--checkpoint-activations", "--num-workers", "1",
    )  # fmt: skip
    other.run()
    assert torch.equal(weights(plain), weights(other))


def test_finetune_takes_the_weights_and_starts_at_zero(prefix, tmp_path):
    first = trainer(prefix, tmp_path / "a", "--train-iters", "2", "--eval-interval", "1000")
    first.run()
    tuned = trainer(prefix, tmp_path / "b", "--train-iters", "2", "--load", str(tmp_path / "a"), "--finetune")
    assert torch.equal(weights(tuned), weights(first)) and tuned.counters.iteration == 0


def test_loading_an_empty_directory_starts_afresh_with_a_notice(prefix, tmp_path, capsys):
    run = trainer(prefix, tmp_path, "--train-iters", "1", "--load", str(tmp_path))
    assert run.counters.iteration == 0 and "starting afresh" in capsys.readouterr().out


def test_a_checkpoint_of_another_shape_is_refused(prefix, tmp_path):
    trainer(prefix, tmp_path, "--train-iters", "1", "--eval-interval", "1000").run()
    with pytest.raises(InputError, match=r"has num-layers 2, this run asks for 3"):
        trainer(prefix, tmp_path, "--train-iters", "2", "--load", str(tmp_path), "--num-layers", "3")


ROPE = ("--position-embedding-type", "rope", "--eval-interval", "1000")


def test_a_checkpoint_with_other_options_of_the_network_is_refused(prefix, tmp_path):
    load = ("--train-iters", "2", "--lr-decay-iters", "1", "--load", str(tmp_path))
    trainer(prefix, tmp_path, "--train-iters", "1", *ROPE).run()
    for flags, message in (
        ((), "has position-embedding-type rope, this run asks for learned_absolute"),
        ((*ROPE, "--swiglu"), "this run asks for"),
        ((*ROPE, "--rotary-base", "500"), "has rotary-base 10000.0, this run asks for 500.0"),
        ((*ROPE, "--disable-bias-linear"), "has add-bias-linear True, this run asks for False"),
    ):
        with pytest.raises(InputError, match=message):
            trainer(prefix, tmp_path, *load, *flags)
    assert trainer(prefix, tmp_path, *load, *ROPE, "--max-position-embeddings", "32").resumed == 1  # no table of places


def test_a_checkpoint_from_before_these_options_goes_on(prefix, tmp_path):
    run = trainer(prefix, tmp_path, "--train-iters", "1", "--eval-interval", "1000")
    run.run()
    path = tmp_path / "iter_0000001/meta.json"
    meta = read_json(path)
    then = ("hidden_size", "num_layers", "num_attention_heads", "max_position_embeddings", "vocab_size", "hidden_act")
    meta["model_config"] = {name: meta["model_config"][name] for name in (*then, "ffn_hidden_size")}
    write_json(path, meta)
    load = ("--train-iters", "2", "--lr-decay-iters", "1", "--load", str(tmp_path))
    assert torch.equal(weights(trainer(prefix, tmp_path, *load)), weights(run))
    with pytest.raises(InputError, match="has position-embedding-type learned_absolute, this run asks for rope"):
        trainer(prefix, tmp_path, *load, *ROPE)


@pytest.mark.slow
def test_sigterm_saves_and_exits_cleanly(prefix, tmp_path, python):
    command = [str(python), "-m", "pretrain", *MODEL, "--data-path", prefix, "--save", str(tmp_path)]
    process = subprocess.Popen([*command, "--train-iters", "100000", "--eval-interval", "100000"])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "metrics.jsonl").exists() or len(losses(tmp_path)) < 2:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
    reason = json.loads((tmp_path / "exit_reason.json").read_text())
    assert reason["reason"] == "preempted"
    assert checkpoint.latest_iteration(tmp_path) == reason["iteration"]


def test_a_resumed_run_keeps_its_schedule_unless_overridden(prefix, tmp_path):
    save = str(tmp_path)
    trainer(prefix, tmp_path, "--train-iters", "4", "--exit-interval", "2").run()
    with pytest.raises(InputError, match=r"began with lr-decay-iters 4, this run asks for 8"):
        trainer(prefix, tmp_path, "--train-iters", "8", "--load", save)
    new = trainer(prefix, tmp_path, "--train-iters", "8", "--load", save, "--override-lr-scheduler")
    old = trainer(prefix, tmp_path, "--train-iters", "8", "--load", save, "--use-checkpoint-lr-scheduler")
    assert new.schedule.learning_rate(4, 32) == pytest.approx(1e-3) and old.schedule.learning_rate(4, 32) == 0


def test_a_run_with_nothing_left_to_do_says_so(prefix, tmp_path, capsys):
    trainer(prefix, tmp_path, "--train-iters", "2").run()
    again = trainer(prefix, tmp_path, "--train-iters", "2", "--load", str(tmp_path))
    capsys.readouterr()
    assert again.run() == "completed" and again.counters.iteration == 2
    output = capsys.readouterr().out
    assert "notice: nothing left to train on: the schedule ends at sample 16; 16 consumed" in output
