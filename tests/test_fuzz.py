"""The fuzzer: every class of outcome is recognised, a case is a function of its numbers, and a short run is clean.

The toy commands below each do one thing that a command must not do (or must); a fuzzer that overlooked it would call
everything fine.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fuzz import defended, inputs, mutate, process, verdict
from fuzz import texts as texts_of
from fuzz.cases import damage, draw
from fuzz.process import Job, run_jobs
from fuzz.record import Record, merged, places_of_defects
from fuzz.surfaces import PROGRAMS, SURFACES, named_inputs, words_of

ROOT = Path(__file__).parent.parent
DAMAGE, LINE = "in.dat content cut", "toy in.dat out/x"


# ---- toy commands: what they do, and the class that it must get


def say(text: str, status: int = 2) -> int:
    print(text, file=sys.stderr)
    return status


def write(content: bytes = b"other", name: str = "out/x") -> int:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_bytes(content)
    return 0


def call(*steps) -> int:
    return [step() for step in steps][-1]


def spin() -> int:
    while True:
        pass


def in_a_session_of_its_own() -> int:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(50)"], start_new_session=True)
    return write(b"honest")


CLEAR = "error: in.dat: line 1: x; should be y"
TOYS = {
    "ok": [lambda: write(b"honest")],
    "clear": [
        lambda: say(CLEAR),
        lambda: say(f"notice: a\n{CLEAR}"),
        lambda: say("tape-train: error: --x in.dat: is none"),
    ],
    "silent": [
        lambda: write(b"other"),
        lambda: write(b"honest") + write(b'{"value": NaN}', "out/y.json"),
    ],
    "unclear": [
        lambda: say("error: something"),
        lambda: say(f"{CLEAR}\n{CLEAR}"),
        lambda: say(f"x.py:3: UserWarning: y\n{CLEAR}"),
        lambda: say(CLEAR + "x" * 900),
        lambda: say(CLEAR, 1),
        lambda: say("", 2),
    ],
    "traceback": [lambda: {}["x"], lambda: say("Traceback (most recent call last):\nValueError: x", 0)],
    "hang": [spin, lambda: time.sleep(60)],
    "memory": [lambda: bytearray(8 << 30), lambda: write(b"honest") * len(b"x" * 600_000_000)],
    "crash": [lambda: os.kill(os.getpid(), signal.SIGSEGV), os.abort],
    "leftover": [
        lambda: call(lambda: write(b"part"), lambda: say(CLEAR)),
        lambda: call(lambda: os.mkdir("out"), lambda: say(CLEAR)),
        lambda: call(lambda: write(b"honest"), lambda: write(b"x", "out/.x.tmp")),
        lambda: call(lambda: write(b"honest"), lambda: os.mkdir("out/empty") or 0),
        lambda: call(lambda: write(b"honest"), lambda: write(b"changed", "in.dat")),
        in_a_session_of_its_own,
    ],
    "foreign": [
        lambda: write(b"", process.MARKER),
        lambda: call(lambda: write(b"", process.MARKER), lambda: say(CLEAR)),
    ],
}


def seen(main, directory: Path, monkeypatch) -> verdict.Verdict:
    monkeypatch.setattr(process, "IDLE_S", 1.0)
    monkeypatch.setattr(process, "GRACE_S", 0.2)
    monkeypatch.setattr(verdict, "RESIDENT", 1 << 26)

    def prepare() -> list[str]:
        Path("in.dat").write_text("cut")
        return ["in.dat", "out/x"]

    honest = {"out/x": f"6 {process.zlib.crc32(b'honest')}", verdict.SAID: "notice: in.dat, always"}
    ((_, outcome),) = run_jobs([Job(0, directory, lambda words: main(), prepare, cpu=1.0)])
    return verdict.judge(outcome, "toy", LINE, DAMAGE, lambda: honest, directory / "work")


@pytest.fixture(scope="module", autouse=True)
def subreaper():
    process.adopt_orphans()


CASES = [pytest.param(kind, toy, id=f"{kind}{n}") for kind, toys in TOYS.items() for n, toy in enumerate(toys)]


@pytest.mark.parametrize(("kind", "toy"), CASES)
def test_every_class_is_recognised(kind, toy, tmp_path, monkeypatch):
    own = seen(toy, tmp_path / "case", monkeypatch)
    assert own.kind == kind, own


def test_all_classes_have_a_toy():
    assert set(TOYS) | {"defended"} == {*verdict.GOOD, *verdict.DEFECTS}


def test_what_is_defended_passes_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(defended, "PASSES", [defended.Rule("toy", "^toy in", "cut$", "because")])
    assert seen(TOYS["silent"][0], tmp_path / "a", monkeypatch).kind == "defended"
    assert seen(TOYS["silent"][1], tmp_path / "b", monkeypatch).kind == "silent", "NaN has no excuse"
    monkeypatch.setattr(defended, "PASSES", [defended.Rule("toy", "^toy in", "flip", "because")])
    assert seen(TOYS["silent"][0], tmp_path / "c", monkeypatch).kind == "silent"


def test_what_was_told_is_not_silent(tmp_path, monkeypatch):
    told, usual, other = "notice: in.dat, line 3 left out", "notice: in.dat, always", "notice: other.dat left out"
    for place, (text, kind) in enumerate(((told, "defended"), (usual, "silent"), (other, "silent"))):
        toy = partial(call, partial(say, text), partial(write, b"other"))
        assert seen(toy, tmp_path / str(place), monkeypatch).kind == kind, text


def test_a_count_of_no_numbers_may_name_the_checkpoint():
    damage = "ckpt/iter_0000002/rank_0/a.pt content weight: tensor float32 [8] not finite"
    for place, told in (("ckpt/iter_0000002", True), ("other/iter_0000002", False)):
        text = f"note: {place} (TP 2): 1 numbers of 1 tensors are NaN or infinity, first in weight"
        outcome = SimpleNamespace(stdout=text, stderr="")
        assert bool(verdict.excuse(outcome, damage, ["out/model"], {verdict.SAID: ""})) is told


def test_a_message_may_name_the_key():
    damage = "run.yaml content /model/hidden_size: -1"
    for text, problem in (("error: hidden-size -1: is below 1", ""), ("error: -1 is below 1", "names no file")):
        assert verdict.what_is_unclear([text], "pretrain --config run.yaml", damage, []) == problem


def test_the_launchers_report_is_not_the_commands():
    report = "Traceback (most recent call last):\n  File x\nChildFailedError: \nRoot Cause (first):\n  exitcode  : {}\n"
    log = "E1128 06:16:40.142000 1 torch/distributed/elastic] failed\n"
    told = process.Outcome(1, stderr="error: run.yaml: wrong\n" + log + report.format("2 (pid: 5)"))
    own = verdict.without_launcher(told, "torchrun -m pretrain")
    assert (own.status, own.stderr) == (2, "error: run.yaml: wrong")
    assert verdict.without_launcher(told, "tape-train x") == told
    raised = process.Outcome(1, stderr="Traceback (most recent call last):\nValueError: x\n" + log + report.format(1))
    own = verdict.without_launcher(raised, "torchrun -m pretrain")
    assert own.status == 1 and own.stderr.startswith("Traceback") and "ChildFailedError" not in own.stderr


def test_a_cause_has_no_numbers_of_its_case():
    first, second = (f"error: a/{n}.csv: line {n}: 'x{n}' is not one of {n}, {n + 1}" for n in (3, 17))
    assert verdict.shape(first) == verdict.shape(second)
    assert verdict.shape(first) != verdict.shape("error: a/3.csv: empty")
    frames = [f'  File "{ROOT}/tape/a.py", line 3, in f', f'  File "{ROOT}/tape/b.py", line 9, in g']
    frames += ['  File "/x/json/decoder.py", line 1, in decode', "ValueError: x"]
    assert verdict.frame_of("\n".join(["Traceback", *frames])) == "tape/b.py g"


# ---- cases


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """The inputs that need no model."""
    root = tmp_path_factory.mktemp("texts")
    for maker in (inputs._proteins, inputs._tables, inputs._settings, inputs._records):
        maker(root)
    np.save(root / "x.npy", np.arange(12.0).reshape(3, 4))
    np.savez(root / "x.npz", a=np.arange(3), b=np.ones(2))
    return root


def damaged(texts: Path, name: str, seed: int, directory: Path, monkeypatch) -> tuple[str, dict]:
    monkeypatch.chdir(directory)
    source, copy = texts / name, directory / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    for path in source.parent.iterdir() if "/" in name else [source]:
        (copy.parent / path.name).write_bytes(path.read_bytes())
    what = mutate.damage_one(random.Random(seed), copy, [texts / "proteins.fasta"])
    tree = process.tree_of(directory)
    return what, {path: "" if path.endswith("lock.mdb") else kind for path, kind in tree.items()}


NAMES = (
    "proteins.fasta",
    "proteins.fasta.gz",
    "proteins.jsonl",
    "table.csv",
    "run.yaml",
    "rates.json",
    "x.npy",
    "x.npz",
)
NAMES += ("adding_task.py", "data/stability/stability_train.lmdb/data.mdb")


@pytest.mark.parametrize("name", NAMES)
def test_damage_is_a_function_of_the_seed_and_damages(name, texts, tmp_path, monkeypatch):
    whats = set()
    monkeypatch.setattr(mutate, "feed", lambda path, content: os.mkfifo(path))
    for seed in range(12):
        one, other = tmp_path / f"a{seed}", tmp_path / f"b{seed}"
        one.mkdir(), other.mkdir()
        first, second = (damaged(texts, name, seed, folder, monkeypatch) for folder in (one, other))
        assert first == second
        whats.add(first[0])
    assert len(whats) > 8
    assert len({what.split()[0] for what in whats}) > 1, "more than one way"


def test_a_case_is_a_function_of_its_two_numbers():
    drawn = [draw(0, number) for number in range(300)]
    assert drawn == [draw(0, number) for number in range(300)]
    assert len({case.surface.name for case in drawn}) > 20
    assert [case.line for case in drawn] != [draw(1, number).line for number in range(300)]


def test_words_are_damaged_the_same_way_each_time():
    words = ["transformer", "x.csv", "--batch_size", "4"]
    both = [[mutate.damage_words(random.Random(n), words, ["--seed", "--lora"]) for n in range(60)] for _ in range(2)]
    assert both[0] == both[1]
    assert len({what for _, what in both[0]}) > 30 and all(what.startswith("flags ") for _, what in both[0])
    assert mutate.flags_of("  --data_dir D, --no-png  -h, --help  a--b") == ["--data_dir", "--no-png"]


def test_every_program_is_fuzzed_and_every_surface_says_what_is_damaged():
    lines = [line for surface in SURFACES for line in surface.commands]
    assert {words_of(line)[0] for line in lines} == set(PROGRAMS.values())
    assert all(surface.victims and surface.commands for surface in SURFACES)
    assert list(named_inputs(["--data-path", "s_text_document", "a=m/x"], ["m", "s_text_document.bin", "n"])) == [
        "m", "s_text_document.bin",
    ]  # fmt: skip


def test_raws_stand_in_the_text_as_they_are(tmp_path):
    tree = {"a": texts_of.Raw("9" * 5000, "digits"), "b": [1], "twice b": texts_of.Raw("twice b", "twice")}
    assert texts_of.write_tree(tree, json.dumps) == '{"a": ' + "9" * 5000 + ', "b": [1], "b": 0}'
    assert damage.__module__ == "fuzz.cases"


def test_records_of_several_runs_add_up():
    case, records = draw(3, 5), []
    for seed, kinds in ((3, ["ok", "silent", "defended"]), (4, ["defended"])):
        record = Record(seed, 5)
        for kind in kinds:
            record.add(case, process.Outcome(0), "what", verdict.Verdict(kind, f"why {kind}", ""))
        records.append(record.as_dict())
    both = merged([*records, Record(3, None).as_dict()])
    assert [sum(again["classes"].values()) for again in both["defects_again"]] == [0]
    assert places_of_defects(records[0]) == places_of_defects(both) == [(3, 5)]
    assert both["cases"] == 4 and both["seeds"] == {"3": 3, "4": 1} and both["defended"] == {"why defended": 2}
    assert {kind: n for kind, n in both["classes"].items() if n} == {"ok": 1, "silent": 1, "defended": 2}
    assert both["surfaces"] == {**both["surfaces"], case.surface.name: {"ok": 1, "silent": 1, "defended": 2}}
    assert [defect["cause"] for defect in both["defects"]] == ["why silent"] and both["defects"][0]["cases"] == ["3:5"]
    assert [(run["seed"], run["first"], run["cases"]) for run in both["runs"]] == [(3, 5, 3), (4, 5, 1)]


@pytest.mark.slow
def test_a_short_run_is_clean(tmp_path):
    environment = dict(os.environ, PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}", OMP_NUM_THREADS="1")
    words = [
        sys.executable,
        "-m",
        "fuzz",
        "--seed",
        "0",
        "--cases",
        "100",
        "--workers",
        "1",
        "--json",
        str(tmp_path / "r.json"),
    ]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["cases"] == 100 and record["classes"]["clear"] > 20, "most damage is refused in one line"
