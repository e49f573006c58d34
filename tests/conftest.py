"""What several test files share: running a command as a user would, and tiny inputs in the formats users bring.

The proteins here are random letters: enough to see that the stages fit together, never enough to judge a model.
"""

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before any library starts its threads. Two test processes of one thread each use two cores without the threads of one
# fighting those of the other, and a command that a test starts adds up in the same order as the test itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from tape_lmdb import labels, random_protein, write_lmdb
from warm_python import warm_python

from tape.runs import plugins

ROOT = Path(__file__).parent.parent
SPLITS = {
    "secondary_structure/secondary_structure": ("train", "valid", "casp12", "ts115", "cb513"),
    "proteinnet/proteinnet": ("train", "valid", "test"),
    "remote_homology/remote_homology": (
        "train",
        "valid",
        "test_fold_holdout",
        "test_superfamily_holdout",
        "test_family_holdout",
    ),
    "fluorescence/fluorescence": ("train", "valid", "test"),
    "stability/stability": ("train", "valid", "test"),
    "pfam/pfam": ("train", "valid", "holdout"),
}


@pytest.fixture(autouse=True, scope="session")
def nothing_in_the_home(tmp_path_factory):
    """Plugins that tests give are not remembered where the user's are."""
    plugins.GIVEN = tmp_path_factory.mktemp("home") / "plugins"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu-tests-on-cpu", action="store_true", help="run those that take the fixture `device` there")


@pytest.hookimpl(tryfirst=True)  # before those of `-m "not slow"` are left out, so that its order is the same
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that hold slow tests come first: at the end no process is left alone with one of them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Garbage collections then leave alone what was imported and collected, which a test makes no garbage of."""
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `gpu` is skipped where there is none."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    rehearsed = item.config.getoption("--gpu-tests-on-cpu") and "device" in item.fixturenames
    if not torch.cuda.is_available() and not rehearsed:
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> str:
    """Where a test marked `gpu` computes."""
    return "cpu" if pytestconfig.getoption("--gpu-tests-on-cpu") else "cuda"


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A `python` of the environment under test whose processes have imported PyTorch when they start."""
    with warm_python(tmp_path_factory.mktemp("bin")) as path:
        yield path


@pytest.fixture(scope="session")
def run_command(request: pytest.FixtureRequest) -> Callable[..., subprocess.CompletedProcess]:
    """Run a command the way a user does. `python` and the console commands are those of the environment under test.

    warm: `python`, for scripts too, is the fixture of that name.
    """

    def run(
        *words: object, check: bool = True, cwd: Path = ROOT, timeout: float = 300, warm: bool = False
    ) -> subprocess.CompletedProcess:
        folders = [Path(sys.executable).parent, os.environ["PATH"]]
        if warm:
            folders.insert(0, request.getfixturevalue("python").parent)
        environment = dict(os.environ, PATH=os.pathsep.join(map(str, folders)))
        command = [str(word) for word in words]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode != 0:
            pytest.fail(f"{' '.join(command)}\nstatus {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return done

    return run


@pytest.fixture(scope="session")
def tiny_fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 random proteins, wrapped at 60 residues."""
    rng = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("fasta") / "tiny.fasta"
    lines = []
    for number in range(200):
        protein = random_protein(rng)
        lines += [f">protein_{number}", *(protein[at : at + 60] for at in range(0, len(protein), 60))]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def tiny_tape_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TAPE data directory: every split of the five tasks and of pfam, 12 proteins each."""
    rng = np.random.default_rng(2)
    directory = tmp_path_factory.mktemp("tape_data")
    for place, splits in SPLITS.items():
        for split in splits:
            proteins = [random_protein(rng) for _ in range(12)]
            records = [
                {"primary": protein, "protein_length": len(protein), "id": str(number).encode()}
                | labels(place.split("/")[0], len(protein), rng)
                for number, protein in enumerate(proteins)
            ]
            write_lmdb(directory / f"{place}_{split}.lmdb", records)
    return directory
