"""What the checks cost: the share of a valid run that goes into each, and guarded readers beside plain ones.

    python benchmarks/checks.py --output benchmarks/results/checks.json

Each command is run in this process, on random proteins and an encoder so small (0.1 million weights) that its work is
little beside any check. The functions that check, or read what comes from elsewhere, are replaced by themselves with a
clock around: a share is their CPU time over the whole command's, start-up of Python left out. So it holds the reading,
of which the guard is a part; the second table sets that beside readers without one, which take turns (CPU time, medians
of READS). Shares are medians of --repeats; from the second on the table's states are there already, as in any further
run on it.
"""

import argparse
import contextlib
import csv
import functools
import importlib
import io
import json
import pickle
import pkgutil
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "tests"))

from tape_lmdb import labels, write_lmdb

import converter
import pretrain
import proteinlm
import tape
from benchmarks.comparison import machine, random_proteins, take_turns
from pretrain.data.indexed import IndexedWriter
from proteinlm.files import write_json
from proteinlm.model_dir.config import CONFIG_KEYS
from proteinlm.model_dir.files import write_tape_dir
from proteinlm.network.config import ModelConfig
from proteinlm.network.model import ProteinBert, initialize
from proteinlm.tokenizer import build_tokenizer
from proteinlm.untrusted import csv_files, json_files, lmdb_files, safe_load, yaml_files

CHECKS = {
    "weights: NaN, infinity": ["proteinlm.model_dir.files:count_not_finite"],
    "states: NaN, infinity": ["tape.inference.encoding:_not_finite"],
    "labels, coordinates": [f"tape.data.records:{name}" for name in ("number_of", "index_of", "array_of", "mask_of")]
    + ["tape.datasets:ProteinnetDataset.check"],
    "LMDB read page by page": [f"proteinlm.untrusted.lmdb_files:LMDB.{name}" for name in ("__init__", "get")],
    "records unpickled": ["proteinlm.untrusted.safe_load:safe_pickle_loads"],
    "JSON read": ["proteinlm.untrusted.json_files:read_json"],
    "YAML read": ["proteinlm.untrusted.yaml_files:read_yaml"],
    "table read": ["proteinlm.tables:read_table"],
    "names, longest protein": ["tape.inference.fasta:scan_fasta"],
    "ids of the whole shard": ["pretrain.data.checking:first_problem"],
    "a plugin's ids": ["tape.tasks.plugin:PluginData.check_ids"],
    "locks, directories": [
        "proteinlm.running.locks:_lock",
        "proteinlm.running.leftovers:sweep",
        *(f"proteinlm.files:{name}" for name in ("check_writable", "missing_directories", "remove_empty")),
    ],
}
PROTEINS, SHARD_PROTEINS, STEPS, CHAINS, READS = 2000, 300_000, 300, 60, 7
CPU = ("--device", "cpu")


# ---- a clock around functions


def import_all() -> None:
    for package in (converter, pretrain, proteinlm, tape):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


def clocked(function: Callable, label: str, seconds: Counter) -> Callable:
    @functools.wraps(function)
    def call(*args, **kwargs):
        began = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[label] += time.process_time() - began

    return call


def put_clocks(seconds: Counter) -> None:
    """Wherever a module or a class has one of CHECKS."""
    for label, names in CHECKS.items():
        for name in names:
            module, _, path = name.partition(":")
            owner = functools.reduce(getattr, path.split(".")[:-1], importlib.import_module(module))
            function = getattr(owner, path.split(".")[-1])
            for holder in (owner, *list(sys.modules.values())):
                for key in [key for key, value in vars(holder).items() if value is function]:
                    setattr(holder, key, clocked(function, label, seconds))


# ---- runs


