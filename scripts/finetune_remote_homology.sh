#!/usr/bin/env bash
# 1,195 SCOP folds; top-1 accuracy.
#
#   bash scripts/finetune_remote_homology.sh MODEL_DIR DATA_DIR OUT [flags]
#
# Arguments and output: see scripts/finetune.sh. Flags override the recipe, tape/recipes/remote_homology.yaml.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: bash scripts/finetune_remote_homology.sh MODEL_DIR DATA_DIR OUT [flags]" >&2
    exit 2
fi
exec bash "$(dirname "$0")/finetune.sh" remote_homology "$@"
