#!/usr/bin/env bash
# Residue contacts (ProteinNet); P@L/5.
#
#   bash scripts/finetune_contact_prediction.sh MODEL_DIR DATA_DIR OUT [flags]
#
# Arguments and output: see scripts/finetune.sh. Flags override the recipe, tape/recipes/contact_prediction.yaml.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: bash scripts/finetune_contact_prediction.sh MODEL_DIR DATA_DIR OUT [flags]" >&2
    exit 2
fi
exec bash "$(dirname "$0")/finetune.sh" contact_prediction "$@"