def make_inputs(folder: Path, proteins: int, shard_proteins: int, chains: int) -> None:
    rng = np.random.default_rng(0)
    config = ModelConfig(
        hidden_size=64, num_layers=2, num_attention_heads=4, max_position_embeddings=1024, vocab_size=30,
        make_vocab_size_divisible_by=1,
    )  # fmt: skip
    model = ProteinBert(config, lm_head=True)
    initialize(model, 0)
    write_tape_dir(
        folder / "model", {key: getattr(config, name) for name, key in CONFIG_KEYS.items()}, model.state_dict()
    )
    sequences = random_proteins(proteins)
    (folder / "proteins.fasta").write_text("".join(f">P{i}\n{p}\n" for i, p in enumerate(sequences)))
    rows = [f"P{i},{p},{rng.normal():.3f}" for i, p in enumerate(sequences)]
    (folder / "table.csv").write_text("\n".join(["id,sequence,value", *rows]) + "\n")
    for task in ("secondary_structure", "fluorescence", "proteinnet"):
        few = sequences[:chains] if task == "proteinnet" else sequences
        for split in ("train", "valid"):
            part = few if split == "train" else few[: max(1, len(few) // 5)]
            about = [{"primary": p, "protein_length": len(p), "id": str(i).encode()} for i, p in enumerate(part)]
            records = [record | labels(task, len(record["primary"]), rng) for record in about]
            write_lmdb(folder / f"data/{task}/{task}_{split}.lmdb", records)
    lengths = np.array([len(protein) for protein in random_proteins(min(shard_proteins, 10_000))])
    with IndexedWriter(folder / "shard") as writer:
        for _ in range(max(1, shard_proteins // len(lengths))):
            residues = rng.choice(build_tokenizer().encode("ACDEFGHIKLMNPQRSTVWY"), lengths.sum())
            writer.add(residues, lengths)


def runs_of(folder: Path, out: Path, steps: int) -> dict[str, tuple[str, tuple]]:
    """What each is called -> (its module, its words)."""
    model, data, fasta = folder / "model", folder / "data", folder / "proteins.fasta"
    train = (*CPU, "--from_pretrained", model, "--num_train_epochs", 1, "--too_long", "crop")

    def task(name: str, *more: object) -> tuple[str, tuple]:
        return "tape.train", ("transformer", name, "--data_dir", data, "--output_dir", out / name, *train, *more)

    shape = ("--num-layers", 2, "--hidden-size", 64, "--num-attention-heads", 4, "--max-position-embeddings", 512)
    batch = (
        "--seq-length",
        512,
        "--micro-batch-size",
        4,
        "--global-batch-size",
        4,
        "--lr",
        "1e-3",
        "--split",
        "100,0,0",
    )
    plugin = ("--plugin", Path(__file__).resolve().parent.parent / "examples/adding_task.py")
    return {
        "tape-embed": ("tape.embed", ("transformer", fasta, out / "vectors.h5", model, *CPU)),
        "tape-train, a table": (
            "tape.train",
            ("transformer", folder / "table.csv", "--target", "value", "--output_dir", out / "table", *train),
        ),
        "tape-eval": ("tape.evaluate", ("transformer", out / "table", *CPU)),
        "tape-predict": ("tape.predict", (out / "table", fasta, out / "values.tsv", *CPU)),
        "tape-train, structure": task("secondary_structure"),
        "tape-train, contacts": task("contact_prediction", "--head", "tape", "--batch_size", 4),
        "tape-train, one-hot": (
            "tape.train",
            ("onehot", "fluorescence", "--data_dir", data, "--output_dir", out / "onehot", *CPU, "--too_long", "crop"),
        ),
        "tape-train, a plugin": task("num_mutations", *plugin),
        "pretraining": (
            "pretrain.__main__",
            (
                "--data-path",
                folder / "shard",
                "--save",
                out / "checkpoints",
                *shape,
                *batch,
                *CPU,
                "--train-iters",
                steps,
                "--eval-iters",
                0,
                "--num-workers",
                0,
            ),
        ),
        "conversion": (
            "converter.__main__",
            ("--load", model, "--save", out / "converted", "--target", "hf", "--verify"),
        ),
    }


def measure_runs(folder: Path, steps: int, repeats: int) -> dict[str, dict]:
    """Per command its CPU seconds and the share of each check."""
    seconds, rows = Counter(), {}
    put_clocks(seconds)
    shares: dict[str, dict[str, list[float]]] = {}
    for repeat in range(repeats):
        out = folder / f"out{repeat}"
        for name, (module, words) in runs_of(folder, out, steps).items():
            main = importlib.import_module(module).main
            seconds.clear()
            began, printed = time.process_time(), io.StringIO()
            with contextlib.redirect_stdout(printed):
                status = main([str(word) for word in words])
            total = time.process_time() - began
            assert not status, printed.getvalue()
            run = shares.setdefault(name, {})
            run.setdefault("seconds", []).append(total)
            for label in CHECKS:
                run.setdefault(label, []).append(seconds[label] / total)
            print(f"repeat {repeat + 1} {name}: {total:.1f} s", file=sys.stderr, flush=True)
        shutil.rmtree(out)
    for name, run in shares.items():
        medians = {label: statistics.median(values) for label, values in run.items()}
        rows[name] = {"cpu_seconds": round(medians.pop("seconds"), 2)}
        rows[name]["share"] = {label: round(share, 5) for label, share in medians.items() if share > 0}
    return rows


# ---- readers


def readers(folder: Path) -> dict[str, tuple[Callable[[], object], Callable[[], object], int]]:
    """What is read -> (with the guard, without, how often)."""
    lmdb = importlib.import_module("lmdb")
    yaml = importlib.import_module("yaml")
    file = folder / "data/secondary_structure/secondary_structure_train.lmdb"
    numbers = {f"key{i}": [i, {"a": str(i), "b": i / 7}] for i in range(300)}
    write_json(folder / "numbers.json", numbers)
    (folder / "numbers.yaml").write_text(yaml.safe_dump(numbers))
    torch.save({f"layer{i}": torch.randn(512, 512) for i in range(50)}, folder / "weights.pt")

    def own_lmdb():
        with lmdb_files.LMDB(file) as records:
            return [records.record(i) for i in range(len(records))]

    def plain_lmdb():
        with lmdb.open(str(file), readonly=True, lock=False) as environment, environment.begin() as transaction:
            count = pickle.loads(transaction.get(b"num_examples"))
            return [pickle.loads(transaction.get(str(i).encode())) for i in range(count)]

    def own_table():
        return list(csv_files.read_rows(folder / "table.csv", (folder / "table.csv").read_text()))

    def plain_table():
        with (folder / "table.csv").open(newline="") as table:
            return list(csv.reader(table))

    return {
        "LMDB of structure": (own_lmdb, plain_lmdb, 1),
        "CSV": (own_table, plain_table, 5),
        "JSON of 20 KB": (
            lambda: json_files.read_json(folder / "numbers.json"),
            lambda: json.loads((folder / "numbers.json").read_text()),
            20,
        ),
        "YAML of 15 KB": (
            lambda: yaml_files.read_yaml(folder / "numbers.yaml"),
            lambda: yaml.safe_load((folder / "numbers.yaml").read_text()),
            1,
        ),
        "weights.pt of 52 MB": (
            lambda: safe_load.safe_torch_load(folder / "weights.pt"),
            lambda: torch.load(folder / "weights.pt", weights_only=True),
            1,
        ),
    }


def measure_readers(folder: Path) -> dict[str, dict]:
    rows = {}
    for name, (*arms, times) in readers(folder).items():
        arms = {arm: partial(repeated, read, times) for arm, read in zip(("guarded", "plain"), arms, strict=True)}
        taken = take_turns(arms, READS)
        ms = {f"{arm}_ms": 1e3 / times * statistics.median(cpu for _, cpu in taken[arm]) for arm in arms}
        rows[name] = {arm: round(value, 3) for arm, value in ms.items()}
    return rows


def repeated(function: Callable[[], object], times: int) -> None:
    for _ in range(times):
        function()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--proteins", type=int, default=PROTEINS)
    parser.add_argument("--shard_proteins", type=int, default=SHARD_PROTEINS)
    parser.add_argument("--steps", type=int, default=STEPS, help="of pretraining")
    parser.add_argument("--chains", type=int, default=CHAINS, help="of contact prediction")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", help="also write the numbers here, as JSON")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_inputs(folder, args.proteins, args.shard_proteins, args.chains)
        plain = measure_readers(folder)  # before the clocks are put in
        import_all()
        runs = measure_runs(folder, args.steps, args.repeats)
    for name, row in runs.items():
        print(f"{name}: {row['cpu_seconds']} s of CPU")
        for label, share in sorted(row["share"].items(), key=lambda entry: -entry[1]):
            print(f"    {label:26} {share:8.3%}")
    for name, row in plain.items():
        print(f"{name}: {row['guarded_ms']} ms, plain {row['plain_ms']} ms")
    if args.output:
        sizes = {key: value for key, value in vars(args).items() if key != "output"}
        about = machine("benchmarks/checks.py", torch.device("cpu")) | sizes
        write_json(args.output, about | {"runs": runs, "readers": plain})
    return 0


if __name__ == "__main__":
    sys.exit(main())
