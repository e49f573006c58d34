"""The structure of the packages, checked: who may import whom, how long a file may be, where pickles may be opened,
and that the tree in docs/house_tour.md is the tree on disk.

Every rule is a function from (path, source) to complaints, so that each is also shown to object when it is broken.
"""

import ast
import functools
import itertools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("proteinlm", "pretrain", "tape", "probe", "converter", "demo")
LONGEST = 400  # lines of a file
FULLEST = 14  # files at the top of a folder

# package -> the packages that it may import. No exceptions.
ARROWS = {
    "proteinlm": ("proteinlm",),
    "pretrain": ("pretrain", "proteinlm"),
    "tape": ("tape", "proteinlm"),
    "probe": ("probe", "tape", "proteinlm"),
    "converter": ("converter", "pretrain", "tape", "proteinlm"),
    "demo": ("demo", "converter", "pretrain", "tape", "proteinlm"),
}
# What a user starts. Nobody imports one but the demo, which plays the user; code that two need is in another module.
COMMANDS = {
    *("pretrain.__main__", "pretrain.preprocess", "pretrain.plan.__main__", "converter.__main__", "demo.run"),
    *(f"tape.{name}" for name in ("train", "evaluate", "embed", "predict", "table", "reproduce", "tune")),
    *("tape.train_distributed", "tape.main", "probe.__main__", "probe.models"),
    *(f"probe.{folder}.command" for folder in ("probes", "projection", "contacts", "variants")),
    *("probe.tables.__main__", "probe.tables.fluorescence"),
}
# tape.main is songlab's module of the commands as functions: it calls them, and nobody imports it.
CALLS_COMMANDS = {"tape/main.py", "demo/run.py"}
# The single-device maths knows nothing of files, flags or processes.
MATHS = ("proteinlm/network/", "proteinlm/loss.py")
MATHS_MAY_IMPORT = ("torch", "proteinlm.network", "proteinlm.loss")
UNTRUSTED = "proteinlm/untrusted/"
# How libraries open JSON, YAML, LMDBs, CSV, arrays, safetensors and gzip files.
READS_A_FORMAT = re.compile(
    r"(\bjson\.(loads?|JSONDecoder)|\byaml\.\w*([lL]oad|[lL]oad_all|Loader)|\blmdb\.open|\bcsv\.(reader|DictReader)"
    r"|\b(np|numpy)\.(load|loadtxt|genfromtxt)|\bh5py\.File|\bsafe_open|\bload_file|\b(parquet|pq|pd|pandas)\.read_\w+"
    r"|\bgzip\.(open|decompress|GzipFile)|\bzipfile\.ZipFile|\btomllib\.loads?)$"
)
OWN_BYTES = {
    ("tape/inference/parts.py", "json.loads"),  # what json.dumps has made a moment before, to compare in JSON's types
    ("demo/datasets.py", "lmdb.open"),  # to write one
    ("tape/inference/predictors.py", "zipfile.ZipFile"),  # to write one, an array at a time
}
# Who may read the environment: what starts a process, and (as torchrun wants it) what joins processes.
READS_ENVIRONMENT = {
    "pretrain/__main__.py",
    "pretrain/parallel/mesh.py",
    "proteinlm/errors.py",  # one of several processes speaks
    "demo/run.py",
    "tape/runs/processes.py",
    "proteinlm/model_dir/find.py",  # where the user keeps models that have names
}


