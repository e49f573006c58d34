"""Starts that fail leave nothing, go well once the mistake is mended, and never share an output with another run."""

import contextlib
import fcntl
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tape_lmdb import write_lmdb
from toy_model import write_model

from pretrain.data.indexed import IndexedWriter
from pretrain.trainer import Trainer
from proteinlm import errors
from proteinlm.running import launch, locks
from proteinlm.tokenizer import build_tokenizer
from tape.runs import jobs

ROOT = Path(__file__).parent.parent.parent
PROTEIN = "MKTAYIAKQRQISFVKSHFSRQ"
TINY = "--num-layers 1 --hidden-size 16 --num-attention-heads 2 --seq-length 24 --max-position-embeddings 24"
TINY += " --micro-batch-size 1 --global-batch-size 2 --split 100,0,0 --lr 1e-3 --device cpu --num-workers 0"
TRAIN = "transformer stability --batch_size 2 --max_steps 4 --device cpu --model_config_file {0}/m/config.json"


def write_shard(prefix: Path, bad: int | None = None) -> None:
    ids = np.tile(build_tokenizer().encode(PROTEIN), 2000)
    if bad is not None:
        ids[-1] = bad  # in the last of 2,000 rows
    with IndexedWriter(prefix) as writer:
        writer.add(ids, np.full(2000, len(PROTEIN)))


