"""Planning and running the table: presets, arms, resuming, refusals. The runs themselves are replaced by short ones."""

import json
import os
import shlex
from pathlib import Path

import pytest
from toy_data import write_config, write_data

from proteinlm import errors
from proteinlm.errors import InputError
from proteinlm.running import leftovers
from tape import reproduce
from tape.finetuning.options import build_parser as train_parser
from tape.reproduce import build_parser
from tape.runs import jobs as jobs_module
from tape.runs.flags import flag_words
from tape.runs.jobs import RECORD, run_job, run_jobs
from tape.runs.plan import plan, read_preset, recipe_of

PRESET = """
all: {batch_size: 8, bf16: true, seeds: [0, 1]}
stability: {batch_size: 4, max_steps: 7}
arms: {random: {stability: {max_steps: 9, bf16: false}}}
"""


@pytest.fixture
def world(tmp_path) -> Path:
    """Data of stability (train and valid) and a model directory without real weights."""
    write_data(tmp_path, "stability", train=4, valid=4)
    (tmp_path / "model").mkdir()
    write_config(tmp_path / "model/config.json")
    (tmp_path / "model/model.safetensors").write_bytes(b"weights")
    (tmp_path / "preset.yaml").write_text(PRESET)
    return tmp_path


def jobs(world: Path, *words: object) -> list:
    line = [world / "model", world, world / "out", "--preset", world / "preset.yaml", "--tasks", "stability"]
    return plan(build_parser().parse_args([str(word) for word in [*line, "--arms", "pretrained", "random", *words]]))


@pytest.fixture
def commands(monkeypatch) -> list:
    """Commands that would be run; tape.evaluate's leave their files, and those in `fail` do not end well."""
    called: list = []

    def call(module, words, log):
        called.append((module, list(words)))
        if module == "tape.train" and "--fail" in words:
            raise InputError(f"{log}: {module} ended with status 2: because")
        if module == "tape.train":
            (log.parent / "args.json").write_text("{}")
        else:
            for split in words[words.index("--split") + 1 :]:
                for suffix in ("json", "npz"):
                    (log.parent / f"stability-{split}.{suffix}").write_text("{}")
        return 0.5

    monkeypatch.setattr("tape.runs.jobs.call", call)
    return called


def test_a_preset_is_all_then_task_then_arm():
    preset = {
        "all": {"a": 1, "b": 1, "c": 1},
        "stability": {"b": 2, "c": 2},
        "arms": {"random": {"stability": {"c": 3}}},
    }
    assert recipe_of(preset, "stability", "random") == {"a": 1, "b": 2, "c": 3}
    assert recipe_of(preset, "stability", "pretrained") == {"a": 1, "b": 2, "c": 2}
    assert recipe_of(preset, "fluorescence", "random") == {"a": 1, "b": 1, "c": 1}
    assert flag_words({"x": True, "y": False, "z": None, "lr": 5e-4}) == ["--x", "--lr", "0.0005"]


@pytest.mark.parametrize("name", ["full", "cpu"])
def test_the_presets_are_made_of_tape_trains_flags(name):
    preset = read_preset(name)
    for task in reproduce.TASKS:
        for arm in ("pretrained", *preset.get("arms", {})):
            recipe = recipe_of(preset, task, arm)
            assert recipe.pop("seeds")
            words = ["transformer", task, "--output_dir", "out", *flag_words(recipe)]
            parsed = vars(train_parser().parse_args(words))
            assert all(str(parsed[key]) == str(value) for key, value in recipe.items() if key != "learning_rate")


def test_the_plan(world):
    planned = jobs(world)
    assert [job.name for job in planned] == [
        "pretrained stability seed 0", "random stability seed 0",
        "pretrained stability seed 1", "random stability seed 1",
    ]  # fmt: skip
    line = shlex.join(planned[0].train)
    assert f"--from_pretrained {world}/model" in line and "--batch_size 4 --bf16 --max_steps 7" in line
    line = shlex.join(planned[1].train)
    assert f"--model_config_file {world}/model/config.json" in line and "--from_pretrained" not in line
    assert "--max_steps 9" in line and "--bf16" not in line
    assert planned[0].splits == ("valid",)  # test is not there
    assert [job.seed for job in jobs(world, "--seeds", 5)] == [5, 5]
    other = jobs(world, "--seeds", 5, "--arms", f"other={world / 'model'}")[0]
    assert other.arm.name == "other" and other.directory == world / "out/runs/other/stability/seed5"


def test_what_is_done_is_not_done_again(world, commands):
    job = jobs(world)[0]
    assert "trained" in run_job(job) and [module for module, _ in commands] == ["tape.train", "tape.evaluate"]
    assert run_job(job) == "was done" and len(commands) == 2
    (job.directory / "stability-valid.json").unlink()
    assert run_job(job).startswith("scored valid") and len(commands) == 3
    record = json.loads((job.directory / RECORD).read_text())
    assert record["train_minutes"] == 0.5 and record["eval_minutes"] == 1.0 and not record["resumed"]


