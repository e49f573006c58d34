"""Valid inputs of every kind, made once below a directory: tiny models with random weights, a few short proteins.

What commands write (shards, checkpoints, runs, tables, kept embeddings) is made by these commands, in forked children.
"""

import contextlib
import gc
import gzip
import importlib
import json
import os
import pkgutil
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fuzz.process import program, run_main
from fuzz.surfaces import PRETRAIN, PROBE, SHORT, words_of

ROOT = Path(__file__).parents[2]
PACKAGES = ("proteinlm", "pretrain", "tape", "probe", "converter")
LATE = (  # what the commands import where they need it
    *("lmdb", "safetensors.torch", "h5py", "pyarrow.parquet", "PIL.Image", "PIL.PngImagePlugin", "matplotlib.figure"),
    *("matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "matplotlib.pyplot", "scipy.stats"),
    *("sklearn.linear_model", "sklearn.manifold", "sklearn.decomposition", "sklearn.neighbors", "sklearn.metrics"),
    *("sentencepiece", "transformers", "torch.distributed.checkpoint", "torch.distributed.run", "peft", "tensorboard"),
    *("transformers.models.t5.modeling_t5", "transformers.models.bert.modeling_bert", "torch.optim.adamw"),
    *("transformers.models.xlnet.modeling_xlnet", "torch.distributed.pipelining", "torch.utils.tensorboard"),
    *("transformers.models.t5.tokenization_t5", "transformers.models.bert.tokenization_bert", "torch._dynamo"),
    *("transformers.models.xlnet.tokenization_xlnet", "transformers.models.auto.modeling_auto", "mpl_toolkits.mplot3d"),
)
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
WILD = "MKTAYIAKQRQISFVKSHFSRQ"
CONFIG = """# a model that learns nothing
model: {num_layers: 2, hidden_size: 16, num_attention_heads: 2, ffn_hidden_size: 32, max_position_embeddings: 64,
  hidden_dropout: 0.1, attention_dropout: 0.0}
data: {seq_length: 64, split: "80,20,0", num_workers: 0}
training: {micro_batch_size: 2, global_batch_size: 2, train_iters: 2, seed: 1}
optim: {lr: 1.0e-3, min_lr: 1.0e-4, lr_decay_style: linear, lr_decay_iters: 4, weight_decay: 0.01, clip_grad: 1.0}
checkpoint: {save_interval: 1, keep_last: 2}
logging: {log_interval: 1, eval_interval: 2, eval_iters: 1}
device: cpu
"""
RECIPE = "batch_size: 4\nlearning_rate: 1.0e-3\nmax_steps: 2\npooling: mean\nweight_decay: 0.01\nlora: null\n"
PRESET = """
all: {recipe: none, batch_size: 4, max_steps: 2, eval_steps: 1, learning_rate: 1.0e-3, seeds: [0], max_length: 50,
  too_long: crop}
stability: {pooling: mean}
arms: {onehot: {stability: {max_steps: 1}}}
"""
RATES = {
    "gpu": "H100", "error": 0.1, "gemm_tflops": [{"m": 4096, "n": 1024, "k": 1024, "tflops": 400.0}], "hbm_gbs": 2500.0,
    "attention_tflops": {"forward": 300.0, "backward": 200.0}, "compiled_bytes": 0.5, "launch_us": 5.0,
    "links": {"node": {"latency_us": 10.0, "gbs": 300.0}, "network": {"latency_us": 20.0, "gbs": 40.0}},
}  # fmt: skip


def make(directory: Path) -> Path:
    """Everything; the directory must not be there."""
    directory.mkdir(parents=True)
    for maker in (_proteins, _tables, _settings, _records, _models, _by_commands, _own_runs, _results, _kept):
        in_child(lambda maker=maker: maker(directory), directory)
    return directory


def warm_up() -> None:
    """Import what the commands import, that cases need not."""
    for package in PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            importlib.import_module(module.name)
    for name in LATE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page


def in_child(work: Callable[[], None], directory: Path) -> None:
    """work() in a fork, in the directory, quietly; RuntimeError with what it printed where it fails."""
    log = directory.parent / "inputs.log"
    pid = os.fork()
    if pid == 0:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1), os.dup2(file, 2)
        os.chdir(directory)
        os._exit(run_main(lambda words: work(), []))
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise RuntimeError(f"the fuzzer's inputs could not be made\n{log.read_text()[-4000:]}")


def run(line: str) -> None:
    """A command line in a child, which must end well."""
    module, words = words_of(line)
    pid = os.fork()
    if pid == 0:
        os._exit(run_main(program(module), words))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise RuntimeError(f"{line}: status {status}")


def sequences(count: int, seed: int, shortest: int = 12, longest: int = 40) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(LETTERS, k=rng.randint(shortest, longest))) for _ in range(count)]