def write_stability(root: Path, bad: bool = False) -> None:
    rng = np.random.default_rng(0)
    letters = list("ACDEFGHIKLMNPQRSTVWY")
    records = [
        {"primary": "".join(rng.choice(letters, 20)), "stability_score": [float(i)], "id": str(i)} for i in range(12)
    ]
    if bad:
        records[11]["stability_score"] = ["unknown"]
    for split in ("train", "valid"):
        write_lmdb(root / f"stability/stability_{split}.lmdb", records)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Inputs, good and bad; nothing is written here."""
    root = tmp_path_factory.mktemp("inputs")
    write_model(root / "m")
    write_shard(root / "good")
    write_shard(root / "bad", 200)
    write_stability(root / "tape")
    write_stability(root / "bad_tape", bad=True)
    (root / "broken").mkdir()
    (root / "broken/config.json").write_text("{}")
    (root / "x.fasta").write_text(f">a\n{PROTEIN}\n>b\n{PROTEIN[:9]}J\n")
    (root / "long.fasta").write_text(f">a\n{PROTEIN}\n>b\n{PROTEIN * 9}\n")
    rows = [f"P{i},{PROTEIN[i % 9 :]}{'KR'[i % 2] * (i % 7)},{'ab'[i % 2]}" for i in range(40)]
    (root / "t.csv").write_text("\n".join(["id,sequence,location", *rows]) + "\n")
    (root / "long.csv").write_text("\n".join(["id,sequence,location", *rows, f"L,{PROTEIN * 9},a"]) + "\n")
    (root / "mutants.csv").write_text("mutant\nK2A\nT3A\n")
    (root / "huge.yaml").write_text("ffn_hidden_size: 2147483648\n")
    (root / "wild.fasta").write_text(f">w\n{PROTEIN}\n")
    return root


@pytest.fixture
def call(data, tmp_path, monkeypatch, capfd) -> Callable[..., tuple[int, str]]:
    """Run a command line in this process and an empty directory; returns its exit status and its stderr."""
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> tuple[int, str]:
        name, *words = line.format(data).split()
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [name, *words])
        capfd.readouterr()
        try:
            status = module.cli() if hasattr(module, "cli") else errors.run(module.main)
        except SystemExit as stopped:
            status = stopped.code
        return status or 0, capfd.readouterr().err

    return run


SENTENCEPIECE = "pretrain.preprocess --strict --train-tokenizer --tokenizer-type SentencePiece --vocab-size 32"
SENTENCEPIECE += " --vocab-file out/v/x.model"
FAILED = {
    "missing shard": (f"pretrain.__main__ {TINY} --train-iters 3 --data-path {{0}}/no --save out/s", "no.idx"),
    "an id": (f"pretrain.__main__ {TINY} --train-iters 3 --data-path {{0}}/bad --save out/s --tensorboard-dir out/t",
              "bad: protein 1999: token id 200"),
    "a letter": ("pretrain.preprocess --strict --input {0}/x.fasta --output-prefix out/p/x", "letter 'J'"),
    "a page": ("pretrain.curves {0}/m --output out/c.html --png out/c.png", "no such file"),
    "a plan": (f"pretrain.plan.__main__ {TINY} --json out/p.json --html {{0}}", "a directory; the output is a file"),
    "a size": (f"pretrain.plan.__main__ {TINY} --config {{0}}/huge.yaml --train-iters 1 --gpu H100 --gpus-per-node 1",
               "huge.yaml: no layout fits 80 GB a GPU"),
    "a source": ("converter.__main__ --load {0}/broken --save out/c/d", "vocab_size"),
    "data that is not there": (f"tape.train {TRAIN} --data_dir {{0}}/no --output_dir out/r --log_dir out/l", "no such"),
    "a record": (f"tape.train {TRAIN} --data_dir {{0}}/bad_tape --output_dir out/r", "record 11: stability_score"),
    "a model": (f"tape.train {TRAIN} --data_dir {{0}}/tape --output_dir out --from_pretrained {{0}}/broken", "broken"),
    "a protein": ("tape.embed transformer {0}/long.fasta out/e/x.npz {0}/m --device cpu", "1 of 2 proteins exceed 62"),
    "a run": ("tape.predict {0}/m {0}/x.fasta out/e/x.tsv --task stability --device cpu", "no weights of a task head"),
    "a result": ("tape.table {0}/no --markdown --output out/t.md", "no such file"),
    "a row": ("probe.__main__ probe {0}/m {0}/long.csv --target location --output out/p --device cpu", "(L)"),
    "a fraction": ("probe.__main__ probe {0}/m {0}/t.csv --output out/p --device cpu --holdout 0.7", "--holdout 0.7"),
    "points": ("probe.__main__ project {0}/m {0}/long.csv --column location --output out/p --device cpu", "residues"),
    "a regression": ("probe.__main__ contacts {0}/m {0}/x.fasta out/c.npz --device cpu", "no contact regression"),
    "mutants": ("probe.__main__ variants {0}/m {0}/wild.fasta {0}/t.csv --output out/v.csv --device cpu", "t.csv"),
    "a trained letter": (f"{SENTENCEPIECE} --input {{0}}/x.fasta --output-prefix out/p/x", "letter 'J'"),
    "steps": ("probe.tables.__main__ out/no", "no results"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "message"), FAILED.values(), ids=FAILED)
def test_a_start_that_fails_leaves_nothing(call, tmp_path, line, message):
    status, stderr = call(line)
    assert status == 2 and message in stderr.splitlines()[-1] and stderr.count("error: ") == 1, stderr
    assert list(tmp_path.iterdir()) == []


OVER_INPUTS = {
    "a plan": (f"pretrain.plan.__main__ {TINY} --calibration own.json --json own.json", "own.json: is the input"),
    "a page": ("pretrain.curves own --output own/metrics.jsonl", "own/metrics.jsonl: is the input"),
    "a map": ("probe.__main__ project {0}/m own.csv --column location --output own --device cpu", "own.csv: is the in"),
    "a result": ("tape.table own.json --output own.json", "own.json: a table is text"),
    "a file": ("tape.train transformer stability --data_dir {0}/tape --output_dir own.csv", "own.csv: a file; should"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "message"), OVER_INPUTS.values(), ids=OVER_INPUTS)
def test_an_output_does_not_replace_an_input(call, data, tmp_path, line, message):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/metrics.jsonl").write_text('{"consumed_tokens": 9, "consumed_proteins": 1, "seconds": 1.0}\n')
    (tmp_path / "own.csv").write_bytes((data / "t.csv").read_bytes())
    (tmp_path / "own.json").write_text("{}")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    status, stderr = call(line)
    assert status == 2 and message in stderr.splitlines()[-1], stderr
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


STARTS_OTHERS = {
    "tune": (f"tape.tune out/t --grid learning_rate 1e-3 1e-4 -- {TRAIN} --data_dir {{0}}/no", "no such"),
    "reproduce": ("tape.reproduce {0}/m {0}/bad_tape out --tasks stability --arms pretrained --seeds 0 --device cpu",
                  "none of the 1 runs could be done"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "message"), STARTS_OTHERS.values(), ids=STARTS_OTHERS)
def test_so_does_one_that_starts_others(call, tmp_path, monkeypatch, line, message):
    def here(command, output):
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            return errors.run(importlib.import_module(command[2]).main, command[3:])

    monkeypatch.setattr(jobs, "_status", here)
    status, stderr = call(line)
    assert status == 2 and message in stderr
    assert list(tmp_path.iterdir()) == []


# ---- the same line, once the mistake is mended


def test_pretraining_starts_once_its_shard_is_mended(call, tmp_path):
    line = f"pretrain.__main__ {TINY} --train-iters 2 --data-path {tmp_path}/own --save out"
    write_shard(tmp_path / "own", 200)
    assert call(line)[0] == 2
    write_shard(tmp_path / "own")
    assert call(line) == (0, "") and (tmp_path / "out/iter_0000002").is_dir()


def test_finetuning_starts_once_its_record_is_mended(call, tmp_path):
    line = f"tape.train {TRAIN} --data_dir {tmp_path}/own --output_dir out"
    write_stability(tmp_path / "own", bad=True)
    assert call(line)[0] == 2
    write_stability(tmp_path / "own")
    assert call(line)[0] == 0 and (tmp_path / "out/model.safetensors").is_file()


def test_preprocessing_starts_once_its_letter_is_mended(call, tmp_path):
    """The model that was trained before the letter was met is not in the way."""
    line = f"{SENTENCEPIECE} --input {tmp_path}/own.fasta --output-prefix out/x"
    proteins = "".join(f">{i}\n{PROTEIN[i % 9 :]}{'KRW'[i % 3]}\n" for i in range(40))
    (tmp_path / "own.fasta").write_text(proteins + ">late\nMKJ\n")
    assert call(line)[0] == 2
    (tmp_path / "own.fasta").write_text(proteins + ">late\nMKV\n")
    assert call(line)[0] == 0 and (tmp_path / "out/v/x.model").is_file()


def test_what_a_kill_after_the_last_save_left_goes(call, tmp_path):
    """Between the last checkpoint and the end of the run an older one is removed; started again, nothing is saved."""
    line = f"pretrain.__main__ {TINY} --train-iters 1 --data-path {{0}}/good --save out --load out"
    assert call(line) == (0, "")
    for name in (".iter_0000000.tmp", ".iter_0000001.replaced"):
        (tmp_path / "out" / name).mkdir()
        (tmp_path / "out" / name / ".metadata").touch()
    assert call(line) == (0, "")
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


# ---- Ctrl-C


@pytest.mark.parametrize("load", ["", " --load out"])
def test_pretraining_is_interrupted_between_two_steps(call, tmp_path, monkeypatch, load):
    """Saved at the step that ran; with --load the same line ends where an undisturbed run does."""
    step = Trainer.train_step

    def pressed(self, micro_batches):
        if self.counters.iteration == 2 and not self.resumed:
            signal.raise_signal(signal.SIGINT)
        return step(self, micro_batches)

    monkeypatch.setattr(Trainer, "train_step", pressed)
    before = signal.getsignal(signal.SIGINT)
    line = f"pretrain.__main__ {TINY} --train-iters 5 --data-path {{0}}/good --save out{load} --log-interval 1"
    command = "the same command goes on" if load else "--load out goes on"
    assert call(line) == (130, f"interrupted; iteration 3 is saved, {command}\n")
    assert signal.getsignal(signal.SIGINT) is before
    assert json.loads((tmp_path / "out/exit_reason.json").read_text()) == {"reason": "interrupted", "iteration": 3}
    if load:
        assert call(line) == (0, "") and (tmp_path / "out/iter_0000005").is_dir()


def test_a_second_press_is_not_waited_for(monkeypatch):
    from pretrain import shutdown

    with pytest.raises(KeyboardInterrupt), shutdown.stop_signals() as (_, interrupted):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # torchrun hands the first one on
        assert interrupted.is_set()
        monkeypatch.setattr(shutdown, "ONE_PRESS_SECONDS", -1.0)
        signal.raise_signal(signal.SIGINT)


# ---- several processes


def torchrun(tmp_path, *words: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "stderr").open("w") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", *words], env=environment, cwd=tmp_path, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=stderr,
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "status"),
    [("pretrain --nproc-per-node 2", 2), ("torch.distributed.run --standalone --nproc-per-node 2 -m pretrain", 1)],
)
def test_a_mistake_of_all_processes_is_told_once(data, tmp_path, start, status):
    """torchrun's own status and report stay where a user calls it."""
    line = f"{start} {TINY} --train-iters 3 --data-path {data}/bad --save {tmp_path}/out"
    assert torchrun(tmp_path, *line.split()).wait(300) == status
    lines = (tmp_path / "stderr").read_text().splitlines()
    assert sum("token id 200" in line for line in lines) == 1 and not (tmp_path / "out").exists()
    if status == 2:
        assert len(lines) == 1 and lines[0].startswith("error: ")


