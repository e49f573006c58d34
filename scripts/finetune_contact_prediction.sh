#!/usr/bin/env bash
# Residue contacts (ProteinNet); P@L/5. The pair maps are large: eight proteins a step, one at a time.
#
#   bash scripts/finetune_contact_prediction.sh MODEL_DIR DATA_DIR OUT [flags]
#
# What the arguments mean and what is written: scripts/finetune.sh. Flags override the recipe.
set -euo pipefail
exec bash "$(dirname "$0")/finetune.sh" contact_prediction precision_at_l5 proteinnet/proteinnet "valid test" 1 \
    "--batch_size 8 --gradient_accumulation_steps 8 --learning_rate 1e-4 --num_train_epochs 20 --patience 3 --holdout 0.1" "$@"
