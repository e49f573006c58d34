"""A run goes on with the experiment it began: one history in its log and checkpoints, no option changed silently."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from tiny_runs import lines, losses, steps, trainer, weights

from pretrain.checkpoint import files as checkpoint
from pretrain.checkpoint.files import save_checkpoint
from pretrain.data.indexed import IndexedDataset, IndexedWriter
from proteinlm.errors import InputError


@pytest.fixture(scope="module")
def begun(prefix, tmp_path_factory) -> Path:
    """A run that stopped after two of its four iterations."""
    save = tmp_path_factory.mktemp("begun")
    trainer(prefix, save, "--train-iters", "4", "--exit-interval", "2").run()
    return save


def resumed(prefix, begun: Path, save: Path, *flags: str):
    return trainer(prefix, save, "--train-iters", "4", "--load", str(begun), *flags)


# ---- the log


def test_a_run_killed_before_its_first_checkpoint_leaves_one_history(prefix, tmp_path, capsys):
    flags = ("--train-iters", "3", "--load", str(tmp_path))
    trainer(prefix, tmp_path, *flags).run()
    for path in tmp_path.glob("iter_*"):
        shutil.rmtree(path)
    (tmp_path / checkpoint.TRACKER).unlink()
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"iteration": 4, "lm_')
    trainer(prefix, tmp_path, *flags).run()
    assert [line["iteration"] for line in steps(tmp_path)] == [1, 2, 3]
    assert f"notice: {tmp_path}/metrics.jsonl: the log of an earlier run is now" in capsys.readouterr().out
    before = (tmp_path / "metrics.jsonl.1").read_text().splitlines()
    assert len(before) == 5 and before[-1] == '{"iteration": 4, "lm_'


def test_lines_between_two_saves_come_out_the_same_after_a_kill(prefix, tmp_path):
    """The checkpoint is in the middle of a log interval: the next line is still the mean over all of it."""
    common = ("--train-iters", "6", "--log-interval", "4", "--eval-interval", "100")
    trainer(prefix, tmp_path / "whole", *common).run()
    trainer(prefix, tmp_path / "half", *common, "--exit-interval", "3").run()
    trainer(prefix, tmp_path / "half", *common, "--load", str(tmp_path / "half")).run()
    assert len(losses(tmp_path / "whole")) == 1
    for name in ("lm_loss", "mask_loss", "unigram_entropy"):
        assert [line[name] for line in steps(tmp_path / "half")] == [line[name] for line in steps(tmp_path / "whole")]


def test_a_log_is_continued_only_where_its_run_is(prefix, begun, tmp_path, capsys):
    """Lines in --save are of another run than that of --load; those of --load == --save, by any spelling, stay."""
    lines_before = '{"iteration": 1, "lm_loss": 9.0}\n'
    (tmp_path / "metrics.jsonl").write_text(lines_before)
    resumed(prefix, begun, tmp_path).run()
    assert [line["iteration"] for line in steps(tmp_path)] == [3, 4]
    assert (tmp_path / "metrics.jsonl.1").read_text() == lines_before
    assert f"is now {tmp_path}/metrics.jsonl.1" in capsys.readouterr().out
    same = shutil.copytree(begun, tmp_path / "same")
    trainer(prefix, same, "--train-iters", "4", "--load", str(same / ".." / "same")).run()
    assert [line["iteration"] for line in steps(same)] == [1, 2, 3, 4] and not list(same.glob("metrics.jsonl.*"))


def test_the_loss_of_frequencies_alone_is_printed_at_the_start(prefix, tmp_path, capsys):
    trainer(prefix, tmp_path, "--train-iters", "1").run()
    entropy = steps(tmp_path)[0]["unigram_entropy"]
    expected = f"train: frequencies of the residues alone give a loss of {entropy:.3f}\n"
    assert capsys.readouterr().out.count(expected) == 1


# ---- options that are not what they were


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        (("--seed", "7"), "seed 1234, this run asks for 7"),
        (("--seq-length", "48"), "seq-length 64, this run asks for 48"),
        (("--split", "80,20,0"), "split 90,10,0, this run asks for 80,20,0"),
    ],
)
def test_what_makes_consumed_samples_others_is_refused(prefix, begun, tmp_path, capsys, flags, changed):
    with pytest.raises(InputError, match=rf"{changed}: the 16 samples consumed .* --override-data .* --finetune"):
        resumed(prefix, begun, tmp_path, *flags)
    capsys.readouterr()
    run = resumed(prefix, begun, tmp_path, *flags, "--override-data")
    assert run.counters.iteration == 2
    assert f"was trained with {changed}" in capsys.readouterr().out
    assert resumed(prefix, begun, tmp_path, *flags, "--finetune").counters.iteration == 0


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        (("--mask-prob", "0.3"), "mask-prob 0.15, this run asks for 0.3"),
        (("--split", "90,5,5"), "split 90,10,0, this run asks for 90,5,5"),  # the training proteins are the same
    ],
)
def test_what_leaves_the_order_of_the_data_gets_a_notice(prefix, begun, tmp_path, capsys, flags, changed):
    assert resumed(prefix, begun, tmp_path, *flags).counters.iteration == 2
    assert f"iteration 2 was trained with {changed}" in capsys.readouterr().out
    resumed(prefix, begun, tmp_path)
    assert "was trained with" not in capsys.readouterr().out


def test_another_optimizer_needs_a_fresh_state(prefix, begun, tmp_path):
    with pytest.raises(InputError, match="the state of --optimizer adam, this run asks for muon; say --no-load-optim"):
        resumed(prefix, begun, tmp_path, "--optimizer", "muon")
    run = resumed(prefix, begun, tmp_path, "--optimizer", "muon", "--no-load-optim")
    assert run.counters.iteration == 2
    assert not run.optimizer.state


def test_moved_data_is_known_by_what_it_holds(prefix, begun, tmp_path, capsys):
    """The same shard elsewhere: a notice. Other proteins, elsewhere or under the old name: refused."""
    moved = str(tmp_path / "moved")
    for end in (".bin", ".idx"):
        shutil.copy(prefix + end, moved + end)
    assert resumed(moved, begun, tmp_path / "a").counters.iteration == 2
    assert f"data-path {prefix}, this run asks for {moved}" in capsys.readouterr().out
    trainer(moved, tmp_path / "b", "--train-iters", "4", "--exit-interval", "2").run()
    shard = IndexedDataset(prefix)
    with IndexedWriter(moved) as writer:
        for number in range(len(shard) - 1):
            writer.add(shard.read(number), [len(shard.read(number))])
    with pytest.raises(InputError, match=rf"data-path {prefix}, this run asks for {moved}: the 16 samples"):
        resumed(moved, begun, tmp_path / "a")
    with pytest.raises(InputError, match="trained with other proteins in the files of --data-path: the 16 samples"):
        resumed(moved, tmp_path / "b", tmp_path / "b")


def test_options_that_change_only_the_numbers_get_a_notice_each(prefix, begun, tmp_path, capsys):
    changes = {
        "hidden-dropout": "0.0", "attention-dropout": "0.2", "weight-decay": "0.1", "clip-grad": "0.5",
        "adam-beta1": "0.8", "adam-beta2": "0.9", "adam-eps": "1e-06", "global-batch-size": "16",
    }  # fmt: skip
    flags = [word for name, value in changes.items() for word in (f"--{name}", value)]
    switches = {"bf16": "True", "fp32-residual-connection": "False"}
    flags += ["--bf16", "--no-fp32-residual-connection"]
    assert resumed(prefix, begun, tmp_path, *flags).counters.iteration == 2
    notices = [line for line in capsys.readouterr().out.splitlines() if "was trained with" in line]
    assert len(notices) == len(changes | switches)
    for name, value in (changes | switches).items():
        assert any(f" {name} " in line and line.endswith(f"this run asks for {value}") for line in notices), name
    assert any("weight-decay 0.01, this run asks for 0.1" in line for line in notices)


@pytest.mark.parametrize(("before", "after"), [("0.5 {} 0.5 {}", "1 {} 1 {}"), ("0.1 {} 0.2 {}", "1 {} 2 {}")])
def test_only_the_ratio_of_the_weights_of_a_blend_counts(prefix, tmp_path, before, after):
    assert blend_resumed(prefix, tmp_path, before, after).counters.iteration == 1
    with pytest.raises(InputError, match="samples consumed are others"):
        blend_resumed(prefix, tmp_path / "other", before, "3 {} 1 {}")


def test_the_weight_of_a_single_shard_does_not_count(prefix, tmp_path):
    assert blend_resumed(prefix, tmp_path, "2 {}", "{}").counters.iteration == 1


def blend_resumed(prefix, save: Path, before: str, after: str):
    """A run resumed after its first iteration, --data-path with `prefix` in the places of {}."""
    flags = ("--train-iters", "2", "--exit-interval", "1", "--eval-interval", "100")
    for number, words in enumerate((before, after)):
        data_path = words.replace("{}", prefix).split()
        run = trainer(prefix, save, *flags, "--data-path", *data_path, *("--load", str(save)) * number)
        if number == 0:
            run.run()
    return run


def test_proteins_in_another_order_are_other_proteins(prefix, begun, tmp_path):
    """As many proteins and tokens under the old name; a checkpoint from before lengths were recorded cannot tell."""
    shard = IndexedDataset(prefix)
    copy = str(tmp_path / "copy")
    for end in (".bin", ".idx"):
        shutil.copy(prefix + end, copy + end)
    trainer(copy, tmp_path / "a", "--train-iters", "4", "--exit-interval", "2").run()
    with IndexedWriter(copy) as writer:
        for number in reversed(range(len(shard))):
            writer.add(shard.read(number), [len(shard.read(number))])
    with pytest.raises(InputError, match="trained with other proteins in the files of --data-path: the 16 samples"):
        resumed(copy, tmp_path / "a", tmp_path / "a")
    with pytest.raises(InputError, match=r"mask-prob 0\.15, this run asks for 0\.2; other proteins in the files"):
        resumed(copy, tmp_path / "a", tmp_path / "a", "--mask-prob", "0.2")
    path = tmp_path / "a" / "iter_0000002" / "meta.json"
    meta = json.loads(path.read_text())
    del meta["proteins"]["lengths"]
    meta["proteins"]["weights"] = [1.0]
    path.write_text(json.dumps(meta))
    assert resumed(copy, tmp_path / "a", tmp_path / "a").counters.iteration == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counters": {"iteration": "2"}}, "key 'counters.iteration' is '2'; a whole number was expected"),
        ({"counters": None}, "key 'counters' is None; an object was expected"),
        ({"model_config": [1]}, "key 'model_config' is [1]; an object was expected"),
        ({"layout": {"pp": "one"}}, "key 'layout.pp' is 'one'; a whole number was expected"),
        ({"config": {"optim": {}}}, "key 'config.data' is missing"),
        ({"config": {"optim": {}, "data": {"data_path": "x"}}}, "key 'config.data.data_path' is 'x'; a list"),
        ({"loss_scaler": {"scale": 1}}, "key 'loss_scaler.good_steps' is missing"),
    ],
)
def test_a_description_of_another_shape_is_named_by_its_key(prefix, begun, tmp_path, change, message):
    copy = shutil.copytree(begun, tmp_path / "a")
    path = copy / "iter_0000002" / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError) as caught:
        resumed(prefix, copy, tmp_path / "b")
    assert str(caught.value).startswith(f"{copy} iteration 2: meta.json: {message}")


# ---- generators of another device


def test_a_run_begun_on_a_cpu_goes_on_on_a_gpu_and_back(prefix, begun, tmp_path, capsys, monkeypatch):
    """No GPU here: a stand-in for the GPU's generator, and a World that says its device is one."""
    generator = [torch.arange(16, dtype=torch.uint8)]
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: generator[0].clone())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: generator.insert(0, state.clone()))
    run = resumed(prefix, begun, tmp_path)
    saved = torch.get_rng_state()
    run.state.world.device = torch.device("cuda", 0)
    torch.manual_seed(0)
    assert run.state.load(run.say) == 2
    assert "saved by pp1 x dp_replicate1 x dp_shard1 x tp1 on cpu, now" in capsys.readouterr().out
    assert torch.equal(torch.get_rng_state(), saved) and len(generator) == 1
    run.device = run.state.world.device  # what a GPU saves goes on on a GPU, and on a CPU
    run.state.world.device = torch.device("cuda", 0)
    run.save()
    run.state.config = resumed(prefix, tmp_path, tmp_path).config
    assert "on cuda, now" in capsys.readouterr().out
    assert run.state.load(run.say) == 2 and len(generator) == 2
    assert "on cuda, now" not in capsys.readouterr().out