def _proteins(root: Path) -> None:
    text = "".join(
        f">sp|P{i:03}|X OX={i % 3 + 9606} a protein\n{s[:20]}\n{s[20:]}\n" for i, s in enumerate(sequences(24, 1))
    )
    (root / "proteins.fasta").write_text(text)
    (root / "proteins.fasta.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    (root / "proteins.txt").write_text("\n".join(sequences(12, 2)) + "\n")
    lines = [json.dumps({"text": s, "id": i}) for i, s in enumerate(sequences(12, 3))]
    (root / "proteins.jsonl").write_text("\n".join(lines) + "\n")
    (root / "wt.fasta").write_text(f">P1 a protein\n{WILD}\n")
    mutants = [f"{WILD[i]}{i + 1}{'A' if WILD[i] != 'A' else 'C'}" for i in range(1, 14)]
    rows = [f"{mutant},{0.3 * i - 1:.2f},n{i}" for i, mutant in enumerate([*mutants, f"{mutants[0]}:{mutants[3]}"])]
    (root / "dms.csv").write_text("\n".join(["mutant,DMS_score,note", *rows]) + "\n")
    family = "".join(f">f{i}\n{WILD[:i]}{s[:1]}{WILD[i + 1 :]}\n" for i, s in enumerate(sequences(8, 4)))
    (root / "family.a3m").write_text(f">P1\n{WILD}\n{family}")
    for name in ("adding_task.py", "adding_model.py"):
        shutil.copy(ROOT / "examples" / name, root / name)


def _tables(root: Path) -> None:
    own = sequences(30, 5)
    kinds = {
        "table.csv": ("location", lambda i, s: ["nucleus", "membrane"][i % 2]),
        "table.tsv": ("location", lambda i, s: ["nucleus", "membrane"][i % 2]),
        "values.csv": ("value", lambda i, s: f"{0.1 * i:.3f}"),
        "residues.csv": ("target", lambda i, s: "".join("H" if c in "AEK" else "-" for c in s)),
        "labels.csv": ("labels", lambda i, s: ["a", "a;b", "b"][i % 3]),
    }
    for name, (column, label) in kinds.items():
        mark = "\t" if name.endswith("tsv") else ","
        split = ["train", "train", "train", "valid", "test"]
        rows = [(f"P{i}", s, label(i, s), split[i % 5]) for i, s in enumerate(own)]
        (root / name).write_text("\n".join(map(mark.join, [("id", "sequence", column, "split"), *rows])) + "\n")
    (root / "table.csv.gz").write_bytes(gzip.compress((root / "table.csv").read_bytes(), mtime=0))
    text = "".join(
        f">P{i} TARGET={'ab'[i % 2]} SET={'test' if i % 5 == 4 else 'train'}\n{s}\n" for i, s in enumerate(own)
    )
    (root / "labelled.fasta").write_text(text)


def _settings(root: Path) -> None:
    from proteinlm.tokenizer import build_tokenizer

    (root / "run.yaml").write_text(CONFIG)
    (root / "recipe.yaml").write_text(RECIPE)
    (root / "preset.yaml").write_text(PRESET)
    (root / "rates.json").write_text(json.dumps(RATES))
    (root / "tokens.txt").write_text("\n".join(build_tokenizer().tokens) + "\n")


def _records(root: Path) -> None:
    sys.path.insert(0, str(ROOT / "tests/unit/tape"))
    from tape_lmdb import write_lmdb
    from toy_data import FOLDERS, toy_labels

    places = {"data": "stability", "data_ss": "secondary_structure", "data_contact": "contact_prediction"}
    places |= {"data_fold": "remote_homology", "data_pfam": "masked_language_modeling", "data_gfp": "fluorescence"}
    for place, task in places.items():
        rng = np.random.default_rng(7)
        for split, count in (("train", 16), ("valid", 8)):
            records = []
            count = count // 2 if task == "contact_prediction" else count
            for i, sequence in enumerate(sequences(count, len(split), 16, 16 if place == "data_gfp" else 36)):
                record = {"primary": sequence, "protein_length": len(sequence), "id": str(i).encode()}
                records.append(record | toy_labels(task, sequence, rng))
                if task == "secondary_structure":
                    records[-1]["ss8"] = records[-1]["ss3"]
                if task == "fluorescence":
                    records[-1]["num_mutations"] = i
            write_lmdb(root / place / f"{FOLDERS[task]}_{split}.lmdb", records)
    for split, count in (("train", 16), ("valid", 8)):
        plain = [{"primary": s, "stability_score": [0.1 * i]} for i, s in enumerate(sequences(count, 8))]
        path = root / "data_json/stability" / f"stability_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plain))


def _models(root: Path) -> None:
    import esm_writer
    import toy_huggingface
    import toy_model
    from megatron_writer import random_weights, write_megatron
    from toy_esm import esmc_model

    toy_model.write_model(root / "model")
    esm_writer.write_hf(root / "esm")
    esm_writer.write_fair(root / "fair")
    esm_writer.write_fair(root / "fair1b", "esm1b")
    esmc_model().save_pretrained(root / "esmc")
    for name in ("ProtT5", "ProtBert", "ProtXLNet"):
        toy_huggingface.write_family(name, root / name.lower())
    from tape.models import modeling_lstm, modeling_resnet, modeling_tape

    small = {"hidden_size": 16, "num_hidden_layers": 2, "initializer_range": 0.3}
    heads = {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
    for name, config, model in (
        ("songlab", modeling_tape.TapeTransformerConfig(**small, **heads), modeling_tape.TapeTransformerModel),
        ("songlab_lstm", modeling_lstm.ProteinLSTMConfig(**small, input_size=8), modeling_lstm.ProteinLSTMModel),
        ("songlab_resnet", modeling_resnet.ProteinResNetConfig(**small), modeling_resnet.ProteinResNetModel),
    ):
        model(config).save_pretrained(root / name)
    write_megatron(root / "megatron", random_weights(1, hidden=8, heads=2, layers=2, positions=40, ffn=16), 2, 2)


def _by_commands(root: Path) -> None:
    run("preprocess --input proteins.fasta --output-prefix shard --group-by taxon")
    run(f"{PRETRAIN} --save ckpt")
    run("converter --load model --save model_bin --target tape --bin")
    (root / "model_bin/model.safetensors").unlink()
    run("converter --load megatron --save hf --target hf")


def _own_runs(root: Path) -> None:
    for task, data, out in (("stability", "data", "run"), ("contact_prediction", "data_contact", "run_contact")):
        run(f"tape-train transformer {task} --data_dir {data} --from_pretrained model --output_dir {out} {SHORT}")
        run(f"tape-eval transformer {task} {out} --data_dir {data} --split valid --device cpu --save_predictions")
    run(f"tape-train transformer table.csv --target location --from_pretrained model --output_dir run_own {SHORT}")
    run("tape-eval transformer run_own --device cpu")
    plugin = "--plugin adding_task.py --data_dir data_gfp"
    run(f"tape-train transformer num_mutations {plugin} --from_pretrained model --output_dir run_plugin {SHORT}")


def _results(root: Path) -> None:
    """The table of tape.reproduce (its commands in this process), and what scripts/reproduce_prottrans.sh leaves."""
    from proteinlm.errors import run as run_command
    from tape import evaluate, reproduce, train
    from tape.runs import jobs

    def call(module: str, words: list[str], log: Path) -> float:
        assert run_command({"tape.train": train, "tape.evaluate": evaluate}[module].main, list(words)) == 0
        return 0.5

    jobs.call = call
    line = "model data table --preset preset.yaml --tasks stability --device cpu"
    assert run_command(reproduce.main, line.split()) == 0
    fast = "--device cpu --epochs 1 --seeds 0 --heads logistic --arms pretrained"
    run(f"proteinlm probe model data_ss {fast} --output prottrans/secondary_structure")
    drawn = "--device cpu --method pca --arms pretrained --output prottrans/scope_map"
    run(f"proteinlm project model table.csv --column location {drawn}")
    chains, common = "data_contact/proteinnet/proteinnet", "--device cpu --output prottrans/contacts"
    run(
        f"proteinlm contacts model --fit {chains}_train.lmdb --test {chains}_valid.lmdb --proteins 2 --seeds 0 {common}"
    )
    run(f"proteinlm contacts model --heads {chains}_valid.lmdb {common}")
    run("proteinlm variants model wt.fasta dms.csv --random_seed 0 --device cpu --output prottrans/variants/blat.csv")
    out = root / "prottrans"
    for kept in [path for path in root.rglob("*embeddings") if path.is_dir()]:
        shutil.rmtree(kept)
    shutil.copy(next(out.glob("contacts*.safetensors")), root / "contacts.safetensors")


def _kept(root: Path) -> None:
    """Embeddings that a second run finds, and the parts of a run that was killed before they were joined."""
    from tape.inference import parts

    table = "model table.csv --target location"
    flags = PROBE.replace("out/e", "kept").replace("out/p", "gone")
    run(f"proteinlm probe {table} --heads fnn {flags}")
    kept = "--freeze_encoder --embeddings_dir frozen --from_pretrained model --output_dir gone_run"
    run(f"tape-train transformer table.csv --target location {kept} {SHORT}")
    shutil.rmtree("gone")
    shutil.rmtree("gone_run")
    parts.PartStore.finish = lambda *_: os._exit(0)
    run("tape-embed transformer proteins.fasta parts/e.npz model --device cpu --part_proteins 4")