def test_a_kill_when_all_is_scored_loses_no_command_and_leaves_nothing(world, commands, monkeypatch):
    """It comes as the minutes are written: nothing is done any more when it is called again."""
    job = jobs(world)[0]
    run_job(job)
    record = json.loads((job.directory / RECORD).read_text())
    for suffix in ("json", "npz"):
        (job.directory / f"stability-valid.{suffix}").unlink()
    (job.directory / RECORD).write_text(json.dumps({k: v for k, v in record.items() if not k.startswith("eval")}))
    write = jobs_module.write_json

    def killed(path, value):
        if "eval_minutes" in value:
            raise SystemExit(9)
        write(path, value)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(jobs_module, "write_json", killed)
        run_job(job)
    gone = leftovers._process().replace(str(os.getpid()), "4194305")  # no process can have that number
    (job.directory / f".{RECORD}.{gone}.abc.tmp").touch()
    leftovers.sweep.cache_clear()
    assert run_job(job) == "was done"
    again = json.loads((job.directory / RECORD).read_text())
    assert again["eval_commands"] == record["eval_commands"] and len(again["eval_commands"]) == 1
    assert not list(job.directory.glob(".*"))


def test_a_run_that_was_cut_off_goes_on(world, commands):
    job = jobs(world)[0]
    run_job(job)
    place = job.directory / RECORD
    record = json.loads(place.read_text())
    del record["train_minutes"]  # as it is until training ends
    place.write_text(json.dumps(record))
    (job.directory / "stability-valid.json").unlink()
    run_job(job)
    assert "--resume" in commands[2][1] and json.loads(place.read_text())["resumed"]


def test_another_recipe_or_other_weights_are_refused(world, commands):
    run_job(jobs(world)[0])
    (world / "preset.yaml").write_text(PRESET.replace("max_steps: 7", "max_steps: 8"))
    with pytest.raises(InputError, match="another command or from other weights"):
        run_job(jobs(world)[0])
    (world / "preset.yaml").write_text(PRESET)
    assert run_job(jobs(world, "--device", "cpu")[0]) == "was done"  # where it computes is no recipe
    (world / "preset.yaml").write_text(PRESET.replace("{batch_size: 4, max_steps: 7}", "{max_steps: 7, batch_size: 4}"))
    assert run_job(jobs(world)[0]) == "was done"  # nor the order of its keys
    (world / "model/model.safetensors").write_bytes(b"other weights")
    with pytest.raises(InputError, match="another command or from other weights"):
        run_job(jobs(world)[0])


def test_a_report_shows_no_numbers_of_other_weights(world, commands, monkeypatch, capsys):
    """--report_only over the OUT of another model: its runs are named as not run, with the reason."""
    run_job(jobs(world)[0])
    (world / "model/model.safetensors").write_bytes(b"other weights")
    reported = {}

    def collect(jobs, failed, about):
        reported.update(failed)
        return {"not_run": [{"why": why} for why in failed.values()]}

    monkeypatch.setattr("tape.reporting.collect.collect", collect)
    monkeypatch.setattr("tape.reporting.pages.write_pages", lambda results, out: None)
    line = [world / "model", world, world / "out", "--preset", world / "preset.yaml", "--tasks", "stability"]
    words = [str(word) for word in [*line, "--arms", "pretrained", "--seeds", 0, "--report_only"]]
    assert errors.run(reproduce.main, words) == 2
    assert list(reported) == ["pretrained stability seed 0"]
    assert "from other weights" in reported["pretrained stability seed 0"]
    (world / "model/model.safetensors").write_bytes(b"weights")
    reported.clear()
    assert errors.run(reproduce.main, words) == 0 and not reported


def test_random_weights_are_known_by_their_shape(world, commands):
    """The same model converted once more, elsewhere, is the same shape; another width is not."""
    random = {job.arm.name: job for job in jobs(world)}["random"]
    run_job(random)
    write_config(world / "model/config.json", converted_from="elsewhere iteration 9")
    assert run_job({job.arm.name: job for job in jobs(world)}["random"]) == "was done"
    write_config(world / "model/config.json", intermediate_size=36)
    with pytest.raises(InputError, match="another command or from other weights"):
        run_job({job.arm.name: job for job in jobs(world)}["random"])


