"""Damage to any file and to any command line: bytes, the file itself, flags. Each function returns what was done."""

import os
import random
import re
import shlex
import stat
from collections.abc import Callable
from pathlib import Path

from fuzz.formats import damage_content

FLAG_VALUES = (
    *(
        "-1",
        "0",
        "1",
        "2",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "1e-400",
        str(2**31),
        str(2**63),
        str(2**70),
        "9" * 5000,
        "0.5",
    ),
    *(
        "",
        " ",
        "x",
        "é\u202e😀",
        "None",
        "true",
        "-",
        "--",
        "[]",
        "{",
        "1,2",
        "0x10",
        "1_0",
        "٣",
        "\n",
        "a\nb",
        "%s",
        "~",
    ),
    *("\udcff", "missing", "missing/x", ".", "..", "n" * 300, "d/" * 200, "auto", "all"),
)


def flip(rng: random.Random, content: bytearray) -> tuple[bytes, str]:
    for _ in range(count := rng.choice([1, 1, 1, 5, 50])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content), f"{count} bits"


def overwrite(rng: random.Random, content: bytearray) -> tuple[bytes, str]:
    new = rng.choice([b"\0", b"\xff", b"\xff" * 8, b"\0" * 64, b"\x80\x04", b"\n", b"PK\3\4", rng.randbytes(16)])
    at = int(rng.random() * len(content))
    content[at : at + len(new)] = new
    return bytes(content), f"{len(new)} bytes over {_share(at, content)}"


def truncate(rng: random.Random, content: bytearray) -> tuple[bytes, str]:
    at = rng.choice([0, 1, 8, len(content) - 1, len(content) - 8, int(rng.random() * len(content))])
    at = max(0, min(at, len(content)))
    return bytes(content[:at]), f"at {_share(at, content)}"


def insert(rng: random.Random, content: bytearray) -> tuple[bytes, str]:
    new = rng.choice([b"\0", b"\xff\xfe", b"\n", b" ", b"\xef\xbb\xbf", rng.randbytes(7), b"A" * 5000, b"\0" * 4096])
    at = rng.choice([0, len(content), int(rng.random() * len(content))])
    return bytes(content[:at] + new + content[at:]), f"{len(new)} bytes at {_share(at, content)}"


def block(rng: random.Random, content: bytearray) -> tuple[bytes, str]:
    at, size = int(rng.random() * len(content)), rng.choice([1, 16, 512, 4096])
    piece = bytes(content[at : at + size])
    how = rng.choice(["zeroed", "doubled", "removed"])
    new = {"zeroed": b"\0" * len(piece), "doubled": piece * 2, "removed": b""}[how]
    return bytes(content[:at]) + new + bytes(content[at + size :]), f"{how} {len(piece)} at {_share(at, content)}"


def whole(rng: random.Random, content: bytearray) -> tuple[bytes, str]:
    how = rng.choice(["empty", "random", "zeros", "itself twice", "null", "a line"])
    new = {"empty": b"", "random": rng.randbytes(300), "zeros": bytes(4096), "itself twice": bytes(content * 2)}
    return (new | {"null": b"null", "a line": b"version https://git-lfs.github.com/spec/v1\n"})[how], how


def _share(at: int, content: bytearray) -> str:
    return f"{at / max(1, len(content)):.2f}"


BYTES: list[Callable[[random.Random, bytearray], tuple[bytes, str]]] = [flip, overwrite, truncate, insert, block, whole]


def damage_bytes(rng: random.Random, path: Path) -> str:
    change = rng.choice(BYTES)
    content = bytearray(path.read_bytes())
    if not content and change in (flip,):
        change = insert
    new, what = change(rng, content)
    path.write_bytes(new)
    return f"bytes {change.__name__} {what}"


def damage_file(rng: random.Random, path: Path, others: list[Path]) -> str:
    """The file is missing, another one, or no file at all."""
    content, how = (
        path.read_bytes(),
        rng.choice(["missing", "directory", "loop", "dangling", "fifo", "sparse", "other"]),
    )
    if how == "sparse":
        with path.open("r+b") as file:
            file.truncate(1 << 36)
        return "file sparse"
    other = rng.choice(others)
    if how == "other":
        path.write_bytes(other.read_bytes() if stat.S_ISREG(other.lstat().st_mode) else b"")
        return f"file other {other.name}"
    path.unlink()
    if how == "directory":
        path.mkdir()
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "dangling":
        path.symlink_to("nowhere")
    elif how == "fifo":
        feed(path, content)
    return f"file {how}"


def feed(path: Path, content: bytes) -> None:
    """A fifo, and a process that writes into it once, as `<(...)` is."""
    os.mkfifo(path)
    if os.fork() == 0:
        try:
            with path.open("wb") as file:
                file.write(content)
        finally:
            os._exit(0)


def damage_one(rng: random.Random, path: Path, others: list[Path]) -> str:
    """One of the three ways, what the file holds most of the time."""
    draw = rng.random()
    if draw < 0.12:
        return damage_file(rng, path, others)
    what = "" if draw > 0.75 else damage_content(rng, path)
    return (what and f"content {what}") or damage_bytes(rng, path)


# ---- the words of a command


def damage_words(rng: random.Random, words: list[str], flags: list[str]) -> tuple[list[str], str]:
    """flags: all that the command has."""
    words = list(words)
    at = rng.randrange(len(words))
    values = [i for i, word in enumerate(words) if i and words[i - 1].startswith("--") and not word.startswith("--")]
    how = rng.choice(
        ["add"] * 5 + ["value"] * 4 + ["positional"] * 2 + ["drop", "twice", "unknown", "misspelt", "swap"]
    )
    value = rng.choice(FLAG_VALUES)
    if how == "value" and values:
        at = rng.choice(values)
        words[at] = value
        return words, f"flags {words[at - 1]} {_short(value)}"
    if how == "add":
        flag = rng.choice(flags)
        words += [flag] if rng.random() < 0.15 else [flag, value]
        return words, f"flags {' '.join(map(_short, words[words.index(flag) :][-2:]))}"
    if how == "positional":
        words[at] = value
        return words, f"flags word {at} {_short(value)}"
    if how == "drop":
        return [word for i, word in enumerate(words) if i != at], f"flags without {_short(words[at])}"
    if how == "twice":
        return [*words, *words[at : at + 2]], f"flags twice {_short(words[at])}"
    if how == "swap":
        other = rng.randrange(len(words))
        words[at], words[other] = words[other], words[at]
        return words, f"flags swapped {_short(words[at])} {_short(words[other])}"
    flag = rng.choice(flags)
    new = "--" + rng.choice(["no-such-flag", flag[2:-1], flag[2:] + "s", flag[2:].upper(), flag[1:], flag[2:] + "=x"])
    return [*words, new], f"flags {new}"


def _short(word: str) -> str:
    word = ascii(word)[1:-1] if not word.isascii() or not word.isprintable() else word
    return shlex.quote(word if len(word) < 40 else f"{word[:12]}...{len(word)}")


def flags_of(text: str) -> list[str]:
    """Flags in a --help text."""
    return sorted(set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", text)) - {"--help"})
