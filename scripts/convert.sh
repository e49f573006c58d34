#!/usr/bin/env bash
# A pretraining checkpoint to a model directory that TAPE reads; the two are then compared, hidden state by hidden state.
#
#   bash scripts/convert.sh SRC DST [flags]
#
# SRC    the --save directory of pretraining (its newest checkpoint; another one: --iteration N)
# DST    the model directory to write
# flags  e.g. --target tape, which is what is done without any
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: bash scripts/convert.sh SRC DST [flags]" >&2
    exit 2
fi
source=$1 destination=$2
shift 2

python -m converter --load "$source" --save "$destination" --target tape --verify "$@"
