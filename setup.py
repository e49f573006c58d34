"""What pyproject.toml cannot say: models/, which lies at the top of the repository, is installed inside proteinlm."""

from setuptools import find_namespace_packages, setup

PACKAGES = ("proteinlm*", "pretrain*", "converter*", "tape*", "probe*")

setup(
    packages=[*find_namespace_packages(include=PACKAGES), "proteinlm._models"],
    package_dir={"proteinlm._models": "models"},
)
