"""Every command that writes, at the size of a second or less: what the tests of faults kill, starve of room and repeat.

    world = make_world(folder)                             the inputs, made once
    status, text = run_forked(COMMANDS["embed"], world, cwd)    in a child of this process, which has imported all of it

Outputs are in the working directory, inputs elsewhere, so that the words are the same wherever a command runs.
"""

import contextlib
import csv
import importlib
import os
import pkgutil
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import numpy as np
from tape_lmdb import labels, random_protein, write_lmdb
from toy_chains import relatives, write_chains
from toy_model import write_model

import converter
import pretrain
import probe
import proteinlm
import tape
from probe.contacts.chains import Chains
from proteinlm import errors

CPU = ("--device", "cpu")
SHAPE = (
    *("--num-layers", "2", "--hidden-size", "16", "--num-attention-heads", "2", "--max-position-embeddings", "64"),
    *("--seq-length", "64", "--micro-batch-size", "2", "--global-batch-size", "4", "--lr", "1e-3", *CPU),
)
TRAIN = (*CPU, "--batch_size", "8", "--num_train_epochs", "3", "--head", "tape")


@dataclass(frozen=True)
class Command:
    """What is started. Patterns (fnmatch) are of paths in the working directory."""

    module: str
    words: Callable[[SimpleNamespace], Sequence[object]]  # of its command line
    again: tuple[str, ...] = ()  # words that it goes on with
    grows: tuple[str, ...] = ()  # files that are replaced as the work goes on
    passing: tuple[str, ...] = ()  # of these, those that need not be there at the end
    before: str | None = None  # a folder of the world that is copied to the working directory first
    processes: int = 1  # that torchrun would start


def make_world(folder: Path) -> SimpleNamespace:
    """Inputs of all commands in the folder; the attributes are paths."""
    rng = np.random.default_rng(0)
    world = SimpleNamespace(folder=folder, fasta=folder / "proteins.fasta", table=folder / "table.csv")
    proteins = [random_protein(rng, 20, 50) for _ in range(60)]
    folder.mkdir(parents=True, exist_ok=True)
    world.fasta.write_text("".join(f">P{i}\n{protein}\n" for i, protein in enumerate(proteins)))
    with world.table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "sequence", "kind", "value", "split"])
        splits = ["train"] * 36 + ["valid"] * 12 + ["test"] * 12
        for i, (protein, split) in enumerate(zip(proteins, splits, strict=True)):
            writer.writerow([f"P{i}", protein, "abc"[i % 3], f"{rng.normal():.4f}", split])
    world.data = folder / "tape_data"
    for place in ("secondary_structure/secondary_structure", "proteinnet/proteinnet", "fluorescence/fluorescence"):
        for split in ("train", "valid", "test", "cb513", "casp12", "ts115"):
            records = []
            for i in range(8):
                protein = random_protein(rng, 20, 50)
                record = {"primary": protein, "protein_length": len(protein), "id": str(i).encode()}
                record |= labels(place.split("/")[0], len(protein), rng)
                records.append(record | ({"num_mutations": i} if "num_mutations" in record else {}))
            write_lmdb(world.data / f"{place}_{split}.lmdb", records)
    world.model = write_model(folder / "model")
    world.wild = folder / "wild.fasta"
    world.wild.write_text(f">wild\n{proteins[0]}\n")
    world.mutants = folder / "mutants.csv"
    wild = proteins[0]
    mutants = [f"{wild[i]}{i + 1}{letter}" for i in range(12) for letter in "ACD" if letter != wild[i]]
    world.mutants.write_text("mutant,DMS_score\n" + "".join(f"{m},{rng.normal():.4f}\n" for m in mutants))
    for name in ("shard", "page"):
        (folder / name).mkdir()
    _run(world, folder / "shard", "pretrain.data.preprocess", "--input", world.fasta, "--output-prefix", "p")
    world.shard = folder / "shard/p_text_document"
    _run(world, folder, "pretrain.__main__", *_pretrain(world), "--save", "checkpoint")
    world.checkpoint = folder / "checkpoint"
    world.run = folder / "run"
    _run(world, folder, "tape.train", *_finetune(world), "--output_dir", "run")
    _run(world, folder, "tape.evaluate", "transformer", "run", *CPU)
    fit = ("contacts", world.model, "--fit", world.data, "--test", world.data, "--proteins", 4)
    _run(world, folder, "probe.__main__", *fit, "--output", "page/contacts", *CPU)
    world.regression = folder / "page/contacts.safetensors"
    world.chains = write_chains(folder / "chains.lmdb", 6, length=57)
    world.corpus = folder / "corpus.fasta"
    chains, rng = Chains(world.chains, "test"), np.random.default_rng(0)
    members = [(place, own) for place in range(6) for own in relatives(chains.sequence(place), 12, rng)]
    world.corpus.write_text("".join(f">m PF0000{place}\n{own}\n" for place, own in members))
    return world