def test_a_failure_stops_nothing_else_and_is_reported(world, commands, capsys):
    planned = jobs(world, "--train_flags", "--fail --x", "--seeds", 0)[:1] + jobs(world, "--seeds", 0)[1:]
    failed = run_jobs(planned, 2)
    assert list(failed) == ["pretrained stability seed 0"] and "because" in failed["pretrained stability seed 0"]
    assert "[2/2]" in capsys.readouterr().out and not planned[1].missing()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tasks", "fluorescence"), "no train split of fluorescence"),
        (("--splits", "test"), "none of the splits test"),
        (("--arms", "pretrianed"), "--arms pretrianed: should be pretrained, random"),
        (("--arms", "random", "random"), "each name once"),
        (("--arms", "a=nowhere"), "nowhere"),
        (("--preset", "gpu"), "should be a YAML file or cpu, cpu_long, full"),
    ],
)
def test_mistakes_are_reported_in_one_line(world, capsys, words, message):
    line = [str(world / "model"), str(world), str(world / "out"), "--tasks", "stability", *words]
    assert errors.run(reproduce.main, line) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]


@pytest.mark.parametrize("flag", ["--jobs", "--batch_size"])
def test_a_number_below_1_is_refused(capsys, flag):
    with pytest.raises(SystemExit):
        reproduce.main(["model", "data", flag, "0"])
    assert f"{flag}: 0 should be at least 1" in capsys.readouterr().err


def test_a_preset_with_a_wrong_section_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("stabilty: {batch_size: 3}")
    with pytest.raises(InputError, match="'stabilty' should be one of all, arms"):
        read_preset(str(path))


def test_proteins_are_cropped_to_what_the_encoder_has_positions_for(tmp_path, monkeypatch):
    """The presets' 1,022 residues are for 1,024 positions; a smaller encoder gets fewer, in every arm alike."""
    model, data = tmp_path / "model", tmp_path / "data"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    preset = tmp_path / "preset.yaml"
    preset.write_text("all: {max_length: 1022}\n")
    monkeypatch.setattr("tape.runs.plan.splits_of", lambda *args: ("valid",))
    words = [str(model), str(data), str(tmp_path / "out"), "--preset", str(preset), "--tasks", "stability"]
    jobs = plan(build_parser().parse_args([*words, "--arms", "random", "onehot"]))
    assert {job.train[job.train.index("--max_length") + 1] for job in jobs} == {"510"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "key 'train_command' is missing"),
        ({"train_command": "x"}, "key 'source' is missing"),
        ({"train_command": "x 'y", "source": ""}, "key 'train_command' is no command line (No closing quotation)"),
        (
            {"train_command": 5, "source": ""},
            "key 'train_command' is 5; a text was expected; should be what tape.reproduce wrote",
        ),
        ({"train_command": "x", "source": "", "eval_commands": 5}, "key 'eval_commands' is 5"),
        ({"train_command": "x", "source": "", "eval_minutes": "3"}, "key 'eval_minutes' is '3'"),
    ],
)
@pytest.mark.parametrize("report_only", [(), ("--report_only",)])
def test_a_damaged_record_is_named_with_its_key(world, commands, monkeypatch, capsys, record, message, report_only):
    job = jobs(world)[0]
    run_job(job)
    (job.directory / RECORD).write_text(json.dumps(record))
    monkeypatch.setattr("tape.reporting.pages.write_pages", lambda results, out: None)
    line = [world / "model", world, world / "out", "--preset", world / "preset.yaml", "--tasks", "stability"]
    words = [str(word) for word in [*line, "--arms", "pretrained", "--seeds", 0, *report_only]]
    assert errors.run(reproduce.main, words) == 2
    reason = json.loads((world / "out/results.json").read_text())["not_run"][0]["why"]
    assert reason.startswith(f"{job.directory / RECORD}: {message}") and "\n" not in reason
    line = f"error: {reason} (1 of 1 runs of preset {world}/preset.yaml are not done; {world}/out/table.md"
    assert capsys.readouterr().err.splitlines()[-1] == f"{line} names them)"


@pytest.mark.parametrize("arm", ["pretrained", "random"])
def test_a_model_that_was_moved_is_the_same_model(world, commands, arm):
    """The sha256 of its weights (of its shape) says whether it is, not its path."""
    run_job(jobs(world, "--arms", arm)[0])
    (world / "model").rename(world / "moved")
    words = [world / "moved", world, world / "out", "--preset", world / "preset.yaml", "--tasks", "stability"]
    job = plan(build_parser().parse_args([str(word) for word in [*words, "--arms", arm]]))[0]
    assert run_job(job) == "was done"
    (world / "moved/model.safetensors").write_bytes(b"other weights")
    write_config(world / "moved/config.json", intermediate_size=36)
    job = plan(build_parser().parse_args([str(word) for word in [*words, "--arms", arm]]))[0]
    with pytest.raises(InputError, match="another command or from other weights"):
        run_job(job)


def test_a_shape_given_by_a_flag_is_compared(world, commands):
    """An arm without weights or shape of its own has no sha256: its flags are all there is."""
    shapes = [f"--model_config_file {world}/{name}.json" for name in "ab"]
    run_job(jobs(world, "--arms", "onehot", "--train_flags", shapes[0])[0])
    with pytest.raises(InputError, match="another command or from other weights"):
        run_job(jobs(world, "--arms", "onehot", "--train_flags", shapes[1])[0])
