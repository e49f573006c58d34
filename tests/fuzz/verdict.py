"""What came of a case, as one of the classes, and its cause: what many cases have in common.

    ok          nothing was damaged, or the outputs are those of the undamaged input, bit for bit
    clear       status 2 and one line that names the file, the flag or the key
    defended    it passed with other outputs, and fuzz.defended says why that is right
    silent      it passed, and nothing says why
    unclear     refused otherwise: another status, several lines, a line that names nothing, a line of a page
    traceback, hang, memory, crash
    leftover    a file, an empty directory or a process stayed behind, or an input was changed
    foreign     code out of an input was run

All but the first three are defects.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from fuzz import defended
from fuzz.process import MARKER, Outcome
from proteinlm.errors import LONGEST as LONGEST_MESSAGE

GOOD = ("ok", "clear", "defended")
DEFECTS = ("silent", "unclear", "traceback", "hang", "memory", "crash", "leftover", "foreign")
MESSAGE = re.compile(r"^(\S.{0,60}: )?error: ")
STRANGE = re.compile(r"^\s|Warning: |Error\b|warnings\.warn")  # beside the message: what a library prints, not a notice
LAUNCHER = re.compile(r"[EWI]\d{4} \d\d:\d\d:\d\d")  # a line of torchrun's log
LONGEST = LONGEST_MESSAGE + 20  # the name of a process before it
RESIDENT = 3 << 29  # bytes that no command needs beyond what it starts with
STEPS = re.compile(r"--(max_steps|num_train_epochs|epochs|train-iters|train-samples|resamples) \d{5}")
EXHAUSTED = re.compile(r"MemoryError|bad_alloc|can't allocate memory|Cannot allocate memory|Unable to allocate")
FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line \d+, in (?P<function>\S+)', re.MULTILINE)
ROOT = Path(__file__).parents[2]
# They hold seconds.
TIMED = re.compile(r"(^|/)(metrics\.jsonl|(args|meta|reproduce)\.json|log\.txt|trials/[^/]+\.txt)$")
SAID = "said"
TOLD = re.compile(r"notice|warning|left out|damaged", re.IGNORECASE)
TEMPORARY = re.compile(r"(^|/)\.[^/]*(tmp|part)|\.tmp($|/)|\.tmp\.")


Honest = Callable[[], dict[str, str]]  # path -> content; SAID -> what was printed


@dataclass(frozen=True)
class Verdict:
    """cause: the same for cases with one root; text: a line of this case."""

    kind: str
    cause: str
    text: str


def judge(outcome: Outcome, surface: str, line: str, damage: str, honest: Honest | None, out: Path) -> Verdict:
    """honest: what the undamaged input gives, where it is always the same; None: this is that input. out: the working
    directory."""
    outcome = without_launcher(outcome, line)
    if MARKER in outcome.after:
        return Verdict("foreign", f"{line.split()[0]} {damage}", "an input's code was run")
    errors = outcome.stderr.rstrip().splitlines()
    last = errors[-1] if errors else ""
    asked = damage.startswith("flags ") and STEPS.search(" ".join(outcome.words))
    asked = asked or re.match(
        r"wt\.fasta content line \d+ long|run\.yaml content (num_workers|/training/train_\w+): ", damage
    )
    if outcome.stopped == "CPU time" and asked and not outcome.strays:  # one that only waits hangs all the same
        return Verdict("ok", "a longer run, as was asked for", last)
    if outcome.stopped:
        where = frame_of(outcome.stderr)
        return Verdict("hang", f"{outcome.stopped} {line.split()[0]} {where} {shape(damage)}", last)
    if outcome.status is None:
        return Verdict("crash", f"signal {outcome.signal} {line.split()[0]} {shape(damage)}", last)
    if outcome.status == 3 and "could not be embedded (listed in " in outcome.stdout:  # as docs/formats.md says
        return Verdict("clear", "some proteins could not be embedded", last)
    if outcome.status == 130 and "KeyboardInterrupt" in damage:
        return Verdict("clear", shape(last), last)
    if "--debug" in outcome.words and outcome.status == 2 and MESSAGE.match(last):  # its traceback was asked for
        return Verdict("clear", shape(last), last)
    if "Traceback (most recent call last)" in outcome.stderr or outcome.status not in (0, 2):
        if EXHAUSTED.search(outcome.stderr) and damage.startswith("run.yaml content /model: "):
            return Verdict("defended", "the default model, which is larger than the memory there is", last)
        if EXHAUSTED.search(outcome.stderr):
            return Verdict("memory", frame_of(outcome.stderr), last)
        if "Traceback" in outcome.stderr:
            error = error_of(outcome.stderr)
            return Verdict("traceback", f"{error.split(':')[0]} {frame_of(outcome.stderr)}", error)
        return Verdict("unclear", f"status {outcome.status} {shape(last)}", last)
    if outcome.memory > RESIDENT:
        return Verdict("memory", f"large: {line.split()[0]} {shape(damage)}", last)
    if outcome.status == 2:
        problem = what_is_unclear(errors, line, damage, outcome.words)
        if problem:
            return Verdict("unclear", f"{problem}: {shape(last)}", last)
    left = [what for what in leftovers(outcome, line) if not defended.reason(defended.LEFT, surface, line, what)]
    if left:
        return Verdict("leftover", f"{line.split()[0]} {shape(left[0])}", f"{left[0]} | {last}")
    if outcome.status == 2:
        return Verdict("clear", shape(last), last)
    return passed(outcome, surface, line, damage, honest, out)


def without_launcher(outcome: Outcome, line: str) -> Outcome:
    """What the processes of torchrun said, and the status of the first that failed: its own report is PyTorch's."""
    if not line.startswith("torchrun ") or "ChildFailedError" not in outcome.stderr:
        return outcome
    own, _, report = outcome.stderr.rpartition("Traceback (most recent call last)")
    own = "\n".join(text for text in own.splitlines() if not LAUNCHER.match(text))
    code = re.search(r"Root Cause.*?exitcode\s*: (\d+)", report, re.DOTALL)
    return replace(outcome, stderr=own, status=int(code[1]) if code else 1)