def make_place(command: Command, world: SimpleNamespace, cwd: Path) -> Path:
    """The working directory, as it is before the first run."""
    cwd.mkdir(parents=True)
    if command.before:
        shutil.copytree(world.folder / command.before, cwd / command.before)
    return cwd


def _run(world: SimpleNamespace, cwd: Path, module: str, *words: object) -> None:
    status, text = run_forked(Command(module, lambda _: words), world, cwd)
    assert status == 0, text


def _pretrain(world: SimpleNamespace) -> tuple:
    flags = ("--train-iters", 12, "--save-interval", 2, "--split", "90,10,0", "--eval-iters", 1, "--eval-interval", 6)
    return ("--data-path", world.shard, *SHAPE, *flags, "--log-interval", 1)


def _finetune(world: SimpleNamespace) -> tuple:
    return ("transformer", world.table, "--target", "value", "--from_pretrained", world.model, *TRAIN)


def _convert(target: str, *more: str) -> Command:
    return Command("converter.__main__", lambda w: ("--load", w.checkpoint, "--save", "out", "--target", target, *more))


def _embed(name: str, *more: str, processes: int = 1) -> Command:
    words = lambda w: ("transformer", w.fasta, name, w.model, *CPU, "--part_proteins", 16, *more)  # noqa: E731
    return Command("tape.embed", words, processes=processes)


LAYOUTS = {
    "dp2": (),
    "fsdp2": ("--use-distributed-optimizer",),
    "fsdp2_async": ("--use-distributed-optimizer", "--async-save"),
    "tp2_sp": ("--tensor-model-parallel-size", "2", "--sequence-parallel"),
    "pp2": ("--pipeline-model-parallel-size", "2"),
}
LOGS = "out/*metrics.jsonl.*"  # of a run that was killed before it had saved anything
SAVED = ("--save", "out", "--load", "out", "--keep-last", "2")
PRETRAINED = {"grows": ("out/*",), "passing": ("out/iter_*[!2]/*", "out/exit_reason.json", LOGS)}
TRAINED = {"again": ("--resume",), "grows": ("out/*",), "passing": (LOGS,)}


def _layout(*flags: str) -> Command:
    """Two processes, started together."""
    words = ("--distributed-timeout-minutes", "1", *SAVED, *flags)
    return Command("pretrain.__main__", lambda w: (*_pretrain(w), *words), **PRETRAINED, processes=2)


