"""What the tests of the converter share: the command, and a Megatron checkpoint to convert."""

from pathlib import Path

import pytest
from megatron_writer import random_weights, write_megatron

from converter import __main__ as convert
from proteinlm.errors import run


@pytest.fixture
def convert_to(tmp_path, capsys):
    """Run the command; returns (the directory written, what it printed)."""

    def run_it(source: Path, name: str, *flags: object, status: int = 0) -> tuple[Path, str]:
        target = tmp_path / name
        words = ["--load", source, "--save", target, *flags]
        assert run(convert.main, [str(word) for word in words]) == status
        printed = capsys.readouterr()
        assert target.exists() == (status == 0)
        return target, printed.out + printed.err

    return run_it


@pytest.fixture(scope="module")
def megatron_dir(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("megatron")
    write_megatron(directory, random_weights(), 2, 2, args={"make_vocab_size_divisible_by": 128})
    return directory