def test_a_wrong_flag_is_told_before_any_process_starts(call, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "start_processes", None)
    uneven = "--num-attention-heads 4 --tensor-model-parallel-size 4"
    for flags, message in (("--hiden-size 3", "--hidden-size"), (uneven, "must divide the 2 processes")):
        line = f"pretrain.__main__ --nproc_per_node 2 {TINY} {flags} --train-iters 3 --data-path {{0}}/good --save out"
        status, stderr = call(line)
        assert status == 2 and message in stderr and stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_are_interrupted_in_one_line(data, tmp_path):
    """As a terminal does it: to torchrun and to both processes."""
    line = f"pretrain --nproc-per-node 2 {TINY} --train-iters 100000 --data-path {data}/good --save {tmp_path}/out"
    job = torchrun(tmp_path, *line.split(), "--log-interval", "1")
    try:
        deadline = time.monotonic() + 240
        while not (tmp_path / "out/metrics.jsonl").exists():
            assert job.poll() is None and time.monotonic() < deadline, (tmp_path / "stderr").read_text()
            time.sleep(0.05)
        os.killpg(job.pid, signal.SIGINT)
        assert job.wait(120) == 130
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    iteration = json.loads((tmp_path / "out/exit_reason.json").read_text())["iteration"]
    expected = f"interrupted; iteration {iteration} is saved, --load {tmp_path}/out goes on\n"
    assert (tmp_path / "stderr").read_text() == expected and (tmp_path / f"out/iter_{iteration:07d}").is_dir()


