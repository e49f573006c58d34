"""Damage to text: JSON, YAML, tables, FASTA and other lines, Python's code. Each returns what was done."""

import ast
import csv
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from fuzz.trees import TWICE, Raw, damage, name_of

RAW = "@raw@"
YAML_SCALARS = (
    *(
        "2001-99-99",
        "2001-13-01T00:00:00Z",
        "!!float x",
        "!!int ''",
        "!!timestamp x",
        "!!binary '='",
        "!!set [1]",
        "*x",
    ),
    *("!!python/object/apply:os.system [touch RAN]", "!!python/name:os.system", "!x y", "? [a]", "{<<: 1}", "&a [*a]"),
    *(
        "'a\\0b'",
        '"\\x00"',
        "\t- 1",
        "%YAML 9",
        "---\n...",
        "1_000",
        "0x1F",
        ".nan",
        "-.inf",
        "1:30",
        "~",
        "yes",
        "| x",
    ),
)


def write_tree(tree: Any, dump: Callable[[Any], str]) -> str:
    """dump(tree), its Raws as they are."""
    raws: list[Raw] = []

    def marked(value: Any) -> Any:
        if isinstance(value, Raw):
            raws.append(value)
            return f"{RAW}{len(raws) - 1}{RAW}"
        if isinstance(value, dict):
            return {k: marked(v) for k, v in value.items()}
        return [marked(v) for v in value] if isinstance(value, list) else value

    def unmarked(match: re.Match) -> str:
        raw = raws[int(match[1])]
        return "0" if raw.name == TWICE else raw.text

    text = re.sub(rf"[\"']?{RAW}(\d+){RAW}[\"']?", unmarked, dump(marked(tree)))
    return text.replace(f"{TWICE} ", "")


def json_file(rng: random.Random, path: Path) -> str:
    tree, what = damage(rng, json.loads(path.read_text()))
    text = write_tree(tree, lambda t: json.dumps(t, indent=rng.choice([None, 2])))
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return what


