#!/usr/bin/env bash
# 3-class secondary structure (NetSurfP-2.0's data); accuracy over residues.
#
#   bash scripts/finetune_secondary_structure.sh MODEL_DIR DATA_DIR OUT [flags]
#
# What the arguments mean and what is written: scripts/finetune.sh. Flags override the recipe.
set -euo pipefail
exec bash "$(dirname "$0")/finetune.sh" secondary_structure accuracy secondary_structure/secondary_structure "valid casp12 ts115 cb513" 32 \
    "--batch_size 32 --learning_rate 1e-4 --num_train_epochs 20 --patience 3 --holdout 0.1" "$@"
