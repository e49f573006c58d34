#!/usr/bin/env bash
# The encoder of docs/results.md: proteinlm_2m, short proteins first, on one CPU core in about 50 minutes.
#
#   bash benchmarks/pretrain_2m.sh TRAIN.fasta VALID.fasta OUT
#
# OUT        corpus/ (twenty held-out families, shards), ckpt/ (checkpoints, metrics.jsonl), model/ (a TAPE directory)
#
# Four stages, each going on from the last with longer proteins: weights, Adam's moments and the iteration carry over.
# Without the short start an encoder this small spends the same hour on amino-acid frequencies and learns nothing else.
set -euo pipefail
if [ $# -ne 3 ]; then
    echo "usage: bash benchmarks/pretrain_2m.sh TRAIN.fasta VALID.fasta OUT" >&2
    exit 2
fi
train=$1 valid=$2 out=$3
corpus=$out/corpus
mkdir -p "$out"
if [ ! -e "$corpus/heldout.fasta" ]; then
    python benchmarks/heldout_families.py split "$train" "$corpus"
fi
shard() { # NAME INPUT [flags]: a shard, unless it is there
    if [ ! -e "$corpus/$1_text_document.idx" ]; then
        python -m pretrain.preprocess --output-prefix "$corpus/$1" --input "$2" "${@:3}"
    fi
}
for length in 70 128 256; do
    shard "train$length" "$corpus/train.fasta" --max-length "$length"
done
shard train "$corpus/train.fasta"
shard heldout "$corpus/heldout.fasta"
shard valid "$valid"

stage() { # SHARD LAST_ITERATION [flags]
    python -m pretrain --config pretrain/configs/proteinlm_2m.yaml --device cpu --data-path "$corpus/$1_text_document" \
        --valid-data-path "valid=$corpus/valid_text_document" "heldout=$corpus/heldout_text_document" \
        --save "$out/ckpt" --load "$out/ckpt" --train-iters "$2" --override-lr-scheduler --override-data "${@:3}"
}
stage train70 1500
stage train128 4500
stage train256 7000
# Whole proteins last, while the learning rate falls to 0.
stage train 8600 --seq-length 1024 --micro-batch-size 2 --eval-interval 800 \
    --lr-decay-style linear --lr-warmup-iters 7000 --lr-decay-iters 8600
python -m converter --load "$out/ckpt" --save "$out/model" --target tape --verify
