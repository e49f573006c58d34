#!/usr/bin/env bash
# A small encoder in ESM-2's format on a balanced corpus, short proteins first; docs/results.md has what it reached.
#
#   bash benchmarks/pretrain_esm2_2m.sh TRAIN.fasta VALID.fasta OUT [JUDGED ...]
#
# OUT       corpus/, ckpt/, model_esm/ (a stock Hugging Face EsmForMaskedLM directory)
# JUDGED    files of proteins that the encoder will be judged by; what is near them is left out of training
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: bash benchmarks/pretrain_esm2_2m.sh TRAIN.fasta VALID.fasta OUT [JUDGED ...]" >&2
    exit 2
fi
train=$1 valid=$2 out=$3
shift 3
corpus=$out/corpus
mkdir -p "$out"
if [ ! -e "$corpus/balanced.fasta" ]; then
    python benchmarks/heldout_families.py split "$train" "$corpus"
    python benchmarks/balanced_corpus.py "$corpus/train.fasta" "$corpus/balanced.fasta" --away-from "$@"
fi
shard() { # NAME INPUT [flags]: a shard, unless it is there
    if [ ! -e "$corpus/$1_text_document.idx" ]; then
        python -m pretrain.preprocess --tokenizer-type esm --output-prefix "$corpus/$1" --input "$2" "${@:3}"
    fi
}
for length in 70 128 256; do
    shard "train$length" "$corpus/balanced.fasta" --max-length "$length"
done
shard train "$corpus/balanced.fasta"
shard heldout "$corpus/heldout.fasta"
shard valid "$valid"

stage() { # SHARD LAST_ITERATION [flags]
    python -m pretrain --config pretrain/configs/esm2_2m.yaml --device cpu --data-path "$corpus/$1_text_document" \
        --valid-data-path "valid=$corpus/valid_text_document" "heldout=$corpus/heldout_text_document" \
        --save "$out/ckpt" --load "$out/ckpt" --train-iters "$2" --override-lr-scheduler --override-data "${@:3}"
}
stage train70 1500
stage train128 4200
stage train256 4676
stage train 6000 --lr-decay-style linear --lr-warmup-iters 4676 --lr-decay-iters 6000
python -m converter --load "$out/ckpt" --save "$out/model_esm" --target esm --verify
