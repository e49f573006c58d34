#!/usr/bin/env bash
# 1,195 SCOP folds; top-1 accuracy.
#
#   bash scripts/finetune_remote_homology.sh MODEL_DIR DATA_DIR OUT [flags]
#
# What the arguments mean and what is written: scripts/finetune.sh. Flags override the recipe.
set -euo pipefail
exec bash "$(dirname "$0")/finetune.sh" remote_homology accuracy remote_homology/remote_homology "valid test_fold_holdout test_superfamily_holdout test_family_holdout" 32 \
    "--batch_size 32 --learning_rate 1e-4 --num_train_epochs 20 --patience 3 --holdout 0.1" "$@"
