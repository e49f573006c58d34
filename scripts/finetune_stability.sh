#!/usr/bin/env bash
# Stability of designed miniproteins; Spearman's rho.
#
#   bash scripts/finetune_stability.sh MODEL_DIR DATA_DIR OUT [flags]
#
# What the arguments mean and what is written: scripts/finetune.sh. Flags override the recipe.
set -euo pipefail
exec bash "$(dirname "$0")/finetune.sh" stability spearmanr stability/stability "valid test" 64 \
    "--batch_size 64 --learning_rate 1e-4 --num_train_epochs 10 --patience 3 --holdout 0.1" "$@"