def json_lines(rng: random.Random, path: Path) -> str:
    lines = path.read_text().splitlines()
    at = rng.randrange(len(lines))
    if rng.random() < 0.6:
        tree, what = damage(rng, json.loads(lines[at]))
        lines[at] = write_tree(tree, json.dumps)
    else:
        what, lines[at] = rng.choice([("cut", lines[at][:-9]), ("\\xff", "\udcff" + lines[at]), ("two", lines[at] * 2)])
    path.write_bytes(("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))
    return f"line {at + 1} {what}"


def yaml_file(rng: random.Random, path: Path) -> str:
    tree = yaml.safe_load(path.read_text())
    if rng.random() < 0.4:
        scalar = rng.choice(YAML_SCALARS)
        places = [node for node in (tree, *tree.values()) if isinstance(node, dict) and node]
        node = rng.choice(places)
        key = rng.choice(list(node))
        node[key], what = Raw(scalar, scalar), f"{key}: {scalar!r}"
    else:
        tree, what = damage(rng, tree)
    path.write_bytes(write_tree(tree, lambda t: yaml.safe_dump(t, sort_keys=False)).encode("utf-8", "surrogatepass"))
    return what


WORDS = (
    *("", " ", "nan", "inf", "-1", "1e400", "9" * 400, "x", "é\u202e😀", "a\0b", '"', "'", "=1+1", "None", "\ufeff"),
    *("M" * 200_000, "a,b", "\t", ";", "MKT*", "mkt", "M K T", "123", "-", "\r", "\x1a"),
)


def table(rng: random.Random, path: Path) -> str:
    mark = "\t" if path.name.split(".")[1] == "tsv" else ","
    rows = list(csv.reader(io.StringIO(path.read_text()), delimiter=mark))
    row = rng.choice([0, rng.randrange(len(rows)), rng.randrange(len(rows))])
    column = rng.randrange(len(rows[row]))
    how = rng.choice(["cell"] * 6 + ["short", "long", "column", "label", "twice", "none", "blank", "mark", "shuffled"])
    what = f"{how} {row}:{column}"
    if how == "cell":
        rows[row][column] = rng.choice(WORDS)
        what += f" {name_of(rows[row][column])}"
    elif how == "short":
        del rows[row][column]
    elif how == "long":
        rows[row].append("x")
    elif how == "column":
        for one in rows:
            del one[column]
    elif how == "label":
        word = rng.choice(WORDS)
        for one in rows[1:]:
            one[column] = word
        what += f" {name_of(word)}"
    elif how == "twice":
        rows.insert(row, rows[row])
    elif how == "none":
        rows = rows[: rng.choice([0, 1, 2])]
    elif how == "blank":
        rows.insert(row, [])
    elif how == "shuffled":
        rng.shuffle(rows)
    out = io.StringIO()
    csv.writer(out, delimiter=";" if how == "mark" else mark, lineterminator="\n").writerows(rows)
    path.write_bytes(encoded(rng, out.getvalue()))
    return what


def encoded(rng: random.Random, text: str) -> bytes:
    """UTF-8, now and then something else."""
    text = rng.choice([text] * 8 + [text.replace("\n", "\r\n"), text.replace("\n", "\r")])
    return text.encode(rng.choice(["utf-8"] * 12 + ["utf-16", "utf-8-sig"]), "surrogatepass")


def lines_of(rng: random.Random, path: Path) -> str:
    """FASTA, A3M, lists of tokens, plain text."""
    lines = path.read_text().splitlines()
    at = rng.randrange(len(lines))
    how = rng.choice(
        ["odd"] * 4
        + ["drop", "twice", "blank", "joined", "header", "no header", "fastq", "long", "end", "shuffled", "many"]
    )
    what = f"line {at + 1} {how}"
    if how == "odd":
        word = rng.choice(WORDS)
        place = rng.choice([0, 1, len(lines[at])])
        lines[at] = lines[at][:place] + word + lines[at][place:]
        what += f" {name_of(word)}"
    elif how == "drop":
        del lines[at]
    elif how in ("twice", "blank", "header"):
        lines.insert(at, {"twice": lines[at], "blank": "", "header": ">"}[how])
    elif how == "joined":
        lines[at : at + 2] = ["".join(lines[at : at + 2])]
    elif how == "no header":
        lines = [line for line in lines if not line.startswith(">")]
    elif how == "fastq":
        lines = [line.replace(">", "@") for line in lines] + ["+", "IIIIIIII"]
    elif how == "long":
        lines[at] += "A" * 3_000_000
    elif how == "end":
        lines = lines[: at + 1]
    elif how == "shuffled":
        rng.shuffle(lines)
    else:
        lines *= 50
    path.write_bytes(encoded(rng, "\n".join(lines) + rng.choice(["\n", "", "\n\n"])))
    return what


STATEMENTS = (
    *(
        "raise ValueError('x')",
        "raise KeyError",
        "raise SystemExit(0)",
        "import sys; sys.exit(3)",
        "1 / 0",
        "return None",
    ),
    *(
        "return {}",
        "return -1",
        "return 'x'",
        "return []",
        "return float('nan')",
        "return (1, 2)",
        "raise KeyboardInterrupt",
    ),
    *("import no_such_module", "return 2**70", "return ((), ())", "raise AssertionError", "return self", "print('x')"),
    *("return f(", "raise MemoryError", "return b'\\0'", "return [None] * 3"),
)


def python_file(rng: random.Random, path: Path) -> str:
    """A function of it does something else first, or a name of it is gone."""
    source = path.read_text()
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    if rng.random() < 0.2:
        place = rng.choice([node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)])
        node = rng.choice(place.body)
        what, place.body = f"{place.name} without {ast.unparse(node)[:30]!r}", [n for n in place.body if n is not node]
        place.body = place.body or [ast.Pass()]
        path.write_text(ast.unparse(tree))
        return what
    statement = rng.choice(STATEMENTS)
    if rng.random() < 0.15:
        path.write_text(f"{statement.replace('return', 'x =')}\n{source}")
        return f"first {statement!r}"
    function = rng.choice(functions)
    lines = source.splitlines()
    first = function.body[min(1, len(function.body) - 1) if ast.get_docstring(function) else 0]
    lines.insert(first.lineno - 1, " " * first.col_offset + statement)
    path.write_text("\n".join(lines) + "\n")
    return f"{function.name}: {statement!r}"