def sources(*folders: str) -> Iterator[tuple[str, str]]:
    """(path from the root, source) of every Python file in `folders`."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def every_python_file() -> Iterator[tuple[str, str]]:
    yield "setup.py", (ROOT / "setup.py").read_text()
    yield from sources(*PACKAGES, "tests", "benchmarks", "scripts")


@functools.cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def imported_modules(path: str, source: str) -> set[str]:
    """Every module a file imports, at the top or inside a function. `from a import b` is a.b, for b may be a module."""
    modules = set()
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = Path(path).parent.parts
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            modules |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func) and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                modules.add(name.value)
    return modules


def within(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def wrong_arrows(path: str, source: str) -> list[str]:
    package = path.split("/")[0]
    imported = {name for name in imported_modules(path, source) if within(name, (*PACKAGES, "tests", "benchmarks"))}
    return [f"{path} imports {name}" for name in sorted(imported) if not within(name, ARROWS[package])]


def imports_a_command(path: str, source: str) -> list[str]:
    if path in CALLS_COMMANDS:
        return []
    own = path.removesuffix(".py").replace("/", ".")
    names = {name for name in imported_modules(path, source) if within(name, tuple(COMMANDS - {own}))}
    return [f"{path} imports {name}, a command" for name in sorted(names)]


def import_circles(files: Mapping[str, str]) -> list[str]:
    """The circles of imports among `files` (path -> source), those inside functions counted, one line each."""
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in files}

    def file_of(name: str) -> str | None:
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return modules.get(name)

    graph = {path: {file_of(name) for name in imported_modules(path, text)} for path, text in files.items()}
    sorter = TopologicalSorter({path: arrows - {None, path} for path, arrows in graph.items()})
    try:
        sorter.prepare()
    except CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def crowded_folders(paths: Iterable[str]) -> list[str]:
    """Folders with more Python files at their top than a reader takes in at a glance."""
    counts = Counter(str(Path(path).parent) for path in paths)
    return [f"{folder} has {count} files, more than {FULLEST}" for folder, count in counts.items() if count > FULLEST]


def more_than_maths(path: str, source: str) -> list[str]:
    if not path.startswith(MATHS):
        return []
    names = {name for name in imported_modules(path, source) if name.split(".")[0] not in sys.stdlib_module_names}
    return [f"{path} imports {name}" for name in sorted(names) if not within(name, MATHS_MAY_IMPORT)]


def too_long(path: str, source: str) -> list[str]:
    lines = source.count("\n")
    return [f"{path} has {lines} lines, more than {LONGEST}"] if lines > LONGEST else []


def without_docstring(path: str, source: str) -> list[str]:
    return [] if ast.get_docstring(parsed(source)) else [f"{path} does not say what it is"]


def opens_pickles(path: str, source: str) -> list[str]:
    """Files from elsewhere are opened by one package; here are the calls that would go round it."""
    if path.startswith(UNTRUSTED):
        return []
    wrong = []
    for node in ast.walk(parsed(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        flags = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if re.search(r"\b(pickle\.(loads?|Unpickler)|torch\.load|yaml\.(load|unsafe_load|full_load))$", name):
            wrong.append(f"{path}:{node.lineno} calls {name}")
        elif flags.get("allow_pickle") == "True":
            wrong.append(f"{path}:{node.lineno} calls {name} with allow_pickle")
    return wrong


def reads_files_itself(path: str, source: str) -> list[str]:
    """Each format has one guarded reader; here are the calls that would go round it."""
    if path.startswith(UNTRUSTED):
        return []
    names = {}
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Call) and not any(ast.unparse(value) == "'w'" for value in node.args):
            names[ast.unparse(node.func)] = node.lineno
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}": node.lineno for alias in node.names}
    calls = {name for name in names if READS_A_FORMAT.search(name) and (path, name) not in OWN_BYTES}
    return [f"{path}:{names[name]} calls {name}" for name in sorted(calls)]


def keeps_ambient_state(path: str, source: str) -> list[str]:
    return [f"{path}:{node.lineno} says global" for node in ast.walk(parsed(source)) if isinstance(node, ast.Global)]


def reads_environment(path: str, source: str) -> list[str]:
    if path in READS_ENVIRONMENT or not re.search(r"\bos\.(environ|getenv)\b", source):
        return []
    return [f"{path} reads the environment"]


RULES = [
    *(reads_environment, wrong_arrows, imports_a_command, more_than_maths),
    *(without_docstring, opens_pickles, reads_files_itself, keeps_ambient_state),
]


@pytest.mark.parametrize("rule", RULES)
def test_packages_keep_the_rules(rule: Callable[[str, str], list[str]]):
    assert list(itertools.chain.from_iterable(rule(*file) for file in sources(*PACKAGES))) == []


def test_no_import_runs_in_a_circle():
    assert import_circles(dict(sources(*PACKAGES))) == []


def test_no_folder_is_crowded():
    assert crowded_folders(path for path, _ in sources(*PACKAGES)) == []


@pytest.mark.parametrize("rule", [too_long, without_docstring])
def test_every_python_file_keeps_the_rules(rule: Callable[[str, str], list[str]]):
    assert list(itertools.chain.from_iterable(rule(*file) for file in every_python_file())) == []


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (wrong_arrows, "proteinlm/loss.py", "import pretrain"),
        (wrong_arrows, "proteinlm/loss.py", "def lazy():\n    from converter.names import TABLE"),
        (wrong_arrows, "pretrain/trainer.py", "from tape.metrics import IGNORE"),
        (wrong_arrows, "tape/registry.py", "from pretrain import checkpoint"),
        (wrong_arrows, "tape/tasks/stability.py", "from ...pretrain.config import read"),
        (wrong_arrows, "tape/registry.py", "import importlib\nimportlib.import_module('pretrain.trainer')"),
        (wrong_arrows, "converter/names.py", "import demo.run"),
        (wrong_arrows, "tape/metrics.py", "from probe.variants import score"),
        (wrong_arrows, "probe/variants/scoring.py", "import pretrain.trainer"),
        (imports_a_command, "tape/tune.py", "from tape.train import build_model"),
        (imports_a_command, "tape/runs/run_dir.py", "def lazy():\n    from tape import evaluate"),
        (more_than_maths, "proteinlm/network/model.py", "import numpy"),
        (too_long, "proteinlm/network/model.py", "\n" * 401),
        (without_docstring, "proteinlm/network/model.py", "import torch"),
        (opens_pickles, "tape/datasets.py", "import pickle\npickle.loads(b'')"),
        (opens_pickles, "tape/datasets.py", "torch.load(path, weights_only=True)"),
        (opens_pickles, "tape/datasets.py", "numpy.load(path, allow_pickle=True)"),
        (reads_files_itself, "tape/datasets.py", "import json\njson.loads(path.read_text())"),
        (reads_files_itself, "pretrain/trainer.py", "def late():\n    import json\n    return json.load(file)"),
        (reads_files_itself, "pretrain/trainer.py", "from csv import reader"),
        (reads_files_itself, "tape/recipes/__init__.py", "yaml.safe_load(text)"),
        (reads_files_itself, "pretrain/config/read.py", "loader = yaml.SafeLoader(text)"),
        (reads_files_itself, "proteinlm/sequences.py", "environment = lmdb.open(path, readonly=True)"),
        (reads_files_itself, "tape/own_data/data.py", "rows = list(csv.reader(file))"),
        (reads_files_itself, "probe/embeddings.py", "file = h5py.File(path)"),
        (reads_files_itself, "tape/scoring/files.py", "np.load(path)\npyarrow.parquet.read_table(path)"),
        (reads_files_itself, "proteinlm/model_dir/weights.py", "safetensors.safe_open(path, framework='pt')"),
        (reads_files_itself, "tape/inference/parts.py", "np.load(path)"),  # an exception is for one call
        (reads_environment, "tape/train.py", "import os\nhome = os.environ['HOME']"),
        (keeps_ambient_state, "proteinlm/loss.py", "def f():\n    global x\n    x = 1"),
    ],
)
def test_a_broken_rule_is_seen(rule, path, source):
    assert rule(path, source)


def test_who_writes_a_format_reads_none():
    writes = "h5py.File(path, 'w')\njson.dumps(value)\ncsv.writer(file)\nread_json(path)\nself.load(path)"
    assert reads_files_itself("tape/inference/files.py", writes) == []
    assert reads_files_itself("proteinlm/untrusted/json_files.py", "json.loads(text)") == []


def test_a_circle_is_seen_also_through_a_late_import():
    straight = {"tape/a.py": "from tape.b import x", "tape/b.py": "import torch", "tape/__init__.py": ""}
    assert import_circles(straight) == []
    assert import_circles(straight | {"tape/b.py": "def late():\n    from tape import a"}) != []


def test_a_crowded_folder_is_seen():
    files = [f"tape/file{n}.py" for n in range(FULLEST)]
    assert crowded_folders([*files, "tape/data/one_more.py"]) == []
    assert crowded_folders([*files, "tape/one_more.py"]) != []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("tape/models/base.py", "from proteinlm.network.model import ModelConfig\nimport proteinlm.errors"),
        ("tape/tasks/stability.py", "from ..models.heads import ValueHead\nfrom proteinlm import sequences"),
        ("converter/convert.py", "import pretrain.checkpoint.files\nimport tape.models.modeling_bert"),
        ("pretrain/trainer.py", "import tapestry"),
        ("probe/variants/ranking.py", "from tape.scoring.bootstrap import Scores\nimport proteinlm"),
    ],
)
def test_allowed_imports_pass(path, source):
    assert wrong_arrows(path, source) == []


def test_preprocessing_starts_without_torch():
    """A file of a few proteins should not wait seconds for a library that does nothing for it."""
    code = "import sys, pretrain.preprocess; print(sorted({'torch', 'tape', 'converter'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# The tree in docs/house_tour.md: one entry a line, two spaces deeper inside its folder: a name (or several, in
# braces), then a remark.


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


def documented_tree() -> set[str]:
    blocks = re.findall(r"```[a-z]*\n(.*?)```", (ROOT / "docs/house_tour.md").read_text(), re.DOTALL)
    trees = [block for block in blocks if "pretrain/ " in block and "  model.py" in block]
    assert len(trees) == 1, "the tour holds one tree"
    return tree_paths(trees[0])


def test_every_name_in_the_tree_exists():
    missing = [path for path in sorted(documented_tree()) if not (ROOT / path).exists()]
    assert missing == []


def test_every_file_is_in_the_documented_tree():
    """Each file of the packages, scripts, docs and benchmarks; `__init__.py` and figures go without saying."""
    named = documented_tree()
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


def test_the_top_folder_is_in_the_documented_tree():
    named = documented_tree()
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
        matches = sorted({match[0] for match in wrong.finditer(text)})
        if matches:
            complaints.append(f"{path.relative_to(ROOT)}: {', '.join(matches)}")
    assert complaints == []


def test_the_tree_is_read_as_it_is_written():
    tree = "pretrain/    stage one\n  data/\n    packing.py   rows\n  configs/\n    {debug,big}.yaml\nMakefile   make\n"
    files = {"pretrain/data/packing.py", "pretrain/configs/debug.yaml", "pretrain/configs/big.yaml", "Makefile"}
    assert tree_paths(tree) == {"pretrain/", "pretrain/data/", "pretrain/configs/"} | files
