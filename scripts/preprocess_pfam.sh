#!/usr/bin/env bash
# Files of proteins to the token shard that pretraining reads: PREFIX_text_document.{bin,idx} and a summary.
#
#   bash scripts/preprocess_pfam.sh INPUT PREFIX [flags]
#
# INPUT   FASTA, JSON lines (each also .gz) or a TAPE directory such as pfam/pfam_train.lmdb
# PREFIX  where the shard goes: DIR/pfam
# flags   e.g. --workers 8, --strict, or --input A B C for several inputs
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: bash scripts/preprocess_pfam.sh INPUT PREFIX [flags]" >&2
    exit 2
fi
input=$1 prefix=$2
shift 2

python -m pretrain.preprocess --input "$input" --output-prefix "$prefix" "$@"