def test_a_missing_generator_names_the_flag(tmp_path):
    save_checkpoint(tmp_path, 1, {"rng": {"cpu": torch.get_rng_state()}}, {})
    template = {"rng": {"cpu": torch.get_rng_state(), "cuda": torch.zeros(16, dtype=torch.uint8)}}
    with pytest.raises(InputError, match=r"lacks rng\.cuda, which this run needs; .*--no-load-rng"):
        checkpoint.load_checkpoint(tmp_path, 1, template)


# ---- which checkpoints are kept


def saved(directory: Path) -> list[int]:
    return [int(path.name.removeprefix("iter_")) for path in sorted(directory.glob("iter_*"))]


@pytest.mark.slow
def test_after_going_back_from_a_diverged_iteration_the_new_checkpoints_are_kept(prefix, tmp_path):
    common = ("--keep-last", "3", "--train-iters", "100", "--eval-interval", "100", "--load", str(tmp_path))
    trainer(prefix, tmp_path, *common, "--save-interval", "2", "--exit-interval", "6").run()
    assert saved(tmp_path) == [2, 4, 6]
    (tmp_path / checkpoint.TRACKER).write_text("2")
    for iteration, expected in ((5, [2, 5, 6]), (7, [2, 5, 7]), (9, [5, 7, 9])):
        trainer(prefix, tmp_path, *common, "--exit-interval", str(iteration)).run()
        assert saved(tmp_path) == expected