def passed(outcome: Outcome, surface: str, line: str, damage: str, honest: Honest | None, out: Path) -> Verdict:
    if honest is None:
        return Verdict("ok", "undamaged", "")
    own, expected = outputs(outcome), honest()
    different = sorted(name for name, what in expected.items() if name != SAID and own.get(name) != what)
    odd = [name for name in own if name not in ("stdout",) and not_finite(out / name)]
    if odd:
        return Verdict("silent", f"{line.split()[0]} wrote NaN: {shape(damage)}", f"{odd[0]} holds what is no number")
    if not different:
        return Verdict("ok", "same outputs", "")
    why = "" if damage.startswith("flags ") else excuse(outcome, damage, different, expected)
    why = why or defended.reason(defended.PASSES, surface, line, damage)
    if why:
        return Verdict("defended", why, f"other {different[0]}")
    return Verdict("silent", f"{line.split()[0]}: {shape(damage)}", f"other {', '.join(different[:3])}")


def excuse(outcome: Outcome, damage: str, different: list[str], expected: dict[str, str]) -> str:
    """Why it may pass, as its outputs show: what is wrong was told, or it touches no result."""
    if all(Path(name).name in ("config.json", "conversion_report.txt") for name in different):
        return "a key that nothing reads is handed on, or recorded; the weights are the same"
    victim, usual = Path(damage.split(" ", 1)[0]), set(expected[SAID].splitlines())
    new = [text for text in said(outcome).splitlines() if text not in usual]
    if any(victim.name in text and TOLD.search(text) for text in new):
        return "told: a notice or a warning names the file"
    places = [shape(str(parent)) for parent in victim.parents[:-1]]  # a checkpoint of many files goes by its directory
    if any("NaN or infinity" in text and any(place in text for place in places) for text in new):
        return "told: a note counts the numbers that are none"
    return ""


def said(outcome: Outcome) -> str:
    """Everything printed, without numbers."""
    return "\n".join(map(shape, f"{outcome.stdout}\n{outcome.stderr}".splitlines()))


def outputs(outcome: Outcome) -> dict[str, str]:
    """What was written, or else printed: path -> content."""
    new = {name: what for name, what in outcome.after.items() if outcome.before.get(name) != what}
    files = {name: what for name, what in new.items() if not TIMED.search(name)}
    return files or {"stdout": outcome.stdout}