# ---- two runs on one output

HELD = {
    "pretrain": (f"pretrain.__main__ {TINY} --train-iters 2 --data-path {{0}}/good --save held", "held", "--save"),
    "train": (f"tape.train {TRAIN} --data_dir {{0}}/tape --output_dir held", "held", "--output_dir"),
    "seeds": (f"tape.train {TRAIN} --data_dir {{0}}/tape --output_dir out --seeds 0 1", "out/seed1", "--output_dir"),
    "tune": (f"tape.tune held --grid learning_rate 1e-3 -- {TRAIN} --data_dir {{0}}/tape", "held", "OUT"),
    "reproduce": ("tape.reproduce {0}/m {0}/tape held --tasks stability --arms pretrained --seeds 0", "held", "OUT"),
    "embed": ("tape.embed transformer {0}/x.fasta x.npz {0}/m --device cpu", "x.npz.parts", "output name"),
    "probe": ("probe.__main__ probe {0}/m {0}/t.csv --output held --device cpu", "held", "--output"),
    "variants": ("probe.__main__ variants {0}/m {0}/wild.fasta {0}/mutants.csv --output v.csv --device cpu",
                 "v.csv.partial", "--output"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "directory", "flag"), HELD.values(), ids=HELD)
def test_a_second_run_is_refused_by_name(call, tmp_path, monkeypatch, line, directory, flag):
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.0)
    (tmp_path / directory).mkdir(parents=True)
    other = os.open(tmp_path / directory, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    status, stderr = call(line)
    os.close(other)
    expected = f"error: {directory}: another run is writing here; wait for its end, or give another {flag}"
    assert status == 2 and stderr.splitlines()[-1] == expected
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        *(["out"] if directory.startswith("out/") else []),
        directory,
    ]


@pytest.mark.parametrize("name", ["embed", "variants"])
def test_a_run_gives_its_lock_back_and_leaves_only_its_output(call, tmp_path, name):
    """The negative control of the refusal: the same line, with nobody there."""
    line, directory, _ = HELD[name]
    for _ in range(2):
        status, stderr = call(line)
        assert status == 0, stderr
    assert not (tmp_path / directory).exists()
