#!/usr/bin/env bash
# A checkpoint to a model directory that TAPE reads; the two are then compared, tensor by tensor and hidden state by
# hidden state.
#
#   bash scripts/convert.sh SRC DST [flags]
#
# SRC    the --save directory of pretraining (its newest checkpoint; another one: --iteration N), a Megatron checkpoint
#        (directory or model_optim_rng.pt), a TAPE or a Hugging Face model directory: recognised by what is in it
# DST    the directory to write; must be new
# flags  e.g. --target hf, megatron or dcp (without: tape), --dtype fp16, --tensor-model-parallel-size 2
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: bash scripts/convert.sh SRC DST [flags]" >&2
    exit 2
fi
source=$1 destination=$2
shift 2

python -m converter --load "$source" --save "$destination" --target tape --verify "$@"
