"""One environment for all the stages, declared four times (pyproject, requirements, two for conda), equal in all."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
# The packages that bear another name on conda-forge. Torch comes as one package for CUDA and one for CPUs.
CONDA_NAMES = {"pytorch-gpu": "torch", "pytorch-cpu": "torch", "python-lmdb": "lmdb", "matplotlib-base": "matplotlib"}


def parse(requirement: str) -> tuple[str, str]:
    """('numpy', '>=1.26') of 'numpy>=1.26', names in lower case."""
    match = re.fullmatch(r"([A-Za-z0-9_.-]+?)\s*([<>=!~].*)", requirement.strip())
    assert match, f"{requirement!r} names no version"
    return match[1].lower(), match[2].replace(" ", "")


def declared() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return dict(map(parse, project["dependencies"]))


def pip_requirements() -> dict[str, str]:
    lines = (ROOT / "conda_env/requirements.txt").read_text().splitlines()
    return dict(parse(line) for line in lines if line.strip() and not line.startswith("#"))


def conda_requirements(name: str) -> dict[str, str]:
    packages = yaml.safe_load((ROOT / "conda_env" / name).read_text())["dependencies"]
    versions = dict(parse(package) for package in packages if package != "pip")
    del versions["python"]
    return {CONDA_NAMES.get(package, package): version for package, version in versions.items()}


def test_requirements_are_those_of_the_package():
    assert pip_requirements() == declared()


@pytest.mark.parametrize("name", ["environment.yml", "environment-cpu.yml"])
def test_conda_environments_are_those_of_the_package(name):
    assert conda_requirements(name) == declared()


def test_conda_environments_differ_in_torch_alone():
    gpu, cpu = ((ROOT / "conda_env" / name).read_text() for name in ("environment.yml", "environment-cpu.yml"))
    different = [line for line in gpu.splitlines() if line not in cpu.splitlines() and not line.startswith("#")]
    assert different == ["  - pytorch-gpu>=2.11,<=2.13.0"]


def test_the_python_of_conda_is_one_the_package_takes():
    lowest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    packages = yaml.safe_load((ROOT / "conda_env/environment.yml").read_text())["dependencies"]
    assert any(package.startswith(f"python{lowest}") for package in packages)


def test_a_version_that_differs_is_seen():
    assert parse("numpy>=1.26") != parse("numpy >= 1.27")
    with pytest.raises(AssertionError, match="names no version"):
        parse("numpy")