COMMANDS: dict[str, Command] = {
    "preprocess": Command(
        "pretrain.data.preprocess", lambda w: ("--input", w.fasta, "--output-prefix", "out/p", "--cluster")
    ),
    "pretrain": Command("pretrain.__main__", lambda w: (*_pretrain(w), *SAVED), **PRETRAINED),
    "pretrain_async": Command(
        "pretrain.__main__", lambda w: (*_pretrain(w), *SAVED, "--async-save"), **PRETRAINED
    ),
    **{f"pretrain_{name}": _layout(*flags) for name, flags in LAYOUTS.items()},
    "plan": Command(
        "pretrain.plan.__main__",
        lambda w: (*SHAPE, "--train-iters", 9, "--gpus-per-node", 1, "--json", "plan.json", "--html", "plan.html"),
    ),
    "curves": Command("pretrain.curves", lambda w: (w.checkpoint, "--output", "curves.html")),
    "convert_tape": _convert("tape", "--bin"),
    "convert_esm": _convert("esm", "--hidden-act", "gelu"),
    "convert_hf": _convert("hf", "--verify"),
    "convert_megatron": _convert("megatron", "--tensor-model-parallel-size", "2"),
    "convert_dcp": _convert("dcp"),
    "train_task": Command(
        "tape.train",
        lambda w: ("transformer", "secondary_structure", "--data_dir", w.data, "--from_pretrained", w.model,
                   "--output_dir", "out", *TRAIN, "--seeds", 0, 1),
        **TRAINED,
    ),
    "train_table": Command("tape.train", lambda w: (*_finetune(w), "--output_dir", "out"), **TRAINED),
    "train_two_processes": Command(
        "tape.train", lambda w: (*_finetune(w), "--output_dir", "out", "--no-freeze_encoder"), **TRAINED, processes=2
    ),
    "train_lora": Command(
        "tape.train",
        lambda w: (*_finetune(w), "--output_dir", "out", "--no-freeze_encoder", "--lora", 2), **TRAINED
    ),
    "tune": Command(
        "tape.tune", lambda w: ("out", "--grid", "learning_rate", "1e-3", "1e-2", "--", *_finetune(w)),
        grows=("out/trials/*",), passing=(LOGS, "out/trials/*.txt"),
    ),
    "reproduce": Command(
        "tape.reproduce",
        lambda w: (w.model, w.data, "out", *CPU, "--tasks", "secondary_structure", "--arms", "pretrained", "random",
                   "--seeds", 0, "--splits", "valid", "--train_flags", "--num_train_epochs 1"),
        grows=("out/*",), passing=(LOGS, "out/table.*"),  # which says what was resumed
    ),
    "evaluate": Command(
        "tape.evaluate",
        lambda w: ("transformer", "run", "--split", "valid", "test", *CPU, "--save_predictions", "--results_pkl"),
        before="run", grows=("run/results.pkl",),
    ),
    "table": Command("tape.table", lambda w: (w.run, "--html", "--output", "table.html")),
    "embed_npz": _embed("out.npz", "--full_sequence_embed"),
    "embed_h5": _embed("out.h5"),
    "embed_two_processes": _embed("out.h5", processes=2),
    "embed_parquet": _embed("out.parquet"),
    "embed_per_protein": _embed("out.h5", "--format", "h5-per-protein"),
    "predict": Command("tape.predict", lambda w: (w.run, w.fasta, "out.tsv", *CPU)),
    "probe": Command(
        "probe.__main__",
        lambda w: ("probe", w.model, w.table, "--target", "kind", "--seeds", 0, 1, "--epochs", 2, "--output", "out",
                   "--heads", "fnn", "--arms", "pretrained", "composition", *CPU),
    ),
    "project": Command(
        "probe.__main__",
        lambda w: ("project", w.model, w.table, "--column", "kind", "--perplexity", 5, "--iterations", 250,
                   "--arms", "pretrained", "--output", "out/map", *CPU),
    ),
    "annotate": Command(
        "probe.__main__",
        lambda w: ("project", w.model, w.table, "--query", w.fasta, "--column", "kind", "--output", "out.csv", *CPU),
    ),
    "contacts": Command(
        "probe.__main__", lambda w: ("contacts", w.model, w.fasta, "out.h5", "--regression", w.regression, *CPU)
    ),
    "contacts_fit": Command(
        "probe.__main__",
        lambda w: ("contacts", w.model, "--fit", w.data, "--test", w.data, "--proteins", 4, "--output", "out",
                   "--export", "exported", *CPU),
    ),
    "contacts_families": Command(
        "probe.__main__",
        lambda w: ("contacts", w.model, "--fit", w.chains, "--test", w.chains, "--proteins", 2, "--output", "out",
                   "--families", w.corpus, "--members", 10, *CPU),
    ),
    "contacts_heads": Command(
        "probe.__main__", lambda w: ("contacts", w.model, "--heads", w.data, "--output", "out", *CPU)
    ),
    "contacts_view": Command(
        "probe.__main__", lambda w: ("contacts", w.model, "--view", w.fasta, "--output", "out", *CPU)
    ),
    "variants": Command(
        "probe.__main__", lambda w: ("variants", w.model, w.wild, w.mutants, "--output", "out.csv", *CPU)
    ),
    "tables": Command("probe.tables.__main__", lambda w: ("page",), before="page"),
    "fluorescence": Command("probe.tables.fluorescence", lambda w: (w.data, "out")),
}  # fmt: skip


