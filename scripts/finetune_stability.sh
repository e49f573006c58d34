#!/usr/bin/env bash
# Stability of designed miniproteins; Spearman's rho.
#
#   bash scripts/finetune_stability.sh MODEL_DIR DATA_DIR OUT [flags]
#
# Arguments and output: see scripts/finetune.sh. Flags override the recipe, tape/recipes/stability.yaml.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: bash scripts/finetune_stability.sh MODEL_DIR DATA_DIR OUT [flags]" >&2
    exit 2
fi
exec bash "$(dirname "$0")/finetune.sh" stability "$@"
