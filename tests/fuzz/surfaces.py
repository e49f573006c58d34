"""What is damaged, and who reads it: a name, patterns of the files that are damaged, and command lines.

The first path component of every word that is the name of an input is copied beside the command, so that a line reads
as a user writes it. Everything is written below out/, which is not there before, but for runs that are gone on with.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

PROGRAMS = {
    "preprocess": "pretrain.preprocess",
    "pretrain": "pretrain.__main__",
    "plan": "pretrain.plan.__main__",
    "curves": "pretrain.curves",
    "converter": "converter.__main__",
    "tape-train": "tape.train",
    "tape-train-distributed": "tape.train_distributed",
    "tape-eval": "tape.evaluate",
    "tape-embed": "tape.embed",
    "tape-predict": "tape.predict",
    "tape-table": "tape.table",
    "tune": "tape.tune",
    "reproduce": "tape.reproduce",
    "proteinlm": "probe.__main__",
    "prottrans": "probe.tables.__main__",
    "gfp": "probe.tables.fluorescence",
    "torchrun": "torch.distributed.run",
}
SHORT = "--device cpu --head tape --max_steps 2 --batch_size 4 --num_log_iter 1 --eval_steps 1"
TRAIN = "--from_pretrained model --output_dir out/run " + SHORT
PROBE = "--device cpu --epochs 1 --seeds 0 --arms pretrained --embeddings_dir out/e --output out/p"
PRETRAIN = "pretrain --config run.yaml --data-path shard_text_document"
PLAN = "plan --config run.yaml --gpu H100 --gpus-per-node 1"
RANKS = "--standalone --nproc-per-node 2 -m pretrain --config run.yaml --data-path shard_text_document"
MAP = "--device cpu --method pca --arms pretrained --embeddings_dir out/e --output out/map"

QUERY = "--device cpu --embeddings_dir out/e --output out/q.csv"


@dataclass(frozen=True)
class Surface:
    """weight: how often, beside the others; cpu: seconds that a case may take."""

    name: str
    victims: tuple[str, ...]
    commands: tuple[str, ...]
    weight: int = 10
    cpu: float = 25.0


def readers(model: str, *more: str, kind: str = "transformer") -> tuple[str, ...]:
    """Commands that open any encoder."""
    return (
        f"tape-embed {kind} proteins.fasta out/e.npz {model} --device cpu",
        f"proteinlm project {model} table.csv --column location --query wt.fasta {QUERY}",
        f"tape-train {kind} stability --data_dir data --from_pretrained {model} --output_dir out/run {SHORT}",
        *more,
    )


SURFACES = [
    Surface("fasta", ("proteins.fasta",), (
        "preprocess --input proteins.fasta --output-prefix out/x",
        "preprocess --input proteins.fasta --output-prefix out/x --group-by taxon --max-length 30",
        "preprocess --input proteins.fasta --output-prefix out/x --cluster --workers 2",
        "tape-embed transformer proteins.fasta out/e.npz model --device cpu",
        "tape-embed transformer proteins.fasta out/e.h5 model --device cpu --format h5-per-protein",
        "tape-embed transformer proteins.fasta out/e.parquet model --device cpu --too_long crop --duplicates first",
        "tape-predict run proteins.fasta out/p.tsv --device cpu",
        "tape-predict run_own proteins.fasta out/p.csv --device cpu",
        "tape-predict run_contact proteins.fasta out/p.npz --no-png --device cpu",
        "proteinlm contacts model proteins.fasta out/c.npz --regression contacts.safetensors --device cpu",
        "proteinlm contacts esm proteins.fasta out/c.h5 --device cpu",
        "proteinlm project model table.csv --column location --query proteins.fasta " + QUERY,
    ), 12),
    Surface("gz", ("*.gz",), (
        "preprocess --input proteins.fasta.gz --output-prefix out/x",
        "tape-embed transformer proteins.fasta.gz out/e.npz model --device cpu",
        "tape-predict run proteins.fasta.gz out/p.tsv --device cpu",
        f"proteinlm project model table.csv.gz --column location {MAP}",
    ), 6),
    Surface("text", ("proteins.txt", "proteins.jsonl", "tokens.txt"), (
        "preprocess --input proteins.txt --output-prefix out/x",
        "preprocess --input proteins.jsonl --output-prefix out/x",
        "preprocess --input proteins.fasta --output-prefix out/x --vocab-file tokens.txt",
    ), 4),
    Surface("lmdb", ("data*/*/*.lmdb/data.mdb",), (
        "preprocess --input data/stability/stability_train.lmdb --output-prefix out/x",
        f"tape-train transformer stability --data_dir data {TRAIN}",
        f"tape-train transformer secondary_structure --data_dir data_ss {TRAIN}",
        f"tape-train transformer contact_prediction --data_dir data_contact {TRAIN}",
        f"tape-train transformer remote_homology --data_dir data_fold {TRAIN}",
        f"tape-train transformer masked_language_modeling --data_dir data_pfam {TRAIN}",
        f"tape-train transformer stability --data_dir data --holdout 0.3 {TRAIN}",
        "tape-eval transformer stability run --data_dir data --split valid --device cpu --save_predictions",
        "tape-eval transformer contact_prediction run_contact --data_dir data_contact --split valid --device cpu",
        f"proteinlm probe model data_ss {PROBE}",
        "proteinlm contacts model --fit data_contact/proteinnet/proteinnet_train.lmdb --test"
        " data_contact/proteinnet/proteinnet_valid.lmdb --proteins 2 --seeds 0 --device cpu --output out/c",
        "proteinlm contacts model --heads data_contact/proteinnet/proteinnet_valid.lmdb --device cpu --output out/c",
        "gfp data_gfp out/gfp",
    ), 16),
    Surface("tape json", ("data_json/*/*.json",), (
        f"tape-train transformer stability --data_dir data_json {TRAIN}",
    ), 3),
    Surface("table", ("table.*", "values.csv", "residues.csv", "labels.csv"), (
        f"tape-train transformer table.csv --target location {TRAIN}",
        f"tape-train transformer table.tsv --target location {TRAIN}",
        f"tape-train transformer values.csv {TRAIN}",
        f"tape-train transformer residues.csv --test_holdout 0 {TRAIN}",
        f"tape-train transformer labels.csv {TRAIN}",
        f"tape-train transformer table.csv --target location --freeze_encoder --embeddings_dir out/e {TRAIN}",
        "tape-eval transformer run_own --csv table.csv --device cpu",
        "tape-predict run_own table.csv out/p.tsv --device cpu",
        "tape-embed transformer table.tsv out/e.h5 model --device cpu",
        f"proteinlm probe model table.csv --target location --heads fnn {PROBE}",
        f"proteinlm project model table.csv --column location {MAP}",
        "proteinlm project model table.csv --column location --query values.csv " + QUERY,
    ), 16),
    Surface("labelled fasta", ("labelled.fasta",), (
        f"tape-train transformer labelled.fasta {TRAIN}",
        f"proteinlm project model labelled.fasta {MAP}",
        f"proteinlm probe model labelled.fasta --heads fnn {PROBE}",
    ), 4),
    Surface("variants", ("wt.fasta", "dms.csv", "family.a3m"), (
        "proteinlm variants model wt.fasta dms.csv --device cpu --output out/s.csv",
        "proteinlm variants model wt.fasta dms.csv --score pppl --device cpu --output out/s.csv",
        "proteinlm variants model wt.fasta dms.csv --alignment family.a3m --device cpu --output out/s.csv",
        "proteinlm variants model wt.fasta --scan --device cpu --output out/s.csv",
    ), 10),
    Surface("yaml", ("*.yaml",), (
        f"{PRETRAIN} --save out/ckpt",
        f"{PLAN} --json out/plan.json",
        f"tape-train transformer stability --data_dir data --recipe recipe.yaml {TRAIN}",
        "reproduce model data table --preset preset.yaml --tasks stability --report_only",
    ), 12),
    Surface("calibration", ("rates.json",), (
        f"{PLAN} --calibration rates.json --json out/plan.json --html out/plan.html",
    ), 3),
    Surface("shard", ("shard_text_document.*",), (
        f"{PRETRAIN} --save out/ckpt",
        f"{PRETRAIN} --save out/ckpt --group-cap 2",
        f"{PLAN} --data-path shard_text_document --json out/plan.json",
        "converter --load ckpt --save out/m --target dcp --verify --data-path shard_text_document --seq-length 64",
    ), 12),
    Surface("checkpoint", ("ckpt/*", "ckpt/*/*", "ckpt/*/.metadata"), (
        f"{PRETRAIN} --save ckpt --load ckpt --train-iters 4",
        f"{PRETRAIN} --save out/ckpt --load ckpt --train-iters 4",
        "converter --load ckpt --save out/m --target tape --verify",
        "converter --load ckpt --save out/m --target megatron",
        "curves ckpt --output out/c.html --png out/c.png",
    ), 14),
    Surface("megatron", ("megatron/*.txt", "megatron/*/*/*.pt"), (
        "converter --load megatron --save out/m --target tape",
        "converter --load megatron --save out/m --target dcp",
        "converter --load megatron --save out/m --target hf --dtype fp16",
    ), 12),
    Surface("tape directory", ("model*/*",), (
        *readers("model"),
        "converter --load model --save out/m --target dcp",
        "converter --load model --save out/m --target megatron",
        "proteinlm variants model wt.fasta dms.csv --device cpu --output out/s.csv",
        *readers("model_bin", "converter --load model_bin --save out/m --target tape --verify"),
        "tape-train transformer stability --data_dir data --model_config_file model/config.json --output_dir out/run "
        + SHORT,
    ), 14),
    Surface("songlab", ("songlab*/*",), (
        "tape-embed tape_transformer proteins.fasta out/e.npz songlab --device cpu",
        "tape-train tape_transformer stability --data_dir data --from_pretrained songlab --output_dir out/run " + SHORT,
        "tape-train lstm stability --data_dir data --from_pretrained songlab_lstm --output_dir out/run " + SHORT,
        "tape-embed resnet proteins.fasta out/e.npz songlab_resnet --device cpu",
    ), 6),
    Surface("esm", ("esm*/*", "fair/*.pt"), (
        *readers("esm"),
        "proteinlm contacts esm proteins.fasta out/c.csv --device cpu",
        "converter --load esm --save out/m --target fair-esm",
        "proteinlm variants esm wt.fasta dms.csv --device cpu --output out/s.csv",
        *readers("esmc", "converter --load esmc --save out/m --target dcp"),
        *readers("fair/esm2_t2.pt", "converter --load fair/esm2_t2.pt --save out/m --target esm"),
        "tape-embed transformer proteins.fasta out/e.npz fair1b/esm1b_t2.pt --too_long crop --device cpu",
        "converter --load fair1b/esm1b_t2.pt --save out/m --target dcp",
    ), 14),
    Surface("huggingface", ("hf*/*", "prot*/*"), (
        *readers("prott5", kind="huggingface"),
        *readers("protbert", kind="huggingface"),
        *readers("protxlnet", kind="huggingface"),
        "converter --load hf --save out/m --target tape --verify",
    ), 10),
    Surface("run", ("run*/*", "run*/last/*"), (
        "tape-eval transformer stability run --data_dir data --split valid --device cpu",
        "tape-eval transformer run_own --csv table.csv --device cpu",
        "tape-predict run proteins.fasta out/p.tsv --device cpu",
        "tape-predict run_own proteins.fasta out/p.tsv --device cpu",
        "tape-predict run_contact proteins.fasta out/p.npz --no-png --device cpu",
        f"tape-train transformer stability --data_dir data --from_pretrained model --output_dir run {SHORT} --resume",
        f"tape-train transformer table.csv --target location --from_pretrained model --output_dir run_own {SHORT}"
        " --resume",
        "tape-table run run_own run_contact --output out/t.txt",
    ), 14),
    Surface("results", ("run/*", "table/*", "table/*/*/*/*/*", "prottrans/*", "prottrans/*/*"), (
        "tape-table run run_own --markdown --output out/t.md",
        "tape-table run/stability-valid.json --html --output out/t.html",
        "reproduce model data table --preset preset.yaml --tasks stability --report_only",
        "prottrans prottrans",
    ), 12),
    Surface("log", ("ckpt/metrics.jsonl",), (
        "curves ckpt --output out/c.html --png out/c.png",
        f"{PRETRAIN} --save ckpt --load ckpt --train-iters 4",
    ), 5),
    Surface("kept", ("kept/*", "kept/*/*", "frozen/*", "frozen/*/*", "parts/.*/*", "parts/*/*"), (
        "proteinlm probe model table.csv --target location --heads fnn --device cpu --epochs 1 --seeds 0"
        " --arms pretrained --embeddings_dir kept --output out/p",
        "proteinlm project model table.csv --column location --device cpu --method pca --arms pretrained"
        " --embeddings_dir kept --output out/map",
        f"tape-train transformer table.csv --target location --freeze_encoder --embeddings_dir frozen {TRAIN}",
        "tape-embed transformer proteins.fasta parts/e.npz model --device cpu --part_proteins 4",
    ), 8),
    Surface("regression", ("fair/*regression.pt", "contacts.safetensors"), (
        "proteinlm contacts model proteins.fasta out/c.npz --regression contacts.safetensors --device cpu",
        "proteinlm contacts fair/esm2_t2.pt proteins.fasta out/c.csv --device cpu",
        "proteinlm contacts esm proteins.fasta out/c.csv --regression fair/esm2_t2-contact-regression.pt --device cpu",
    ), 6),
    Surface("plugin", ("*.py",), (
        f"tape-train transformer num_mutations --plugin adding_task.py --data_dir data_gfp {TRAIN}",
        "tape-eval transformer num_mutations run_plugin --plugin adding_task.py --data_dir data_gfp --split valid"
        " --device cpu --metrics median",
        "tape-train dilated secondary_structure --plugin adding_model.py --data_dir data_ss --output_dir out/run "
        + SHORT,
    ), 10),
    Surface("processes", ("run.yaml", "shard_text_document.*", "ckpt/*", "ckpt/*/*", "data/*/*/data.mdb", "model/*"), (
        f"torchrun {RANKS} --save out/ckpt",
        f"torchrun {RANKS} --save ckpt --load ckpt --train-iters 4 --tensor-model-parallel-size 2",
        f"torchrun {RANKS} --save out/ckpt --load ckpt --train-iters 4 --pipeline-model-parallel-size 2"
        " --global-batch-size 4",
        f"tape-train-distributed transformer stability --data_dir data {TRAIN} --nproc_per_node 2",
        "tune out/tune --grid learning_rate 1e-3 -- transformer stability --data_dir data --from_pretrained model "
        + SHORT,
    ), 1, 90.0),
]  # fmt: skip


def words_of(line: str) -> tuple[str, list[str]]:
    """(module, words) of a command line."""
    name, *words = shlex.split(line)
    return PROGRAMS[name], words


def named_inputs(words: list[str], inputs: list[str]) -> Iterator[str]:
    """Inputs that stand on a command line, a shard's files by their prefix."""
    firsts = {part.split("/")[0] for word in words for part in word.split("=")[-1:]}
    for name in inputs:
        if name in firsts or any(name.startswith(f"{first}.") and "_document" in first for first in firsts):
            yield name
