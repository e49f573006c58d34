"""The shape of the house, held by a test: who may import whom, how long a file may be, where pickles may be opened,
and that the tree in the README is the tree on disk.

Every rule is a function from (path, source) to complaints, so that each is also shown to object when it is broken.
"""

import ast
import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pretrain", "converter", "tape", "demo")
LONGEST = 400

# package -> the prefixes of this project's modules that it may import. pretrain <- tape <- converter <- demo.
FOUNDATION = ("pretrain.errors", "pretrain.files")
ARROWS = {
    "pretrain": ("pretrain",),
    "tape": (
        "tape",
        *FOUNDATION,
        *(f"pretrain.{name}" for name in ("model", "attention", "tokenizer", "safe_load", "optim", "metrics")),
        *(f"pretrain.data.{name}" for name in ("sequences", "packing", "masking")),
    ),
    "converter": ("converter", "pretrain", "tape"),
    "demo": ("demo", "converter", "pretrain", "tape"),
}
# The single-device maths knows nothing of files, flags or processes.
MATHS = {"pretrain/model.py", "pretrain/attention.py", "pretrain/loss.py"}
MATHS_MAY_IMPORT = ("torch", "pretrain.model", "pretrain.attention", "pretrain.loss")
PICKLES = "pretrain/safe_load.py"
# Who may read the environment: what starts a process, and (as torchrun wants it) what joins processes.
READS_ENVIRONMENT = {
    "pretrain/__main__.py",
    "pretrain/parallel/mesh.py",
    "demo/run.py",
    "tape/distributed.py",
    "tape/model_names.py",  # where the user keeps models that have names
}


def sources(*folders: str) -> Iterator[tuple[str, str]]:
    """(path from the root, source) of every Python file in `folders`."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def every_python_file() -> Iterator[tuple[str, str]]:
    yield "setup.py", (ROOT / "setup.py").read_text()
    yield from sources(*PACKAGES, "tests", "benchmarks", "scripts")


def imported_modules(path: str, source: str) -> set[str]:
    """Every module a file imports, at the top or inside a function. `from a import b` is a.b, for b may be a module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = Path(path).parent.parts
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func) and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                found.add(name.value)
    return found


def within(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def wrong_arrows(path: str, source: str) -> list[str]:
    package = path.split("/")[0]
    ours = {name for name in imported_modules(path, source) if within(name, (*PACKAGES, "tests", "benchmarks"))}
    return [f"{path} imports {name}" for name in sorted(ours) if not within(name, ARROWS[package])]


def more_than_maths(path: str, source: str) -> list[str]:
    if path not in MATHS:
        return []
    names = {name for name in imported_modules(path, source) if name.split(".")[0] not in sys.stdlib_module_names}
    return [f"{path} imports {name}" for name in sorted(names) if not within(name, MATHS_MAY_IMPORT)]


def too_long(path: str, source: str) -> list[str]:
    lines = source.count("\n")
    return [f"{path} has {lines} lines, more than {LONGEST}"] if lines > LONGEST else []


def without_docstring(path: str, source: str) -> list[str]:
    return [] if ast.get_docstring(ast.parse(source)) else [f"{path} does not say what it is"]


def opens_pickles(path: str, source: str) -> list[str]:
    """Files from elsewhere are opened by one module; here are the calls that would go round it."""
    if path == PICKLES:
        return []
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        flags = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if re.search(r"\b(pickle\.(loads?|Unpickler)|torch\.load|yaml\.(load|unsafe_load|full_load))$", name):
            wrong.append(f"{path}:{node.lineno} calls {name}")
        elif flags.get("allow_pickle") == "True":
            wrong.append(f"{path}:{node.lineno} calls {name} with allow_pickle")
    return wrong


def keeps_ambient_state(path: str, source: str) -> list[str]:
    return [f"{path}:{node.lineno} says global" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Global)]


def reads_environment(path: str, source: str) -> list[str]:
    if path in READS_ENVIRONMENT or not re.search(r"\bos\.(environ|getenv)\b", source):
        return []
    return [f"{path} reads the environment"]


RULES = [reads_environment, wrong_arrows, more_than_maths, without_docstring, opens_pickles, keeps_ambient_state]


@pytest.mark.parametrize("rule", RULES)
def test_packages_keep_the_rules(rule: Callable[[str, str], list[str]]):
    assert list(itertools.chain.from_iterable(rule(*file) for file in sources(*PACKAGES))) == []


