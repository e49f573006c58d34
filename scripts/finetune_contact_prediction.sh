#!/usr/bin/env bash
# Residue contacts (ProteinNet); P@L/5. The pair maps are large: eight proteins a step, one at a time.
# Finetune a model, then score it on every evaluation split that is there.
#
#   bash scripts/finetune_contact_prediction.sh MODEL_DIR DATA_DIR OUT [flags]
#
# MODEL_DIR  a TAPE model directory (what convert.sh wrote), or `random` for the baseline (add --model_config_file)
# DATA_DIR   holds proteinnet/proteinnet_train.lmdb and so on
# OUT        the run's directory: weights, metrics.jsonl, one contact_prediction-<split>.json a split
# flags      override the recipe: --seed 1, --bf16, --head tape, --max_steps 500 ...
#
# A tenth of train, held out by cluster, decides when to stop; --holdout 0 gives that to the valid split, as TAPE does.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: bash scripts/finetune_contact_prediction.sh MODEL_DIR DATA_DIR OUT [flags]" >&2
    exit 2
fi
model=$1 data=$2 out=$3
shift 3

weights=(--from_pretrained "$model")
if [ "$model" = random ]; then
    weights=()
fi
python -m tape.train transformer contact_prediction ${weights[@]+"${weights[@]}"} --data_dir "$data" --output_dir "$out" \
    --batch_size 8 --gradient_accumulation_steps 8 --learning_rate 1e-4 \
    --num_train_epochs 20 --patience 3 --holdout 0.1 \
    "$@"

splits=()
for split in valid test; do
    if [ -d "$data/proteinnet/proteinnet_$split.lmdb" ]; then
        splits+=("$split")
    fi
done
if [ ${#splits[@]} -gt 0 ]; then
    python -m tape.evaluate transformer contact_prediction "$out" --data_dir "$data" --split "${splits[@]}" \
        --metrics precision_at_l5 --batch_size 1 --save_predictions
fi
