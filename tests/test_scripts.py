"""Each file of scripts/, checked by shellcheck and run on small data."""

import importlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from proteinlm import errors

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted([*(ROOT / "scripts").glob("*.sh"), *(ROOT / "scripts").glob("*.sbatch")])
SHELL_FILES = [*SCRIPTS, *sorted((ROOT / "benchmarks").glob("*.sh")), ROOT / ".ci/run"]
TASKS = ("secondary_structure", "contact_prediction", "remote_homology", "fluorescence", "stability")
TINY_MODEL = ("--num-layers", 2, "--hidden-size", 32, "--num-attention-heads", 2, "--seq-length", 128)
TINY_MODEL += (
    "--max-position-embeddings",
    128,
    "--ffn-hidden-size",
    64,
    "--micro-batch-size",
    2,
    "--global-batch-size",
    4,
)
TINY_RUN = ("--train-iters", 2, "--lr-decay-iters", 2, "--split", "90,10,0", "--eval-iters", 1, "--device", "cpu")


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda path: path.name)
def test_shellcheck(path):
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=ROOT / ".venv/bin")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda path: path.name)
def test_stops_at_the_first_failure_and_says_what_it_is(path):
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[1].startswith("# ")
    assert "set -euo pipefail" in lines


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_without_arguments_tells_its_usage(path, run_command):
    done = run_command("bash", path, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage:") and path.name in done.stderr


@pytest.fixture(scope="module")
def shard(tmp_path_factory, tiny_fasta, run_command) -> Path:
    """What scripts/preprocess_pfam.sh makes of the tiny FASTA."""
    prefix = tmp_path_factory.mktemp("shard") / "pfam"
    run_command("bash", ROOT / "scripts/preprocess_pfam.sh", tiny_fasta, prefix)
    return Path(f"{prefix}_text_document")


@pytest.fixture(scope="module")
def model(tmp_path_factory, shard, run_command) -> Path:
    """The model directory that scripts/{pretrain_single_gpu,convert}.sh make of the shard."""
    folder = tmp_path_factory.mktemp("model")
    pretrain = ROOT / "scripts/pretrain_single_gpu.sh"
    run_command("bash", pretrain, shard, folder / "ckpt", *TINY_MODEL, *TINY_RUN)
    run_command("bash", ROOT / "scripts/convert.sh", folder / "ckpt", folder / "tape")
    return folder / "tape"


@pytest.mark.slow
def test_preprocess_writes_a_shard(shard):
    assert shard.with_suffix(".bin").stat().st_size > 0
    assert shard.with_suffix(".idx").read_bytes()[:9] == b"MMIDIDX\0\0"


@pytest.mark.slow
def test_pretrain_and_convert_write_a_model(model):
    assert (model / "config.json").is_file()
    assert (model / "model.safetensors").is_file()


RECORDER = """#!/usr/bin/env bash
printf '%s\\0' "$@" >> "$RECORD"
printf '\\n' >> "$RECORD"
"""


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_finetune(task, model, tiny_tape_data, tmp_path, run_command):
    """One script is run as it is; what the others start is written down by a stand-in and run in this process."""
    script = ROOT / f"scripts/finetune_{task}.sh"
    words = ("bash", script, model, tiny_tape_data, tmp_path / "run", "--max_steps", 2)
    if task == TASKS[0]:
        run_command(*words)
    else:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/python").write_text(RECORDER)
        (tmp_path / "bin/python").chmod(0o755)
        record, path = tmp_path / "record", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        run_command("env", f"PATH={path}", f"RECORD={record}", *words)
        started = [line.split("\0")[:-1] for line in record.read_text().splitlines()]
        assert [line[:2] for line in started] == [["-m", "tape.train"], ["-m", "tape.evaluate"]]
        assert [errors.run(importlib.import_module(line[1]).main, line[2:]) for line in started] == [0, 0]
    assert list((tmp_path / "run").rglob(f"{task}-*.json")), "tape-eval wrote its numbers"


TABLE_ARMS = "pretrained", "onehot"
TABLE_PRESET = """
all: {recipe: none, holdout: 0.25, batch_size: 4, max_steps: 2, eval_steps: 2, learning_rate: 1.0e-3, head: tape}
stability: {seeds: [0, 1]}
"""


@pytest.mark.slow
def test_reproduce_table(model, tiny_tape_data, tmp_path, run_command):
    """Two tasks, two arms, every split; a second call has nothing to do; a lost score comes back alone."""
    out, preset = tmp_path / "out", tmp_path / "preset.yaml"
    preset.write_text(TABLE_PRESET)
    words = ("bash", ROOT / "scripts/reproduce_table.sh", model, tiny_tape_data, out, "--preset", preset)
    words += ("--arms", *TABLE_ARMS, "--tasks", "stability", "contact_prediction", "--device", "cpu", "--jobs", 2)
    run_command(*words, timeout=900)
    results = json.loads((out / "results.json").read_text())
    lines = 2 + 2 * 2  # splits of the two tasks; contacts in two separation bands
    assert len(results["rows"]) == 2 * lines and len(results["differences"]) == lines
    assert not results["not_run"]
    lost = out / "runs/onehot/stability/seed1/stability-test.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    again = run_command(*words, timeout=900).stdout
    assert again.count("was done") == 5 and again.count("scored test") == 1 and "trained in" not in again
    after = json.loads(lost.read_text())
    assert {key: after[key] for key in ("metrics", "intervals", "checkpoint")} == {
        key: before[key] for key in ("metrics", "intervals", "checkpoint")
    }
    page = (out / "table.html").read_text()
    assert "<svg" in page and "src=" not in page and 'href="http' not in page.replace("xlink:href", "")
    refused = run_command(*words, "--train_flags", "--weight_decay 0.5", check=False)
    assert refused.returncode == 2 and "trained by another command or" in refused.stdout


@pytest.mark.slow
def test_from_fasta_to_table(tiny_fasta, tiny_tape_data, tmp_path, run_command):
    """The whole pipeline in one file, on its smallest case: a second call trains and converts nothing again, more
    iterations give another model with its own table."""
    config, preset, out = tmp_path / "config.yaml", tmp_path / "preset.yaml", tmp_path / "out"
    debug = (ROOT / "pretrain/configs/debug.yaml").read_text()
    debug = debug.replace("lr_decay_style: linear", "lr_decay_iters: 3")  # the same schedule for 2 and 3 iterations
    preset.write_text(TABLE_PRESET.splitlines()[1])
    words = ("env", f"CONFIG={config}", f"PRESET={preset}", "bash", ROOT / "scripts/from_fasta_to_table.sh", tiny_fasta)
    words += (tiny_tape_data, out, "--tasks", "stability", "--arms", "pretrained", "--device", "cpu")
    first, second = (out / f"iteration_{iterations}" for iterations in (2, 3))
    config.write_text(debug.replace("train_iters: 50", "train_iters: 2"))
    run_command(*words)
    assert "stability" in (first / "table/table.md").read_text()
    weights, written = first / "model/model.safetensors", (first / "model/model.safetensors").stat().st_mtime_ns
    run_command(*words)
    assert weights.stat().st_mtime_ns == written and not second.exists()
    assert (out / "ckpt/latest_checkpointed_iteration.txt").read_text().strip() == "2"
    config.write_text(debug.replace("train_iters: 50", "train_iters: 3"))
    done = run_command(*words)
    assert f"done: {second}/table/table.html" in done.stdout
    assert "stability" in (second / "table/table.md").read_text()
    assert weights.stat().st_mtime_ns == written
    assert (second / "model/model.safetensors").read_bytes() != weights.read_bytes()


def test_every_script_is_run():
    """Here, in tests/test_download_data.py, or (those of several processes) in tests/seam/test_launchers.py."""
    names = {path.stem for path in SCRIPTS}
    launchers = {path.stem for path in SCRIPTS if path.name in (ROOT / "tests/seam/test_launchers.py").read_text()}
    assert launchers == {"pretrain_multinode", "pretrain_slurm", "pretrain_mpirun"}
    here = {"preprocess_pfam", "pretrain_single_gpu", "convert", "finetune", *(f"finetune_{task}" for task in TASKS)}
    here |= {"reproduce_table", "from_fasta_to_table", "download_data"}
    assert names == here | launchers
