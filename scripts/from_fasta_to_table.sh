#!/usr/bin/env bash
# From a FASTA file to a table of results: preprocess, pretrain, convert, then finetune and score the TAPE tasks.
#
#   bash scripts/from_fasta_to_table.sh FASTA DATA_DIR [OUT] [flags]
#
# FASTA     proteins to pretrain on (FASTA or JSON lines, each also .gz, or TAPE's pfam_train.lmdb)
# DATA_DIR  the tasks' folders (what download_data.sh fetched)
# OUT       gets shards/, ckpt/ and iteration_N/{model,table}/, N the newest checkpoint's (default: output)
# flags     for the last step: --tasks stability --arms pretrained random --jobs 2 ...
#
# CONFIG    model and training, a YAML file (default: pretrain/configs/proteinlm_2m.yaml, under an hour on a CPU)
# PRESET    recipes and seeds of finetuning: cpu, cpu_long, full or a YAML file (default: cpu)
#
# Run the same command again after an interruption: it resumes where it stopped.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: [CONFIG=FILE] [PRESET=cpu] bash scripts/from_fasta_to_table.sh FASTA DATA_DIR [OUT] [flags]" >&2
    exit 2
fi
fasta=$1 data=$2 out=output
shift 2
if [ $# -gt 0 ] && [[ $1 != --* ]]; then
    out=$1
    shift
fi
here=$(dirname "${BASH_SOURCE[0]}")
config=${CONFIG:-$here/../pretrain/configs/proteinlm_2m.yaml}

# 1. Letters become token ids in one memory-mapped file (a shard), so that training can read any protein at once.
shard=$out/shards/proteins
if [ ! -e "${shard}_text_document.idx" ]; then
    python -m pretrain.preprocess --input "$fasta" --output-prefix "$shard"
fi

# 2. The encoder learns to predict masked residues. OUT/ckpt/metrics.jsonl has the loss, to be compared with the
#    entropy of the amino-acid frequencies, the loss of a model that has learned nothing else. With several GPUs:
#    torchrun --nproc-per-node 8 -m pretrain ... A small encoder learns more when it sees short proteins first
#    (benchmarks/pretrain_2m.sh).
python -m pretrain --config "$config" --data-path "${shard}_text_document" --save "$out/ckpt" --load "$out/ckpt"

# 3. The newest checkpoint becomes a model directory: config.json and model.safetensors. --verify runs proteins through
#    both and prints the largest difference. Each iteration has its own: after more pretraining, a new model and table.
result=$out/iteration_$(<"$out/ckpt/latest_checkpointed_iteration.txt")
if [ ! -e "$result/model" ]; then
    python -m converter --load "$out/ckpt" --save "$result/model" --target tape --verify
fi

# 4. Each task is finetuned and scored from the pretrained weights, from random weights (what does pretraining add?) and
#    from one-hot letters (what does an encoder add?). The table has intervals and the published numbers beside them.
python -m tape.reproduce "$result/model" "$data" "$result/table" --preset "${PRESET:-cpu}" "$@"
echo "done: $result/table/table.html, table.md, results.json"
