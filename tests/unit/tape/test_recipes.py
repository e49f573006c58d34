"""Recipes: which value wins, that it is printed and stored, and that a wrong key is a line with the file's name."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from proteinlm.errors import InputError
from tape import recipes
from tape.finetuning.options import TrainOptions, build_parser, parse_options, recipe_checks
from tape.tasks import TASKS

NAMES = (*TASKS, "ss_q8")


def options(*words: object, task: str = "stability") -> TrainOptions:
    return parse_options(["transformer", task, *map(str, words)], NAMES)


def recipe(path: Path, **values: object) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("path", sorted(recipes.FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_read_and_says_where_its_values_come_from(path):
    recipe = recipes.read_recipe(path, recipe_checks(build_parser()))
    assert path.stem in NAMES
    assert {"num_train_epochs", "learning_rate", "batch_size", "warmup_fraction"} <= recipe.keys()
    keys = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert all("  # " in line for line in keys)


def test_the_five_tasks_have_recipes():
    five = ("contact_prediction", "remote_homology", "secondary_structure", "fluorescence", "stability")
    assert all((recipes.FOLDER / f"{task}.yaml").is_file() for task in five)
    assert not (recipes.FOLDER / "masked_language_modeling.yaml").exists()


def test_precedence(tmp_path):
    """flag > file > the task's recipe > built-in."""
    file = recipe(tmp_path / "mine.yaml", learning_rate="3e-4", batch_size=16, layer_decay=0.9)
    args = options("--recipe", file, "--batch_size", 4)
    assert (args.batch_size, args.learning_rate, args.layer_decay) == (4, 3e-4, 0.9)
    own = yaml.safe_load((recipes.FOLDER / "stability.yaml").read_text())
    assert args.num_train_epochs == own["num_train_epochs"] and args.max_grad_norm == 1.0
    sources = {key: args.recipe["from"][key] for key in ("batch_size", "learning_rate", "warmup_fraction", "patience")}
    assert sources == {
        "batch_size": "flag",
        "learning_rate": str(file),
        "warmup_fraction": "recipe of stability",
        "patience": "built-in",
    }
    none = options("--recipe", "none")
    assert {key: getattr(none, key) for key in recipes.BUILT_IN} == recipes.BUILT_IN


def test_of_two_rivals_the_higher_stays(tmp_path):
    file = recipe(tmp_path / "mine.yaml", max_steps=100, warmup_steps=7)
    assert options("--recipe", file).max_steps == 100 and options("--recipe", file).warmup_fraction is None
    args = options("--recipe", file, "--num_train_epochs", 3, "--warmup_fraction", 0.2)
    assert (args.max_steps, args.num_train_epochs) == (None, 3)
    assert (args.warmup_steps, args.warmup_fraction) == (None, 0.2)
    both = options("--recipe", "none", "--num_train_epochs", 3, "--max_steps", 9)
    assert (both.max_steps, both.num_train_epochs) == (9, 3)


def test_parts_of_a_recipe_shrink_to_the_batch():
    args = options("--batch_size", 2, task="contact_prediction")
    assert args.gradient_accumulation_steps == 2
    with pytest.raises(InputError, match="at most --batch_size 2"):
        options("--batch_size", 2, "--gradient_accumulation_steps", 3, task="contact_prediction")


def test_switching_off(tmp_path):
    file = recipe(tmp_path / "mine.yaml", lora=8, freeze_encoder=True)
    with pytest.raises(InputError, match="give one"):
        options("--recipe", file)
    assert options("--recipe", file, "--lora", 0).lora is None
    assert options("--recipe", file, "--no-freeze_encoder").freeze_encoder is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "did you mean learning_rate"),
        ("learning_rate: fast", "learning_rate 'fast' cannot be used"),
        ("batch_size: 0", "should be at least 1"),
        ("pooling: max", "should be one of first, mean"),
        ("freeze_encoder: 3", "should be true or false"),
        ("- 1", "should hold lines of"),
        ("# nothing", "empty; should be lines of"),
        ("a: [", "not YAML"),
    ],
)
def test_a_wrong_recipe_is_reported_with_its_file(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"mine\.yaml(:1)?: ") as error:
        options("--recipe", file)
    assert message in str(error.value)
    with pytest.raises(InputError, match="no such file"):
        options("--recipe", tmp_path / "absent.yaml")


def test_the_line_for_the_log():
    args = options("--learning_rate", 5e-4, "--recipe", "none")
    line = recipes.describe({key: getattr(args, key) for key in recipes.BUILT_IN}, args.recipe["from"])
    assert line.startswith("recipe: learning_rate 0.0005 (flag); built-in: num_train_epochs 10, batch_size 32")
    assert json.dumps(asdict(args))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tokenizer", "unirep"), "unirep"),
        (("--eval_freq", 0, "--save_freq", "improvement"), "needs evaluations"),
        (("--seeds", 1, 1), "should differ"),
        (("--resume", "--force_save"), "give one"),
    ],
)
def test_flags_that_do_not_go_together(words, message):
    with pytest.raises(InputError, match=message):
        options(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--log_level", "LOUD"), "--log_level: invalid choice: 'LOUD' (choose from 'DEBUG', 'INFO'"),
        (("--num_workers", 2**63), "--num_workers: 9223372036854775808 should be between 0 and 256"),
    ],
)
def test_values_that_are_none(words, message, capsys):
    with pytest.raises(SystemExit):
        options(*words)
    assert message in capsys.readouterr().err


def test_tapes_own_flags_are_taken(capsys):
    words = (
        "--model_config_file c.json --vocab_file v --output_dir o --no_cuda --seed 1 --local_rank -1 --tokenizer iupac"
    )
    words += " --num_workers 2 --log_level INFO --debug --learning_rate 1e-4 --batch_size 8 --data_dir d"
    words += " --num_train_epochs 2 --num_log_iter 5 --fp16 --warmup_steps 3 --gradient_accumulation_steps 2"
    words += " --loss_scale 0 --max_grad_norm 1.0 --exp_name e --from_pretrained m --log_dir l --eval_freq 0"
    words += " --save_freq 1 --patience 3 --resume_from_checkpoint --force_save FALSE --time_or_name time"
    args = options(*words.split(), "--weight_decay", 0.1)
    assert args.device == "cpu" and not args.evaluates and args.resume and args.force_save is None
    assert "--vocab_file means nothing here" in capsys.readouterr().err