# ---- steps that are not finite


def spoil(run, monkeypatch, first: int) -> None:
    """Make the loss of every step from the `first` one on NaN."""
    honest = run.step.loss

    def loss(logits, labels):
        return honest(logits, labels) * (math.nan if run.counters.iteration + 1 >= first else 1.0)

    monkeypatch.setattr(run.step, "loss", loss)


def test_a_run_that_skips_every_step_stops_and_names_the_checkpoint_before(prefix, tmp_path, monkeypatch):
    flags = ("--train-iters", "50", "--save-interval", "1", "--keep-last", "1", "--max-skipped-iterations", "4")
    run = trainer(prefix, tmp_path, *flags, "--exit-interval", "5")
    spoil(run, monkeypatch, first=4)
    assert run.run() == "exit-interval"
    assert saved(tmp_path) == [3, 5]  # the last good one stays beside that of the middle of the row
    run = trainer(prefix, tmp_path, *flags, "--load", str(tmp_path))
    assert run.counters.skipped_in_a_row == 2
    spoil(run, monkeypatch, first=6)
    with pytest.raises(
        InputError, match=r"not finite in 4 iterations in a row, up to 7 .* before them: .*iter_0000005"
    ):
        run.run()
    assert saved(tmp_path) == [3, 5] and [line["iteration"] for line in steps(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    assert json.loads((tmp_path / "exit_reason.json").read_text())["reason"] == "non-finite"


def test_a_save_that_falls_into_a_skipped_step_comes_after_it(prefix, tmp_path, monkeypatch):
    run = trainer(prefix, tmp_path, "--train-iters", "5", "--save-interval", "2")
    honest = run.step.loss
    bad = lambda *call: honest(*call) * (math.nan if run.counters.iteration == 1 else 1.0)  # noqa: E731
    monkeypatch.setattr(run.step, "loss", bad)
    run.run()
    assert saved(tmp_path) == [3, 4, 5] and run.counters.skipped_in_a_row == 0


def test_the_search_for_a_loss_scale_is_no_row_of_skipped_steps(prefix, tmp_path):
    """At the lowest scale there is nothing left to search: then overflows count."""
    flags = ("--train-iters", "6", "--fp16", "--initial-loss-scale", str(2.0**40), "--hysteresis", "1")
    flags += ("--max-skipped-iterations", "2", "--eval-interval", "100")
    run = trainer(prefix, tmp_path / "search", *flags)
    before = weights(run)
    assert run.run() == "completed"
    assert run.counters.skipped_iterations == 6 and torch.equal(weights(run), before)
    with pytest.raises(InputError, match=r"in 2 iterations in a row, up to 4 .* before them: none"):
        trainer(prefix, tmp_path / "floor", *flags, "--min-loss-scale", str(2.0**38)).run()
    assert lines(tmp_path / "floor")[-1]["loss_scale"] == 2.0**38


def test_the_checkpoint_before_skipped_steps_is_named_where_it_lies(prefix, begun, tmp_path, monkeypatch):
    """Nothing is in --save yet: the one to go back to is that of --load."""
    run = resumed(prefix, begun, tmp_path, "--max-skipped-iterations", "2")
    spoil(run, monkeypatch, first=3)
    with pytest.raises(InputError, match=rf"before them: {begun}/iter_0000002; "):
        run.run()
