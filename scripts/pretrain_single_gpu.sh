#!/usr/bin/env bash
# Pretrain the 200M protein BERT on one GPU with the published recipe (mixed precision).
#
#   bash scripts/pretrain_single_gpu.sh DATA_PREFIX SAVE [flags]
#
# DATA_PREFIX  what preprocessing wrote, without .bin/.idx: DIR/pfam_text_document
# SAVE         where checkpoints go. Run the same command again to resume from the last one.
# flags        override the configuration: --config pretrain/configs/proteinlm_35m.yaml --micro-batch-size 2 ...
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: bash scripts/pretrain_single_gpu.sh DATA_PREFIX SAVE [flags]" >&2
    exit 2
fi
data=$1 save=$2
here=$(dirname "${BASH_SOURCE[0]}")
shift 2

# A later flag wins over an earlier one, and every flag over the configuration file.
python -m pretrain \
    --config "$here/../pretrain/configs/proteinlm_200m.yaml" \
    --data-path "$data" \
    --save "$save" --load "$save" \
    "$@"