# ---- in a child of this process


def preload() -> None:
    """Import here what the commands import late, so that no child waits for it."""
    late = ("h5py", "pyarrow.parquet", "peft", "transformers", "matplotlib.figure", "sklearn.manifold", "lmdb")
    for name in late:
        importlib.import_module(name)
    for package in (proteinlm, pretrain, tape, converter, probe):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


def start_forked(
    command: Command,
    world: SimpleNamespace,
    cwd: Path,
    again: bool = False,
    before: Callable[[int], None] = lambda rank: None,
    log: Path | None = None,
) -> int:
    """Begin it; the child's pid, which leads a group of its own. before(rank): called in each of its processes first.
    log: what it prints (default: <cwd>.log)."""
    main = importlib.import_module(command.module).main
    words = [str(word) for word in command.words(world)] + [*(command.again if again else ())]
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setpgid(0, 0)
        out = os.open(log or log_of(cwd), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(out, 1), os.dup2(out, 2)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(cwd)
        sys.argv = [command.module, *words]
        if command.processes == 1:
            run_here(main, words, lambda: before(0))
        launch(main, words, command.processes, before)
    finally:
        os._exit(70)


def run_here(main: Callable, words: Sequence[str], before: Callable[[], None]) -> NoReturn:
    """What a child does: the command, as a console script calls it, and no more."""
    status = 70
    try:
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        before()
        status = errors.run(main, words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(status or 0)


def launch(main: Callable, words: Sequence[str], size: int, before: Callable[[int], None]) -> NoReturn:
    """As torchrun: so many processes that find each other; when one fails the others are ended, and this ends as it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(size):
        pid = os.fork()
        if not pid:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            os.environ |= {name: str(value) for name, value in place.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            run_here(main, words, lambda: before(rank))  # noqa: B023
        ranks.append(pid)
    status = 0
    while ranks and status == 0:
        pid, status = os.wait()
        ranks.remove(pid)
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(status)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if status != -signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    os._exit(status)


def log_of(cwd: Path) -> Path:
    return cwd.with_name(f"{cwd.name}.log")


def end_of(pid: int) -> int:
    """Wait for a child; its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_forked(command: Command, world: SimpleNamespace, cwd: Path, again: bool = False, **more) -> tuple[int, str]:
    """Run it to its end: (status as of `end_of`, what it printed)."""
    status = end_of(start_forked(command, world, cwd, again, **more))
    return status, (more.get("log") or log_of(cwd)).read_text(errors="replace")


class ForkedCommands:
    """Stands where `subprocess` does in tape.runs.jobs: what it starts is a child of the warm process too."""

    STDOUT, DEVNULL = subprocess.STDOUT, subprocess.DEVNULL

    class Popen:
        def __init__(self, words: Sequence[str], stdout, **_):
            _, _, name, *words = words  # python -m name ...
            self.pid = os.fork()
            if not self.pid:
                os.dup2(stdout.fileno(), 1), os.dup2(stdout.fileno(), 2)
                run_here(importlib.import_module(name).main, words, lambda: None)

        def wait(self) -> int:
            return end_of(self.pid)

        def send_signal(self, number: int) -> None:
            os.kill(self.pid, number)
