#!/usr/bin/env bash
# 3-class secondary structure (NetSurfP-2.0's data); accuracy over residues.
#
#   bash scripts/finetune_secondary_structure.sh MODEL_DIR DATA_DIR OUT [flags]
#
# Arguments and output: see scripts/finetune.sh. Flags override the recipe, tape/recipes/secondary_structure.yaml.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: bash scripts/finetune_secondary_structure.sh MODEL_DIR DATA_DIR OUT [flags]" >&2
    exit 2
fi
exec bash "$(dirname "$0")/finetune.sh" secondary_structure "$@"