@pytest.mark.parametrize("rule", [too_long, without_docstring])
def test_every_python_file_keeps_the_rules(rule: Callable[[str, str], list[str]]):
    assert list(itertools.chain.from_iterable(rule(*file) for file in every_python_file())) == []


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (wrong_arrows, "pretrain/loss.py", "import tape"),
        (wrong_arrows, "pretrain/loss.py", "def lazy():\n    from converter.names import TABLE"),
        (wrong_arrows, "tape/heads.py", "from pretrain import checkpoint"),
        (wrong_arrows, "tape/tasks/stability.py", "from ...pretrain.config import Config"),
        (wrong_arrows, "tape/heads.py", "import importlib\nimportlib.import_module('pretrain.trainer')"),
        (wrong_arrows, "tape/heads.py", "from pretrain.data.loader import Batch"),
        (wrong_arrows, "converter/names.py", "import demo.run"),
        (more_than_maths, "pretrain/model.py", "import numpy"),
        (too_long, "pretrain/model.py", "\n" * 401),
        (without_docstring, "pretrain/model.py", "import torch"),
        (opens_pickles, "tape/datasets.py", "import pickle\npickle.loads(b'')"),
        (opens_pickles, "tape/datasets.py", "torch.load(path, weights_only=True)"),
        (opens_pickles, "tape/datasets.py", "numpy.load(path, allow_pickle=True)"),
        (reads_environment, "tape/train.py", "import os\nhome = os.environ['HOME']"),
        (keeps_ambient_state, "pretrain/loss.py", "def f():\n    global x\n    x = 1"),
    ],
)
def test_a_broken_rule_is_seen(rule, path, source):
    assert rule(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("tape/model.py", "from pretrain.model import ModelConfig\nfrom pretrain.errors import InputError"),
        ("tape/tasks/stability.py", "from ..heads import ValueHead\nfrom pretrain.data import sequences"),
        ("converter/convert.py", "import pretrain.checkpoint\nimport tape.pretrained"),
        ("pretrain/loss.py", "import tapestry"),
    ],
)
def test_the_arrows_of_the_house_are_open(path, source):
    assert wrong_arrows(path, source) == []


def test_preprocessing_starts_without_torch():
    """A file of a few proteins should not wait seconds for a library that does nothing for it."""
    code = "import sys, pretrain.preprocess; print(sorted({'torch', 'tape', 'converter'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# The tree in the README: one entry a line, two spaces deeper inside its folder; a name (or several, in braces), remark.


def expand(name: str) -> list[str]:
    """['a_x.sh', 'a_y.sh'] of 'a_{x,y}.sh', as the shell does."""
    match = re.fullmatch(r"(.*)\{(.+)\}(.*)", name)
    return [match[1] + middle + match[3] for middle in match[2].split(",")] if match else [name]


def tree_paths(text: str) -> set[str]:
    """The paths named in a tree; folders end in '/'."""
    paths, folders = set(), []
    for line in filter(str.strip, text.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        names = ["".join(folders[:depth]) + one for one in expand(name)]
        paths.update(names)
        if name.endswith("/"):
            folders = [*folders[:depth], name]
    return paths


def readme_tree() -> set[str]:
    blocks = re.findall(r"```[a-z]*\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    trees = [block for block in blocks if "pretrain/ " in block and "  model.py" in block]
    assert len(trees) == 1, "the README holds one tree"
    return tree_paths(trees[0])


def test_every_name_in_the_readme_tree_exists():
    missing = [path for path in sorted(readme_tree()) if not (ROOT / path).exists()]
    assert missing == []


def test_every_file_of_the_house_is_in_the_readme_tree():
    """Each file of the packages, scripts, docs and benchmarks; `__init__.py` and figures go without saying."""
    named = readme_tree()
    folders = (*PACKAGES, "scripts", "docs", "conda_env")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    files += [path for path in (ROOT / "benchmarks").iterdir() if path.suffix in {".py", ".sh"}]
    names = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    unnamed = {name for name in names if not name.endswith(("__init__.py", ".svg", ".png"))} - named
    assert sorted(unnamed) == []


def tracked_files() -> list[Path]:
    """What git tracks or would (a downloaded archive has no git: then every Python, shell and text file)."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]
    files = (path for folder in (*PACKAGES, "scripts", "docs", "tests") for path in (ROOT / folder).rglob("*"))
    return [path for path in files if path.suffix in {".py", ".sh", ".md", ".yaml"}]


def test_the_top_of_the_house_is_in_the_readme_tree():
    named = readme_tree()
    tops = {path.relative_to(ROOT).parts[0] for path in tracked_files()} - {".gitignore"}
    assert sorted(top for top in tops if top not in named and f"{top}/" not in named) == []


def test_nothing_depends_on_one_machine_or_waits_to_be_done():
    """No path of the folder this checkout lies in or of someone's home, no package index, nothing left undone."""
    here = re.escape(f"{ROOT.parent}/") if len(ROOT.parent.parts) > 1 else "(?!)"
    wrong = re.compile(
        rf"{here}|/(?:home|Users)/[a-z]|\b(?:TO[D]O|FIX[M]E)\b|py[p]i\.|python[h]osted|--(?:extra-)?index-url"
    )
    complaints = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found = sorted({match[0] for match in wrong.finditer(text)})
        if found:
            complaints.append(f"{path.relative_to(ROOT)}: {', '.join(found)}")
    assert complaints == []


def test_the_readme_tree_is_read_as_it_is_written():
    tree = "pretrain/    stage one\n  data/\n    packing.py   rows\n  configs/\n    {debug,big}.yaml\nMakefile   make\n"
    files = {"pretrain/data/packing.py", "pretrain/configs/debug.yaml", "pretrain/configs/big.yaml", "Makefile"}
    assert tree_paths(tree) == {"pretrain/", "pretrain/data/", "pretrain/configs/"} | files