def what_is_unclear(errors: list[str], line: str, damage: str, words: list[str]) -> str:
    """Why the lines on stderr are not one clear message, or ""."""
    messages = [text for text in errors if MESSAGE.match(text)]
    if len(messages) != 1 or not errors or errors[-1] != messages[0]:
        return f"{len(messages)} messages"
    rest = [text for text in errors[:-1] if STRANGE.search(text)]
    if rest:
        return f"another line: {shape(rest[0])}"
    message = messages[0]
    if len(message) > LONGEST:
        return "long"
    if damage.startswith("flags "):
        return ""
    unknown = re.search(r"'(\w+)'(: unknown; there are | is unknown; should be )", message)
    if unknown and unknown[1] in words:  # what a plugin no longer registers, in the words of the command line
        return ""
    victim = Path(damage.split(" ", 1)[0])
    names = {victim.name, *(str(parent) for parent in victim.parents if str(parent) != ".")}
    names |= {victim.name.split(".")[0]} if "_document" in victim.name else set()
    names |= {Path(word).name for word in words if "." in word}  # of two that do not fit, either
    key = re.search(r" content (?:\S*/)?([A-Za-z_]\w+)[: ]", damage)  # a file's and a flag's values meet under one name
    names |= {key[1], key[1].replace("_", "-")} if key else set()
    return "" if any(name in message for name in names) else "names no file"


def leftovers(outcome: Outcome, line: str) -> list[str]:
    """What should not be there. A directory stands for itself only where it is empty; a result that the command has
    told of (tape-eval: of one split, before another fails) stays."""
    if outcome.strays:
        return [f"{outcome.strays} processes"]
    before, after, words = outcome.before, outcome.after, line.split()
    told = re.findall(r" -> (\S+)", outcome.stdout)
    new = sorted(name for name in after if name not in before and name not in told)
    empty = {name for name in new if after[name] == "d" and not any(other.startswith(f"{name}/") for other in after)}
    if outcome.status:
        found = [f"{'empty' if name in empty else 'new'} {name}" for name in new if name in empty or after[name] != "d"]
    else:
        found = [f"empty {name}" for name in sorted(empty)]
        found += [f"temporary {name}" for name in new if TEMPORARY.search(name)]
    changed = [name for name in before if after.get(name) != before[name] and not written_in_place(name, words)]
    return found + [f"changed {name}" for name in changed]


def written_in_place(name: str, words: list[str]) -> bool:
    """Whether the input is a directory that the command goes on with, or writes its results to."""
    first = name.split("/")[0]
    flags = {words[i - 1] for i, word in enumerate(words) if word.split("/")[0] == first}
    keeps = {"--output_dir", "--save", "--embeddings_dir", "--output"}
    return bool(flags & keeps) or first in ("table", "prottrans", "parts", "kept", "frozen") or words[0] == "tape-eval"


def not_finite(path: Path) -> bool:
    """Whether a file of results holds NaN or infinity."""
    try:
        if path.suffix == ".json":
            text = path.read_text()
            return bool(re.search(r"(?<![\"\w])(NaN|-?Infinity)\b", text)) and json.loads(text) is not None
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=True) as file:
                return not all(_finite(file[name]) for name in file.files)
        if path.suffix == ".h5":
            values: list = []
            with h5py.File(path) as file:
                file.visititems(lambda name, node: values.append(_finite(node[()])) if hasattr(node, "dtype") else None)
            return not all(values)
    except (OSError, ValueError, EOFError):
        return False
    return False


def _finite(value: object) -> bool:
    value = np.asarray(value)
    if value.dtype == object:
        return all(
            _finite(part) for one in value.reshape(-1) for part in (one.values() if isinstance(one, dict) else [1])
        )
    return value.dtype.kind != "f" or bool(np.isfinite(value).all())


# ---- causes


def error_of(stderr: str) -> str:
    """The line "ValueError: text" of the last traceback."""
    lines = re.findall(r"^[A-Za-z_][\w.]*(?::.*)?$", stderr, re.MULTILINE)
    return lines[-1] if lines else stderr.rstrip().splitlines()[-1]


def frame_of(stderr: str) -> str:
    """The innermost frame of ours in the last traceback: tape/train.py main."""
    own = [m for m in FRAME.finditer(stderr) if m["file"].startswith(str(ROOT)) and "/tests/" not in m["file"]]
    own = [m for m in own if ".venv" not in m["file"]]
    return f"{Path(own[-1]['file']).relative_to(ROOT)} {own[-1]['function']}" if own else "no frame of ours"


def shape(text: str) -> str:
    """A message without what differs from case to case: numbers, quoted words, long words, names of temporary files."""
    text = re.sub(r"/(tmp|dev/shm)/\S+", "...", text)
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", text)
    text = re.sub(r"-?\d[\d,.:e+-]*", "N", text)
    return re.sub(r"\S{50,}", "...", text)[:160]
