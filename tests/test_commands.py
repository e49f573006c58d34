"""What a command can refuse it refuses at once: before torch, or another library that takes seconds, is imported.

All commands are called in one child process, which has imported nothing yet: with --help, with a wrong flag, and with
files that are not there.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from test_architecture import COMMANDS, ROOT

from converter.__main__ import DTYPES, FORMATS, PARALLEL, WITH_TORCH_FILE
from tape.runs.names import FOLDERS, MODEL_TYPES

HEAVY = ("torch", "transformers", "sklearn", "scipy", "matplotlib", "pandas", "peft", "h5py", "pyarrow")
TRIAL = "--data_dir absent/data --from_pretrained absent/model"
# Command -> words that name files which are not there.
ABSENT = {
    "tape.train": f"transformer stability {TRIAL} --output_dir run",
    "tape.train_distributed": f"transformer stability {TRIAL} --output_dir run",
    "tape.evaluate": "transformer stability absent/run --data_dir absent/data",
    "tape.embed": "transformer absent/in.fasta out.npz absent/model",
    "tape.predict": "absent/run absent/in.fasta out.tsv",
    "tape.table": "absent/run",
    "tape.reproduce": "absent/model absent/data out",
    "tape.tune": f"out --grid learning_rate 1e-3 -- transformer stability {TRIAL}",
    "pretrain.__main__": "--config absent/config.yaml --data-path absent/shard --save run",
    "pretrain.preprocess": "--input absent/in.fasta --output-prefix out",
    "pretrain.plan.__main__": "--config absent/config.yaml",
    "pretrain.curves": "absent/run",
    "converter.__main__": "--load absent/model --save out",
    "probe.probes.command": "absent/model absent/data.csv --target label",
    "probe.contacts.command": "absent/model absent/in.fasta out.npz",
    "probe.projection.command": "absent/model absent/data.csv",
    "probe.variants.command": "absent/model absent/in.fasta absent/mutants.csv",
    "probe.models": "absent",
    "probe.tables.__main__": "absent/results",
    "probe.tables.fluorescence": "absent/data out",
    "probe.__main__": "absent",
}
CHILD = """
import contextlib, importlib, io, json, sys
from functools import partial
from proteinlm import errors
cases, heavy = json.loads(sys.argv[1])
for name, words in cases:
    printed, status = io.StringIO(), 0
    sys.argv = [name, *words]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            module = importlib.import_module(name)
            status = getattr(module, "cli", partial(errors.run, getattr(module, "main", None)))()
        except SystemExit as end:
            status = end.code
    print(json.dumps([status or 0, printed.getvalue(), sorted(set(heavy) & set(sys.modules))]))
"""
Outcome = tuple[int, str, list[str]]  # exit status, what was printed, which of the heavy modules are imported


def call(cases: Sequence[tuple[str, Sequence[str]]], heavy: Sequence[str], where: Path) -> list[Outcome]:
    """Commands with their words, one after the other in one child process."""
    line = [sys.executable, "-c", CHILD, json.dumps([cases, heavy])]
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(where)}
    done = subprocess.run(line, cwd=where, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[tuple[str, str], Outcome]:
    """By command and what was wrong with its words."""
    cases = {(module, "help"): ["--help"] for module in ABSENT}
    cases |= {(module, "flag"): ["--wrong-flag", *words.split()] for module, words in ABSENT.items()}
    cases |= {(module, "absent"): words.split() for module, words in ABSENT.items()}
    where = tmp_path_factory.mktemp("commands")
    results = call([(module, words) for (module, _), words in cases.items()], HEAVY, where)
    assert list(where.iterdir()) == []  # nothing is left
    return dict(zip(cases, results, strict=True))


def test_every_command_is_tried():
    """tape.main is songlab's module of commands as functions, and the demo takes no files."""
    assert set(ABSENT) == COMMANDS - {"tape.main", "demo.run"} | {"pretrain.curves"}


@pytest.mark.parametrize("kind", ["help", "flag", "absent"])
@pytest.mark.parametrize("module", ABSENT)
def test_a_command_answers_before_anything_heavy_is_imported(outcomes, module, kind):
    status, printed, imported = outcomes[module, kind]
    assert imported == []
    lines = printed.strip().splitlines()
    assert status == (0 if kind == "help" else 2), printed
    if kind == "help":
        assert "usage:" in printed and ("--debug" in printed or module == "probe.__main__")
    else:
        assert len(lines) == 1 and ("absent" in lines[0] if kind == "absent" else "--wrong-flag" in lines[0]), printed


def test_what_is_imported_would_be_seen(tmp_path):
    ((_, _, imported),) = call([("pretrain.curves", ["--help"])], ["argparse", "torch"], tmp_path)
    assert imported == ["argparse"]


def test_names_of_flags_are_those_of_what_they_name():
    """What a parser says without torch, beside the tables of those who do the work."""
    from converter.sources import FORMATS as formats
    from probe import embeddings, names, variants
    from probe.probes import heads
    from proteinlm.model_dir import load
    from tape.models.zoo import MODELS
    from tape.tasks import MORE_TASKS, TASKS

    tasks = TASKS | MORE_TASKS
    assert tuple(MODELS) == MODEL_TYPES
    assert {name: getattr(task.dataset, "folder", None) for name, task in tasks.items()} == FOLDERS
    assert tuple(formats) == FORMATS and tuple(load.DTYPES) == DTYPES
    assert tuple(name for name, known in formats.items() if known.is_parallel) == PARALLEL
    assert tuple(name for name, known in formats.items() if known.has_torch_file) == WITH_TORCH_FILE
    assert tuple(embeddings.POOLINGS) == names.POOLINGS and names.SCORES == variants.METHODS
    assert tuple(dict.fromkeys((*heads.RESIDUE_HEADS, *heads.PROTEIN_HEADS))) == names.HEADS
