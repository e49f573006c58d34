#!/usr/bin/env bash
# The whole table: five TAPE tasks from the pretrained, random and one-hot encoder, every seed and split, beside TAPE's
# and ProteinLM's published numbers.
#
#   bash scripts/reproduce_table.sh MODEL_DIR DATA_DIR [OUT] [flags]
#
# MODEL_DIR  a TAPE model directory (what convert.sh wrote): the pretrained encoder, and the shape of the random one
# DATA_DIR   holds the tasks' folders (what download_data.sh fetched)
# OUT        gets table.md, table.html, results.json and runs/<arm>/<task>/seed<n> (default: table)
# flags      --preset full|cpu|cpu_long|FILE.yaml   recipes and seeds: tape/recipes/tables/ (default: full, for a GPU)
#            --arms pretrained random onehot lstm NAME=DIR ...   --tasks ...   --seeds 0 1 2   --splits all
#            --jobs N                     runs side by side (default 1)
#            --report_only                run nothing, write the pages of what is done
#
# Called again it skips what is done and goes on with what was cut off.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: bash scripts/reproduce_table.sh MODEL_DIR DATA_DIR [OUT] [flags]" >&2
    exit 2
fi
exec python -m tape.reproduce "$@"
