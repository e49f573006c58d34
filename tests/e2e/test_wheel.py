"""The wheel alone, in a fresh environment without the source tree: every command runs its smallest case.

The environment has the libraries that the tests run with, but not this checkout; nothing comes from a network.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from toy_model import write_model

pytestmark = pytest.mark.slow

SOURCES = ("proteinlm", "pretrain", "tape", "probe", "converter", "models", "pyproject.toml", "setup.py", "README.md")
SOURCES += ("LICENSE",)
SCRIPTS = {"tape-train", "tape-train-distributed", "tape-eval", "tape-embed", "tape-predict", "tape-table", "proteinlm"}
MODEL = [
    "--num-layers",
    1,
    "--hidden-size",
    16,
    "--num-attention-heads",
    2,
    "--train-iters",
    2,
    "--global-batch-size",
    8,
]
TRAIN = ["--recipe", "none", "--max_steps", 2, "--eval_steps", 1, "--batch_size", 4, "--holdout", 0.4]
# Runs each line as a console script or as `python -m` would, all in one process: torch is imported once.
DRIVER = """
import importlib.metadata, json, os, runpy, sys
import converter, pretrain, proteinlm, tape
homes = {os.path.dirname(os.path.dirname(package.__file__)) for package in (converter, pretrain, proteinlm, tape)}
scripts = {entry.name: entry for entry in importlib.metadata.distribution("proteinlm").entry_points}
lines, model = json.loads(sys.argv[1]), sys.argv[2]
for kind, name, *words in lines:
    sys.argv = [name, *words]
    try:
        status = scripts[name].load()() if kind == "script" else runpy.run_module(name, run_name="__main__")
    except SystemExit as end:
        status = end.code
    assert not isinstance(status, int) or status == 0, (name, words)
vectors = [proteinlm.load(name, device="cpu").embed(["MKV", "MKVLA"]).shape for name in (model, "shipped")]
models = {name: str(place) for name, place in proteinlm.models().items()}
print(json.dumps({"homes": sorted(homes), "scripts": sorted(scripts), "vectors": vectors, "models": models}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory, root) -> Path:
    """The interpreter of an environment into which the wheel was installed."""
    place = tmp_path_factory.mktemp("wheel")
    (place / "source").mkdir()
    for name in SOURCES:  # a copy, so that the build leaves nothing in the checkout
        (shutil.copytree if (root / name).is_dir() else shutil.copy)(root / name, place / "source" / name)
    (place / "source/models/shipped").mkdir()
    write_model(place / "source/models/shipped")
    venv.create(place / "fresh")
    python = place / "fresh/bin/python"
    site = next((place / "fresh").glob("lib/python*/site-packages"))
    # A path of the tests' libraries; what their own .pth files name (an editable checkout) is not read from there.
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    run(Path(sys.executable), "-c", build, place, cwd=place / "source")
    shutil.rmtree(place / "source")
    pip = Path(sys.executable), "-m", "pip", "--python", python
    run(*pip, "install", "--no-deps", "--no-index", *place.glob("*.whl"))
    return python


def run(python: Path, *words: object, cwd: Path | None = None) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    line = [str(word) for word in (python, *words)]
    done = subprocess.run(line, cwd=cwd or python.parent, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_every_command_of_the_wheel(python, tmp_path, tiny_fasta, tiny_tape_data):
    site = next(python.parent.parent.glob("lib/python*/site-packages"))
    model, finetuned = tmp_path / "model", tmp_path / "runs/one"
    run(python, "-m", "pretrain.preprocess", "--input", tiny_fasta, "--output-prefix", "shards/x", cwd=tmp_path)
    config = ["--config", site / "pretrain/configs/debug.yaml", "--data-path", "shards/x_text_document"]
    run(python, "-m", "pretrain", *config, *MODEL, "--save", "checkpoint", "--device", "cpu", cwd=tmp_path)
    common = ["--data_dir", tiny_tape_data, "--device", "cpu"]
    train = ["--from_pretrained", model, *common, *TRAIN]
    proteins = tmp_path / "few.fasta"
    proteins.write_text(">a\nMKVLAAGG\n>b\nMKTAYIAKQR\n")
    one = tmp_path / "one.fasta"
    one.write_text(">a\nMKVLAAGG\n")
    table = ["--preset", "cpu", "--tasks", "stability", "--arms", "onehot", "--seeds", 0, "--device", "cpu"]
    flags = "--max_steps 2 --eval_steps 1 --batch_size 4 --holdout 0.4"
    lines = [
        ["module", "converter", "--load", "checkpoint", "--save", model, "--target", "tape"],
        ["script", "tape-train", "transformer", "stability", *train, "--output_dir", finetuned],
        ["script", "tape-eval", "transformer", "stability", finetuned, *common, "--split", "test"],
        ["script", "tape-embed", "transformer", proteins, "few.npz", model],
        ["script", "tape-embed", "transformer", proteins, "by_name.npz", "shipped"],
        ["script", "proteinlm", "models"],
        ["script", "tape-predict", finetuned, proteins, "few.tsv"],
        ["script", "tape-train-distributed", "transformer", "stability", *train, "--output_dir", "runs/two"],
        ["script", "tape-table", "runs", "--output", "table.txt"],
        ["script", "proteinlm", "variants", model, one, "--scan", "--score", "wt-marginals", "--output", "scan.csv"],
        ["module", "tape.tune", "tuned", "--grid", "pooling", "mean", "--", "transformer", "stability", *train],
        ["module", "tape.reproduce", model, tiny_tape_data, "all", *table, "--train_flags", flags],
    ]
    words = [[str(word) for word in line] for line in lines]
    output = run(python, "-c", DRIVER, json.dumps(words), model, cwd=tmp_path)
    facts = json.loads(output.splitlines()[-1])
    assert facts["homes"] == [str(site)], "a package came from elsewhere than the wheel"
    assert set(facts["scripts"]) == SCRIPTS and all((python.parent / name).exists() for name in SCRIPTS)
    assert facts["vectors"] == [[2, 16], [2, 16]]
    assert facts["models"]["shipped"] == str(site / "proteinlm/_models/shipped")
    assert "Spearman" in (tmp_path / "table.txt").read_text()
    for name in (
        "few.npz",
        "few.tsv",
        "by_name.npz",
        "tuned/recipe.yaml",
        "all/table.html",
        "scan.dark.svg",
        "runs/two/model.safetensors",
    ):
        assert (tmp_path / name).stat().st_size > 0
